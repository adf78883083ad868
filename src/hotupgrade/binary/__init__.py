"""What a build is: ELF, symbols, relocations, references.  Knows no process."""

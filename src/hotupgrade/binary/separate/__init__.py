"""Symbols and debug information that do not lie in the file itself.

``links`` is what a file says of it, ``places`` are where it may lie, ``companion`` is a file that was found and
belongs, ``find`` puts them together.  Files of strangers are read here like everywhere in :mod:`hotupgrade.binary`:
the only native code that sees them are the decompressors of ``unpack``, whose output is bounded.
"""

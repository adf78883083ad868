"""What a build's DWARF says of its types, variables and functions.

Files of strangers are read here, so nothing of it is native code: a reader in Python cannot be made to write where it
must not, and its time and memory are bounded by what it counts itself.  libdw, called through cffi, was tried: to walk
libopenvswitch's entries took it as long as this takes, and it would have had to run in a process of its own to be as
safe.
"""

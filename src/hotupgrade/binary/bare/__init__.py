"""Builds without a symbol table: what binds their functions and their objects is found by structure.

Exported names, the frame information, relocations and the code itself are left when a file is stripped.
"""

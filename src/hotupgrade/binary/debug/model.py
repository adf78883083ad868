"""What was read of a build's types: plain data that can be compared, and kept in a cache.

A *text* describes a type so that equal texts mean equal layouts: typedefs, ``const`` and ``volatile`` are left out,
``_Atomic`` stays, and a type with a name stands between backquotes, to be looked up by that name
("`struct conn` * [4]", read from left to right: four pointers to ``struct conn``).
"""

from __future__ import annotations

import re

import msgspec

ATOMIC = " _Atomic"

SHORTENED = "… "  # in a text that was too long: the names in it may be incomplete

_NAME = re.compile(r"`([^`]*)`")


class Field(msgspec.Struct, frozen=True, array_like=True):
    """A member of a structure; those of unnamed structures within it are its own.

    ``bit`` counts from the start of the structure; ``bits`` is the width of a bit-field, 0 for any other member.
    ``name`` is "" for nothing: base classes are ``<base NAME>``, virtual functions ``<virtual N>``.
    """

    name: str
    bit: int
    bits: int
    text: str


class Definition(msgspec.Struct, frozen=True, array_like=True):
    """One type with a name: a structure, a union, or an enumeration.

    ``size`` is in bytes (-1: not said); ``alignment`` is what the source asked for explicitly, or 0.
    ``enumerators`` are those of an enumeration, ``text`` what it is stored as.
    """

    kind: str  # struct, union, enum
    size: int
    alignment: int
    fields: tuple[Field, ...] = ()
    enumerators: tuple[tuple[str, int], ...] = ()
    text: str = ""


class Variable(msgspec.Struct, frozen=True, array_like=True):
    """A variable with a fixed place.

    ``address`` is a vaddr, or the offset in the thread-local block; ``scope`` is the function that it is local to.
    ``part`` is "" for all of it as its type says.  LLVM keeps members of a static structure apart ("[8:16]": those
    bytes of it), and in one byte what only ever has two values ("as …": the expression that gives the value).
    """

    address: int
    thread_local: bool
    name: str
    scope: str
    file: str
    text: str
    part: str = ""


class Debug(msgspec.Struct, frozen=True):
    """The debug information of a build.

    ``missing`` says why there is none, or "".  Files go by their last name, as in symbol tables.  ``types`` holds, for
    each name, which definitions (indices into ``definitions``) which files (indices into ``files``) have of it: files
    may each have a private type of one name.  ``functions`` maps (name, file; file is "" for a global name) to the
    texts of its prototypes; ``imports`` the same for functions that are only declared.  ``constants`` are the
    enumerators of enumerations without a name: (name, file, whether it is alone in its enumeration) to values.
    ``covered`` are the ranges [low, high) of code (vaddr) that it is about, ascending.
    ``atomics``: whether ``_Atomic`` would be seen; DWARF 4 has no way to say it.
    """

    missing: str = ""
    atomics: bool = True
    covered: list[tuple[int, int]] = []
    files: list[str] = []
    definitions: list[Definition] = []
    types: dict[str, list[tuple[int, list[int]]]] = {}
    typedefs: dict[str, list[str]] = {}
    variables: list[Variable] = []
    functions: list[tuple[str, str, list[str]]] = []
    imports: dict[str, list[str]] = {}
    constants: list[tuple[str, str, bool, list[int]]] = []


def checked(debug: Debug) -> Debug:
    """What was kept elsewhere, if it is consistent.

    Raises:
        ValueError: an index leads nowhere.
    """
    definitions, names = len(debug.definitions), len(debug.files)
    for found in debug.types.values():
        for index, files in found:
            good = not files or 0 <= min(files) <= max(files) < names
            if not 0 <= index < definitions or not good:
                raise ValueError(index)
    return debug


def names_in(text: str) -> list[str]:
    """The names of the types that a text leads to."""
    return _NAME.findall(text)


def without_atomics(definition: Definition) -> Definition:
    fields = tuple(Field(f.name, f.bit, f.bits, f.text.replace(ATOMIC, "")) for f in definition.fields)
    return Definition(definition.kind, definition.size, definition.alignment, fields, definition.enumerators)


def plain(text: str) -> str:
    """A text for a person."""
    return text.replace("`", "")

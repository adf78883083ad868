"""Tell debuggers of new images, the way that the dynamic linker tells them of its own.

A debugger finds the libraries of a process, or of its core, in ``struct r_debug``: a list of link maps, each with the
load address and the path of a file.  Since glibc 2.35 this structure may have a successor (``struct r_debug_extended``
in ``<link.h>``), meant for further namespaces: one more list of link maps, that the linker itself never looks into.
Ours hangs there.  No code of the process takes part, and nothing but a debugger ever sees it.

The link maps lie in the annexes of the images, which stay mapped as long as the process lives; the structure that
holds them has a page of its own.  Everything is written before the one store that makes it visible.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from hotupgrade.errors import NotNow, Reason
from hotupgrade.target.agent import (
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    NAME,
    PROT_READ,
    PROT_WRITE,
    SYS_CLOSE,
    SYS_MMAP,
    Agent,
    system_call,
)
from hotupgrade.target.images import ANNEX
from hotupgrade.target.maps import PAGE, gaps
from hotupgrade.target.modules import Module
from hotupgrade.target.process import Process

_DT_DEBUG = 21
_RENDEZVOUS = struct.Struct("<QQQQQQ")  # r_version, r_map, r_brk, r_state, r_ldbase, r_next
_R_NEXT = 40
_LINK = struct.Struct("<QQQQQ")  # l_addr, l_name, l_ld, l_next, l_prev
_L_NEXT = 24
_EXTENDED = 2  # the r_version from which on r_next is looked at
_MOST_NAMESPACES, _MOST_IMAGES = 64, 4096
_FILE = f"{NAME}-debugger"
_REACH = 1 << 30  # how far above the linker a free page is looked for

# Within an annex, behind libgcc's struct object.
_OUR_LINK, _OUR_NAME = 1024, 1536


@dataclass(frozen=True, slots=True)
class Told:
    """What a debugger is to know of one image."""

    base: int  # load bias
    annex: int  # address of the room behind the image
    dynamic: int  # absolute address of what the file calls .dynamic; debuggers check that it fits the file
    path: str  # of the very build, as the debugger will open it


def tell(agent: Agent, modules: Sequence[Module], images: Sequence[Told]) -> Reason | None:
    """Have debuggers find every one of ``images``; those that are listed already stay so.

    ``modules`` is the linker's list, the executable first.

    Returns:
        None, or why debuggers cannot be told, and what to type into one instead.
    """
    if not images:
        return None
    at = _rendezvous(agent.process, modules)
    if isinstance(at, str):
        return _untold(at, images)
    try:
        _List(agent, at).extend(images)
    except (NotNow, ValueError) as error:
        return _untold(str(error), images)
    return None


def _untold(why: str, images: Sequence[Told]) -> Reason:
    commands = "; ".join(f"add-symbol-file {image.path} -o {image.base:#x}" for image in images)
    return Reason(
        "debugger-untold", "gdb", f"debuggers will not find the new names by themselves ({why}); in gdb say: {commands}"
    )


def _rendezvous(process: Process, modules: Sequence[Module]) -> int | str:
    """The address of the linker's own structure, or why it cannot be extended."""
    linker = next((m for m in modules if m.name.startswith("ld-linux")), None)
    library = next((m for m in modules if m.name.startswith("libc.so.6")), None)
    at = modules[0].dynamic.get(_DT_DEBUG, (0,))[0]
    if linker is None or library is None or not linker.low <= at <= linker.high - _RENDEZVOUS.size:
        return "the process was not started by glibc's dynamic linker"
    if _glibc(library) < (2, 35) and _version(process, at) < _EXTENDED:
        return "they can since glibc 2.35"
    return at


def _glibc(library: Module) -> tuple[int, int]:
    """The version of the C library, from what it prints when it is executed."""
    found = re.search(rb"GNU C Library [^\n]*release version (\d+)\.(\d+)", library.contents())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _version(process: Process, at: int) -> int:
    return int.from_bytes(process.read(at, 4), "little")


class _List:
    """Our list of link maps, and where it is or will be hung in."""

    def __init__(self, agent: Agent, linker: int) -> None:
        self._agent = agent
        self._process = process = agent.process
        self._linker = linker
        self._ours = self._last = 0
        self._spare = next((m.start for m in process.maps() if m.path == f"/memfd:{_FILE} (deleted)"), 0)
        at = linker
        for _ in range(_MOST_NAMESPACES):
            self._tail = at
            _, _, _, state, _, following = _RENDEZVOUS.unpack(process.read(at, _RENDEZVOUS.size))
            if state & 0xFFFFFFFF:  # an int; its padding is anybody's
                raise ValueError("a library is being loaded just now")
            if at == self._spare:
                self._ours = at
            if not following or (at == linker and _version(process, at) < _EXTENDED):
                return
            at = following
        raise ValueError("the linker's list of namespaces has no end")

    def extend(self, images: Sequence[Told]) -> None:
        """Add those images that are not there, then make the list visible if it was not."""
        listed = self._listed() if self._ours else set()
        fresh = [image for image in images if image.annex + _OUR_LINK not in listed]
        for image in fresh:
            self._append(image)
        if fresh and not self._ours:
            self._hang_in(fresh[0])

    def _listed(self) -> set[int]:
        """Addresses of the link maps in our list."""
        found: set[int] = set()
        at = self._process.read_word(self._ours + 8)
        while at:
            if at in found or len(found) > _MOST_IMAGES:
                raise ValueError("our list of images is damaged")
            found.add(at)
            self._last = at
            at = self._process.read_word(at + _L_NEXT)
        return found

    def _append(self, image: Told) -> None:
        name = os.fsencode(image.path) + b"\0"
        if len(name) > ANNEX - _OUR_NAME:
            raise ValueError(f"the path {image.path} is too long")
        place = image.annex + _OUR_LINK
        self._process.write(image.annex + _OUR_NAME, name)
        self._process.write(place, _LINK.pack(image.base, image.annex + _OUR_NAME, image.dynamic, 0, self._last))
        if self._last:
            self._process.write(self._last + _L_NEXT, place.to_bytes(8, "little"))
        self._last = place

    def _hang_in(self, first: Told) -> None:
        """The only two words of the linker's that are written; dlmopen writes the same ones for a new namespace."""
        _, _, brk, _, linker_base, _ = _RENDEZVOUS.unpack(self._process.read(self._linker, _RENDEZVOUS.size))
        ours = _RENDEZVOUS.pack(_EXTENDED, first.annex + _OUR_LINK, brk, 0, linker_base, 0)
        at = self._spare or self._page()  # spare: a tool was killed before it hung the page in
        self._process.write(at, ours)
        self._process.write(self._tail + _R_NEXT, at.to_bytes(8, "little"))
        if _version(self._process, self._linker) < _EXTENDED:
            self._process.write(self._linker, _EXTENDED.to_bytes(4, "little"))

    def _page(self) -> int:
        """A page for our structure, above the linker's.

        gdb sorts the structures by address and takes the first definition of a name that it finds: a variable's must be
        that of the library that the process started with, where it lives.  The page is writable because the linker
        links a later namespace behind ours.
        """
        low = self._linker // PAGE * PAGE + PAGE
        room = next(
            (start for start, end in gaps(self._process.maps(), low, low + _REACH) if end - start > 2 * PAGE), 0
        )
        if not room:
            raise ValueError("there is no free page above the dynamic linker")
        descriptor = self._agent.create_file(_FILE, [], PAGE)
        flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE
        mapping = system_call(SYS_MMAP, room + PAGE, PAGE, PROT_READ | PROT_WRITE, flags, descriptor, 0, fatal=False)
        result = self._agent.run([mapping, system_call(SYS_CLOSE, descriptor, fatal=False)])[0]
        if result != room + PAGE:
            raise ValueError(f"a page could not be mapped (errno {-result})")
        return result

"""What a plan is made of.  Pure data: what is known of the process comes in through :class:`Scene`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from hotupgrade.errors import Reason

if TYPE_CHECKING:
    from hotupgrade.binary.build import Build
    from hotupgrade.binary.model import I32, Flags


@dataclass(frozen=True)
class Comparison:
    """Two builds of one module, matched and compared.  Indices are rows of ``Build.entities``.

    ``old_of[i]`` is the old row paired with new row ``i`` (-1: it is new), ``new_of`` the other way round (-1:
    removed). ``same[i]`` (new rows) is true for a function that means the same in both builds.
    ``replaced[i]`` (new rows) is true for a paired function that must run from the new image: its meaning changed, or
    it cannot be parted from one that did (``dragged[i]`` names the row that drags it).
    ``old_replaced`` is the same over old rows; it also holds old functions that were removed.
    ``plain_old[j]`` is true for an old function that follows the plain ABI: exported, or its address is taken.
    ``led_old[j]``: the entry of this old function, which is replaced, leads to the new one; the others are called by
    nobody any more but old code that was removed.
    """

    old: Build
    new: Build
    old_of: I32
    new_of: I32
    same: Flags
    replaced: Flags
    old_replaced: Flags
    plain_old: Flags
    plain_new: Flags
    led_old: Flags
    dragged: Mapping[int, int]
    ambiguous_new: frozenset[int]  # new mutable rows for which no single partner could be proven
    resized: tuple[tuple[int, int], ...]  # (old row, new row): paired objects, constants, thread-locals of other size
    initial_changed: tuple[tuple[int, int], ...]  # (old row, new row): kept variables with another initial value
    tls_equal: bool  # every paired thread-local has the same offset, and none is new
    notes: tuple[Reason, ...] = ()


class Scene(Protocol):
    """What a plan must know of the process, for one module; implemented over a live target or over a test's
    dictionary."""

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the process at an absolute address."""

    def resolve(self, symbol: str, version: str) -> int | None:
        """The absolute address that the loader binds this symbol to, seen from this module; None if there is none.

        For an IFUNC this is the address of the chosen implementation, as found in a slot that is already bound.
        """

    @property
    def tls_module(self) -> int | None:
        """The module id that the loader gave to the module's thread-local block."""

    @property
    def tls_block(self) -> int | None:
        """Thread-pointer offset of the module's block when it lies in static TLS (negative), else None."""


@dataclass(frozen=True)
class Image:
    """One build of a module, placed in the process.

    ``base`` is the load bias: absolute address = base + vaddr.  Image 0 of a module is the loader's own.  ``placed``
    holds the rows of functions whose code is present and relinked (None: all of them, as in image 0 and after
    ``--whole``). ``owned`` maps rows that have their home in this image because no earlier image had them (empty for
    image 0, which owns everything).
    """

    build: Build
    base: int
    placed: frozenset[int] | None = None
    owned: frozenset[int] = frozenset()
    tls_offsets: Mapping[int, int] = field(default_factory=dict)  # row → offset from the module's own TLS block


class EditKind(enum.StrEnum):
    JUMP = "jump"  # the entry of a function
    CONSTANT = "constant"  # contents of a constant table at its home
    IMPORT = "import"  # an import slot of another module (--imports)


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes to be replaced at the stop.  ``old`` and ``new`` have equal length, are 8-byte aligned and a multiple of
    8."""

    address: int
    old: bytes
    new: bytes
    kind: EditKind
    what: str


@dataclass(frozen=True, slots=True)
class Watch:
    """A range [low, high) in which no thread may stand, nor have a return address, at the commit."""

    low: int
    high: int
    name: str
    retry: bool = True  # False: waiting is of no use (a function that never returns)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes to be written into a new image, at an offset from its start."""

    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Protection:
    """Final protection of a page range of a new image (offset and size are multiples of 4096)."""

    offset: int
    size: int
    writable: bool
    executable: bool


@dataclass(frozen=True)
class ImagePlan:
    """An image to be mapped at ``base`` (absolute); pages without a piece stay zero and take no memory."""

    base: int
    size: int  # bytes, a multiple of 4096
    pieces: tuple[Piece, ...]
    protections: tuple[Protection, ...]
    eh_frame: int | None  # absolute address to register with the unwinder, or None


@dataclass(frozen=True)
class TlsRequest:
    """New thread-locals that need room: the reserve must have this initial image."""

    initial: bytes
    alignment: int


@dataclass(frozen=True, slots=True)
class Call:
    """A function of the target to be run: a new constructor, a hook."""

    address: int
    name: str
    arguments: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the new build wants to be called (see ``include/hotupgrade.h``)."""

    before: tuple[Call, ...] = ()  # before the stop
    sync: tuple[Call, ...] = ()  # in the stop, before the first edit
    after: tuple[Call, ...] = ()  # after the commit
    cancel: tuple[Call, ...] = ()  # instead of the commit, if "before" was called
    back: tuple[Call, ...] = ()  # in the stop of a rollback
    one_way: str = ""  # a hook that changes state and has no counterpart in "back"


@dataclass(frozen=True)
class ModulePlan:
    """Everything that one module's upgrade does to the process."""

    module: str
    image: ImagePlan | None  # None: every needed copy is in the process already
    placed: Image  # the image that becomes current (new, or one that is reused)
    edits: tuple[Edit, ...]
    watches: tuple[Watch, ...]
    constructors: tuple[Call, ...]
    hooks: Hooks
    functions: Mapping[str, tuple[str, ...]]  # changed, dragged, added, removed → names
    objects: Mapping[str, tuple[str, ...]]  # new, resized, initial-changed, constants-updated → names
    notes: tuple[Reason, ...]  # what only the process shows; the verdict has its own

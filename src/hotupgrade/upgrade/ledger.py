"""The ledger: what was done to a process, kept in its own memory and so exactly as old as the process.

It is data from another process and checked before use: a header with a size and a checksum, then a compressed record of
strict types.  A commit switches from one ledger to the next by a single store, among the edits themselves, so that the
ledger in force always describes the code in force, whenever the tool was killed.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence

import msgspec

from hotupgrade.errors import NotNow, Reason
from hotupgrade.target.agent import Agent

MAGIC = 0x3172656764656C75  # "uledger1"
VERSION = 1
_HEADER = struct.Struct("<QQQ")
_WORD = struct.Struct("<QQQ")
_MOST_BYTES, _MOST_EXPANDED = 64 << 20, 256 << 20
_MOST_RECORDS = 1 << 20
#: What a build-id looks like; it becomes part of a path.
BUILD_ID = re.compile(r"(sha1-)?[0-9a-f]{2,128}")
_HIGHEST = 1 << 47


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One build of a module that lies in the process."""

    build_id: str
    path: str
    base: int  # load bias
    start: int  # the mapping that we made; 0 for the loader's own image
    size: int
    placed: list[int] | None
    owned: list[int]
    tls_offsets: dict[int, int]
    exports: dict[str, int]  # exported names that have their home here
    pages: int  # bytes that it takes
    bare: bool = False  # the rows above are those of a build without symbols
    eh_frame: int = 0  # absolute address of the table that the unwinder must know; 0 if there is none


class ModuleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A module of which the process holds more than one build."""

    name: str
    base: int  # of the loader's image
    images: list[ImageRecord]
    current: int  # index of the build in force


class GenerationModule(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    build_id: str
    path: str
    previous: int  # index of the build that was in force before
    image: int


class SiteRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A call in a loop that comes by the agent while threads are restarted."""

    address: int  # of the instruction, "call rel32"
    plain: int  # its displacement otherwise, as 32 bits
    stub: int  # where it leads then
    index: int  # of its row in the agent's table
    kind: str  # clean, setup, work
    pair: int  # index into LoopRecord.pairs; 0 for work
    returns: int | None = None


class SideRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The loop's code in one build."""

    entry: int
    ranges: list[tuple[int, int]]
    sleeps: list[int]  # return addresses of the calls that its threads sleep in


class PlaceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Found from the loop's argument: see :class:`hotupgrade.plan.loops.model.Place`."""

    offsets: list[int]
    size: int
    path: str


class LoopRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A loop whose threads are restarted when the generation comes or goes."""

    function: str
    home: int
    door: str
    hold_main: bool
    one_by_one: bool
    sides: list[SideRecord]
    sites: list[SiteRecord]
    pairs: list[tuple[str, str]]  # names of the clean-up and the set-up call
    ask: list[tuple[PlaceRecord, int]] = []
    clear: list[tuple[PlaceRecord, int]] = []
    wake: list[tuple[int, PlaceRecord]] = []  # address of the function, place of its argument
    leaving: PlaceRecord | None = None
    latch: PlaceRecord | None = None
    flag: int = 0  # address
    thread: PlaceRecord | None = None
    limit_us: int


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One commit, with all that is needed to take it back."""

    number: int
    time: str
    modules: list[GenerationModule]
    data: bytes  # packed words (address, old, new): constants and import slots
    code: bytes  # packed words: entries of functions
    forbidden: list[tuple[int, int, str]]  # where no thread may stand when it is taken back
    hooks: list[tuple[int, list[int], str]] = []  # address, arguments, name: what brings state back with it
    one_way: str = ""  # a hook that nothing takes back
    loops: list[LoopRecord] = []
    stubs: list[tuple[int, int]] = []  # (start, size) of mappings with stubs for the calls of loops
    busy_break_us: float | None = None
    max_break_us: float | None = None


class Unsettled(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of loops that come by the agent, until a further stop gives them back what they were."""

    loops: list[LoopRecord]
    stubs: list[tuple[int, int]]
    last: bool  # the stubs are not needed afterwards


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    version: int = VERSION
    modules: list[ModuleRecord] = []
    generations: list[Generation] = []
    unsettled: Unsettled | None = None

    @property
    def generation(self) -> int:
        """The number of the generation in force; 0 is what the process started with."""
        return self.generations[-1].number if self.generations else 0

    @property
    def exports(self) -> dict[str, int]:
        """Exported names that only builds brought in by upgrades have, with their homes."""
        return {
            name: address
            for module in self.modules
            if module.current
            for image in module.images
            for name, address in image.exports.items()
        }

    def module(self, name: str, base: int) -> ModuleRecord | None:
        return next((m for m in self.modules if m.name == name and m.base == base), None)


def pack_words(words: Sequence[tuple[int, int, int]]) -> bytes:
    return b"".join(_WORD.pack(*word) for word in words)


def unpack_words(raw: bytes) -> list[tuple[int, int, int]]:
    return [(a, b, c) for a, b, c in _WORD.iter_unpack(raw)]


def encode(ledger: Ledger) -> bytes:
    """The bytes that are stored in the target."""
    return b"".join(sealed(msgspec.msgpack.encode(ledger)))


def sealed(record: bytes) -> tuple[bytes, bytes]:
    """Header and body of an encoded record."""
    body = zlib.compress(record, 1)
    return _HEADER.pack(MAGIC, len(body), zlib.crc32(body)), body


def parts(raw: bytes) -> tuple[bytes, bytes]:
    """Header and body of what :func:`encode` returned."""
    return raw[: _HEADER.size], raw[_HEADER.size :]


def decode(header: bytes, body: bytes) -> Ledger:
    """The inverse of :func:`encode`.

    Raises:
        ValueError: the bytes are no ledger of this version.
    """
    if len(header) != _HEADER.size:
        raise ValueError("no ledger")
    magic, size, checksum = _HEADER.unpack(header)
    if magic != MAGIC or size != len(body) or zlib.crc32(body) != checksum:
        raise ValueError("no ledger")
    expander = zlib.decompressobj()
    try:
        raw = expander.decompress(body, _MOST_EXPANDED)
        if expander.unconsumed_tail:
            raise ValueError("the ledger is too large")
        ledger = msgspec.msgpack.decode(raw, type=Ledger)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise ValueError(str(error)) from error
    if ledger.version != VERSION:
        raise ValueError(f"ledger of version {ledger.version}")
    _check(ledger)
    return ledger


def _check(ledger: Ledger) -> None:
    if len(ledger.modules) > _MOST_RECORDS or len(ledger.generations) > _MOST_RECORDS:
        raise ValueError("the ledger is too long")
    for module in ledger.modules:
        if not 0 < len(module.images) <= _MOST_RECORDS or not 0 <= module.current < len(module.images):
            raise ValueError("the ledger names an image that it does not hold")
        for image in module.images:
            _check_image(image)
    if ledger.unsettled is not None:
        for loop in ledger.unsettled.loops:
            _check_loop(loop)
        _check_stubs(ledger.unsettled.stubs)
    last = 0
    for generation in ledger.generations:
        if len(generation.data) % _WORD.size or len(generation.code) % _WORD.size:
            raise ValueError("the ledger holds part of an edit")
        if not last < generation.number < 1 << 63:
            raise ValueError("the ledger counts wrongly")
        last = generation.number
        if not all(at % 8 == 0 and at < _HIGHEST for at, _, _ in unpack_words(generation.data + generation.code)):
            raise ValueError("the ledger holds an edit of what is no memory")
        if not all(0 <= low <= high <= _HIGHEST for low, high, _ in generation.forbidden):
            raise ValueError("the ledger forbids what is no memory")
        for loop in generation.loops:
            _check_loop(loop)
        _check_stubs(generation.stubs)
        for item in generation.modules:
            record = next((m for m in ledger.modules if m.name == item.name), None)
            if record is None or not (0 <= item.previous < len(record.images) and 0 <= item.image < len(record.images)):
                raise ValueError("the ledger names an image that it does not hold")


def _check_stubs(stubs: Sequence[tuple[int, int]]) -> None:
    if not all(0 < start <= start + size <= _HIGHEST for start, size in stubs):
        raise ValueError("the ledger has stubs where no memory is")


def _check_loop(loop: LoopRecord) -> None:
    places = [loop.home, loop.flag, *(address for address, _ in loop.wake)]
    for side in loop.sides:
        places += [side.entry, *side.sleeps, *(bound for bounds in side.ranges for bound in bounds)]
    places += [place for site in loop.sites for place in (site.address, site.stub)]
    if not all(0 <= place < _HIGHEST for place in places):
        raise ValueError("the ledger has a loop where no memory is")
    if not all(0 <= site.index < _MOST_RECORDS and 0 <= site.pair < 64 for site in loop.sites):
        raise ValueError("the ledger counts calls wrongly")
    stores = [*loop.ask, *loop.clear]
    found = [place for place, _ in stores] + [place for _, place in loop.wake]
    found += [place for place in (loop.leaving, loop.latch, loop.thread) if place is not None]
    if not all(place.offsets and place.size in (1, 2, 4, 8) for place in found):
        raise ValueError("the ledger has a place that is none")
    if not all(0 <= value < 1 << 64 for _, value in stores) or not 0 < loop.limit_us <= 60_000_000:
        raise ValueError("the ledger asks a loop for what it cannot do")


def _check_image(image: ImageRecord) -> None:
    if not BUILD_ID.fullmatch(image.build_id):
        raise ValueError("the ledger names a build by something that is no build-id")  # files are named by it
    places = (image.base, image.start, image.size, image.pages, *image.exports.values())
    rows = (*(image.placed or ()), *image.owned, *image.tls_offsets)
    if not all(0 <= place <= _HIGHEST for place in places) or not all(0 <= row < 1 << 31 for row in rows):
        raise ValueError("the ledger places an image where no memory is")
    if not all(-(1 << 47) < offset < 1 << 47 for offset in image.tls_offsets.values()):
        raise ValueError("the ledger places thread-locals where no memory is")


def read_ledger(agent: Agent | None) -> Ledger:
    """The ledger in force; an empty one if the process was never upgraded.

    Raises:
        NotNow: the process holds something that is no ledger.
    """
    address = agent.get("ledger") if agent else 0
    if agent is None or address == 0:
        return Ledger()
    try:
        header = agent.process.read(address, _HEADER.size)
        size = _HEADER.unpack(header)[1]
        if size > _MOST_BYTES:
            raise ValueError("the ledger is too large")
        return decode(header, agent.process.read(address + _HEADER.size, size))
    except ValueError as error:
        pid = agent.process.pid
        raise NotNow(
            Reason(
                "bad-ledger",
                str(pid),
                f"process {pid}: the record of earlier upgrades in its memory is damaged ({error}); leave it as "
                f"it is until it can be "
                "restarted",
            )
        ) from None

"""What is fuzzed.  Each takes bytes and ends with data or with an error of ours; all else is a finding."""

from __future__ import annotations

import contextlib
import functools
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fuzz import aside, corpus, memory, mutations
from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache, Entry, cache_key, load_build
from hotupgrade.binary.debug.model import checked
from hotupgrade.binary.debug.read import read_debug
from hotupgrade.binary.elf import ElfFile
from hotupgrade.binary.frames import Frames, NoFrameError, caller
from hotupgrade.errors import Refused
from hotupgrade.plan.cache import compare_cached
from hotupgrade.plan.compare import compare
from hotupgrade.plan.make import make_plan
from hotupgrade.plan.model import Image, Scene
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.verdict import verdict
from hotupgrade.target.maps import parse_maps
from hotupgrade.upgrade import journal, ledger
from unit.plan.scenes import BASE, FakeScene

EXTERNALS = {"outside": 0x7E0000001000, "environ": 0x7E0000002000}
NOWHERE = BASE + (64 << 20)


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="hotupgrade-fuzz-"))


@functools.cache
def good() -> Build:
    return Build.from_bytes(corpus.compiled(folder(), "records", 6).read_bytes(), "good")


@functools.cache
def throwing() -> Build:
    return Build.from_bytes(corpus.compiled(folder(), "types-cxx", 6).read_bytes(), "good")


@functools.cache
def typed() -> Build:
    return Build.from_bytes(corpus.compiled(folder(), "types", 6).read_bytes(), "good")


# Files


def read_all(build: Build) -> None:
    """Everything that a build offers."""
    assert len(build.references) == len(build.access)
    assert len(build.plain) == len(build.entities)
    assert build.boundaries.size
    assert build.read(0, min(build.span, 64))
    assert build.fingerprint
    assert build.exception_tables is not None
    assert build.debug.missing or build.debug.files
    assert all(table.count >= 1 for table in build.jump_tables)
    assert build.section_at(0x1000) or build.slot_at(0x1000) or True


def build(data: bytes) -> None:
    with contextlib.suppress(Refused):
        read_all(Build.from_bytes(data, "mutated"))


def types(data: bytes) -> None:
    """Debug information: whatever it says, the answer is what it says or why it is of no use."""
    with contextlib.suppress(Refused):
        elf = ElfFile(data, "mutated")
        debug = read_debug(data, elf.sections)
        assert checked(debug) is debug
        assert debug.missing or debug.files


def frames(data: bytes) -> None:
    """Frame information, and what its first and last places say."""
    found = Frames(data, 1 << 20, "mutated")
    for first, end, _ in found._entries[:64]:
        for place in (first, end - 1):
            with contextlib.suppress(NoFrameError):
                row = found.row(place)
                caller(row, dict.fromkeys(range(17), 1 << 12), lambda at: at & 0xFFFF)


def plan(data: bytes) -> None:
    """The mutated file as the new build, and as the one that runs."""
    with contextlib.suppress(Refused):
        mutated = Build.from_bytes(data, "mutated")
        intact = throwing() if "guarded" in mutated.by_name else typed() if "use" in mutated.by_name else good()
        for old, new in ((intact, mutated), (mutated, intact)):
            with contextlib.suppress(Refused):
                planned(old, new)


def planned(old: Build, new: Build, scene: Scene | None = None) -> None:
    comparison = compare(old, new)
    images = [Image(old, BASE)]
    for options in (PlanOptions(trust_layout=True), PlanOptions(trust_layout=True, whole=True)):
        refusals, _ = verdict(images, 0, new, [comparison], options)
        assert all(reason.code and reason.text for reason in refusals)
        with contextlib.suppress(Refused):
            process = scene or FakeScene(old, externals=EXTERNALS)
            make_plan("x", images, 0, new, [comparison], process, NOWHERE, options)


class Untouched:
    """A process whose module is as its file says, with nothing relocated: for images too large to be copied."""

    tls_module = tls_block = None

    def __init__(self, running: Build) -> None:
        self._running = running

    def read(self, address: int, size: int) -> bytes:
        return self._running.read(address - BASE, size)

    def resolve(self, symbol: str, version: str) -> int | None:  # noqa: ARG002
        return EXTERNALS.get(symbol)


# Records


def ledger_record(data: bytes) -> None:
    """As it lies in a target's memory; and, the checksum being right, as whoever knows the format would forge it."""
    with contextlib.suppress(ValueError):
        ledger.decode(data[:24], data[24:])
    with contextlib.suppress(ValueError):
        looked_at(ledger.decode(*ledger.sealed(data)))


def looked_at(record: ledger.Ledger) -> None:
    """What the commands do with a ledger before they trust it with anything."""
    assert record.generation >= 0
    assert record.exports is not None
    for generation in record.generations:
        assert ledger.unpack_words(generation.data) is not None
        assert ledger.unpack_words(generation.code) is not None
    ledger.decode(*ledger.parts(ledger.encode(record)))


def maps(data: bytes) -> None:
    """Names of mappings are the process's to choose; the kernel ends them at NUL and escapes line feeds."""
    names = [b"/memfd:" + name.replace(b"\n", b"\\012") for name in data.split(b"\0")]
    lines = [b"%x-%x r--p 00000000 00:01 %d    %s\n" % (n, n + 1, n, name) for n, name in enumerate(names)]
    found = parse_maps(b"".join(lines).decode(errors="surrogateescape"))
    assert [mapping.start for mapping in found] == list(range(len(names)))
    assert [mapping.path.encode(errors="surrogateescape") for mapping in found] == names


def journal_lines(data: bytes) -> None:
    (folder() / "journal.jsonl").write_bytes(data)
    for entry in journal.read(folder()):
        msgspec.json.encode(entry)


class _Fixed(Cache):
    """A cache that holds one entry for everything."""

    def __init__(self, payload: bytes) -> None:
        super().__init__(None)
        self._payload = payload

    def get(self, key: str) -> Entry | None:
        try:
            found = msgspec.msgpack.decode(self._payload, type=Entry)
        except (msgspec.MsgspecError, ValueError):
            return None
        return Entry(key, found.columns, found.texts)


def cache_entry(data: bytes) -> None:
    """An entry whose digest is right but whose contents are not: of a file system that lies."""
    cache = _Fixed(data)
    read_all(load_build(good().data, "cached", cache))
    comparison = compare_cached(good(), good(), cache)
    verdict([Image(good(), BASE)], 0, good(), [comparison], PlanOptions())


# Seeds


def sample_ledger() -> bytes:
    image = ledger.ImageRecord(
        build_id="aa", path="/x", base=4096, start=0, size=0, placed=[1], owned=[2], tls_offsets={1: -8},
        exports={"f": 1}, pages=0,
    )  # fmt: skip
    item = ledger.GenerationModule(name="libx.so", build_id="bb", path="/x", previous=0, image=1)
    words = ledger.pack_words([(4096, 1, 2)])
    generation = ledger.Generation(
        number=1, time="now", modules=[item], data=b"", code=words, forbidden=[(1, 2, "f")]
    )  # fmt: skip
    module = ledger.ModuleRecord(name="libx.so", base=4096, images=[image, image], current=1)
    return msgspec.msgpack.encode(ledger.Ledger(modules=[module], generations=[generation]))


def elf_seeds() -> list[bytes]:
    return [*corpus.files(folder()).values(), *corpus.files(folder(), 5).values()]


def type_seeds() -> list[bytes]:
    return [content for name, content in corpus.files(folder()).items() if name.startswith("types")]


def frame_seeds() -> list[bytes]:
    builds = [Build.from_bytes(content, "seed") for content in elf_seeds()]
    return [build.read(*build.eh_frame) for build in builds if build.eh_frame]


def cache_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as place:
        cache = Cache(Path(place))
        read_all(load_build(good().data, "good", cache))
        compare_cached(good(), good(), cache)
        keys = (cache_key("code", good()), cache_key("comparison", good(), good()))
        return [msgspec.msgpack.encode(found) for key in keys if (found := cache.get(key))]


def record_seeds() -> list[bytes]:
    return [ledger.encode(msgspec.msgpack.decode(sample_ledger(), type=ledger.Ledger)), sample_ledger()]


def map_seeds() -> list[bytes]:
    odd = b"a\0b (deleted)\0 \r\x0b\x0c\x1c\x85\xe2\x80\xa87f00-7f01 rw-p 0 0:0 0"
    return [odd, Path("/proc/self/maps").read_bytes()]


def journal_seeds() -> list[bytes]:
    return [b'{"format":1,"time":"now","command":"upgrade","pid":1}\n{"format":1}\n', b"[]\n1\n\xff\n"]


@dataclass(frozen=True)
class Target:
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    share: float  # of the time
    structured: bool = False  # mutate as ELF


TARGETS = {
    "build": Target(build, elf_seeds, 0.25, structured=True),
    "types": Target(types, type_seeds, 0.2, structured=True),
    "frames": Target(frames, frame_seeds, 0.05),
    "plan": Target(plan, elf_seeds, 0.25, structured=True),
    "ledger": Target(ledger_record, record_seeds, 0.05),
    "modules": Target(memory.modules, lambda: [memory.seed()], 0.1),
    "maps": Target(maps, map_seeds, 0.05),
    "journal": Target(journal_lines, journal_seeds, 0.03),
    "cache": Target(cache_entry, cache_seeds, 0.07),
    "companion": Target(aside.companion, aside.companion_seeds, 0.1, structured=True),
    "shared": Target(aside.shared, aside.shared_seeds, 0.1, structured=True),
    "package": Target(aside.package, aside.package_seeds, 0.05),
}


def mutate(data: bytes, most: int, seed: int) -> bytes:
    return mutations.mutated(data, random.Random(seed), most)

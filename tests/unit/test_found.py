"""What reading the code and fuzzing it found, each once; the names say what would have gone wrong."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fuzz.bombs import ALLOC, AT, Bomb, Part
from fuzz.targets import read_all
from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache, entry
from hotupgrade.binary.debug.read import read_debug
from hotupgrade.binary.frames import RETURN, RSP, Frames, NoFrameError, Row, caller
from hotupgrade.errors import NotNow, Refused
from hotupgrade.files import MOST, read_regular
from hotupgrade.plan.compare import compare
from hotupgrade.plan.model import Image
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.verdict import verdict
from hotupgrade.target.maps import parse_maps
from hotupgrade.target.modules import listed
from hotupgrade.target.process import NoMemoryThere, Process
from hotupgrade.upgrade import journal, ledger
from hotupgrade.upgrade.source import open_earlier
from unit.conftest import Compiler

# Files


def test_a_symbolic_relocation_in_a_file_without_dynamic_symbols() -> None:
    row = struct.pack("<QIIq", AT, 1, 0, 0)
    tags = [(7, AT), (8, len(row)), (25, AT), (27, 8)]
    with pytest.raises(Refused) as caught:
        Build.from_bytes(Bomb([Part(".data", row, AT, flags=ALLOC)], dynamic=tags).bytes(), "mutated")
    assert caught.value.reasons[0].code == "corrupt"


def test_a_thread_local_section_at_an_impossible_place(compiler: Compiler) -> None:
    data = bytearray(compiler.file("__thread int t; int f(void) { return t; }\n").read_bytes())
    sections, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    for index in range(count):
        if struct.unpack_from("<Q", data, sections + 64 * index + 8)[0] & 0x400:
            struct.pack_into("<Q", data, sections + 64 * index + 16, (1 << 64) - 8)
    read_all(Build.from_bytes(bytes(data), "mutated"))


def test_structures_in_structures_that_are_all_empty(compiler: Compiler) -> None:
    """Each holds the one before twice: 2^24 of them, without one member."""
    lines = ["struct { struct { } a; } v0;"] + [
        f"struct {{ __typeof__(v{i}) a, b; }} v{i + 1};" for i in range(24)
    ]  # fmt: skip
    text = "\n".join([*lines, "void *f(void) { return &v24; }\n"])
    build = Build.open(compiler.file(text, "-g"))
    begin = time.monotonic()
    assert read_debug(build.data, build.sections) is not None
    assert time.monotonic() - begin < 10


def test_the_build_id_of_another_build(compiler: Compiler) -> None:
    """A linker that is given a fixed build-id gives it to every build; rows were then paired by their number."""
    flags = ("-Wl,--build-id=0x12345678",)
    old = compiler.build("int first; int f(void) { return ++first; }\n", *flags)
    new = compiler.build("int other; int f(void) { return --other; }\nint g(void) { return 1; }\n", *flags)
    assert old.build_id == new.build_id
    with pytest.raises(Refused) as caught:
        verdict([Image(old, 1 << 32)], 0, new, [compare(old, new)], PlanOptions(trust_layout=True))
    (reason,) = caught.value.reasons
    assert reason.code == "build-id-clash"
    assert "contents" in reason.text
    again = Build.from_bytes(old.data, "the same, read again")
    assert not verdict([Image(old, 1 << 32)], 0, again, [compare(old, again)], PlanOptions(trust_layout=True))[0]


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/full", "/proc/self/mem", "pipe", "sparse"])
def test_files_without_an_end(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(MOST + 1)
    with pytest.raises(Refused):
        read_regular(tmp_path / place)  # a path that begins with "/" is itself


def test_a_ledger_that_names_files_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record in a process's memory says where the file of an earlier build is; it may say anything."""
    monkeypatch.setattr("hotupgrade.upgrade.kept.state_folder", lambda: tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe"), "/proc/kmsg", "", "\0", str(tmp_path)):
        begin = time.monotonic()
        with pytest.raises(NotNow) as caught:
            open_earlier("aa", path, Cache(None))
        assert caught.value.reason.code == "no-earlier-build"
        assert time.monotonic() - begin < 5


def test_expressions_that_take_what_they_do_not_have() -> None:
    """Stacks are walked with threads stopped: what a file says of them must be an error that is expected there."""
    memory: Callable[[int], int] = {}.__getitem__
    for expression in (b"\x22", b"\x31\x1a", b"\x06", b"\x23\x01", b"\x08", b"\x77", b"\x77\xff", b""):
        with pytest.raises(NoFrameError):
            caller(Row(expression, {RETURN: -8}, frozenset(), signal=False), {RSP: 4096}, memory)
    common = struct.pack("<II", 14, 0) + b"\1zR\0\1\x78\x10\1\x1b" + b"\xc6"  # DW_CFA_restore, before there is a state
    frame = struct.pack("<IIiIB", 13, len(common) + 4, 0, 64, 0)
    found = Frames(common + frame + bytes(16), 1 << 20, "mutated")
    with contextlib.suppress(NoFrameError):
        found.row(found._entries[0][0])


# Records


def test_names_that_are_not_text(tmp_path: Path) -> None:
    """msgspec raises UnicodeDecodeError for those, which is none of its own errors."""
    (tmp_path / "journal.jsonl").write_bytes(b'{"name":"good"}\n{"name":"\xff"}\n' + b"[" * 100_000 + b"\n")
    assert journal.read(tmp_path) == [{"name": "good"}]
    cache = Cache(tmp_path / "cache")
    cache.put(entry("key", {}, [["text"]]))
    (file,) = (tmp_path / "cache").iterdir()
    assert cache.get("key") is not None
    payload = msgspec.msgpack.encode({"key": "key", "columns": {}, "texts": [["text"]]})
    payload = payload.replace(b"text", b"\xff\xfe\xfd\xfc")
    file.write_bytes(b"hotupgrade cache\0" + hashlib.blake2b(payload, digest_size=32).digest() + payload)
    assert cache.get("key") is None


def image(**changed: object) -> ledger.ImageRecord:
    good = ledger.ImageRecord(
        build_id="aa", path="/x", base=4096, start=0, size=0, placed=None, owned=[], tls_offsets={}, exports={}, pages=0
    )
    return msgspec.structs.replace(good, **changed)


@pytest.mark.parametrize(
    "bad",
    [
        {"build_id": "../../../etc/shadow"},
        {"build_id": "/etc/shadow"},
        {"build_id": ""},
        {"base": -1},
        {"start": 1 << 63},
        {"size": 1 << 60},
        {"pages": -4096},
        {"placed": [-1]},
        {"owned": [1 << 40]},
        {"tls_offsets": {-1: 0}},
        {"tls_offsets": {1: 1 << 62}},
        {"exports": {"f": (1 << 64) - 1}},
    ],
    ids=str,
)
def test_images_that_cannot_be(bad: dict[str, object]) -> None:
    record = ledger.ModuleRecord(name="x", base=0, images=[image(), image(**bad)], current=0)
    with pytest.raises(ValueError, match="ledger"):
        ledger.decode(*ledger.sealed(msgspec.msgpack.encode(ledger.Ledger(modules=[record]))))


@pytest.mark.parametrize(
    "bad",
    [
        {"number": 0},
        {"number": -5},
        {"code": ledger.pack_words([(1 << 63, 0, 0)])},
        {"data": ledger.pack_words([(4097, 0, 0)])},
        {"forbidden": [(5, 4, "f")]},
        {"forbidden": [(-5, 4, "f")]},
    ],
    ids=str,
)
def test_generations_that_cannot_be(bad: dict[str, object]) -> None:
    good = ledger.Generation(number=1, time="", modules=[], data=b"", code=b"", forbidden=[])
    for generations in ([msgspec.structs.replace(good, **bad)], [good, good]):
        with pytest.raises(ValueError, match="ledger"):
            ledger.decode(*ledger.sealed(msgspec.msgpack.encode(ledger.Ledger(generations=generations))))


def test_a_ledger_that_expands_without_end() -> None:
    header, body = ledger.sealed(bytes(300 << 20))
    assert len(body) < 2 << 20
    with pytest.raises(ValueError, match="too large"):
        ledger.decode(header, body)


# Processes


@pytest.mark.parametrize("mark", ["\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_a_mapping_whose_name_would_be_a_second_line(mark: str) -> None:
    """The kernel escapes "\\n" alone; a process may name a memory file as it likes."""
    name = f"/memfd:x{mark}7f0000000000-7f0000001000 rw-p 00000000 00:01 1 /memfd:hotupgrade-agent (deleted)"
    (mapping,) = parse_maps(f"10000-11000 r--p 00000000 00:01 1                 {name}\n")
    assert mapping.path == name


def test_a_thread_whose_name_would_be_a_second_line() -> None:
    shown = threading.Event()
    done = threading.Event()

    def named() -> None:
        ctypes.CDLL(None).prctl(15, b"\rSigBlk:\tffff", 0, 0, 0)  # PR_SET_NAME
        shown.set()
        done.wait(10)

    thread = threading.Thread(target=named)
    thread.start()
    try:
        shown.wait(10)
        with Process(os.getpid()) as process:
            state = process.thread(thread.native_id or 0)
            assert state is not None
            assert state.name == "\rSigBlk:\tffff"
            assert state.blocked_signals & 0xFFFF != 0xFFFF
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("address", [-1, 1 << 63, (1 << 64) - 8, 1 << 70, 8, 1 << 47])
def test_a_pointer_to_nowhere(address: int) -> None:
    with Process(os.getpid()) as process:
        with pytest.raises(NoMemoryThere):
            process.read(address, 8)
        with pytest.raises(NotNow):
            process.write(address, b"12345678")
        with pytest.raises(NotNow):
            listed(process, process.maps(), address)


def test_a_list_of_modules_that_goes_in_a_circle() -> None:
    node = ctypes.create_string_buffer(32)
    ctypes.memmove(node, struct.pack("<QQQQ", 0, 0, 0, ctypes.addressof(node)), 32)
    with Process(os.getpid()) as process, pytest.raises(NotNow) as caught:
        listed(process, process.maps(), ctypes.addressof(node))
    assert caught.value.reason.code == "damaged-modules"

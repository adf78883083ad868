"""Upgrades libraries inside the test's own process: no agent, no tracing, but real code that really runs.

The old library is loaded with ``dlopen``; a :class:`World` answers a plan's questions from the process itself and
carries plans out with ``mmap`` and ``memmove``.  Tests run in forked children (:func:`in_child`), so that a crash is
one failed test.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import os
import shutil
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.errors import Reason
from hotupgrade.plan.compare import compare
from hotupgrade.plan.make import footprint, make_plan, new_thread_locals, reach
from hotupgrade.plan.model import Comparison, Edit, Image, ImagePlan, ModulePlan
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.verdict import verdict

PAGE = 4096
RTLD_NOW, RTLD_LAZY, RTLD_GLOBAL = 2, 1, 0x100

_PROT_NONE, _PROT_READ, _PROT_WRITE, _PROT_EXEC = 0, 1, 2, 4
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_FIXED, _MAP_FIXED_NOREPLACE = 2, 0x20, 0x10, 0x100000
_RTLD_DI_LINKMAP, _RTLD_DI_TLS_MODID = 2, 9

_TPOFF64 = 18

HELPER = """
#include <stdint.h>
__thread char reserve[512] __attribute__((aligned(64), tls_model("initial-exec")));
intptr_t thread_pointer(void) { return (intptr_t) __builtin_thread_pointer(); }
char *reserve_address(void) { return reserve; }
"""


def libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.dlopen.restype = ctypes.c_void_p
    library.dlopen.argtypes = [ctypes.c_char_p, ctypes.c_int]
    library.dlerror.restype = ctypes.c_char_p
    for name in ("dlsym", "dlvsym"):
        getattr(library, name).restype = ctypes.c_void_p
    library.dlsym.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.dlvsym.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
    library.dlinfo.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    return library


def in_child(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test in a forked child; what it raises there fails it here."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            status = 1
            try:
                os.close(reader)
                signal.alarm(60)
                test(*args, **kwargs)
                status = 0
            except BaseException:  # handed over to the parent
                os.write(writer, traceback.format_exc().encode())
            finally:
                sys.stdout.flush()
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            report = stream.read().decode()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            pytest.fail(f"the child was killed by {signal.Signals(os.WTERMSIG(status)).name}\n{report}", pytrace=False)
        if status:
            pytest.fail(report, pytrace=False)

    return run


def compile_library(
    directory: Path,
    source: str,
    *flags: str,
    soname: str = "libsubject.so",
    language: str = "c",
    libraries: Sequence[str] = (),
) -> Path:
    """A shared library of this source.  The same source and flags give the same file."""
    compiler = {"c": "gcc", "c++": "g++"}[language]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    identity = hashlib.sha256("\0".join([source, *flags, soname, language, *libraries]).encode()).hexdigest()[:16]
    place = directory / identity
    output = place / soname
    if not output.exists():
        place.mkdir(parents=True, exist_ok=True)
        file = place / f"subject.{'c' if language == 'c' else 'cc'}"
        file.write_text(source)
        command = [compiler, "-O2", "-g", "-fPIC", "-shared", "-Wl,--build-id", f"-Wl,-soname,{soname}", *flags]
        subprocess.run([*command, "-o", str(output), str(file), *libraries], check=True, cwd=place)
    return output


@dataclass
class World:
    """One library in this process, and the images of it."""

    directory: Path
    library: Path
    mode: int = RTLD_NOW
    trace: bool = False
    images: list[Image] = field(default_factory=list)
    current: int = 0
    notes: list[Reason] = field(default_factory=list)
    comparisons: dict[tuple[str, str], Comparison] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.c = libc()
        self.handle = self.c.dlopen(os.fsencode(self.library), self.mode)
        if not self.handle:
            raise RuntimeError(self.c.dlerror())
        link_map = ctypes.c_void_p()
        assert self.c.dlinfo(self.handle, _RTLD_DI_LINKMAP, ctypes.byref(link_map)) == 0
        base = ctypes.cast(link_map, ctypes.POINTER(ctypes.c_uint64))[0]
        self.images = [Image(Build.open(self.library), base)]
        self._memory = os.open("/proc/self/mem", os.O_RDONLY)
        assert self.helper

    # The plan's view (Scene)

    def read(self, address: int, size: int) -> bytes:
        content = os.pread(self._memory, size, address)
        assert len(content) == size, f"{size} bytes at {address:#x}"
        return content

    def resolve(self, symbol: str, version: str) -> int | None:
        name = symbol.encode()
        for handle in (None, self.handle):
            found = self.c.dlvsym(handle, name, version.encode()) if version else self.c.dlsym(handle, name)
            if found:
                return int(found)
        return None

    @property
    def tls_module(self) -> int | None:
        number = ctypes.c_size_t()
        self.c.dlinfo(self.handle, _RTLD_DI_TLS_MODID, ctypes.byref(number))
        return number.value or None

    @property
    def tls_block(self) -> int | None:
        """Known where an initial-exec slot of a local variable tells it; other modules' blocks lie anywhere."""
        image = self.images[0]
        for slot in image.build.slots:
            if slot.relocation == _TPOFF64 and not slot.symbol:
                offset: int = struct.unpack("<q", self.read(image.base + slot.vaddr, 8))[0]
                return offset - slot.addend
        return None

    @functools.cached_property
    def helper(self) -> ctypes.CDLL:
        library = ctypes.CDLL(str(compile_library(self.directory, HELPER, soname="libhelper.so")))
        library.thread_pointer.restype = ctypes.c_ssize_t
        library.reserve_address.restype = ctypes.c_void_p
        return library

    # Using the library

    def address(self, name: str) -> int:
        found = self.c.dlsym(self.handle, name.encode())
        assert found, name
        return int(found)

    def call(self, name: str, *args: Any, result: Any = ctypes.c_int) -> Any:
        return self.call_at(self.address(name), *args, result=result)

    @staticmethod
    def call_at(address: int, *args: Any, result: Any = ctypes.c_int) -> Any:
        function = ctypes.CFUNCTYPE(result, *(_type(each) for each in args))(address)
        return function(*args)

    def text(self, name: str, *args: Any) -> str:
        found: bytes = self.call(name, *args, result=ctypes.c_char_p)
        return found.decode()

    def new_address(self, name: str) -> int:
        """Where the current image has a function or an object."""
        image = self.images[self.current]
        return image.base + int(image.build.entities.address[image.build.entities.names.index(name)])

    # Upgrading

    def compare(self, old: Build, new: Build) -> Comparison:
        key = (old.build_id, new.build_id)
        if key not in self.comparisons:
            self.comparisons[key] = compare(old, new)
        return self.comparisons[key]

    def judge(self, library: Path, options: PlanOptions | None = None) -> tuple[list[Reason], list[Reason]]:
        new = self.open(library)
        return verdict(
            self.images, self.current, new, self._comparisons(new), options or PlanOptions(trust_layout=True)
        )

    def open(self, library: Path) -> Build:
        new = Build.open(library)
        for image in self.images:
            if image.build.build_id == new.build_id:
                return image.build
        return new

    def _comparisons(self, new: Build) -> list[Comparison]:
        return [self.compare(image.build, new) for image in self.images]

    def plan(
        self,
        library: Path,
        options: PlanOptions | None = None,
        other_slots: Sequence[tuple[int, int, str]] = (),
        scene: Any = None,
    ) -> ModulePlan:
        new, options = self.open(library), options or PlanOptions(trust_layout=True)
        comparisons = self._comparisons(new)
        size = footprint(new)
        reserve = {}
        layout = new_thread_locals(self.images, self.current, new, comparisons, options)
        if layout is not None and self.tls_block is not None:
            start = self.helper.reserve_address()
            ctypes.memmove(start, layout.request.initial, len(layout.request.initial))
            from_block = start - self.helper.thread_pointer() - self.tls_block
            reserve = {row: from_block + offset for row, offset in layout.offsets.items()}
        return make_plan(
            "libsubject.so",
            self.images,
            self.current,
            new,
            comparisons,
            scene or self,
            self.free_base(size),
            options,
            tls_reserve=reserve,
            other_slots=other_slots,
        )

    def upgrade(
        self, library: Path, options: PlanOptions | None = None, other_slots: Sequence[tuple[int, int, str]] = ()
    ) -> ModulePlan:
        plan = self.plan(library, options, other_slots)
        self.apply(plan)
        return plan

    def apply(self, plan: ModulePlan) -> None:
        if plan.image is not None:
            self.place(plan.image)
            self.images.append(plan.placed)
        self.edit(plan.edits)
        self.current = next(index for index, image in enumerate(self.images) if image is plan.placed)
        for constructor in plan.constructors:
            self.call_at(constructor.address, result=None)

    def place(self, image: ImagePlan) -> None:
        self.map(image.base, image.size, _PROT_READ | _PROT_WRITE, _MAP_FIXED)
        for piece in image.pieces:
            assert piece.offset % PAGE == 0
            assert len(piece.content) % PAGE == 0
            ctypes.memmove(image.base + piece.offset, piece.content, len(piece.content))
        for protection in image.protections:
            prot = _PROT_READ | _PROT_WRITE * protection.writable | _PROT_EXEC * protection.executable
            assert self.c.mprotect(image.base + protection.offset, protection.size, prot) == 0
        if image.eh_frame is not None:
            unwinder = ctypes.CDLL("libgcc_s.so.1")
            self.kept.append(ctypes.create_string_buffer(256))
            register = unwinder["__register_frame_info"]
            register(ctypes.c_void_p(image.eh_frame), self.kept[-1])

    def edit(self, edits: Sequence[Edit]) -> None:
        for edit in edits:
            assert edit.address % 8 == 0
            assert len(edit.old) == len(edit.new)
            assert len(edit.new) % 8 == 0
            assert edit.old != edit.new
            assert self.read(edit.address, len(edit.old)) == edit.old
        assert all(one.address + len(one.new) <= two.address for one, two in itertools.pairwise(edits))
        self.write([(edit.address, edit.new) for edit in edits])

    def write(self, changes: Sequence[tuple[int, bytes]]) -> None:
        """Writes to memory of any protection."""
        pages = {
            page for address, content in changes for page in (address // PAGE, (address + len(content) - 1) // PAGE)
        }
        protections = self._protections(pages)
        for page in pages:
            self.c.mprotect(page * PAGE, PAGE, _PROT_READ | _PROT_WRITE | _PROT_EXEC)
        for address, content in changes:
            ctypes.memmove(address, content, len(content))
        for page in pages:
            self.c.mprotect(page * PAGE, PAGE, protections[page])

    def _protections(self, pages: set[int]) -> dict[int, int]:
        found = {}
        for low, high, flags in self.maps():
            prot = sum(bit for letter, bit in zip("rwx", (1, 2, 4), strict=True) if letter in flags)
            found.update((page, prot) for page in pages if low <= page * PAGE < high)
        return found

    def free_base(self, size: int) -> int:
        low, high = reach(self.images, size)
        edge = max(low, 1 << 20)
        middle = self.images[0].base
        free: list[int] = []
        for start, end, _ in [*self.maps(), (1 << 47, 1 << 47, "")]:
            if start - edge >= size + 2 * PAGE:
                free += [edge + PAGE, start - size - PAGE]
            edge = max(edge, end)
        fitting = [base for base in free if low <= base < high]
        assert fitting, "no room"
        base = min(fitting, key=lambda base: abs(base - middle))
        self.map(base, size, _PROT_NONE, _MAP_FIXED_NOREPLACE)  # so that nobody else takes it
        return base

    def map(self, base: int, size: int, prot: int, flags: int) -> None:
        assert self.c.mmap(base, size, prot, _MAP_PRIVATE | _MAP_ANONYMOUS | flags, -1, 0) == base

    @staticmethod
    def maps() -> list[tuple[int, int, str]]:
        rows = []
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, flags = line.split()[:2]
            low, high = (int(part, 16) for part in span.split("-"))
            rows.append((low, high, flags))
        return rows


def _type(value: object) -> Any:
    if isinstance(value, bytes):
        return ctypes.c_char_p
    return type(value) if isinstance(value, ctypes._SimpleCData | ctypes._CFuncPtr) else ctypes.c_long


def memory_of(plan: ModulePlan) -> int:
    """Bytes of memory that a plan's image takes."""
    return sum(len(piece.content) for piece in plan.image.pieces) if plan.image is not None else 0

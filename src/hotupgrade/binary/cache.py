"""What was found out about a build once need not be found out again: a directory of small files.

Nothing in it is trusted for more than speed.  An entry counts only if it is ours (owner, nobody else may write), whole
(a digest over its contents) and about exactly this build (its fingerprint); anything else is as if it were not there,
and so is a directory that cannot be used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

import hotupgrade
from hotupgrade.binary.build import Build
from hotupgrade.binary.code import CodeFacts, JumpTable
from hotupgrade.binary.debug.model import Debug, checked
from hotupgrade.binary.model import Form, References, TargetKind
from hotupgrade.binary.separate.find import NOWHERE, Search

FORMAT = 18  # raise it whenever the meaning of an entry or the way to find its contents changes
MAGIC = b"hotupgrade cache\0"
DIGEST = 32
MAX_ENTRIES = 1024
MAX_DOWNLOAD = 1 << 28  # bytes of a file that is kept
ALLOWED_TYPES = frozenset(("<u8", "<i8", "<i4", "|u1", "|b1"))
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

Array = npt.NDArray[Any]


class _Column(msgspec.Struct, frozen=True, array_like=True):
    type: str
    content: bytes


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arrays and texts under names."""

    key: str
    columns: dict[str, _Column] = {}  # msgspec copies mutable defaults
    texts: list[list[str]] = []

    def array(self, name: str) -> Array:
        column = self.columns[name]
        if column.type not in ALLOWED_TYPES:
            raise ValueError(column.type)
        return np.frombuffer(column.content, column.type)


def entry(key: str, arrays: Mapping[str, Array], texts: list[list[str]] | None = None) -> Entry:
    columns = {name: _Column(array.dtype.str, np.ascontiguousarray(array).tobytes()) for name, array in arrays.items()}
    return Entry(key, columns, texts or [])


def default_directory() -> Path | None:
    """Root does not follow the environment of whoever became root."""
    if os.geteuid() == 0:
        return Path("/var/cache/hotupgrade")
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "hotupgrade"
    try:
        return Path.home() / ".cache" / "hotupgrade"
    except RuntimeError:
        return None


class Cache:
    """Entries by key; every failure is a miss."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory  # None: nothing is kept

    def get(self, key: str) -> Entry | None:
        with contextlib.suppress(OSError), self._opened(create=False) as directory:
            if directory is None:
                return None
            content = _read(directory, _file_name(key))
            return None if content is None else _decoded(content, key)
        return None

    def has(self, key: str) -> bool:
        with contextlib.suppress(OSError), self._opened(create=False) as directory:
            return directory is not None and _read(directory, _file_name(key)) is not None
        return False

    def put(self, found: Entry) -> None:
        payload = msgspec.msgpack.encode(found)
        content = MAGIC + _digest(payload) + payload
        with contextlib.suppress(OSError), self._opened(create=True) as directory:
            if directory is not None:
                _write(directory, _file_name(found.key), content)
                _prune(directory)

    @contextlib.contextmanager
    def _opened(self, create: bool) -> Iterator[int | None]:
        """A descriptor of the directory, or None when it is not for us alone to write."""
        if self.directory is None:
            yield None
            return
        if create:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.directory, flags)
        try:
            yield descriptor if _is_ours(os.fstat(descriptor), stat.S_ISDIR) else None
        finally:
            os.close(descriptor)


def default_cache() -> Cache:
    return Cache(default_directory())


def _is_ours(status: os.stat_result, is_right_type: Any) -> bool:
    return bool(is_right_type(status.st_mode)) and status.st_uid == os.geteuid() and not status.st_mode & OTHERS_WRITE


def _file_name(key: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=20).hexdigest() + ".cache"


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=DIGEST).digest()


def _decoded(content: bytes, key: str) -> Entry | None:
    digest, payload = content[len(MAGIC) : len(MAGIC) + DIGEST], content[len(MAGIC) + DIGEST :]
    if not content.startswith(MAGIC) or digest != _digest(payload):
        return None
    try:
        found = msgspec.msgpack.decode(payload, type=Entry)
    except (msgspec.MsgspecError, ValueError):
        return None
    return found if found.key == key else None


def _read(directory: int, name: str) -> bytes | None:
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(name, flags, dir_fd=directory)
    try:
        if not _is_ours(os.fstat(descriptor), stat.S_ISREG):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _write(directory: int, name: str, content: bytes) -> None:
    """Under another name first: a reader sees the whole entry or none."""
    temporary = f".{secrets.token_hex(8)}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)  # pathlib knows no directory descriptors
        raise


def _prune(directory: int) -> None:
    """Keeps the newest entries, so that the directory stays bounded; left-overs of killed runs go first."""
    names = [name for name in os.listdir(directory) if name.endswith((".cache", ".part"))]
    if len(names) <= MAX_ENTRIES:
        return
    ages = []
    for name in names:
        with contextlib.suppress(OSError):
            ages.append((os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime, name))
    for _, name in sorted(ages)[:-MAX_ENTRIES]:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)


# Builds


def cache_key(kind: str, *builds: Build) -> str:
    return "/".join([kind, str(FORMAT), hotupgrade.__version__, *(build.fingerprint for build in builds)])


def load_build(data: bytes, label: str, cache: Cache, path: Path | None = None, search: Search = NOWHERE) -> Build:
    """A build whose code is disassembled only if no earlier run did it.

    ``path`` is the file that the contents are of; beside it, and where ``search`` says, its debug information may lie.
    """
    build = Build(data, label, path, search)
    build.facts_store = _Store(cache)
    build.debug_store = _DebugStore(cache)
    return build


def read_ahead(builds: Sequence[Build], cache: Cache) -> None:
    """Read builds that no earlier run has read, on all cores that we may use.

    Each is read by processes of its own, one for its debug information and one for its code, which leave what they
    found in the cache; one that fails leaves nothing, and the build is read when it is asked for.
    """
    distinct = {build.fingerprint: build for build in builds}.values()
    # What takes longest first, so that the cores are done at about the same time.
    unread: list[Callable[[], object]] = [
        partial(getattr, build, "debug")
        for build in sorted(distinct, key=_amount_of_debug, reverse=True)
        if build.separate.types and not cache.has(cache_key("debug", build))
    ]
    unread += [partial(getattr, build, "facts") for build in distinct if not cache.has(cache_key("code", build))]
    width = len(os.sched_getaffinity(0))
    if cache.directory is None or len(unread) < 2 or width < 2:
        return
    running: list[int] = []
    for read in unread:
        if len(running) >= width:
            os.waitpid(running.pop(0), 0)
        running.append(_apart(read))
    for child in running:
        os.waitpid(child, 0)


def _amount_of_debug(build: Build) -> int:
    section = build.sections.get(".debug_info")
    return section.size if section else 0


def _apart(read: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        read()
    finally:
        os._exit(0)  # nothing of the parent's is ended, flushed or said twice


class _Store:
    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def load(self, build: Build) -> CodeFacts | None:
        found = self._cache.get(cache_key("code", build))
        try:
            return None if found is None else _facts(build, found)
        except (KeyError, ValueError, IndexError):
            return None

    def save(self, build: Build, facts: CodeFacts) -> None:
        references = facts.references
        tables = facts.jump_tables
        arrays: dict[str, Array] = {name: getattr(references, name) for name in REFERENCE_COLUMNS}
        arrays["access"] = facts.access
        arrays["undecodable"] = np.array(sorted(facts.undecodable), np.int64)
        arrays["tables"] = np.array([(t.vaddr, t.count, t.function, len(t.targets)) for t in tables], np.int64)
        arrays["unproven"] = np.array(facts.unproven, np.int64)
        arrays["doubtful"] = np.array(facts.doubtful, np.int64)
        arrays["block_slots"] = np.array(sorted(facts.block_slots), np.int64)
        arrays["table_targets"] = np.array([row for t in tables for row in t.targets], np.int64)
        self._cache.put(entry(cache_key("code", build), arrays))


class _DebugStore:
    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def load(self, build: Build) -> Debug | None:
        found = self._cache.get(cache_key("debug", build))
        try:
            if found is None:
                return None
            return checked(msgspec.msgpack.decode(found.array("debug").tobytes(), type=Debug))
        except (KeyError, ValueError, msgspec.MsgspecError):
            return None

    def save(self, build: Build, debug: Debug) -> None:
        packed = np.frombuffer(msgspec.msgpack.encode(debug), np.uint8)
        self._cache.put(entry(cache_key("debug", build), {"debug": packed}))


class Downloads:
    """Files that servers gave, in the cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def load(self, key: str) -> bytes | None:
        found = self._cache.get(f"file/{key}")
        try:
            return None if found is None else found.array("content").tobytes()
        except (KeyError, ValueError):
            return None

    def save(self, key: str, content: bytes) -> None:
        if len(content) > MAX_DOWNLOAD:
            return
        self._cache.put(entry(f"file/{key}", {"content": np.frombuffer(content, np.uint8)}))


SLOTS = (TargetKind.GOT, TargetKind.PLT)
REFERENCE_COLUMNS = {
    "position": "<u8",
    "following": "<u8",
    "form": "|u1",
    "target": "<u8",
    "function": "<i4",
    "target_kind": "|u1",
    "entity": "<i4",
    "addend": "<i8",
}


def _facts(build: Build, found: Entry) -> CodeFacts:
    columns = {name: found.array(name) for name in REFERENCE_COLUMNS}
    access, undecodable = found.array("access"), found.array("undecodable")
    count = len(access)
    if any(len(c) != count or c.dtype.str != REFERENCE_COLUMNS[name] for name, c in columns.items()):
        raise ValueError("columns do not fit together")
    _check(build, columns, access, undecodable)
    return CodeFacts(
        references=References(**columns),
        access=access,
        undecodable=frozenset(undecodable.tolist()),
        jump_tables=tuple(_tables(build, found)),
        unproven=_pairs(found.array("unproven"), build.span, len(build.entities)),
        doubtful=_pairs(found.array("doubtful"), build.span, len(build.entities)),
        block_slots=frozenset(_below(found.array("block_slots"), len(build.slots)).tolist()),
    )


def _pairs(array: Array, span: int, rows: int) -> tuple[tuple[int, int], ...]:
    """Places in the code, each with a row."""
    table = array.reshape(-1, 2)
    _below(table[:, 0], span)
    _below(table[:, 1], rows)
    return tuple((vaddr, row) for vaddr, row in table.tolist())


def _below(numbers: Array, limit: int) -> Array:
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < limit:
        raise ValueError("numbers that the build cannot have")
    return numbers


def _check(build: Build, columns: Mapping[str, Array], access: Array, undecodable: Array) -> None:
    """Every number is one that disassembly could have given."""
    rows, kind, entity = len(build.entities), columns["target_kind"], columns["entity"]
    limit = np.where(kind == TargetKind.ENTITY, rows, np.where(np.isin(kind, SLOTS), len(build.slots), 0))
    good = (entity >= -1) & (entity < limit)
    good &= (entity >= 0) | ~np.isin(kind, (TargetKind.ENTITY, *SLOTS))
    good &= np.isin(kind, list(TargetKind)) & np.isin(columns["form"], list(Form)) & (access >= 0)
    good &= (columns["function"] >= 0) & (columns["function"] < rows)
    good &= (columns["position"] < columns["following"]) & (columns["following"] <= build.span)
    ascending = (columns["position"][1:] >= columns["position"][:-1]).all()
    if access.dtype != np.int32 or not (good.all() and ascending):
        raise ValueError("references that the build cannot have")
    if len(undecodable) and not 0 <= undecodable.min() <= undecodable.max() < rows:
        raise ValueError("rows that the build does not have")


def _tables(build: Build, found: Entry) -> Iterator[JumpTable]:
    rows = len(build.entities)
    targets, at = found.array("table_targets").tolist(), 0
    for vaddr, size, function, length in found.array("tables").reshape(-1, 4).tolist():
        chosen = tuple(targets[at : at + max(length, 0)])
        inside = vaddr >= 0 and 1 <= size <= (build.span - vaddr) // 4
        if not inside or len(chosen) != length or not all(0 <= row < rows for row in (function, *chosen)):
            raise ValueError("a table that the build cannot have")
        yield JumpTable(vaddr, size, function, chosen)
        at += length

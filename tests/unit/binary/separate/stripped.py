"""Modules whose symbols and debug information were put aside, and what such a module must have in common with the
whole one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from hotupgrade.binary.build import Build
from hotupgrade.binary.debug.model import Debug
from hotupgrade.binary.separate.find import Search
from hotupgrade.binary.separate.places import Beside, DebugRoot, NamedFolder

SOURCES = {
    "one.c": r"""
        #include <stdlib.h>
        struct node { struct node *next; union { long number; char text[12]; struct { int x, y; }; }; };
        typedef struct { unsigned flag : 3, more : 5; _Atomic long count; } counted;
        enum colour { RED, GREEN = 7 };
        static struct node head = {&head, {3}};
        static counted counter;
        __thread struct node *current;
        static __thread int calls;
        const char *const names[] = {"a", "b"};
        static inline int twice(int x) { static int once; return x * 2 + once++; }
        __attribute__((noinline)) static int helper(struct node *n, enum colour c) { calls++; return n->x + c; }
        int work(struct node *node, counted *given)
        {
            struct { int here; } unnamed = {rand()};
            for (struct node *n = node ? node : &head; n; n = n->next) { current = n; }
            return helper(&head, GREEN) + twice(unnamed.here) + (int) (given ? given : &counter)->count;
        }
    """,
    "two.c": r"""
        #include <stdlib.h>
        struct node { struct node *next; union { long number; char text[12]; struct { int x, y; }; }; };
        struct mine { long a; };
        static struct mine head;
        static int helper(struct mine *m) { return (int) m->a + rand(); }
        int more(struct node *node) { return helper(&head) + node->x; }
        __attribute__((constructor)) static void start(void) { head.a = 1; }
    """,
}


def trusted(_path: Path, _status: object) -> None:
    """Every file is."""


def beside() -> Search:
    return Search((Beside(trusted),))


def debug_root(root: Path) -> Search:
    return Search((Beside(trusted), DebugRoot(root, trusted)))


def named(root: Path) -> Search:
    return Search((NamedFolder(root, trusted),))


def run(*words: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def strip(whole: Path, place: Path, *, link: bool = True) -> tuple[Path, Path]:
    """A stripped copy of a module, and its debug file, both in a folder: by binutils."""
    place.mkdir(parents=True, exist_ok=True)
    module, debug = place / "libx.so", place / "libx.so.debug"
    run("objcopy", "--only-keep-debug", whole, debug)
    run("strip", "-o", module, whole)
    if link:
        run("objcopy", f"--add-gnu-debuglink={debug.name}", module, cwd=place)
    return module, debug


def by_identity(root: Path, build_id: str, *, make: bool = True) -> Path:
    """Where a debug file lies below a folder like /usr/lib/debug; its folder is made."""
    path = root / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    if make:
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def assert_same(build: Build, whole: Build) -> None:
    """Symbol by symbol, type by type."""
    ours, theirs = build.entities, whole.entities
    for column in ("address", "size", "kind", "exported"):
        np.testing.assert_array_equal(getattr(ours, column), getattr(theirs, column), column)
    assert (ours.names, ours.aliases, ours.files) == (theirs.names, theirs.aliases, theirs.files)
    assert dict(build.by_name) == dict(whole.by_name)
    assert dict(build.marks) == dict(whole.marks)
    np.testing.assert_array_equal(build.extent, whole.extent)
    assert build.contents == whole.contents
    assert said(build.debug) == said(whole.debug)
    assert not build.debug.missing


def said(debug: Debug) -> dict[str, Any]:
    """What debug information says, whatever the order in which it says it."""
    return {
        "missing": debug.missing,
        "atomics": debug.atomics,
        "covered": debug.covered,
        "files": sorted(debug.files),
        "types": {
            name: sorted(
                (repr(debug.definitions[index]), sorted(debug.files[file] for file in files)) for index, files in found
            )
            for name, found in debug.types.items()
        },
        "typedefs": debug.typedefs,
        "variables": sorted(map(repr, debug.variables)),
        "functions": sorted((name, file, sorted(texts)) for name, file, texts in debug.functions),
        "imports": {name: sorted(texts) for name, texts in debug.imports.items()},
        "constants": sorted((*key, sorted(values)) for *key, values in debug.constants),
    }

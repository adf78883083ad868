"""Look at a process: what it holds, what was done to it, what could be.  Touches nothing."""

from __future__ import annotations

from typing import Any

from hotupgrade.target.agent import NAME
from hotupgrade.target.maps import mapping_at
from hotupgrade.target.modules import Module
from hotupgrade.target.moves import find_moves
from hotupgrade.upgrade import documents, journal
from hotupgrade.upgrade.documents import Document
from hotupgrade.upgrade.kept import store_path
from hotupgrade.upgrade.session import Session


def inspect(pid: int) -> Document:
    """Modules, with the generation of each, and threads."""
    with Session(pid, exclusive=False) as session:
        process = session.process
        document = documents.head("inspect", pid, process.name)
        document |= {
            "executable": process.executable,
            "generation": session.ledger.generation,
            "modules": [_module(session, m) for m in session.modules if not m.path.startswith(("[", f"/memfd:{NAME}"))],
            "threads": [
                {"tid": t.tid, "name": t.name, "state": t.state, "busy": t.state == "R", "system_call": t.activity}
                for t in process.threads()
            ],
        }
        return document


def _module(session: Session, module: Module) -> Document:
    record = session.ledger.module(module.name, module.base)
    changed = sum(any(m.name == module.name for m in g.modules) for g in session.ledger.generations)
    why = _why_not(module)
    return {
        "name": module.name,
        "path": module.path,
        "deleted": module.deleted,
        "base": module.base,
        "build_id": record.images[record.current].build_id if record else module.build_id,
        "loaded_build_id": module.build_id,
        "generation": changed,
        "upgradable": not why,
        "why": why,
    }


def _why_not(module: Module) -> str:
    """Why this module cannot be upgraded; "" if it can, as far as can be told without a new build."""
    if module.executable and not module.base:
        return "the program is linked to a fixed address; build it as a position-independent executable (-pie)"
    if module.name.startswith("ld-linux"):
        return "the dynamic linker itself"
    if not module.build_id:
        return "it has no build-id, so that its file cannot be told from others"
    return ""


def status(pid: int) -> Document:
    """Generations, what is active, how long each break was."""
    with Session(pid, exclusive=False) as session:
        ledger = session.ledger
        document = documents.head("status", pid, session.process.name)
        images = [image for module in ledger.modules for image in module.images[1:]]
        document |= {
            "generation": ledger.generation,
            "generations": [
                {
                    "number": g.number,
                    "time": g.time,
                    "active": g.number == ledger.generation,
                    "modules": [{"name": m.name, "build_id": m.build_id, "path": m.path} for m in g.modules],
                    "break_us": {"busy_max": g.busy_break_us, "max": g.max_break_us},
                    "edits": (len(g.data) + len(g.code)) // 24,
                }
                for g in ledger.generations
            ],
            "modules": [
                {"name": m.name, "build_id": m.images[m.current].build_id, "images": len(m.images)}
                for m in ledger.modules
            ],
            "memory_bytes": sum(image.pages for image in images),
            "settled": ledger.unsettled is None,
            "on_their_way": _on_their_way(session),
        }
        return document


def _on_their_way(session: Session) -> list[Document]:
    """Threads that enter the code in force when their sleep ends, and those that an upgrade could not restart."""
    table = None if session.agent is None else find_moves(session.agent)
    names = {loop.home: loop.function for g in session.ledger.generations for loop in g.loops}
    return [
        {
            "tid": int(row.tid),
            "function": names.get(int(row.entry), ""),
            "state": "sleeping" if row.drop else "stayed",
        }
        for row in (table.led_here() if table else ())
    ]


def symbols(pid: int) -> Document:
    """Where debuggers and profilers find the names of the code that upgrades brought in."""
    with Session(pid, exclusive=False) as session:
        maps = session.process.maps()
        images = [
            {
                "module": module.name,
                "build_id": image.build_id,
                "base": image.base,
                "file": str(store_path(image.build_id)),
                "mapping": mapping.path,
                "active": image is module.images[module.current],
            }
            for module in session.ledger.modules
            for image in module.images[1:]
            if image.start and (mapping := mapping_at(maps, image.start)) is not None
        ]
        known = ",".join(f"{image['build_id']} {image['mapping']}" for image in images)
        document = documents.head("symbols", pid, session.process.name)
        document |= {
            "images": images,
            "gdb": [f"add-symbol-file {image['file']} -o {image['base']:#x}" for image in images],
            "perf": [f"perf buildid-cache --add {image['file']}" for image in images]
            + [f"perf inject -b --known-build-ids '{known}' -i perf.data -o named.data" for _ in images[:1]],
        }
        return document


def history() -> Document:
    """The journal."""
    document = documents.head("history")
    entries: list[dict[str, Any]] = journal.read()
    document["entries"] = entries
    return document

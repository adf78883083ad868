"""The ``--json`` documents: one place that fixes their fields."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from hotupgrade.errors import HotUpgradeError, NotNow, Reason, Refused
from hotupgrade.target.stop import StopReport
from hotupgrade.upgrade.prepare import Candidate, Planned

VERSION = 1

Document = dict[str, Any]

#: What ``outcome`` says for each exit code of a failure.
_OUTCOMES = {1: "internal-error", 2: "wrong-use", 3: "refused", 4: "not-now"}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def head(command: str, pid: int | None = None, name: str = "", outcome: str = "done") -> Document:
    document: Document = {"version": VERSION, "command": command, "ok": True, "outcome": outcome, "exit_code": 0}
    if pid is not None:
        document |= {"pid": pid, "name": name, "time": now()}
    return document


def failure(command: str, error: HotUpgradeError, base: Document | None = None) -> Document:
    """The document of a command that did not do what it was asked for."""
    document = dict(base or head(command))
    document |= {"ok": False, "outcome": _OUTCOMES[error.exit_code], "exit_code": error.exit_code}
    if isinstance(error, Refused):
        found: Sequence[Reason] = error.reasons
    elif isinstance(error, NotNow):
        found = (error.reason,)
    else:
        found = (Reason(error.code, "", str(error)),)
    document["reasons"] = reasons(found)
    return document


def reasons(found: Sequence[Reason]) -> list[Document]:
    return [{"code": r.code, "subject": r.subject, "text": r.text} for r in found]


def compared(candidate: Candidate) -> Document:
    """What differs between the build in force and the new one."""
    comparison = candidate.comparison
    old, new = comparison.old, comparison.new
    functions, objects = changes(candidate)
    kept = int(((comparison.old_of >= 0) & (new.entities.kind != 1)).sum())
    return {
        "name": candidate.module.name,
        "old": {"build_id": old.build_id, "path": candidate.module.path},
        "new": {"build_id": new.build_id, "path": candidate.path},
        "functions": {key: list(names) for key, names in functions.items()},
        "objects": {**{key: list(names) for key, names in objects.items()}, "kept": kept},
    }


def changes(candidate: Candidate) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Names of functions and of objects, by what happened to them."""
    comparison = candidate.comparison
    old, new = comparison.old, comparison.new
    function = new.entities.kind == 1
    dragged = set(comparison.dragged)
    changed = [i for i in (comparison.replaced & function).nonzero()[0].tolist() if i not in dragged]
    added = (function & (comparison.old_of < 0)).nonzero()[0].tolist()
    removed = ((old.entities.kind == 1) & (comparison.new_of < 0)).nonzero()[0].tolist()
    fresh = (~function & (comparison.old_of < 0)).nonzero()[0].tolist()
    functions = {
        "changed": [new.entities.names[i] for i in changed if comparison.old_of[i] >= 0],
        "dragged": [new.entities.names[i] for i in sorted(dragged)],
        "added": [new.entities.names[i] for i in added],
        "removed": [old.entities.names[i] for i in removed],
    }
    objects = {
        "new": [new.entities.names[i] for i in fresh],
        "resized": [new.entities.names[i] for _, i in comparison.resized],
        "initial_changed": [new.entities.names[i] for _, i in comparison.initial_changed],
    }
    return functions, objects


def planned(item: Planned, memory: int) -> Document:
    """A module of an upgrade document."""
    plan = item.plan
    document = compared(item.candidate)
    placed = plan.placed.placed
    document["functions"]["placed"] = len(placed) if placed is not None else int((plan.placed.build.entities.kind == 1).sum())
    document["objects"]["constants_updated"] = list(plan.objects.get("constants_updated", ()))
    document |= {
        "base": plan.placed.base,
        "reused": plan.image is None,
        "memory_bytes": memory,
        "constructors": [call.name for call in plan.constructors],
    }
    return document


def totals(modules: Sequence[Document]) -> Document:
    """Numbers over all modules."""
    functions: dict[str, int] = dict.fromkeys(("changed", "dragged", "added", "removed", "placed"), 0)
    objects: dict[str, int] = dict.fromkeys(("new", "resized", "initial_changed", "constants_updated", "kept"), 0)
    for module in modules:
        for table, source in ((functions, module["functions"]), (objects, module["objects"])):
            for key, value in source.items():
                table[key] = table.get(key, 0) + (value if isinstance(value, int) else len(value))
    return {"functions": functions, "objects": objects}


def stopped(report: StopReport, prepare_us: float, cleanup_us: float) -> Document:
    """The measured part of an upgrade or a rollback."""
    return {
        "phases_us": {"prepare": prepare_us, **report.phases_us, "cleanup": cleanup_us},
        "threads": [
            {
                "tid": t.tid,
                "name": t.name,
                "how": t.how,
                "busy": t.busy,
                "break_us": t.break_us,
                "parked_us": t.parked_us,
                "released_us": t.released_us,
            }
            for t in report.threads
        ],
        "break_us": breaks(report),
        "attempts": report.attempts,
    }


def breaks(report: StopReport) -> Document:
    return {"busy_max": report.busy_max_us, "max": report.max_us}

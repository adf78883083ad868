"""The ``--json`` documents: one place that fixes their fields."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hotupgrade.errors import HotUpgradeError, NotNow, Reason, Refused

if TYPE_CHECKING:
    from hotupgrade.target.request import StopReport
    from hotupgrade.upgrade.restart import ThreadRestart

VERSION = 1

Document = dict[str, Any]

#: What ``outcome`` says for each exit code of a failure.
_OUTCOMES = {1: "internal-error", 2: "wrong-use", 3: "refused", 4: "not-now"}


def now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


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


def stopped(
    report: StopReport,
    prepare_us: float,
    cleanup_us: float,
    restarted: Sequence[ThreadRestart] = (),
    settling: StopReport | None = None,
) -> Document:
    """The measured part of an upgrade or a rollback.  ``settling``: the further stop after threads were restarted."""
    by_thread = {thread.tid: thread for thread in restarted}
    settled = {thread.tid: thread.break_us for thread in settling.threads} if settling else {}
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
                "restart": _restart(by_thread[t.tid]) if t.tid in by_thread else None,
                "settle_us": settled.get(t.tid),
            }
            for t in report.threads
        ],
        "settle_us": breaks(settling) if settling else None,
        "break_us": breaks(report),
        "attempts": report.attempts,
    }


def _restart(thread: ThreadRestart) -> Document:
    return {
        "function": thread.function,
        "door": thread.door,
        "state": thread.state,
        "begin_us": thread.begin_us,
        "out_us": thread.out_us,
        "in_us": thread.in_us,
        "gap_us": thread.gap_us,
        "skipped": list(thread.skipped),
    }


def breaks(report: StopReport) -> Document:
    return {"busy_max": report.busy_max_us, "max": report.max_us}

"""The errors a user can see, each with the exit code that the command line returns for it.

One root class, one place that catches it (:mod:`hotupgrade.cli`).  Every message is advice: what is wrong, in which
object, and what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason of a verdict.

    ``code`` is stable and meant for programs (``object-resized``); ``subject`` names the culprit (a symbol, a file, a
    thread); ``text`` says in one sentence what is wrong and what can be done.
    """

    code: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.text} [{self.code}]"


class HotUpgradeError(Exception):
    """Root of all errors of this package.  Exit code 1: a bug in hotupgrade itself."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "internal"


class UsageError(HotUpgradeError):
    """The command was used wrongly (exit code 2)."""

    exit_code = 2
    code = "usage"


class Refused(HotUpgradeError):
    """The verdict is no; nothing in the target was changed (exit code 3)."""

    exit_code = 3
    code = "refused"

    def __init__(self, *reasons: Reason) -> None:
        super().__init__("\n".join(str(reason) for reason in reasons))
        self.reasons = reasons


class NotNow(HotUpgradeError):
    """Not possible at this moment; the target is unchanged (exit code 4).

    A time limit, a missing permission, a process that is gone or traced by another program.
    """

    exit_code = 4
    code = "not-now"

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason

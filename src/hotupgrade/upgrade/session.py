"""One visit to a process: what it is, what it holds, whether it can be upgraded at all."""

from __future__ import annotations

import struct
from types import TracebackType

from hotupgrade.errors import NotNow, Reason, Refused
from hotupgrade.target import agent as agents
from hotupgrade.target.agent import Agent
from hotupgrade.target.clock import Reading, read_clocks
from hotupgrade.target.modules import Module, read_modules
from hotupgrade.target.process import Process, denied
from hotupgrade.upgrade.ledger import Ledger, read_ledger

_EM_X86_64 = 62


class Session:
    """A process with its modules, its agent (if it has one) and its ledger.

    ``exclusive``: take the process's lock, so that nobody else works on it meanwhile.

    Raises:
        NotNow: the process is gone, may not be traced, is traced already, or another hotupgrade works on it.
        Refused: it is of a kind that cannot be upgraded.
    """

    def __init__(self, pid: int, *, exclusive: bool) -> None:
        self.clocks: Reading = read_clocks()
        self.process = Process(pid)
        try:
            if exclusive:
                self.process.lock()
                _require_untraced(self.process)
            _require_x86_64(self.process)
            self.agent: Agent | None = agents.find(self.process)
            self.ledger: Ledger = read_ledger(self.agent)
            self.modules: tuple[Module, ...] = read_modules(self.process)
        except BaseException:
            self.process.__exit__(None, None, None)
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.__exit__(kind, value, trace)

    def require_agent(self, timeout: float) -> Agent:
        """The agent, brought into the process if it is not there.

        Raises:
            Refused: the process runs under rules that the agent's system calls might break.
        """
        if self.agent is None:
            _require_free(self.process)
            self.agent = agents.inject(self.process, timeout)
        self.agent.adopt()
        return self.agent


def _require_untraced(process: Process) -> None:
    for tid in [process.pid, *process.thread_ids()]:
        tracer = process.tracer(tid)
        if tracer:
            thread = "" if tid == process.pid else f"thread {tid} of "
            raise NotNow(
                Reason(
                    "traced",
                    str(tid),
                    f"{thread}process {process.pid} is being traced by process {tracer} (a debugger?); detach that "
                    f"and try again",
                )
            )


def _require_x86_64(process: Process) -> None:
    try:
        header = open(f"/proc/{process.pid}/exe", "rb").read(20)  # noqa: SIM115
    except PermissionError:
        raise denied(process.pid, "reading its executable") from None
    except OSError:
        raise Refused(
            Reason(
                "no-executable",
                str(process.pid),
                f"process {process.pid} has no executable: it is a kernel thread or has ended",
            )
        ) from None
    if header[:5] != b"\x7fELF\x02" or struct.unpack_from("<H", header, 18)[0] != _EM_X86_64:
        raise Refused(
            Reason(
                "wrong-architecture",
                str(process.pid),
                f"process {process.pid} is no x86-64 program; only those can be upgraded",
            )
        )


def _require_free(process: Process) -> None:
    """Refuse what could turn one of our system calls, or a return through our own code, into the process's end."""
    status = process.status()
    if status.get("Seccomp", "0").strip() != "0":
        raise Refused(
            Reason(
                "seccomp",
                str(process.pid),
                f"process {process.pid} runs under a seccomp filter, which might end it for a system call of ours",
            )
        )
    if "shstk" in status.get("x86_Thread_features", ""):
        raise Refused(
            Reason(
                "shadow-stack",
                str(process.pid),
                f"process {process.pid} runs with a processor shadow stack, which forbids the way in which "
                f"threads are parked",
            )
        )

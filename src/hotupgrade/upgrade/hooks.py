"""The hooks of a new build that run while the program does: before the stop and after the commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hotupgrade.errors import NotNow, Reason
from hotupgrade.plan.model import Call, Hooks
from hotupgrade.target.agent import Agent, call


class HookRunner:
    """Calls the hooks of one upgrade; ``timeout`` in seconds bounds each of them."""

    def __init__(self, agent: Agent, hooks: Sequence[Hooks], timeout: float) -> None:
        self._agent = agent
        self._hooks = hooks
        self._timeout = timeout
        self._begun: list[Hooks] = []

    def before(self) -> None:
        """Let every new build prepare itself.

        Raises:
            NotNow: one of them reports a failure.
        """
        for hooks in self._hooks:
            self._run(hooks.before)
            self._begun.append(hooks)

    def cancel(self) -> None:
        """Tell those that prepared themselves that it was for nothing; what they answer changes nothing."""
        for hooks in self._begun:
            if hooks.cancel:
                self._agent.run([call(hook.address) for hook in hooks.cancel], timeout=self._timeout)

    def after(self) -> None:
        """Let every new build, now in force, look at itself.

        Raises:
            NotNow: one of them reports a failure.
        """
        for hooks in self._hooks:
            self._run(hooks.after)

    def _run(self, calls: Iterable[Call]) -> None:
        for hook in calls:
            result = self._agent.run([call(hook.address, *hook.arguments)], timeout=self._timeout)[0]
            if result & 0xFFFFFFFF:
                text = f"process {self._agent.process.pid}: {hook.name}() of the new build reported a failure"
                raise NotNow(Reason("hook-failed", hook.name, f"{text}; the old code is in force"))

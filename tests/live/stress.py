"""Things that happen to a program, or to the tool, while it is upgraded, again and again.  Each function does its thing
a number of times and raises AssertionError if the program was harmed; the tests do it shortly, the soak at length."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from live.harness import DONE, NOT_NOW, REFUSED, Builder, HotUpgrade, Program, until
from live.kills import Tally, Victim, settled
from live.steps import Stepper

Start = Callable[..., Program]


def ends(build: Builder, start: Start, hu: HotUpgrade, how: str, times: int, seed: int = 1) -> dict[str, int]:
    """The program ends ("exit") or executes another ("exec") at a random moment of an upgrade.

    It ends as it wanted to, or the other program runs: never a crash, never a wait without a limit.
    """
    chance = random.Random(seed)
    files = [build.library("basic", v) for v in (1, 2)]

    def begin() -> Program:
        program = start(build.host(files[0]))
        program.ask("sleepers")
        program.ask("work", "busy", 2, "version")
        return program

    whole = 0.0
    for _ in range(3):  # the first one has to read both builds
        program = begin()
        whole = hu.upgrade(program.pid, files[1]).seconds
        program.kill()
    outcomes: dict[str, int] = {}
    for turn in range(times):
        program = begin()
        ms = int(chance.uniform(0.1, 1.1) * whole * 1000)
        program.ask("end", how, ms)
        answer = hu.upgrade(program.pid, files[1], limit=30)
        about = f"turn {turn}, {how} after {ms} ms of {whole * 1000:.0f}: {answer}"
        assert answer.seconds < 20, about
        assert answer.code in (DONE, NOT_NOW, REFUSED), about
        if how == "exit":
            assert program.process.wait(10) == 0, about
        else:
            until(lambda program=program: not program.alive() or "sleep" in program.threads().values(), what=about)
            time.sleep(0.02)
            assert program.alive(), f"the new program ended with {program.process.poll()}: {about}"
            assert program.status("TracerPid") == 0, about
        program.kill()
        outcomes[answer.outcome] = outcomes.get(answer.outcome, 0) + 1
    return outcomes


def ends_at_steps(
    build: Builder, start: Start, stepper: Stepper, how: str, numbers: Iterable[int], only: str = ""
) -> dict[str, int]:
    """The same while the tool is held before a step; the thread that ends the program may be held by it too."""
    seen: dict[str, int] = {}
    for number in numbers:
        program = start(build.host(build.library("basic", 1)))
        program.ask("sleepers")
        file = build.directory / f"now-{program.pid}"
        program.ask("end", how, 1, file)
        words = ("upgrade", program.pid, build.library("basic", 2), "--timeout", 1, "--json")
        run = stepper.run(*words, kill_at=number, only=only, meanwhile=file.touch, hold=0.04, limit=30)
        if not run.killed:
            return seen
        about = f"{how} before {run.killed}, step {number}: {run.out}"
        assert run.code in (DONE, NOT_NOW, REFUSED), about
        if how == "exit":
            assert program.process.wait(10) == 0, about
        else:
            until(lambda program=program: not program.alive() or "sleep" in program.threads().values(), what=about)
            time.sleep(0.02)
            assert program.alive(), f"the new program ended with {program.process.poll()}: {about}"
        program.kill()
        file.unlink(missing_ok=True)
        seen[run.killed] = seen.get(run.killed, 0) + 1
    return seen


def kills_at_random(
    victim: Victim, hu: HotUpgrade, times: int, tally: Tally, seed: int = 1, checker: HotUpgrade | None = None
) -> None:
    """The command, started as an operator does, is killed at random moments while the program works."""
    chance = random.Random(seed)
    begin = time.monotonic()
    hu.upgraded(victim.program, *victim.files(3 if victim.version() == 2 else 2))
    whole = time.monotonic() - begin
    for _ in range(times):
        before = victim.version()
        wanted = 2 if before != 2 else 3
        process = hu.start("upgrade", victim.program.pid, *victim.files(wanted), "--json")
        time.sleep(whole * chance.uniform(0.4, 1.1))
        process.kill()
        process.communicate(timeout=10)
        now = settled(victim, checker or hu, (before, wanted))
        until(lambda: victim.program.status("TracerPid") == 0 and victim.unblocked(), 5)
        victim.check(now)
        assert victim.errors() == 0, "a sleeper was disturbed"
        tally.kills += 1
        tally.old, tally.new = tally.old + (now == before), tally.new + (now != before)


def switches(
    program: Program, hu: HotUpgrade, files: dict[int, list[Path]], times: int, look: Callable[[int], None]
) -> int:
    """Upgrade back and forth between versions 2 and 3, each second time by a rollback; returns how many there were."""
    hu.upgraded(program, *files[2])
    for turn in range(times - 1):
        if turn % 2:
            hu.rolled_back(program)
            look(2)
        else:
            hu.upgraded(program, *files[3])
            look(3)
    if times % 2 == 0:
        hu.rolled_back(program)
    hu.rolled_back(program)
    look(1)
    return times + 1 + (times % 2 == 0)

"""The long form of the fault tests: ``make soak MINUTES=60``.

Each item does its thing until its goal or its share of the time is reached, and nothing of it may go wrong: a program
that crashed, lost a sleep, runs a mixture of builds or is not what ``status`` says is a violation.  The report goes to
``build/soak/report.json``; the exit code is 1 if there was a violation.  Stops by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT / "src"), str(ROOT / "tests")]  # instead of this folder

from live import stress  # noqa: E402
from live.harness import DONE, Builder, Driver, HotUpgrade, Program  # noqa: E402
from live.kills import Tally, Victim, steps_of_a_first_upgrade, steps_of_later_ones  # noqa: E402
from live.steps import Stepper  # noqa: E402

Numbers = dict[str, Any]
MOST_STEPS = 5000


@dataclass
class Item:
    """One kind of trouble: how much of it there was, and what went wrong."""

    name: str
    goal: str
    numbers: Numbers = field(default_factory=dict)
    reached: bool = False
    violation: str = ""
    seconds: float = 0.0


@dataclass
class Soak:
    """What the items share."""

    workshop: Path
    build: Builder
    hu: HotUpgrade
    seed: int
    programs: list[Program] = field(default_factory=list)

    def start(self, path: Path, *arguments: str | Path) -> Program:
        self.programs = [program for program in self.programs if program.alive()]
        self.programs.append(Program(path, *arguments))
        return self.programs[-1]

    def victim(self) -> Victim:
        return Victim(self.build, self.start)

    def end_programs(self) -> None:
        for program in self.programs:
            program.kill()
        self.programs.clear()


def kills_at_every_step(soak: Soak, item: Item, until: float) -> None:
    """A first upgrade, later ones, with what was started, and held: each before every step, until a run ends by
    itself."""
    tally = Tally()
    ways: list[tuple[str, bool, dict[str, Any]]] = [
        ("later", False, {}),
        ("first", True, {}),
        ("later, held, the other way round", False, {"hold": 0.02, "odd": 1}),
        ("later, with all it started", False, {"everything": True}),
        ("first, with all it started", True, {"everything": True}),
    ]
    passes: dict[str, bool] = {}
    try:
        with Stepper(soak.hu.environment) as stepper:
            for name, first, how in ways:
                with Driver(soak.hu) as driver:
                    # Once the agent is there, a first upgrade's steps are those of a later one.
                    every = chain(range(150), range(150, MOST_STEPS, 9)) if first else range(MOST_STEPS)
                    numbers = _while_time(every, until)
                    if first:
                        passes[name] = steps_of_a_first_upgrade(soak.victim, driver, stepper, tally, numbers, **how)
                    else:
                        passes[name] = steps_of_later_ones(soak.victim(), driver, stepper, tally, numbers, **how)
                soak.end_programs()
                say(f"  {name}: {tally}")
    finally:
        item.numbers = {
            "kills": tally.kills,
            "left the old code": tally.old,
            "left the new code": tally.new,
            "upgrades and rollbacks": tally.upgrades,
            "not now": tally.not_now,
            "sleeps ended with EINTR, helper killed too": tally.interrupted,
            "passes": passes,
            "places": tally.places,
        }
    item.reached = tally.kills >= 1000 and all(passes.values())


def kills_at_random(soak: Soak, item: Item, until: float) -> None:
    tally, victim, rounds = Tally(), soak.victim(), 0
    try:
        with Driver(soak.hu) as driver:
            while rounds < 30 and time.monotonic() < until:
                stress.kills_at_random(victim, soak.hu, 10, tally, soak.seed + rounds, driver)
                rounds += 1
    finally:
        item.numbers = {"kills": tally.kills, "left the old code": tally.old, "left the new code": tally.new}
    item.reached = tally.kills >= 300


def small_upgrades(soak: Soak, item: Item, until: float) -> None:
    """Upgrades and rollbacks of programs that go on, by the hundred in each; the program's size stays."""
    goal = int(item.goal.split()[0].replace(",", ""))
    counts = {"with many threads": 0, "with one thread": 0}
    programs = 0

    def over() -> bool:
        return sum(counts.values()) >= goal or time.monotonic() > until

    try:
        while not over():
            with Driver(soak.hu) as driver:
                victim = soak.victim()
                files = {version: victim.files(version) for version in (1, 2, 3)}
                counts["with many threads"] += _switched(victim.program, driver, files, 80, victim.check, over)
                assert victim.errors() == 0, "a sleeper was disturbed"
            soak.end_programs()
            with Driver(soak.hu) as driver:
                program = soak.start(soak.build.host(soak.build.library("basic", 1)))
                files = {version: [soak.build.library("basic", version)] for version in (1, 2, 3)}

                def look(version: int, program: Program = program) -> None:
                    assert program.call("pair") == version * 1001001

                counts["with one thread"] += _switched(program, driver, files, 800, look, over)
            soak.end_programs()
            programs += 2
            say(f"  {sum(counts.values())} upgrades and rollbacks")
    finally:
        item.numbers = {"upgrades and rollbacks": sum(counts.values()), **counts, "programs": programs}
    item.reached = sum(counts.values()) >= goal


def _switched(
    program: Program,
    driver: Driver,
    files: dict[int, list[Path]],
    times: int,
    look: Callable[[int], None],
    over: Callable[[], bool],
) -> int:
    """Switch so often, unless it is over earlier; the program must not grow.  Returns how often it was."""
    count = stress.switches(program, driver, files, 6, look)
    before = program.size()
    while count < times and not over():
        count += stress.switches(program, driver, files, 40, look)
    after = program.size()
    assert after.maps <= before.maps + 4, (before, after)
    assert (after.threads, after.descriptors) == (before.threads, before.descriptors), (before, after)
    assert after.resident_kb <= before.resident_kb + 2048, (before, after)
    return count


def executes_another(soak: Soak, item: Item, until: float) -> None:
    _ends(soak, item, until, "exec", 300)


def exits(soak: Soak, item: Item, until: float) -> None:
    _ends(soak, item, until, "exit", 150)


def ends_at_steps(soak: Soak, item: Item, until: float) -> None:
    """The process executes another program, or exits, while the tool is held before a step."""
    seen: dict[str, int] = {}
    try:
        with Stepper(soak.hu.environment) as stepper:
            for how in ("exec", "exit"):
                for number in _while_time(range(MOST_STEPS), until):
                    found = stress.ends_at_steps(soak.build, soak.start, stepper, how, [number])
                    if not found:
                        break
                    seen.update({f"{how}, {name}": seen.get(f"{how}, {name}", 0) + 1 for name in found})
                    soak.end_programs()
                else:
                    return
        item.reached = True
    finally:
        item.numbers = {"runs": sum(seen.values()), "places": seen}


def _ends(soak: Soak, item: Item, until: float, how: str, goal: int) -> None:
    runs, outcomes = 0, {}
    try:
        while runs < goal and time.monotonic() < until:
            with Driver(soak.hu) as driver:
                for outcome, number in stress.ends(soak.build, soak.start, driver, how, 25, soak.seed + runs).items():
                    outcomes[outcome] = outcomes.get(outcome, 0) + number
            runs += 25
            soak.end_programs()
    finally:
        item.numbers = {"runs": runs, **outcomes}
    item.reached = runs >= goal


def churn(soak: Soak, item: Item, until: float) -> None:
    """Threads and processes that come and go as fast as they can."""
    count, program = 0, soak.start(soak.build.host(soak.build.library("basic", 1)))
    program.ask("sleepers")
    program.ask("work", "churn", 2, "version")
    program.ask("work", "fork", 1, "version")
    program.ask("work", "sequence", 2, "version", 1)
    files = {version: [soak.build.library("basic", version)] for version in (1, 2, 3)}

    def look(version: int) -> None:
        assert program.call("pair") == version * 1001001

    try:
        with Driver(soak.hu) as driver:
            while count < 300 and time.monotonic() < until:
                count += stress.switches(program, driver, files, 20, look)
        workers = program.workers()
        assert workers.failures == 0, workers
        program.check_sleepers()
        assert program.facts("stop")["lost"] == "0", "a restartable sequence was carried on with"
    finally:
        item.numbers = {"upgrades and rollbacks": count}
    item.reached = count >= 300


def open_vswitch(soak: Soak, item: Item, until: float) -> None:
    """The real switch at full load, while flows, ports and bridges come and go; now and then the tool is killed."""
    from hotupgrade.vswitch import vulnerability
    from hotupgrade.vswitch.builds import find_build
    from hotupgrade.vswitch.demo import LIBRARIES
    from hotupgrade.vswitch.switch import Switch
    from soak import switch as steps

    chance = random.Random(soak.seed)
    fixed = find_build("fixed", ROOT / "build" / "ovs")
    files = [fixed.library(name) for name in LIBRARIES]
    numbers = {"upgrades": 0, "rollbacks": 0, "kills": 0, "not now": 0}
    changes: dict[str, int] = {}
    breaks: list[float] = []
    try:
        with Switch(find_build("vulnerable", ROOT / "build" / "ovs")) as switch, ExitStack() as resources:
            vulnerability.prepare(switch)
            driver = resources.enter_context(Driver(soak.hu))
            with steps.changes_in_background(switch, changes):
                turn = 0
                while numbers["upgrades"] < 300 and time.monotonic() < until:
                    turn += 1
                    if turn % 100 == 0:
                        driver = resources.enter_context(Driver(soak.hu))
                    for command, words in (("upgrade", files), ("rollback", [])):
                        answer = driver(command, switch.pid, *words, "--json", limit=60)
                        assert switch.alive, f"{answer}\n{switch.log()[-2000:]}"
                        if answer.outcome == "not-now":
                            numbers["not now"] += 1
                            continue
                        if answer.outcome == "refused" and command == "rollback":
                            continue  # the upgrade before it was not possible then
                        assert answer.code == DONE, str(answer)
                        numbers[f"{command}s"] += 1
                        breaks.append(answer.document["break_us"]["busy_max"] or 0.0)
                        if turn % 5 == 0:
                            expected = steps.NONE if command == "upgrade" else steps.ALL
                            assert steps.holes(switch) == expected, command
                    if turn % 10 == 0:
                        numbers["kills"] += steps.kill_once(switch, soak.hu, driver, files, chance)
            steps.check_log(switch.log())
            rate = switch.rate(0.5)
            assert rate.packets > 1000, rate
    finally:
        breaks.sort()
        item.numbers = {
            **numbers,
            "changes meanwhile": changes,
            "break of the busy thread, us (median, p99, max)": [
                round(breaks[int((len(breaks) - 1) * part)], 1) for part in (0.5, 0.99, 1.0)
            ]
            if breaks
            else [],
        }
    item.reached = numbers["upgrades"] >= 300


def open_vswitch_restarts(soak: Soak, item: Item, until: float) -> None:
    """Every loop of the real switch changed, under a guest's packets."""
    from soak.restarts import restarts

    def report(numbers: Numbers) -> None:
        item.numbers = numbers.shown()

    item.reached = restarts(soak.hu, soak.seed, until, report)


def open_vswitch_first(soak: Soak, item: Item, until: float) -> None:
    """Switches that have only just started."""
    from hotupgrade.vswitch.builds import find_build
    from hotupgrade.vswitch.demo import LIBRARIES
    from soak.fresh import first_upgrades

    goal = int(item.goal.split()[0])
    vulnerable, fixed = (find_build(name, ROOT / "build" / "ovs") for name in ("vulnerable", "fixed"))

    def over(switches: int) -> bool:
        item.reached = switches >= goal
        return item.reached or time.monotonic() > until

    files = [fixed.library(name) for name in LIBRARIES]
    first_upgrades(soak.hu, soak.seed, over, vulnerable, files, item.numbers.update)


def _while_time(numbers: Iterable[int], until: float) -> Iterator[int]:
    for number in numbers:
        if time.monotonic() > until:
            return
        yield number


#: name, goal, share of the time, what to do
ITEMS: list[tuple[str, str, float, Callable[[Soak, Item, float], None]]] = [
    ("kills at every step", "1,000 kills, every step of five kinds of runs", 0.25, kills_at_every_step),
    (
        "Open vSwitch under load",
        "300 upgrades and as many rollbacks, with flow, port and bridge churn",
        0.25,
        open_vswitch,
    ),
    (
        "Open vSwitch restarts its threads",
        "200 upgrades and as many rollbacks with every loop changed, no packet lost",
        0.3,
        open_vswitch_restarts,
    ),
    ("Open vSwitch has just started", "60 switches, each upgraded for the first time", 0.2, open_vswitch_first),
    ("kills at random", "300 kills", 0.08, kills_at_random),
    ("ends at every step", "exec and exit, before every step", 0.12, ends_at_steps),
    ("executes another program", "300 runs", 0.06, executes_another),
    ("exits", "150 runs", 0.04, exits),
    ("threads and processes come and go", "300 upgrades and rollbacks", 0.04, churn),
    ("upgrades of small programs", "10,000 upgrades and rollbacks", 1.0, small_upgrades),
]


def run(item: Item, work: Callable[[Soak, Item, float], None], soak: Soak, until: float) -> None:
    begin = time.monotonic()
    try:
        work(soak, item, until)
    except Exception as error:
        item.violation = "".join(traceback.format_exception(error))
        keep = ROOT / "build" / "soak" / f"evidence-{item.name.replace(' ', '-')}"
        with open(f"{keep}.txt", "w") as file:
            file.write(item.violation)
            for program in soak.programs:
                file.write(f"\n{program.path} {program.pid} alive={program.alive()} {program.process.poll()}\n")
                file.write(program.stderr_path.read_text(errors="replace"))
                if program.alive():
                    file.write("\n".join(program.maps()))
    finally:
        soak.end_programs()
        item.seconds = round(time.monotonic() - begin, 1)


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def workshop() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="hotupgrade-soak-"))
    directory.chmod(0o755)
    (directory / "home").mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", action="append", help="items by name; all unless given")
    choice = parser.parse_args()
    begin = time.monotonic()
    end = begin + choice.minutes * 60
    folder = ROOT / "build" / "soak"
    folder.mkdir(parents=True, exist_ok=True)
    items: list[Item] = []
    say(f"soak: at most {choice.minutes:g} minutes, seed {choice.seed}")
    with workshop() as directory:
        soak = Soak(directory, Builder(directory), HotUpgrade(directory / "home"), choice.seed)
        for name, goal, share, work in ITEMS:
            if choice.only and name not in choice.only:
                continue
            item = Item(name, goal)
            items.append(item)
            left = end - time.monotonic()
            if os.geteuid() != 0 and work in (open_vswitch, open_vswitch_restarts, open_vswitch_first):
                say(f"{name}: left out, it needs root")
                continue
            if left > 0:
                run(item, work, soak, time.monotonic() + min(left, share * choice.minutes * 60))
            shown = {key: value for key, value in item.numbers.items() if key != "places"}
            say(f"{name} ({goal}): {'reached' if item.reached else 'not reached'} in {item.seconds} s: {shown}")
            if item.violation:
                say(f"VIOLATION in {name}:\n{item.violation}")
            _write(folder / "report.json", choice, items, time.monotonic() - begin)
    bad = [item for item in items if item.violation]
    say(f"soak: {len(items)} items, {len(bad)} violations, {time.monotonic() - begin:.0f} s; {folder / 'report.json'}")
    return 1 if bad else 0


def _write(path: Path, choice: argparse.Namespace, items: list[Item], seconds: float) -> None:
    report = {
        "minutes": choice.minutes,
        "seed": choice.seed,
        "seconds": round(seconds, 1),
        "violations": sum(bool(item.violation) for item in items),
        "items": [vars(item) for item in items],
    }
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

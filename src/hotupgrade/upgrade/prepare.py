"""Prepare: which module each new build replaces, what differs, the verdict, and the plan.  Changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache, read_ahead
from hotupgrade.binary.separate.find import NOWHERE, Search
from hotupgrade.errors import NotNow, Reason, Refused
from hotupgrade.plan.cache import compare_cached, concerns_cached
from hotupgrade.plan.concerns import Concern
from hotupgrade.plan.concerns import notes as hints
from hotupgrade.plan.loops.model import LoopPlan
from hotupgrade.plan.loops.profile import LoopProfile
from hotupgrade.plan.loops.resolve import loops_of, resolve_loops
from hotupgrade.plan.model import Comparison, Image, ModulePlan
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.prototypes import changed_prototypes, prototype_reasons
from hotupgrade.plan.verdict import verdict
from hotupgrade.target.images import ANNEX
from hotupgrade.target.maps import PAGE, free_base
from hotupgrade.target.modules import Module
from hotupgrade.upgrade import interposition, unwinding
from hotupgrade.upgrade.ledger import ModuleRecord
from hotupgrade.upgrade.session import Session
from hotupgrade.upgrade.source import open_earlier, open_loaded, open_new


@dataclass
class Candidate:
    """One module and the build that is to replace its code."""

    module: Module
    new: Build
    path: str
    images: list[Image]
    current: int
    comparisons: list[Comparison]
    refusals: list[Reason] = field(default_factory=list)
    notes: list[Reason] = field(default_factory=list)
    concerns: list[Concern] = field(default_factory=list)
    loops: list[LoopPlan] = field(default_factory=list)

    @property
    def nothing_to_do(self) -> bool:
        """The build is in force already."""
        running = self.images[self.current].build
        return running.build_id == self.new.build_id and running.contents == self.new.contents

    @property
    def comparison(self) -> Comparison:
        """The new build against the one in force."""
        return self.comparisons[self.current]


def find_module(modules: Sequence[Module], build: Build, path: str, name: str | None) -> Module:
    """The module that a build replaces: of its own kind, and of its SONAME (a program: of the file's name), or of the
    name that the operator gave.

    Raises:
        Refused: there is none, or more than one.
    """
    wanted = name or (Path(path).name if build.executable else build.soname)
    found = [
        m for m in modules if wanted and m.executable == build.executable and wanted in (m.name, Path(m.path).name)
    ]
    if not found:
        raise Refused(_no_such_module(modules, build, path, wanted))
    if len(found) > 1:
        raise Refused(
            Reason(
                "several-modules",
                path,
                f"the process holds {len(found)} modules named {wanted}; it cannot be told which is meant",
            )
        )
    return found[0]


def _no_such_module(modules: Sequence[Module], build: Build, path: str, wanted: str) -> Reason:
    if build.executable:
        program = next((m.name for m in modules if m.executable), "")
        text = (
            f"{path} is a program, but not a newer build of the one that runs, which is {program} (if it is, say "
            f"--module {program}=FILE)"
        )
    elif any(m.executable and wanted in (m.name, Path(m.path).name) for m in modules):
        text = f"{path} is a library; it cannot replace {wanted}, which is the program itself"
    elif wanted:
        text = f"{path} is no newer build of anything in the process: it holds no library named {wanted}"
    else:
        text = (
            f"{path} is no newer build of anything in the process: it holds nothing that it could replace, as it has "
            f"no SONAME (say --module NAME=FILE)"
        )
    return Reason("no-such-module", path, text)


def images_of(
    module: Module, record: ModuleRecord | None, cache: Cache, search: Search = NOWHERE
) -> tuple[list[Image], int]:
    """All builds of a module that the process holds, and which of them is in force."""
    images = [Image(open_loaded(module, cache, search), module.base)]
    if record is None:
        return images, 0
    images.extend(
        Image(
            open_earlier(item.build_id, item.path, cache, search),
            item.base,
            None if item.placed is None else frozenset(item.placed),
            frozenset(item.owned),
            item.tls_offsets,
        )
        for item in record.images[1:]
    )
    return images, record.current


@dataclass(frozen=True)
class Wanted:
    """A file with a new build, and what it is to replace: a module, a name that the operator gave, or whatever it says
    itself."""

    path: Path
    name: str | None = None
    module: Module | None = None


@dataclass
class Examined:
    """What is to be done, and what is left out because it cannot be."""

    candidates: list[Candidate]
    refusals: list[Reason] = field(default_factory=list)  # of files that could not be compared with anything
    skipped: list[Skipped] = field(default_factory=list)

    def skip_refused(self, modules: Sequence[Module]) -> None:
        """Leave out every candidate with a refusal, and those that counted on one of them."""
        while refused := [c for c in self.candidates if c.refusals]:
            self.skipped += [Skipped(c.module.name, c.path, tuple(c.refusals)) for c in refused]
            self.candidates = [c for c in self.candidates if not c.refusals]
            _judge_prototypes(modules, self.candidates)


@dataclass(frozen=True)
class Skipped:
    """A module that is left as it is, and why."""

    name: str
    path: str
    reasons: tuple[Reason, ...]


def examine(
    session: Session,
    wanted: Sequence[Wanted],
    options: PlanOptions,
    cache: Cache,
    profiles: Sequence[LoopProfile] = (),
    search: Search = NOWHERE,
    *,
    skip_refused: bool = False,
) -> Examined:
    """Open and compare all new builds and give the verdict on each.

    ``profiles``: of loops that never return.  ``search``: for the debug information of stripped builds.

    Raises:
        Refused: a file that was named cannot be used at all, or matches no module.
    """
    result = Examined([])
    for item in wanted:
        try:
            candidate = _opened(session, item, cache, search)
        except (Refused, NotNow) as problem:
            if item.module is None:
                raise
            reasons = problem.reasons if isinstance(problem, Refused) else (problem.reason,)
            if skip_refused:
                result.skipped.append(Skipped(item.module.name, str(item.path), tuple(reasons)))
            else:
                result.refusals += reasons
            continue
        if any(c.module is candidate.module for c in result.candidates):
            raise Refused(Reason("twice", str(item.path), f"{item.path}: {candidate.module.name} is named twice"))
        result.candidates.append(candidate)
    read_ahead([build for c in result.candidates for build in (c.new, *(i.build for i in c.images))], cache)
    for candidate in result.candidates:
        _judge(session, candidate, options, cache, profiles)
    _judge_prototypes(session.modules, result.candidates)
    if skip_refused:
        result.skip_refused(session.modules)
    return result


def _opened(session: Session, item: Wanted, cache: Cache, search: Search) -> Candidate:
    build = open_new(item.path, cache, search)
    module = item.module or find_module(session.modules, build, str(item.path), item.name)
    if module.executable != build.executable:
        raise Refused(_no_such_module(session.modules, build, str(item.path), module.name))
    if module.name.startswith("ld-linux"):
        text = f"{module.name} is the dynamic linker itself, which has no state that new code could be given: restart"
        raise Refused(Reason("dynamic-linker", module.name, text))
    record = session.ledger.module(module.name, module.base)
    images, current = images_of(module, record, cache, search)
    build, images = _numbered_alike(build, images, record)
    return Candidate(module, build, str(item.path), images, current, [])


def _numbered_alike(build: Build, images: list[Image], record: ModuleRecord | None) -> tuple[Build, list[Image]]:
    """Rows are numbered by what is known of a build: if one has no symbols, all are seen as if they had none.

    Raises:
        Refused: the process holds builds by whose symbols the ledger counts, and another has none now.
    """
    earlier = record.images[1:] if record else []
    bare = [each for each in (build, *(image.build for image in images)) if each.bare]
    if not bare and not any(item.bare for item in earlier):
        return build, images
    if not all(item.bare for item in earlier):
        text = (
            f"{bare[0].label if bare else build.label} has no symbols, but the upgrades that the process has behind it"
            " were made with symbols; bring those of all builds (--debug-dir)"
        )
        raise Refused(Reason("no-symbols", build.label, text))
    return build.stripped, [dataclasses.replace(image, build=image.build.stripped) for image in images]


def _judge(
    session: Session, candidate: Candidate, options: PlanOptions, cache: Cache, profiles: Sequence[LoopProfile]
) -> None:
    module, images, current, build = candidate.module, candidate.images, candidate.current, candidate.new
    candidate.comparisons += [
        compare_cached(image.build, build, cache, loops_of(module.name, image.build, profiles)) for image in images
    ]
    if candidate.nothing_to_do:
        return
    candidate.refusals, candidate.notes = verdict(images, current, build, candidate.comparisons, options)
    candidate.concerns = concerns_cached(candidate.comparison, cache)
    candidate.notes += hints(candidate.concerns)
    candidate.loops, refusals = resolve_loops(module.name, images, current, build, candidate.comparisons, profiles)
    candidate.refusals += refusals
    candidate.refusals += unwinding.refusals(module.name, [images[0].build, build], session.modules)
    candidate.refusals += interposition.refusals(session.modules, module, images[0].build, build)
    candidate.refusals += _main_changed(candidate)


def _main_changed(candidate: Candidate) -> Iterator[Reason]:
    """The function that is on the main thread's stack for as long as there is a main thread."""
    started, comparison = candidate.images[0].build, candidate.comparisons[0]
    row = started.by_name.get("main")
    known = {plan.function for plan in candidate.loops} | {reason.subject for reason in candidate.refusals}
    if not candidate.module.executable or row is None or not comparison.old_replaced[row] or "main" in known:
        return
    because = comparison.dragged.get(int(comparison.new_of[row]))
    how = "has changed" if because is None else f"must change with {comparison.new.entities.names[because]}"
    text = (
        f"the main thread is in main() for as long as the process lives, and main() {how}; leave that change out, or "
        f"restart the program"
    )
    yield Reason("loop-without-profile", "main", text)


def _judge_prototypes(modules: Sequence[Module], candidates: Sequence[Candidate]) -> None:
    """Refuses functions that other modules go on calling in the old way."""
    for candidate in candidates:
        if candidate.nothing_to_do or not any(p.exported for p in changed_prototypes(candidate.comparison)):
            continue
        importers = {
            module.name or Path(module.path).name: module.imports
            for module in modules
            if module is not candidate.module
        }
        upgraded = {other.module.name: other.new.debug for other in candidates}
        candidate.refusals += prototype_reasons(candidate.comparison, importers, upgraded)


def find_room(
    session: Session, candidate: Candidate, size: int, low: int, high: int, taken: list[tuple[int, int]]
) -> int:
    """A base for an image within reach of the module's homes.

    Raises:
        Refused: there is no room.
    """
    base = free_base(session.process.maps(), size + ANNEX + PAGE, low, high, taken)
    if base is None:
        raise Refused(
            Reason(
                "no-room",
                candidate.module.name,
                f"{candidate.module.name}: no free range of {size} bytes within 2 GiB of the module in the "
                f"process's address space",
            )
        )
    taken.append((base, base + size + ANNEX + PAGE))
    return base


@dataclass(frozen=True)
class Planned:
    """A candidate with its plan."""

    candidate: Candidate
    plan: ModulePlan

    @property
    def record_images(self) -> list[Image]:
        """The module's images after the commit."""
        images = list(self.candidate.images)
        if self.plan.image is not None:
            images.append(self.plan.placed)
        return images

    @property
    def index(self) -> int:
        """The index of the image that becomes current."""
        for index, image in enumerate(self.record_images):
            if image is self.plan.placed or (image.build.build_id, image.base) == (
                self.plan.placed.build.build_id,
                self.plan.placed.base,
            ):
                return index
        raise AssertionError("a plan names an image that the module does not have")

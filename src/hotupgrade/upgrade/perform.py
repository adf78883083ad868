"""The upgrade itself: prepare, hot upgrade, cleanup.  Whatever fails before the commit leaves the target as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache
from hotupgrade.binary.model import Kind
from hotupgrade.binary.separate.find import Search
from hotupgrade.errors import HotUpgradeError, NotNow, Reason, Refused
from hotupgrade.plan.loops.profile import LoopProfile, builtin_profiles, read_profiles
from hotupgrade.plan.make import footprint, make_plan, new_thread_locals, reach
from hotupgrade.plan.model import Comparison, ImagePlan
from hotupgrade.plan.options import PlanOptions
from hotupgrade.target.agent import Agent, Operation, call
from hotupgrade.target.images import ANNEX, Area, map_image, register_frames, touch, unmap_image
from hotupgrade.target.maps import PAGE
from hotupgrade.target.moves import bring_moves
from hotupgrade.target.request import Forbidden, Hook, StopReport
from hotupgrade.target.reserve import load_reserve
from hotupgrade.target.scratch import Scratch
from hotupgrade.upgrade import describe, documents, journal, source
from hotupgrade.upgrade.afterwards import afterwards
from hotupgrade.upgrade.commit import Change, Commit, elapsed_us, scratch_size, unwinder_of
from hotupgrade.upgrade.debug_sources import debug_search
from hotupgrade.upgrade.documents import Document
from hotupgrade.upgrade.hooks import HookRunner
from hotupgrade.upgrade.ledger import (
    Generation,
    GenerationModule,
    ImageRecord,
    Ledger,
    LoopRecord,
    ModuleRecord,
    Unsettled,
    pack_words,
)
from hotupgrade.upgrade.loops import free_sites, record_loops, stubs_size
from hotupgrade.upgrade.on_disk import replaced_on_disk
from hotupgrade.upgrade.prepare import Candidate, Examined, Planned, Wanted, examine, find_room
from hotupgrade.upgrade.recover import recover
from hotupgrade.upgrade.restart import Restart, with_loops
from hotupgrade.upgrade.rollback import Conclusion, conclude, in_force, undo_last
from hotupgrade.upgrade.scene import LiveScene
from hotupgrade.upgrade.session import Session
from hotupgrade.upgrade.settle import settle
from hotupgrade.upgrade.standing import explained, threads_without_door
from hotupgrade.upgrade.trust import own_folder
from hotupgrade.upgrade.unwinding import release_frames, unwinder
from hotupgrade.upgrade.words import to_words


@dataclass(frozen=True)
class Settings:
    """What the operator chose.  ``timeout`` in seconds bounds the attempts to stop."""

    plan: PlanOptions = field(default_factory=PlanOptions)
    timeout: float = 10.0
    dry_run: bool = False
    measure_empty: bool = False
    explain: bool = False
    profiles: tuple[Path, ...] = ()  # of loops, beside those that come with the package
    debug_dirs: tuple[Path, ...] = ()  # folders and packages with the debug information of stripped builds
    skip_refused: bool = False  # upgrade the others
    debuginfod: tuple[str, ...] = ()  # addresses of servers; those of the environment if there are none

    def loops(self) -> list[LoopProfile]:
        """Raises Refused: a profile cannot be used."""
        return read_profiles([*self.profiles, *builtin_profiles()])

    def search(self, cache: Cache) -> Search:
        """Raises Refused: a folder, a package or a server with debug information cannot be used."""
        return debug_search(self.debug_dirs, self.debuginfod, cache)


def check(pid: int, files: Sequence[Path], named: Mapping[str, Path], settings: Settings, cache: Cache) -> Document:
    """The verdict on new builds, as a document.  Touches nothing."""
    with Session(pid, exclusive=False) as session:
        examined, notes = _examined(session, files, named, settings, cache)
        document = documents.head("check", pid, session.process.name)
        document["generation"] = session.ledger.generation
        if settings.explain:
            document["explained"] = describe.explained(examined.candidates)
        return _judged(document, session, examined, notes)


def _examined(
    session: Session, files: Sequence[Path], named: Mapping[str, Path], settings: Settings, cache: Cache
) -> tuple[Examined, list[Reason]]:
    """The builds that were named, or else those that replace the process's modules on disk; and notes on these."""
    wanted = [*(Wanted(path) for path in files), *(Wanted(path, name) for name, path in named.items())]
    notes: list[Reason] = []
    if not wanted:
        found, notes = replaced_on_disk(session)
        wanted = [Wanted(item.path, module=item.module) for item in found]
    examined = examine(
        session,
        wanted,
        settings.plan,
        cache,
        settings.loops(),
        settings.search(cache),
        skip_refused=settings.skip_refused,
    )
    return examined, notes


def _judged(document: Document, session: Session, examined: Examined, notes: Sequence[Reason]) -> Document:
    """Fill in verdict, reasons, notes and what differs."""
    candidates = examined.candidates
    refusals = [*examined.refusals, *(reason for c in candidates for reason in c.refusals)]
    if not candidates:
        refusals += [reason for item in examined.skipped for reason in item.reasons]
    refusals = refusals or threads_without_door(session, candidates)
    modules = [describe.compared(c) for c in candidates]
    document["verdict"] = (
        "refused" if refusals else "nothing-to-do" if all(c.nothing_to_do for c in candidates) else "upgradable"
    )
    document |= {
        "notes": documents.reasons([*notes, *(note for c in candidates for note in c.notes)]),
        "reasons": documents.reasons(refusals),
        "skipped": [
            {"name": item.name, "path": item.path, "reasons": documents.reasons(item.reasons)}
            for item in examined.skipped
        ],
        "modules": modules,
        **describe.totals(modules),
    }
    if refusals:
        document |= {"ok": False, "outcome": "refused", "exit_code": Refused.exit_code}
    elif document["verdict"] == "nothing-to-do":
        document["outcome"] = "nothing-to-do"
    return document


def upgrade(pid: int, files: Sequence[Path], named: Mapping[str, Path], settings: Settings, cache: Cache) -> Document:
    """Upgrade a running process.

    Args:
        pid: the process.
        files: new builds; each replaces the module of its SONAME, or the program of its name.
        named: module name → new build, for builds that do not say so themselves.  If neither files nor names are
            given: whatever has taken the place of the process's files on disk.
        settings: the operator's choices.
        cache: of analyses of builds.

    Returns:
        The document; ``outcome`` is ``done``, ``nothing-to-do``, ``dry-run`` or ``refused``.

    Raises:
        Refused: a file cannot be used, or the process is of a kind that cannot be upgraded.
        NotNow: not possible now; the target is unchanged.
    """
    begin = time.monotonic()
    with Session(pid, exclusive=not settings.dry_run) as session:
        examined, notes = _examined(session, files, named, settings, cache)
        document = documents.head("upgrade", pid, session.process.name)
        document["generation"] = session.ledger.generation
        _judged(document, session, examined, notes)
        todo = [c for c in examined.candidates if not c.nothing_to_do]
        if document["exit_code"] or not todo:
            return document
        work = _Work(session, todo, settings)
        if settings.dry_run:
            work.plan_all()
            document["outcome"] = "dry-run"
            return document | work.described()
        own_folder(journal.state_folder())  # before anything is changed: afterwards it would be too late to fail
        if session.agent is not None:
            recover(session.require_agent(settings.timeout), session.ledger, session.modules)
            settle(session, session.require_agent(settings.timeout), settings.timeout)
        work.plan_all()  # what cannot be is refused before anything is brought into the process
        work.bring_agent()
        return document | work.carry_out(begin)


class _Work:
    """One upgrade under way."""

    def __init__(self, session: Session, candidates: Sequence[Candidate], settings: Settings) -> None:
        self._session = session
        self._candidates = candidates
        self._settings = settings
        self._planned: list[Planned] = []
        self._memory: dict[str, int] = {}
        self._mapped: list[ImagePlan] = []
        self._wants_reserve = False
        self._loops: list[LoopRecord] = []
        self._stubs: list[tuple[int, int]] = []
        self.agent: Agent | None = None

    # prepare

    def bring_agent(self) -> None:
        """Have the agent in the process; plan again if it lies where an image was to be, or if only now it is known
        where new thread-locals go."""
        fresh = self._session.agent is None
        self.agent = self._session.require_agent(self._settings.timeout)
        if fresh:
            recover(self.agent, self._session.ledger, self._session.modules)
        if self._wants_reserve or (fresh and self._in_the_way()):
            self.plan_all()

    def _in_the_way(self) -> bool:
        images = [item.plan.image for item in self._planned if item.plan.image is not None]
        maps = self._session.process.maps()
        return any(m.start < i.base + i.size + ANNEX and i.base < m.end for i in images for m in maps)

    def plan_all(self) -> None:
        """Plans for all modules."""
        self._planned = []
        taken: list[tuple[int, int]] = []
        bases = []
        newcomers = self._session.ledger.exports
        for candidate in self._candidates:
            size = footprint(candidate.new)
            low, high = reach(candidate.images, size)
            bases.append(find_room(self._session, candidate, size, low, high + size, taken))
            newcomers |= new_exports(candidate.new, candidate.comparisons[0], bases[-1])
        for candidate, base in zip(self._candidates, bases, strict=True):
            scene = LiveScene(self._session.process, self._session.modules, candidate.module, newcomers)
            plan = make_plan(
                candidate.module.name,
                candidate.images,
                candidate.current,
                candidate.new,
                candidate.comparisons,
                scene,
                base,
                self._settings.plan,
                tls_reserve=self._reserve(candidate, scene),
                other_slots=self._import_slots(candidate) if self._settings.plan.imports else (),
            )
            self._planned.append(Planned(candidate, plan))

    def _reserve(self, candidate: Candidate, scene: LiveScene) -> dict[int, int]:
        """Room for new thread-locals: row → offset from the module's own block."""
        layout = new_thread_locals(
            candidate.images, candidate.current, candidate.new, candidate.comparisons, self._settings.plan
        )
        if layout is None:
            return {}
        if scene.tls_block is None:
            raise Refused(
                Reason(
                    "tls-dynamic",
                    candidate.module.name,
                    f"{candidate.module.name} was loaded by dlopen and its thread-locals are allocated on demand: "
                    f"a new one has no place",
                )
            )
        self._wants_reserve = True
        place = -65536  # without a reserve any distance will do to see whether the plan can be made
        if self.agent is not None:
            with Scratch(self.agent, 4096) as scratch:
                request = layout.request
                place = load_reserve(self.agent, scratch, request.initial, request.alignment, self._settings.timeout)
        return {row: place + offset - scene.tls_block for row, offset in layout.offsets.items()}

    def _import_slots(self, candidate: Candidate) -> list[tuple[int, int, str]]:
        """Call slots of the other modules: (address, content, description)."""
        process = self._session.process
        return [
            (address, process.read_word(address), f"{module.name}: {symbol}")
            for module in self._session.modules
            if module is not candidate.module
            for address, symbol in module.import_slots
        ]

    # carry out

    def carry_out(self, begin: float) -> Document:
        """Place, stop, replace, clean up."""
        agent = self._required_agent()
        plain = change = self._change()
        for item in self._planned:
            source.keep(item.candidate.new)  # who comes after a tool that was killed needs it
            for image in item.candidate.images:
                source.keep_debug(image.build)
        self._hooks = HookRunner(agent, [item.plan.hooks for item in self._planned], self._settings.timeout)
        with Scratch(agent, scratch_size(self._session, change, self._site_count())) as scratch:
            commit: Commit | None = None
            restart: Restart | None = None
            try:
                self._place(scratch)
                restart = self._restart(agent)
                if restart is not None:
                    change = dataclasses.replace(
                        plain,
                        code=restart.arming(plain.code),
                        forbidden=with_loops(plain.forbidden, self._loops),
                    )
                commit = Commit(self._session, agent, scratch, change, restart)
                self._hooks.before()
                ledger = self._next_ledger(plain, None)
                commit.prepare(ledger)
                prepare_us = elapsed_us(begin)
                empty = commit.empty_stop(self._settings.timeout) if self._settings.measure_empty else None
                report = commit.stop(self._settings.timeout)
            except BaseException as problem:
                if commit is not None and commit.in_force:
                    raise in_force(problem) from problem
                why = self._explained(problem)
                with contextlib.suppress(NotNow):
                    if commit is not None:
                        commit.close(committed=False)
                    self._hooks.cancel()
                    self._remove()
                if why is not None:
                    raise Refused(why) from problem
                raise
            after = time.monotonic()
            unfinished = commit.finish(self._settings.timeout)
            commit.verify()
            commit.record(self._next_ledger(plain, report))
        concluded = self._see_restarts(restart)
        self._run_after()
        notes = self._notes() + afterwards(agent, self._session, ledger, self._planned)
        notes += [unfinished] if unfinished else []
        notes += concluded.notes
        document = self.described() | documents.stopped(
            report, prepare_us, elapsed_us(after), concluded.restarted, concluded.settling
        )
        document["generation"] = ledger.generation
        document["notes"] = documents.reasons(notes)
        document["edits"] = change.numbers()
        document["empty_stop_us"] = documents.breaks(empty) if empty else None
        self._enter(document)
        return document

    def _explained(self, problem: BaseException) -> Reason | None:
        """Why trying again would be of no use; None if it might."""
        with contextlib.suppress(NotNow):
            return explained(self._session, self._candidates, problem) if isinstance(problem, NotNow) else None
        return None

    # restart threads

    def _site_count(self) -> int:
        plans = [plan for candidate in self._candidates for plan in candidate.loops]
        return sum(len(side.sites) for plan in plans for side in (*plan.sides.values(), plan.new))

    def _restart(self, agent: Agent) -> Restart | None:
        """What leads threads out of loops that changed; None if none did."""
        planned = [item for item in self._planned if item.candidate.loops]
        if not planned:
            return None
        table = bring_moves(agent)
        first = free_sites(self._session.ledger, self._site_count())
        for item in planned:
            plans = item.candidate.loops
            size = -(-stubs_size(plans) // PAGE) * PAGE
            low, high = reach(item.record_images, size)
            start = find_room(self._session, item.candidate, size, low, high + size, [])
            scene = LiveScene(self._session.process, self._session.modules, item.candidate.module)
            records, stubs = record_loops(item, plans, scene, self._session.process, first, start, table.gate)
            first += sum(len(record.sites) for record in records)
            if any(record.sites for record in records):
                name = f"calls:{item.candidate.module.name}"
                map_image(agent, name, start, size, [(0, stubs.code)], [Area(0, size, False, True)])
                self._stubs.append((start, size))
            self._loops += records
        return Restart(agent, table, self._loops, unwinder_of(self._session), self._session.clocks)

    def _see_restarts(self, restart: Restart | None) -> Conclusion:
        """Whether every thread is where it should be; if one is not, take the commit back."""
        if restart is None:
            return Conclusion()
        try:
            return conclude(self._session, restart, self._settings.timeout)
        except NotNow:
            try:
                undo_last(self._session, self._settings.timeout)
            except NotNow as problem:
                raise in_force(problem) from problem
            raise

    def _notes(self) -> list[Reason]:
        """Those of the verdict, and what only the process showed."""
        found = [note for candidate in self._candidates for note in candidate.notes]
        return list(dict.fromkeys([*found, *(note for item in self._planned for note in item.plan.notes)]))

    def _required_agent(self) -> Agent:
        if self.agent is None:
            raise HotUpgradeError("an upgrade was begun without an agent")
        return self.agent

    def _change(self) -> Change:
        data, code = to_words(edit for item in self._planned for edit in item.plan.edits)
        forbidden = [Forbidden(w.low, w.high, w.name) for item in self._planned for w in item.plan.watches]
        # Left to the target itself, constructors run even if the tool is killed at the commit.
        constructors = [call(c.address) for item in self._planned for c in item.plan.constructors]
        hooks = [Hook(call(c.address, *c.arguments), c.name) for item in self._planned for c in item.plan.hooks.sync]
        return Change(data, code, forbidden, hooks, constructors)

    def _place(self, scratch: Scratch) -> None:
        """Map the new images and tell the unwinder of them."""
        agent = self._required_agent()
        register = unwinder(self._session.modules)[0]
        for item in self._planned:
            image = item.plan.image
            if image is None:
                continue
            areas = [Area(p.offset, p.size, p.writable, p.executable) for p in image.protections]
            pieces = [(piece.offset, piece.content) for piece in image.pieces]
            name = item.candidate.module.name
            title = f"{name}:{item.candidate.new.build_id[:12]}"  # profilers tell images apart by it
            self._memory[name] = map_image(agent, title, image.base, image.size, pieces, areas)
            self._mapped.append(image)
            operations: list[Operation] = []
            operations += touch(scratch, _pages(image, writable=False), write=False)
            operations += touch(scratch, _pages(image, writable=True), write=True)
            if register and image.eh_frame:
                operations.append(register_frames(register, image.base, image.size, image.eh_frame))
            if operations:
                agent.run(operations)

    def _remove(self) -> None:
        """Take back what was mapped for a commit that did not come."""
        agent = self._required_agent()
        for image in self._mapped:
            end = image.base + image.size
            released = release_frames(self._session.process, self._session.modules, image.base, end)
            if released is not None:  # else it stays: who unwinds may still look into it
                agent.run([*released, unmap_image(image.base, image.size)])
        for start, size in self._stubs:
            agent.run([unmap_image(start, size)])

    def _run_after(self) -> None:
        """Have the new build look at itself; if it does not like what it sees, take the commit back."""
        try:
            self._hooks.after()
        except NotNow:
            try:
                undo_last(self._session, self._settings.timeout)
            except NotNow as problem:
                raise in_force(problem) from problem
            raise

    # record

    def _next_ledger(self, change: Change, report: StopReport | None) -> Ledger:
        ledger = self._session.ledger
        names = {item.candidate.module.name for item in self._planned}
        modules = [m for m in ledger.modules if m.name not in names] + [self._record(item) for item in self._planned]
        generation = Generation(
            number=ledger.generation + 1,
            time=documents.now(),
            modules=[
                GenerationModule(
                    name=item.candidate.module.name,
                    build_id=item.candidate.new.build_id,
                    path=item.candidate.path,
                    previous=item.candidate.current,
                    image=item.index,
                )
                for item in self._planned
            ],
            data=pack_words([(w.address, w.old, w.new) for w in change.data]),
            code=pack_words([(w.address, w.old, w.new) for w in change.code]),
            forbidden=[entry for item in self._planned for entry in active_code(item)],
            hooks=[(c.address, list(c.arguments), c.name) for item in self._planned for c in item.plan.hooks.back],
            one_way=next((item.plan.hooks.one_way for item in self._planned if item.plan.hooks.one_way), ""),
            loops=self._loops,
            stubs=self._stubs,
            busy_break_us=report.busy_max_us if report else None,
            max_break_us=report.max_us if report else None,
        )
        unsettled = Unsettled(loops=self._loops, stubs=self._stubs, last=False) if self._stubs else None
        generations = [*ledger.generations, generation]
        return msgspec.structs.replace(ledger, modules=modules, generations=generations, unsettled=unsettled)

    def _record(self, item: Planned) -> ModuleRecord:
        candidate, ledger = item.candidate, self._session.ledger
        known = ledger.module(candidate.module.name, candidate.module.base)
        images = list(known.images) if known else [_image_record(candidate, item, 0)]
        if item.plan.image is not None:
            images.append(_image_record(candidate, item, item.index, self._memory.get(candidate.module.name, 0)))
        return ModuleRecord(name=candidate.module.name, base=candidate.module.base, images=images, current=item.index)

    def described(self) -> Document:
        """The plan's part of the document."""
        change = self._change()
        modules = [describe.planned(item, self._estimate(item)) for item in self._planned]
        return {
            "modules": modules,
            **describe.totals(modules),
            "edits": change.numbers(),
            # Pages of the old code that are written become the process's own.
            "memory_bytes": sum(module["memory_bytes"] for module in modules) + change.numbers()["pages"] * PAGE,
        }

    def _estimate(self, item: Planned) -> int:
        image = item.plan.image
        return len(_pages(image, writable=None)) * PAGE if image else 0

    def _enter(self, document: Document) -> None:
        journal.append(
            {
                "time": document.get("time", documents.now()),
                "command": "upgrade",
                "pid": self._session.process.pid,
                "name": self._session.process.name,
                "outcome": "done",
                "generation": document["generation"],
                "modules": [{"name": m["name"], "build_id": m["new"]["build_id"]} for m in document["modules"]],
                "break_us": document["break_us"],
                # Whose types were not compared, because the operator said so.
                "layout_trusted": [n["subject"] for n in document["notes"] if n["code"] == "layout-trusted"],
            }
        )


def new_exports(new: Build, first: Comparison, base: int) -> dict[str, int]:
    """Exported names that the loaded build does not have, where an image at ``base`` has them."""
    rows = (new.entities.exported & (first.old_of < 0) & (new.entities.kind != Kind.TLS)).nonzero()[0].tolist()
    return {name: base + int(new.entities.address[row]) for row in rows for name in new.entities.aliases[row]}


def active_code(item: Planned) -> list[tuple[int, int, str]]:
    """Where the functions run that a rollback takes away: no thread may stand there then."""
    candidate, plan = item.candidate, item.plan
    new, comparison = candidate.new, candidate.comparison
    home = candidate.comparisons[0].old_of
    first = candidate.images[0]
    placed = plan.placed.placed
    found = []
    for row in comparison.replaced.nonzero()[0].tolist():
        size = int(new.entities.size[row])
        if (placed is None or row in placed) and item.index:
            start = plan.placed.base + int(new.entities.address[row])
        elif home[row] >= 0:
            start = first.base + int(first.build.entities.address[home[row]])
            size = int(first.build.entities.size[home[row]])
        else:
            continue
        found.append((start, start + size, new.entities.names[row]))
    return found


def _image_record(candidate: Candidate, item: Planned, index: int, pages: int = 0) -> ImageRecord:
    image = item.record_images[index]
    return ImageRecord(
        build_id=image.build.build_id,
        path=candidate.path if index else candidate.module.path,
        base=image.base,
        start=item.plan.image.base if index and item.plan.image else 0,
        size=item.plan.image.size if index and item.plan.image else 0,
        eh_frame=(item.plan.image.eh_frame or 0) if index and item.plan.image else 0,
        bare=image.build.bare,
        placed=None if image.placed is None else sorted(image.placed),
        owned=sorted(image.owned),
        tls_offsets=dict(image.tls_offsets),
        exports={
            name: address
            for name, address in (
                new_exports(image.build, candidate.comparisons[0], image.base) if index else {}
            ).items()
            if image.build.by_name.get(name) in image.owned
        },
        pages=pages,
    )


def _pages(image: ImagePlan, *, writable: bool | None) -> list[int]:
    """Absolute addresses of the pages that have contents, by protection."""
    used: set[int] = set()
    for piece in image.pieces:
        if piece.content:
            used.update(range(piece.offset // PAGE, (piece.offset + len(piece.content) - 1) // PAGE + 1))
    may_write = {
        page
        for p in image.protections
        if p.writable
        for page in range(p.offset // PAGE, (p.offset + p.size - 1) // PAGE + 1)
    }
    if writable is not None:
        used = {page for page in used if (page in may_write) == writable}
    return [image.base + page * PAGE for page in sorted(used)]

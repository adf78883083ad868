"""From profiles and builds to what is known of each loop that must be restarted, or why it cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hotupgrade.binary.build import Build
from hotupgrade.binary.debug.model import plain
from hotupgrade.errors import Reason
from hotupgrade.plan.copies import present
from hotupgrade.plan.loops.checks import callees, entry_branches
from hotupgrade.plan.loops.code import Code, Functions, WrongFunction
from hotupgrade.plan.loops.model import Door, LoopPlan, LoopSide, Place, Site, SiteKind, Store
from hotupgrade.plan.loops.paths import Located, Types, WrongPath
from hotupgrade.plan.loops.profile import LoopProfile
from hotupgrade.plan.loops.safepoints import SafePoint, functions_with_safe_points, safe_points
from hotupgrade.plan.loops.sites import OldLoop, Skips, plain_sites, skips
from hotupgrade.plan.model import Comparison, Image
from hotupgrade.plan.prototypes import changed_prototypes

#: How long a thread may take from one safe point to the next, in µs: as long as what it does in between.  Nobody waits
#: for it meanwhile but the thread that looks after all of them.
_SAFE_POINT_US = 300_000


def resolve_loops(
    module: str,
    images: Sequence[Image],
    current: int,
    new: Build,
    comparisons: Sequence[Comparison],
    profiles: Sequence[LoopProfile],
) -> tuple[list[LoopPlan], list[Reason]]:
    """Plans for the loops of a module that must be restarted, and the refusals of those that cannot be.

    A loop must be restarted if it is replaced in some image that holds it, if a callback that shares its locals is, or
    if it looks at the same door as such a loop.  Of other loops nothing is said, whether their profile fits or not.
    Of several profiles for one function the first counts.
    """
    process = _Process(images, current, new, comparisons)
    chosen: dict[str, LoopProfile] = {}
    for profile in profiles:
        if profile.is_of(module):
            chosen.setdefault(profile.function, profile)
    changed = {name for name, profile in chosen.items() if process.is_replaced(profile)}
    groups = {chosen[name].group for name in changed} - {""}
    wanted = [profile for name, profile in chosen.items() if name in changed or profile.group in groups]
    plans: list[LoopPlan] = []
    reasons: list[Reason] = []
    for profile in wanted:
        plan, refusals = _Profiled(process, profile, profile.function in changed).resolve()
        plans += [plan] if plan is not None else []
        reasons += refusals
    for point in safe_points(process.functions, process.new, process.holding, comparisons, chosen):
        plan, refusals = _flagged(point)
        plans += [plan] if plan is not None else []
        reasons += refusals
    return plans, reasons


def loops_of(module: str, build: Build, profiles: Sequence[LoopProfile]) -> frozenset[str]:
    """The functions of a build that may be loops which a thread can be led out of, by name."""
    profiled = {profile.function for profile in profiles if profile.is_of(module)}
    return frozenset(profiled | functions_with_safe_points(build))


class _Process:
    """All builds of a module that the process holds, and the new one."""

    def __init__(self, images: Sequence[Image], current: int, new: Build, comparisons: Sequence[Comparison]) -> None:
        self.current = current
        self.comparisons = comparisons
        self.holding = [present(image, index) for index, image in enumerate(images)]
        self.functions = [Functions(image.build) for image in images]
        self.new = Functions(new)

    def is_replaced(self, profile: LoopProfile) -> bool:
        return any(
            self.holding[image][row] and self.comparisons[image].old_replaced[row]
            for image, functions in enumerate(self.functions)
            for name in (profile.function, *profile.together)
            for row in (*functions.all_of(name), *functions.cold_parts(name))
        )

    def replaced_callbacks(self, profile: LoopProfile) -> list[str]:
        return [
            name
            for name in profile.together
            if any(
                self.holding[image][row] and self.comparisons[image].old_replaced[row]
                for image, functions in enumerate(self.functions)
                for row in functions.all_of(name)
            )
        ]


class _Mismatch(Exception):
    """A key of a profile that does not fit, and how."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class _Profiled:
    """One loop with its profile."""

    def __init__(self, process: _Process, profile: LoopProfile, changed: bool) -> None:
        self._process = process
        self._profile = profile
        self._changed = changed
        self._old: list[OldLoop] = []

    def resolve(self) -> tuple[LoopPlan | None, list[Reason]]:
        profile = self._profile
        if profile.door is Door.NONE:
            return None, [self._no_door()]
        try:
            self._old = self._old_loops()
            new = self._new_code()
        except _Mismatch as error:
            return None, [self._refusal(error)]
        if not self._old:
            return None, []  # no thread can be in it
        reasons = [self._refusal(error) for error in self._mismatches(new)]
        reasons += [*entry_branches(profile.function, self._old), *callees(profile.function, self._old)]
        try:
            places = self._places(new)
            found = skips(profile, self._old, new)
            self._require_skips(found)
        except _Mismatch as error:
            return None, [*reasons, self._refusal(error)]
        return (None, reasons) if reasons else (self._plan(new, places, found), [])

    def _no_door(self) -> Reason:
        name, why = self._profile.function, self._profile.reason
        callbacks = self._process.replaced_callbacks(self._profile)
        if callbacks:
            text = (
                f"{', '.join(callbacks)} changed and shares the variables of {name}, which cannot be restarted ({why});"
                " so the old and the new code would disagree about them: restart the program, or leave that change out"
            )
            return Reason("loop-together", callbacks[0], text)
        text = f"{name} changed, and it never returns: {why}; restart the program, or leave that change out"
        return Reason("loop-no-door", name, text)

    def _refusal(self, error: _Mismatch) -> Reason:
        name = self._profile.function
        did = "changed" if self._changed else f"leaves with the others of group '{self._profile.group}'"
        text = f"{name} {did}, but its loop profile does not fit ('{error.key}'): {error}; correct the profile"
        return Reason("loop-profile-mismatch", name, text)

    # The function

    def _old_loops(self) -> list[OldLoop]:
        process = self._process
        found = []
        for image, functions in enumerate(process.functions):
            held = process.holding[image]
            if not any(held[row] for row in functions.all_of(self._profile.function)):
                continue
            row = self._find(functions)
            if row is not None and held[row]:
                found.append(OldLoop(image, functions.code(row), process.comparisons[image]))
        return found

    def _new_code(self) -> Code:
        row = self._find(self._process.new)
        if row is None:
            raise _Mismatch("function", f"{self._process.new.build.label} has no function of that name")
        return self._process.new.code(row)

    def _find(self, functions: Functions) -> int | None:
        try:
            return functions.find(self._profile.function)
        except WrongFunction as error:
            raise _Mismatch("function", f"{functions.build.label}: {error}") from None

    # Its code

    def _codes(self, new: Code) -> list[Code]:
        return [*(loop.code for loop in self._old), new]

    def _mismatches(self, new: Code) -> Iterator[_Mismatch]:
        profile = self._profile
        prototypes = {c.name: c for loop in self._old for c in changed_prototypes(loop.comparison)}
        if profile.function in prototypes:
            yield _Mismatch("function", f"its prototype changed ({prototypes[profile.function]})")
        for code in self._codes(new):
            label = code.build.label
            if profile.door in (Door.FIELDS, Door.LATCH) and not code.returns:
                yield _Mismatch("door", f"in {label} it never returns")
            for key, names in (("work", profile.work), ("sleeps", profile.sleeps)):
                if names and not any(code.calls(name) for name in names):
                    yield _Mismatch(key, f"in {label} it has no direct call of {' or '.join(names)}")
            if profile.door is Door.LATCH and not self._tests_latch(code):
                yield _Mismatch("latch-test", f"in {label} nothing calls {profile.latch_test}")

    def _tests_latch(self, code: Code) -> bool:
        """Whether the loop, or a function of the module that it calls directly, looks at the latch."""
        name = self._profile.latch_test
        called = {transfer.row for transfer in code.transfers if transfer.row >= 0}
        codes = [code, *(code.functions.code(row) for row in sorted(called))]
        return any(name in transfer.names for each in codes for transfer in each.transfers)

    # What its argument leads to

    def _places(self, new: Code) -> Mapping[str, Place]:
        """Every path of the profile, as all builds have it."""
        profile = self._profile
        if not profile.argument:
            return {}
        for code in self._codes(new):
            self._require_argument(code)
        found: dict[str, Place] = {}
        for key, paths in profile.paths.items():
            for path in paths:
                located = self._locate(key, path, new)
                for loop in self._old:
                    other = self._locate(key, path, loop.code)
                    if other.place != located.place:
                        labels = loop.code.build.label, new.build.label
                        raise _Mismatch(
                            key,
                            f"'{path}' is at {_where(other)} in {labels[0]}, but at {_where(located)} in {labels[1]}",
                        )
                self._require_fitting(key, path, located)
                found[path] = located.place
        self._require_read(found, new)
        return found

    def _require_argument(self, code: Code) -> None:
        if code.build.debug.missing:
            raise _Mismatch("argument", f"{code.build.label}: {code.build.debug.missing}; build with -g")
        try:
            _types(code).require(self._profile.argument)
        except WrongPath as error:
            raise _Mismatch("argument", f"{code.build.label}: {error}") from None

    def _locate(self, key: str, path: str, code: Code) -> Located:
        try:
            return _types(code).locate(self._profile.argument, path)
        except WrongPath as error:
            raise _Mismatch(key, f"'{path}' in {code.build.label}: {error}") from None

    def _require_fitting(self, key: str, path: str, located: Located) -> None:
        """What is there must be of a kind that the key can use."""
        size, what = located.place.size, f"'{path}' is {plain(located.text)}"
        if key == "latch":
            if size < 8 or not (located.text == "int32 [2]" or located.text.startswith("`")):
                raise _Mismatch(key, f"{what}, not a structure that begins with the two descriptors of a pipe")
        elif key in ("wake", "thread"):
            if size != 8:
                raise _Mismatch(key, f"{what}, not a word of 8 bytes")
        elif size not in (1, 2, 4, 8):
            raise _Mismatch(key, f"{what}, which is no number")
        stores = {"ask": self._profile.ask, "clear": self._profile.clear}.get(key, ())
        for stored, value in stores:
            if stored == path and value >> (8 * size):
                raise _Mismatch(key, f"{what}, in which {value} has no room")

    def _require_read(self, places: Mapping[str, Place], new: Code) -> None:
        """The code must look at the fields that are to make it leave."""
        if self._profile.door is not Door.FIELDS:
            return
        for code in self._codes(new):
            for key, stores in (("ask", self._profile.ask), ("clear", self._profile.clear)):
                for path, _ in stores:
                    offset = places[path].offsets[-1]
                    if offset not in code.displacements:
                        text = f"nothing in {code.build.label} reads or writes '{path}', {offset} bytes from a pointer"
                        raise _Mismatch(key, text)

    # What becomes of it

    def _require_skips(self, found: Skips) -> None:
        for skip, pair in zip(self._profile.skip, found.pairs, strict=True):
            if skip.required and pair.why_not:
                raise _Mismatch("skip", f"without the skip of {pair.setup} it cannot enter again, and {pair.why_not}")

    def _plan(self, new: Code, places: Mapping[str, Place], found: Skips) -> LoopPlan:
        profile = self._profile
        sides = {loop.image: self._side(loop.code, found.sites[at]) for at, loop in enumerate(self._old)}
        return LoopPlan(
            function=profile.function,
            thread_names=profile.threads,
            door=profile.door,
            hold_main=profile.hold == "main",
            one_by_one=profile.one_by_one,
            sides=sides,
            new=self._side(new, found.sites[-1]),
            pairs=found.pairs,
            ask=tuple(Store(places[path], value) for path, value in profile.ask),
            clear=tuple(Store(places[path], value) for path, value in profile.clear),
            wake=tuple((function, places[path]) for function, path in profile.wake),
            leaving=places.get(profile.leaving),
            latch=places.get(profile.latch),
            thread=places.get(profile.thread),
            limit_us=profile.limit_us,
            changed=self._changed,
        )

    def _side(self, code: Code, skipped: Sequence[Site]) -> LoopSide:
        profile = self._profile
        sites = [
            *skipped,
            *plain_sites(code, SiteKind.WORK, profile.work),
            *plain_sites(code, SiteKind.SLEEP, profile.sleeps),
        ]
        return LoopSide(code.entry, code.ranges, tuple(sorted(sites, key=lambda site: (site.vaddr, site.kind))))


def _types(code: Code) -> Types:
    return Types(code.build.debug, code.build.entities.files[code.row])


def _where(located: Located) -> str:
    return f"{' → '.join(map(str, located.place.offsets))} ({plain(located.text)}, {located.place.size} bytes)"


# A compiled-in safe point


def _flagged(point: SafePoint) -> tuple[LoopPlan | None, list[Reason]]:
    name = point.function
    codes = [*(loop.code for loop in point.old), point.new]
    reasons = [
        Reason(
            "loop-profile-mismatch",
            name,
            f"{name} changed and has a safe point, but in {code.build.label} it never returns, so it cannot be left"
            " there: return when the safe point says so",
        )
        for code in codes
        if not code.returns
    ]
    reasons += [*point.faults, *entry_branches(name, point.old), *callees(name, point.old)]
    if reasons:
        return None, reasons
    plan = LoopPlan(
        function=name,
        thread_names="",
        door=Door.FLAG,
        hold_main=False,
        one_by_one=False,
        sides={loop.image: LoopSide(loop.code.entry, loop.code.ranges, ()) for loop in point.old},
        new=LoopSide(point.new.entry, point.new.ranges, ()),
        flag=point.flag,
        flag_vaddr=point.flag_vaddr,
        limit_us=_SAFE_POINT_US,
        changed=point.changed,
    )
    return plan, []

"""The profiles of Open vSwitch 3.1 against its real builds: sites and offsets as objdump and DWARF have them.

Between these builds no loop differs, so it is made believe that each of them does.  Compares files; starts nothing.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile

from hotupgrade.binary.build import Build
from hotupgrade.errors import Reason
from hotupgrade.plan.compare import compare
from hotupgrade.plan.loops.model import Door, LoopPlan, LoopSide, Pair, Place, SiteKind
from hotupgrade.plan.loops.profile import LoopProfile, builtin_profiles, read_profiles
from hotupgrade.plan.loops.resolve import resolve_loops
from hotupgrade.plan.model import Comparison, Image
from hotupgrade.vswitch.builds import SwitchBuild

BASE = 0x7F0000000000
MODULES = ("libopenvswitch-3.1.so.0", "libofproto-3.1.so.0", "ovs-vswitchd")

PROFILES = {profile.function: profile for profile in read_profiles(builtin_profiles())}
RESTARTABLE = {name: profile for name, profile in PROFILES.items() if profile.door is not Door.NONE}

# Where the structures are looked up by the other reader.
SOURCES = {
    "pmd_thread_main": "lib/dpif-netdev.c",
    "clean_thread_main": "lib/conntrack.c",
    "ipf_clean_thread_main": "lib/ipf.c",
    "dp_netdev_flow_offload_main": "lib/dpif-netdev.c",
    "udpif_upcall_handler": "ofproto/ofproto-dpif-upcall.c",
    "udpif_revalidator": "ofproto/ofproto-dpif-upcall.c",
}


def path_of(build: SwitchBuild, module: str) -> Path:
    return build.program(module) if module == "ovs-vswitchd" else build.root / "lib" / module


@cache
def opened(path: Path) -> Build:
    return Build.open(path)


@cache
def compared(old: Path, new: Path) -> Comparison:
    return compare(opened(old), opened(new))


def believed(comparison: Comparison, names: set[str]) -> Comparison:
    """As if these functions had changed."""
    flags = comparison.old_replaced.copy()
    for row, name in enumerate(comparison.old.entities.names):
        flags[row] |= name in names
    return dataclasses.replace(comparison, old_replaced=flags)


def resolve(old: SwitchBuild, new: SwitchBuild, module: str) -> tuple[dict[str, LoopPlan], list[Reason]]:
    comparison = believed(compared(path_of(old, module), path_of(new, module)), set(PROFILES))
    images = [Image(comparison.old, BASE)]
    plans, reasons = resolve_loops(module, images, 0, comparison.new, [comparison], list(PROFILES.values()))
    return {plan.function: plan for plan in plans}, reasons


def module_of(profile: LoopProfile) -> str:
    """The library; where everything is linked into the program the loops are there."""
    return next(name for name in MODULES if profile.is_of(name))


@pytest.fixture(params=["upgrade", "rollback"])
def direction(request: pytest.FixtureRequest, vulnerable: SwitchBuild, fixed: SwitchBuild) -> tuple[SwitchBuild, ...]:
    return (vulnerable, fixed) if request.param == "upgrade" else (fixed, vulnerable)


# All of them


def test_every_profile_fits(direction: tuple[SwitchBuild, SwitchBuild]) -> None:
    found: dict[str, LoopPlan] = {}
    refused: list[Reason] = []
    for module in MODULES:
        plans, reasons = resolve(*direction, module)
        found |= plans
        refused += reasons
    assert found.keys() == RESTARTABLE.keys()
    assert [(reason.code, reason.subject) for reason in refused] == [("loop-no-door", "main")]
    for name, plan in found.items():
        assert plan.door is PROFILES[name].door
        assert [pair.why_not for pair in plan.pairs] == [""] * len(PROFILES[name].skip), name


def test_between_these_builds_nothing_is_needed(direction: tuple[SwitchBuild, SwitchBuild]) -> None:
    for module in MODULES:
        comparison = compared(*(path_of(build, module) for build in direction))
        images = [Image(comparison.old, BASE)]
        assert resolve_loops(module, images, 0, comparison.new, [comparison], list(PROFILES.values())) == ([], [])


# Sites, by objdump


def disassembled(path: Path, function: str) -> str:
    words = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={function}", str(path)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def calls(path: Path, function: str) -> dict[str, list[int]]:
    """vaddrs of the calls of each function, in a function and its cold part."""
    found: dict[str, list[int]] = {}
    for part in (function, f"{function}.cold"):
        for at, name in re.findall(
            r"^ *([0-9a-f]+):\tcall +[0-9a-f]+ <([^>@+]+)(?:@plt)?>$", disassembled(path, part), re.MULTILINE
        ):
            found.setdefault(re.sub(r"\..*", "", name), []).append(int(at, 16))
    return found


def extents(path: Path, function: str) -> list[tuple[int, int]]:
    text = subprocess.run(["nm", "-S", str(path)], capture_output=True, text=True, check=True).stdout
    table = re.findall(rf"^([0-9a-f]+) ([0-9a-f]+) [tT] {function}(\.cold)?$", text, re.MULTILINE)
    ordered = sorted(table, key=lambda line: line[2])
    return [(int(at, 16), int(at, 16) + int(size, 16)) for at, size, _ in ordered]


def named(side: LoopSide, kind: SiteKind) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for site in side.sites:
        if site.kind is kind:
            found.setdefault(site.name, []).append(site.vaddr)
    return found


@pytest.mark.parametrize("function", RESTARTABLE)
def test_sites_are_those_of_objdump(direction: tuple[SwitchBuild, SwitchBuild], function: str) -> None:
    profile = PROFILES[function]
    module = module_of(profile)
    plan = resolve(*direction, module)[0][function]
    for build, side in zip(direction, (plan.sides[0], plan.new), strict=True):
        path = path_of(build, module)
        every = calls(path, function)
        assert list(side.ranges) == extents(path, function)
        assert side.entry == side.ranges[0][0]
        assert named(side, SiteKind.WORK) == {name: every[name] for name in profile.work}
        assert named(side, SiteKind.SLEEP) == {name: every[name] for name in profile.sleeps}
        for kind, alternatives in ((SiteKind.CLEAN, "clean"), (SiteKind.SETUP, "setup")):
            expected = {}
            for skip in profile.skip:
                for call in getattr(skip, alternatives):
                    name = call if isinstance(call, str) else call.call
                    if name in every:
                        expected[name] = sorted(every[name])[: 1 if skip.first else None]
            assert named(side, kind) == expected


def test_pairs_of_a_polling_thread(direction: tuple[SwitchBuild, SwitchBuild]) -> None:
    plan = resolve(*direction, MODULES[0])[0]["pmd_thread_main"]
    assert plan.pairs == (
        Pair("dfc_cache_uninit", "dfc_cache_init"),
        Pair("dpdk_detach_thread", "dpdk_attach_thread"),
        Pair("id_pool_free_id", "pmd_alloc_static_tx_qid"),
        Pair("", "ovs_numa_thread_setaffinity_core"),
        Pair("", "set_timer_resolution"),
    )
    values = {site.name: site.value for site in plan.new.sites if site.kind is SiteKind.SETUP}
    assert values["dpdk_attach_thread"] == 1
    assert values["ovs_numa_thread_setaffinity_core"] == 0
    assert [store.place.path for store in plan.ask] == ["exit", "reload"]
    assert (plan.hold_main, plan.one_by_one) == (True, True)


@pytest.mark.parametrize("function", ["netdev_dpdk_vhost_events_main", "dp_netdev_flow_offload_main"])
def test_the_lock_that_is_held_for_life(direction: tuple[SwitchBuild, SwitchBuild], function: str) -> None:
    """Only the lock at the top is passed by; those of vring_state_changed__(), inlined behind it, are taken."""
    plan = resolve(*direction, MODULES[0])[0][function]
    for build, side in zip(direction, (plan.sides[0], plan.new), strict=True):
        listing = disassembled(path_of(build, MODULES[0]), function)
        first = re.search(r"^ *([0-9a-f]+):\t(call|j\w+|ret)\b(.*)$", listing, re.MULTILINE)
        assert first is not None
        assert first[2] == "call"
        assert "<ovs_mutex_lock_at@plt>" in first[3]
        assert named(side, SiteKind.SETUP) == {"ovs_mutex_lock_at": [int(first[1], 16)]}


# Offsets, by another reader of DWARF


def unit_of(path: Path, source: str) -> Iterator[DIE]:
    """The entries of one source file."""
    with path.open("rb") as file:
        for unit in ELFFile(file).get_dwarf_info().iter_CUs():
            name = unit.get_top_DIE().attributes["DW_AT_name"].value.decode()
            if name.endswith(source):
                yield from unit.iter_DIEs()
                return
    raise AssertionError(source)


@cache
def structures(path: Path, source: str) -> dict[str, dict[str, tuple[int, str]]]:
    """Structure to member to (offset, name of the structure that it is or leads to, "*" in front of the latter)."""
    found: dict[str, dict[str, tuple[int, str]]] = {}
    for entry in unit_of(path, source):
        if entry.tag == "DW_TAG_structure_type" and "DW_AT_name" in entry.attributes:
            members = dict(members_of(entry, 0))
            if members:
                found[entry.attributes["DW_AT_name"].value.decode()] = members
    return found


def members_of(structure: DIE, start: int) -> Iterator[tuple[str, tuple[int, str]]]:
    for member in structure.iter_children():
        if member.tag != "DW_TAG_member" or "DW_AT_bit_size" in member.attributes:
            continue
        location = member.attributes.get("DW_AT_data_member_location")
        offset = start + (location.value if location else 0)
        kind = member.get_DIE_from_attribute("DW_AT_type")
        if "DW_AT_name" not in member.attributes:
            yield from members_of(kind, offset)
        else:
            yield member.attributes["DW_AT_name"].value.decode(), (offset, leading_to(kind))


def leading_to(kind: DIE) -> str:
    star = ""
    while True:
        if kind.tag == "DW_TAG_pointer_type":
            star = "*"
        elif kind.tag not in ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_atomic_type"):
            return star + (kind.attributes["DW_AT_name"].value.decode() if "DW_AT_name" in kind.attributes else "")
        if "DW_AT_type" not in kind.attributes:
            return star
        kind = kind.get_DIE_from_attribute("DW_AT_type")


def places_of(plan: LoopPlan) -> list[Place]:
    single = [place for place in (plan.leaving, plan.latch, plan.thread) if place is not None]
    return [store.place for store in (*plan.ask, *plan.clear)] + [place for _, place in plan.wake] + single


@pytest.mark.parametrize("function", [name for name, profile in RESTARTABLE.items() if any(profile.paths.values())])
def test_offsets_are_those_of_another_reader(direction: tuple[SwitchBuild, SwitchBuild], function: str) -> None:
    profile = PROFILES[function]
    module = module_of(profile)
    places = places_of(resolve(*direction, module)[0][function])
    assert {place.path for place in places} == {path for paths in profile.paths.values() for path in paths}
    for build in direction:
        known = structures(path_of(build, module), SOURCES[function])
        for place in places:
            structure, offsets = profile.argument.removeprefix("struct "), [0]
            for step in re.findall(r"(?:->|\.)?\w+", place.path):
                if step.startswith("->"):
                    assert structure.startswith("*")
                    structure = structure[1:]
                    offsets.append(0)
                offset, structure = known[structure][re.sub(r"\W", "", step)]
                offsets[-1] += offset
            assert place.offsets == tuple(offsets), place
            assert place.size == {"_Bool": 1}.get(structure, 8)


def test_a_type_that_changed_has_the_cache_built_anew(vulnerable: SwitchBuild, fixed: SwitchBuild) -> None:
    """As if the new build had another definition of an entry of the cache."""
    comparison = believed(compared(*(path_of(build, MODULES[0]) for build in (vulnerable, fixed))), {"pmd_thread_main"})
    new = Build.open(path_of(fixed, MODULES[0]))
    debug = comparison.new.debug
    ((index, _),) = debug.types["struct emc_entry"]
    definitions = list(debug.definitions)
    entry = definitions[index]
    definitions[index] = type(entry)(entry.kind, entry.size + 8, entry.alignment, entry.fields)
    new.__dict__["debug"] = type(debug)(
        debug.missing, debug.atomics, debug.covered, debug.files, definitions, debug.types, debug.typedefs,
        debug.variables, debug.functions, debug.imports, debug.constants,
    )  # fmt: skip
    changed = dataclasses.replace(comparison, new=new)
    plans, reasons = resolve_loops(
        MODULES[0], [Image(comparison.old, BASE)], 0, new, [changed], list(PROFILES.values())
    )
    assert reasons == []
    (plan,) = plans
    assert [pair.why_not for pair in plan.pairs] == ["struct emc_entry changed: 600 → 608 bytes", "", "", "", ""]
    assert not {site.name for site in plan.new.sites} & {"dfc_cache_init", "dfc_cache_uninit"}

"""What an upgrade does to each module, as documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hotupgrade.binary.build import Build
from hotupgrade.binary.debug.model import Debug
from hotupgrade.binary.model import Kind
from hotupgrade.binary.separate.find import separate_files
from hotupgrade.plan.layouts import changes as changes_of_types
from hotupgrade.plan.layouts import compared_types
from hotupgrade.upgrade.documents import Document
from hotupgrade.upgrade.prepare import Candidate, Planned


def compared(candidate: Candidate) -> Document:
    """What differs between the build in force and the new one."""
    comparison = candidate.comparison
    old, new = comparison.old, comparison.new
    functions, objects = changes(candidate)
    kept = int(((comparison.old_of >= 0) & (new.entities.kind != 1)).sum())
    return {
        "name": candidate.module.name,
        "old": {"build_id": old.build_id, "path": candidate.module.path},
        "new": {"build_id": new.build_id, "path": candidate.path},
        "functions": {key: list(names) for key, names in functions.items()},
        "objects": {**{key: list(names) for key, names in objects.items()}, "kept": kept},
    }


def changes(candidate: Candidate) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Names of functions and of objects, by what happened to them."""
    comparison = candidate.comparison
    old, new = comparison.old, comparison.new
    function = new.entities.kind == 1
    dragged = set(comparison.dragged)
    changed = [i for i in (comparison.replaced & function).nonzero()[0].tolist() if i not in dragged]
    added = (function & (comparison.old_of < 0)).nonzero()[0].tolist()
    removed = ((old.entities.kind == 1) & (comparison.new_of < 0)).nonzero()[0].tolist()
    fresh = (~function & (comparison.old_of < 0)).nonzero()[0].tolist()
    functions = {
        "changed": [new.entities.names[i] for i in changed if comparison.old_of[i] >= 0],
        "dragged": [new.entities.names[i] for i in sorted(dragged)],
        "added": [new.entities.names[i] for i in added],
        "removed": [old.entities.names[i] for i in removed],
    }
    objects = {
        "new": [new.entities.names[i] for i in fresh],
        "resized": [new.entities.names[i] for _, i in comparison.resized],
        "initial_changed": [new.entities.names[i] for _, i in comparison.initial_changed],
    }
    return functions, objects


def planned(item: Planned, memory: int) -> Document:
    """A module of an upgrade document."""
    plan = item.plan
    document = compared(item.candidate)
    placed = plan.placed.placed
    document["functions"]["placed"] = (
        len(placed) if placed is not None else int((plan.placed.build.entities.kind == 1).sum())
    )
    document["objects"]["constants_updated"] = list(plan.objects.get("constants-updated", ()))
    document |= {
        "base": plan.placed.base,
        "reused": plan.image is None,
        "memory_bytes": memory,
        "constructors": [call.name for call in plan.constructors],
        "hooks": [call.name for call in (*plan.hooks.before, *plan.hooks.sync, *plan.hooks.after)],
    }
    return document


def totals(modules: Sequence[Document]) -> Document:
    """Numbers over all modules."""
    functions: dict[str, int] = dict.fromkeys(("changed", "dragged", "added", "removed", "placed"), 0)
    objects: dict[str, int] = dict.fromkeys(("new", "resized", "initial_changed", "constants_updated", "kept"), 0)
    for module in modules:
        for table, source in ((functions, module["functions"]), (objects, module["objects"])):
            for key, value in source.items():
                table[key] = table.get(key, 0) + (value if isinstance(value, int) else len(value))
    return {"functions": functions, "objects": objects}


def explained(candidates: Sequence[Candidate]) -> Document:
    """What the verdict rests on, what it cannot tell, and where a person should look."""
    proved: list[str] = []
    unproved: list[str] = []
    for candidate in candidates:
        comparison, name = candidate.comparison, candidate.module.name
        same = int(comparison.same.sum())
        count = int((comparison.new.entities.kind == Kind.FUNCTION).sum())
        functions, _ = changes(candidate)
        proved.append(
            f"{name}: {same} of {count} functions mean the same in both builds: equal instructions, "
            "and every address that they name is that of the same thing"
        )
        proved.append(f"{name}: every variable that new code uses has one partner of the same size, or is new")
        proved.append(f"{name}: no replaced function will be on a stack at the commit (checked again in the stop)")
        _explain_types(comparison.old.debug, comparison.new.debug, name, proved, unproved)
        proved += [f"{name}: {line}" for line in _found_elsewhere(comparison.old, comparison.new)]
        if changed := functions["changed"]:
            unproved.append(f"{name}: that old state means the same to new code; look at {', '.join(changed)}")
    return {"proved": proved, "not_proved": unproved, "concerns": [c for each in candidates for c in _concerns(each)]}


def _found_elsewhere(old: Build, new: Build) -> Iterator[str]:
    for build, which in ((old, "running"), (new, "new")):
        files = ", ".join(file.label for file in separate_files(build.separate).values())
        if files:
            yield f"symbols and debug information of the {which} build are from {files}, which has its very build-id"


def _concerns(candidate: Candidate) -> list[Document]:
    return [
        {
            "kind": concern.kind.value,
            "module": candidate.module.name,
            "subject": concern.subject,
            "text": concern.text,
            "evidence": list(concern.evidence),
        }
        for concern in candidate.concerns
    ]


def _explain_types(old: Debug, new: Debug, name: str, proved: list[str], unproved: list[str]) -> None:
    if missing := old.missing or new.missing:
        unproved.append(f"{name}: that structures have the same layout; the types cannot be compared, for {missing}")
        return
    count, different = compared_types(old, new), {change.name for change in changes_of_types(old, new)}
    functions = len({found[:2] for found in old.functions} & {found[:2] for found in new.functions})
    proved.append(
        f"{name}: {count - len(different)} of {count} types that both builds define are the same: sizes, fields, "
        f"offsets, bit-fields, enumerators; the prototypes of {functions} functions were compared"
    )
    unproved.append(f"{name}: that fields which kept name, place and type kept their meaning")

"""The documents as a person wants to read them, on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hotupgrade.report.document import duration
from hotupgrade.report.restarts import DOORS, UNMOVED, Group, Restart, groups, restarts

Document = dict[str, Any]

_MANY = 12
#: Rows of the history; a table of thousands, which nobody reads on a terminal, takes seconds to lay out.
_LAST = 100
#: Notes that an explanation holds in full.
_EXPLAINED = ("initial-changed", "duties-changed", "applies-from-now-on")


def show(document: Document) -> None:
    """Print a document: the answer on standard output, a failure on standard error."""
    failed = not document.get("ok")
    console = Console(stderr=failed, highlight=False, soft_wrap=True)
    painter = _PAINTERS.get(document["command"])
    if painter is not None and "pid" in document:
        painter(console, document)
    elif document["command"] == "history" and not failed:
        _history(console, document)
    for note in document.get("notes", []):
        if "explained" in document and note["code"] in _EXPLAINED:
            continue
        console.print(Text(f"note: {note['text']}", style="dim"))
    for reason in document.get("reasons", []):
        lead = "not now" if document["exit_code"] == 4 else "refused" if document["exit_code"] == 3 else "error"
        console.print(Text.assemble((f"{lead}: ", "bold red"), reason["text"], (f" [{reason['code']}]", "dim")))


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:_MANY])
    return shown + (f" and {len(names) - _MANY} more" if len(names) > _MANY else "")


def _module_lines(console: Console, document: Document) -> None:
    for module in document.get("modules", []):
        console.print(f"{module['name']}: {module['old']['build_id'][:12]} → {module['new']['build_id'][:12]}")
        for title, table in (("functions", module["functions"]), ("objects", module["objects"])):
            for key, names in table.items():
                if isinstance(names, list) and names:
                    console.print(f"  {title} {key.replace('_', ' ')}: {_names(names)}")


def _skipped(console: Console, document: Document) -> None:
    """Modules that are left as they are."""
    for module in document.get("skipped", []):
        for reason in module["reasons"]:
            console.print(Text.assemble((f"left out: {module['name']}: ", "bold"), reason["text"]))


def _check(console: Console, document: Document) -> None:
    styles = {"upgradable": "bold green", "nothing-to-do": "bold", "refused": "bold red"}
    verdict = document.get("verdict", "refused")
    console.print(Text.assemble(f"process {document['pid']} ({document['name']}): ", (verdict, styles[verdict])))
    _module_lines(console, document)
    _skipped(console, document)
    explained = document.get("explained", {})
    for title, key in (("proved", "proved"), ("not proved", "not_proved")):
        for line in explained.get(key, []):
            console.print(f"{title}: {line}")
    _concerns(console, explained.get("concerns", []))


#: What a person should look at, in this order.
_CONCERNS = {
    "ownership": "changed functions that free, lock or initialise otherwise than before (look here first)",
    "creation": "changed functions that act only on what is made from now on",
    "initial-value": "variables that would start otherwise, and keep their running values",
    "constant": "constants that change in place",
    "text": "changed functions that name other texts",
    "duties": "changed functions that free, lock or initialise as before",
}


def _concerns(console: Console, found: list[Document]) -> None:
    for kind, title in _CONCERNS.items():
        lines = [concern for concern in found if concern["kind"] == kind]
        if lines:
            console.print(f"{title}:")
        for concern in lines:
            console.print(Text(f"  {concern['module']}: {concern['text']}"))


def _micro(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f} µs"


def _timing(console: Console, document: Document) -> None:
    phases = document["phases_us"]
    hot = [name for name in ("stop", "check", "sync", "replace", "start") if name in phases]
    console.print(
        f"  prepare {phases['prepare'] / 1000:,.0f} ms, then "
        + ", ".join(f"{name} {_micro(phases[name])}" for name in hot)
        + f", cleanup {phases['cleanup'] / 1000:,.0f} ms"
    )
    for thread in document["threads"]:
        if thread["busy"]:
            console.print(
                Text.assemble(
                    f"  busy thread {thread['name']} ({thread['tid']}): break ", (_micro(thread["break_us"]), "bold")
                )
            )
    sleepers = [t["break_us"] for t in document["threads"] if not t["busy"]]
    if sleepers:
        console.print(f"  {len(sleepers)} sleeping threads: at most {_micro(max(sleepers))}")
    _restarts(console, document)


def _restarts(console: Console, document: Document) -> None:
    """Thread by thread, what the restart of those was whose loop changed; nothing if none did."""
    found = restarts(document)
    if not found:
        return
    many = groups(found)
    console.print(
        "  restarted in the new code, the others were only parked:" if many else "  to be restarted in the new code:"
    )
    for group in many[:_MANY]:
        if len(group.members) == 1:
            console.print(_alone(group.members[0], group))
        else:
            console.print(_together(group))
    if len(many) > _MANY:
        gaps = [one.gap for group in many[_MANY:] for one in group.members if one.gap is not None]
        most = f", which lost at most {duration(max(gaps))}" if gaps else ""
        console.print(f"    and {len(many) - _MANY} more{most}")
    for state in UNMOVED:
        waiting = [f"{one.name} ({one.function})" for one in found if one.state == state and not one.moved]
        if waiting:
            console.print(f"    {UNMOVED[state]}: {_names(waiting)}")
    settle = document.get("settle_us")
    if settle:
        console.print(
            f"  one more stop to tidy up: busy threads {_micro(settle['busy_max'])}, longest {_micro(settle['max'])}"
        )


def _alone(one: Restart, group: Group) -> Text:
    words = Text(f"    {one.name} ({one.function}) {DOORS.get(one.door, one.door)}: ")
    if one.gap is None:
        return words.append(f"{_micro(group.lasted)} from being asked to work in the new code")
    spans = {part.kind: part.length for part in one.parts()}
    words.append("break ").append(_micro(one.gap), "bold")
    words.append(f", out {_micro(one.gap - spans.get('in', 0.0))} and in {_micro(spans.get('in'))}")
    if one.taken_us:
        words.append(f"; of this the machine took {_micro(one.taken_us)} for others")
    return words.append(f"; its last work began {_micro(spans.get('on', 0.0))} after it was asked")


def _together(group: Group) -> Text:
    functions = ", ".join(dict.fromkeys(one.function for one in group.members))
    doors = " and ".join(dict.fromkeys(DOORS.get(one.door, one.door) for one in group.members))
    members = _names([one.name for one in group.members])
    return Text.assemble(
        f"    {members} ({functions}) {doors}: ",
        (_micro(group.lasted), "bold"),
        f" as a group, out {_micro(group.left - group.asked)} and in {_micro(group.arrived - group.left)}",
    )


def _upgrade(console: Console, document: Document) -> None:
    lead = f"process {document['pid']} ({document['name']})"
    if document["outcome"] == "nothing-to-do":
        what = "this build already" if document.get("modules") else "what is on disk"
        console.print(f"{lead} runs {what}: nothing to do")
    elif document["outcome"] == "dry-run":
        console.print(f"{lead}: this is what an upgrade would do (nothing was changed)")
        _module_lines(console, document)
        _skipped(console, document)
        _edits(console, document)
    elif document["outcome"] == "done":
        console.print(Text.assemble(lead, " ", ("upgraded", "bold green"), f" to generation {document['generation']}"))
        _module_lines(console, document)
        _skipped(console, document)
        _edits(console, document)
        _timing(console, document)
    else:
        _check(console, {**document, "verdict": "refused"})


def _edits(console: Console, document: Document) -> None:
    edits = document["edits"]
    console.print(
        f"  {edits['count']} words in {edits['pages']} pages; {document['memory_bytes'] / 1024:,.0f} KiB of new memory"
    )


def _rollback(console: Console, document: Document) -> None:
    console.print(
        Text.assemble(
            f"process {document['pid']} ({document['name']}) ",
            ("rolled back", "bold green"),
            f" from generation {document['from_generation']} to {document['generation']}",
        )
    )
    _timing(console, document)


def _status(console: Console, document: Document) -> None:
    console.print(f"process {document['pid']} ({document['name']}): generation {document['generation']}")
    if not document["generations"]:
        console.print("  it runs what it started with")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("", "generation", "time", "module", "build", "edits", "busy break", "longest break"):
        table.add_column(title)
    for item in document["generations"]:
        for module in item["modules"]:
            table.add_row(
                "*" if item["active"] else "",
                str(item["number"]),
                item["time"],
                module["name"],
                module["build_id"][:12],
                str(item["edits"]),
                _micro(item["break_us"]["busy_max"]),
                _micro(item["break_us"]["max"]),
            )
    console.print(table)


def _symbols(console: Console, document: Document) -> None:
    lead = f"process {document['pid']} ({document['name']})"
    if not document["images"]:
        console.print(f"{lead} holds no code but what it was started with")
        return
    console.print(f"{lead} holds code of {len(document['images'])} further builds")
    console.print("gdb finds it by itself, if the C library is glibc 2.35 or later; otherwise say to gdb:")
    for command in document["gdb"]:
        console.print(f"  {command}")
    console.print("perf must be told, after perf record and before perf report -i named.data:")
    for command in document["perf"]:
        console.print(f"  {command}")


def _inspect(console: Console, document: Document) -> None:
    console.print(
        f"process {document['pid']} ({document['name']}), {document['executable']}: generation {document['generation']}"
    )
    table = Table(box=None, pad_edge=False)
    for title in ("module", "generation", "build", "path", ""):
        table.add_column(title)
    for module in document["modules"]:
        state = module["why"] or ("replaced on disk" if module["deleted"] else "")
        table.add_row(module["name"], str(module["generation"]), module["build_id"][:12], module["path"], state)
    console.print(table)
    threads = Table(box=None, pad_edge=False)
    for title in ("thread", "name", "state", "in"):
        threads.add_column(title)
    for thread in document["threads"]:
        threads.add_row(str(thread["tid"]), thread["name"], thread["state"], thread["system_call"])
    console.print(threads)


def _history(console: Console, document: Document) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("time", "what", "process", "generation", "modules", "busy break"):
        table.add_column(title)
    entries = document["entries"]
    if len(entries) > _LAST:
        console.print(f"{len(entries) - _LAST:,} earlier entries: hotupgrade history --json", style="dim")
    for entry in entries[-_LAST:]:
        table.add_row(
            str(entry.get("time", "")),
            str(entry.get("command", "")),
            f"{entry.get('pid', '')} {entry.get('name', '')}",
            str(entry.get("generation", "")),
            ", ".join(m["name"] for m in entry.get("modules", [])),
            _micro((entry.get("break_us") or {}).get("busy_max")),
        )
    console.print(table)


_PAINTERS: dict[str, Callable[[Console, Document], None]] = {
    "check": _check,
    "upgrade": _upgrade,
    "rollback": _rollback,
    "status": _status,
    "inspect": _inspect,
    "symbols": _symbols,
}

"""One self-contained page with the result of a run: what was upgraded, what it cost, what stayed as it was.

The page needs no network and no script; it follows the reader's light or dark setting and fits a telephone.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hotupgrade.report.document import Document, duration, names, number, plural, rows, section, text
from hotupgrade.report.restarts import STAYED, Restart, became, groups, longest_gap, restarts, summary

STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1f2933; --faint: #5d6976; --line: #dde2e8;
  --good: #1f7a3d; --bad: #b3261e; --busy: #d9480f; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --card: #1d232a; --ink: #e6eaef; --faint: #9aa6b3;
  --line: #323b45; --good: #6fce8c; --bad: #ff8a80; --busy: #ff9a62; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; }
.faint, footer { color: var(--faint); }
.verdict { font-size: 1.15rem; font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.figures div, .card, details { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.figures div { padding: .8rem 1rem; }
.figures b { display: block; font-size: 1.5rem; line-height: 1.3; }
.figures .busy b { color: var(--busy); }
.figures span { color: var(--faint); font-size: .88rem; }
.card { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .94rem; }
th, td { text-align: left; vertical-align: top; padding: .5rem .8rem; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--faint); font-weight: 500; font-size: .86rem; }
td { overflow-wrap: break-word; } td.number, th.number { text-align: right; white-space: nowrap; }
tbody th { font-weight: 500; }
.picture { background: #fff; padding: .3rem; }
.picture img { display: block; width: 100%; min-width: 40rem; height: auto; }
@media (max-width: 40rem) { th, td { padding: .45rem .5rem; } table { font-size: .88rem; } }
details { margin: .5rem 0; } summary { cursor: pointer; padding: .6rem .9rem; }
details > * + * { margin: 0 .9rem .7rem; }
pre { overflow: auto; max-height: 32rem; font: .8rem/1.45 ui-monospace, monospace; margin: 0;
  padding: .2rem .9rem 1rem; }
code { font-family: ui-monospace, monospace; font-size: .9em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; padding: .8rem 1rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
"""

SWITCHES = ("upgrade", "rollback")
SWITCH_HEADS = ("busy threads", "their restart", "group’s restart", "longest", "edits", "prepare")
THREAD_HEADS = ("held by the stop", "by its restart", "by the settling stop")
THREADS_AT_ONCE = 40  # more of them are behind a fold


def write(report: Document, picture: Path, path: Path) -> None:
    """Write the page of ``report`` to ``path``, with ``picture`` inside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(report, _embedded(picture)), encoding="utf-8")


def render(report: Document, image: str = "") -> str:
    """The page as text; ``image`` is a ``data:`` address, or empty for none."""
    title = text(report, "title", default="Hot upgrade")
    parts = [
        f"<header><h1>{_safe(title)}</h1>{_verdict(report)}{_upgraded(report)}</header>",
        _figures(report),
        _facts(report),
        _timeline(report, image),
        _threads(report),
        _switches(report),
        _changes(report),
        _machine(report),
        _documents(report),
        "<footer><p>Breaks are measured inside the process, per thread, by its own time-stamp counter.</p></footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_safe(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


# The parts, from the top down.


def _verdict(report: Document) -> str:
    facts, steps = rows(report, "facts"), rows(report, "steps")
    broken = [text(fact, "name", default="a fact without a name") for fact in facts if fact.get("ok") is False]
    failed = [_step_title(step) for step in steps if section(step, "document").get("ok") is False]
    known = [fact for fact in facts if isinstance(fact.get("ok"), bool)]
    if broken or failed:
        return f'<p class="verdict bad">✗ Not as it should be: {_safe(", ".join(broken + failed))}</p>'
    if not known and not steps:
        return '<p class="verdict">Nothing was recorded.</p>'
    facts_held = f", {'all ' if len(known) > 1 else ''}{plural(len(known), 'fact')} as expected" if known else ""
    return f'<p class="verdict good">✓ Upgraded while it ran{facts_held}</p>'


def _upgraded(report: Document) -> str:
    document = _main_upgrade(report)
    modules = [text(module, "name", default="?") for module in rows(document, "modules")]
    if not modules:
        return ""
    process = text(document, "name", default="a process")
    pid = document.get("pid")
    where = f"{process} (process {pid})" if isinstance(pid, int) else process
    when = text(document, "time")
    return f'<p class="faint">{_safe(" and ".join(modules))} in {_safe(where)}{_safe(", " + when if when else "")}</p>'


def _figures(report: Document) -> str:
    document = _main_upgrade(report)
    busy, longest = number(document, "break_us", "busy_max"), number(document, "break_us", "max")
    empty = number(document, "empty_stop_us", "busy_max")
    edits, memory = number(document, "edits", "count"), number(document, "memory_bytes")
    boxes = []
    if busy is not None:
        beside = f", {duration(empty)} for a stop that changes nothing" if empty is not None else ""
        boxes.append(("busy", duration(busy), f"lost by the busy threads{beside}"))
    gap = longest_gap(restarts(document))
    if gap is not None:
        boxes.append(("busy", duration(gap), "lost besides by a busy thread that was restarted in the new code"))
    if longest is not None:
        boxes.append(("", duration(longest), "the longest that any thread was held, asleep or not"))
    if edits is not None:
        size = plural(number(document, "edits", "bytes"), "byte")
        boxes.append(("", plural(edits, "edit"), f"at the stop, {size}" if size else "at the stop"))
    changed = number(document, "functions", "changed")
    if changed is not None:
        boxes.append(("", plural(changed, "function"), "changed between the two builds"))
    if memory is not None:
        boxes.append(("", _bytes(memory), "added to the process"))
    cells = "".join(
        f'<div class="{kind}"><b>{_safe(value)}</b><span>{_safe(words)}</span></div>' for kind, value, words in boxes
    )
    return f'<div class="figures">{cells}</div>' if cells else ""


def _facts(report: Document) -> str:
    facts = rows(report, "facts")
    if not facts:
        return ""
    lines = "".join(
        f"<tr><td>{_mark(fact.get('ok'))}</td><th>{_safe(text(fact, 'name'))}</th>"
        f"<td>{_safe(_value(fact, 'before'))}</td><td>{_safe(_value(fact, 'after'))}</td></tr>"
        for fact in facts
    )
    return _section(
        "Before and after",
        f'<div class="card"><table><thead><tr><th></th><th>what</th><th>before</th><th>after</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div>",
    )


def _timeline(report: Document, image: str) -> str:
    if not image:
        return ""
    busy = duration(number(_main_upgrade(report), "break_us", "busy_max"))
    words = f"Timeline of the break: phases above, one bar per thread below. Break of the busy threads: {busy}."
    inside = f'<div class="card picture"><img src="{_safe(image)}" alt="{_safe(words)}"></div>'
    return _section("The break", inside)


def _threads(report: Document) -> str:
    """Thread by thread: only parked or restarted, and what each cost."""
    threads = rows(_main_upgrade(report), "threads")
    if not threads:
        return ""
    ordered = sorted(threads, key=lambda thread: (not section(thread, "restart"), thread.get("busy") is not True))
    lines = "".join(_thread(thread) for thread in ordered)
    heads = "".join(f'<th class="number">{head}</th>' for head in THREAD_HEADS)
    table = (
        f"<table><thead><tr><th>thread</th><th>what became of it</th>{heads}</tr></thead><tbody>{lines}</tbody></table>"
    )
    words = summary(_main_upgrade(report)) or f"{plural(len(threads), 'thread')}, all only parked"
    if len(threads) > THREADS_AT_ONCE:
        return _section("Thread by thread", f"<details><summary>{_safe(words)}</summary><div>{table}</div></details>")
    return _section("Thread by thread", f'<p class="faint">{_safe(words)}.</p><div class="card">{table}</div>')


def _thread(thread: Document) -> str:
    (restart,) = restarts({"threads": [thread]}) or (None,)
    words = _safe(became(thread))
    if restart is not None:
        words += f": <code>{_safe(restart.function)}</code>"
    if restart is not None and restart.skipped:
        skipped = _safe(", ".join(restart.skipped))
        words += f'<br><span class="faint">skipped for this restart: <code>{skipped}</code></span>'
    absent = text(thread, "how") == "absent"
    held = None if absent else number(thread, "break_us")
    cells = (_duration(held), _restart_cost(restart), _duration(number(thread, "settle_us")))
    numbers = "".join(f'<td class="number">{_safe(cell)}</td>' for cell in cells)
    name = text(thread, "name") or f"thread {thread.get('tid', '?')}"
    state = "" if not absent else ", not there any more"
    kind = ' class="bad"' if restart is not None and restart.state == STAYED else ""
    note = f'<br><span class="faint">{"busy" if thread.get("busy") is True else "asleep"}{state}</span>'
    return f"<tr><th>{_safe(name)}{note}</th><td{kind}>{words}</td>{numbers}</tr>"


def _restart_cost(restart: Restart | None) -> str:
    """What it lost by being restarted; for one without work to lose, how long it took."""
    if restart is None or restart.asked is None or restart.arrived is None:
        return "–"
    if restart.gap is None:
        return f"{duration(restart.arrived - restart.asked)}, {'since asked' if restart.busy else 'asleep'}"
    taken = f", of which the machine took {duration(restart.taken_us)}" if restart.taken_us else ""
    return f"{duration(restart.gap)}{taken}"


def _switches(report: Document) -> str:
    """Every switch of the run in one table: each upgrade and each rollback."""
    lines = []
    for step in rows(report, "steps"):
        document = section(step, "document")
        if text(document, "command") not in SWITCHES:
            continue
        busy, longest = number(document, "break_us", "busy_max"), number(document, "break_us", "max")
        found = restarts(document)
        together = max((group.lasted for group in groups(found) if len(group.members) > 1), default=None)
        cells = [_duration(value) for value in (busy, longest_gap(found), together, longest)]
        edits = number(document, "edits", "count")
        cells.append(f"{edits:,.0f}" if edits is not None else "–")
        prepare = number(document, "phases_us", "prepare")
        cells.append(_duration(prepare))
        outcome = text(document, "outcome", default="not known")
        numbers = "".join(f'<td class="number">{_safe(cell)}</td>' for cell in cells)
        lines.append(f"<tr><th>{_safe(_step_title(step))}</th><td>{_safe(outcome)}</td>{numbers}</tr>")
    if not lines:
        return ""
    heads = "".join(f'<th class="number">{head}</th>' for head in SWITCH_HEADS)
    return _section(
        "Every switch of this run",
        f'<div class="card"><table><thead><tr><th>step</th><th>outcome</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>",
    )


def _changes(report: Document) -> str:
    document = _main_upgrade(report)
    blocks = []
    for module in rows(document, "modules"):
        parts = [f"<p>{_build(module, 'old')} → {_build(module, 'new')}</p>"]
        parts += _listed(module, "functions", ("changed", "dragged", "added", "removed"), "function")
        parts += _listed(module, "objects", ("new", "resized", "initial_changed", "constants_updated"), "object")
        kept = number(module, "objects", "kept")
        if kept is not None:
            parts.append(f"<p>{_safe(plural(kept, 'object'))} kept, at the same address with the same contents</p>")
        constructors = names(module, "constructors")
        if constructors:
            parts.append(f"<p>constructors run once: <code>{_safe(', '.join(constructors))}</code></p>")
        name = text(module, "name", default="a module")
        blocks.append(f"<details open><summary>{_safe(name)}</summary>{''.join(parts)}</details>")
    notes = [f"<li>{_safe(text(note, 'text') or text(note, 'code'))}</li>" for note in rows(document, "notes")]
    if notes:
        blocks.append(f"<details><summary>{plural(len(notes), 'note')}</summary><ul>{''.join(notes)}</ul></details>")
    return _section("What was upgraded", "".join(blocks)) if blocks else ""


def _machine(report: Document) -> str:
    machine = section(report, "machine")
    if not machine:
        return ""
    pairs = "".join(f"<dt>{_safe(str(key))}</dt><dd>{_safe(_value(machine, key))}</dd>" for key in machine)
    return _section("The machine", f'<dl class="card">{pairs}</dl>')


def _documents(report: Document) -> str:
    steps = rows(report, "steps")
    blocks = "".join(
        f"<details><summary>{index}. {_safe(_step_title(step))}{_step_note(step)}</summary>"
        f"<pre>{_safe(json.dumps(step.get('document'), indent=2, ensure_ascii=False, default=str))}</pre></details>"
        for index, step in enumerate(steps, start=1)
    )
    return _section("Every step, in full", blocks) if blocks else ""


# Small helpers.


def _main_upgrade(report: Document) -> Document:
    """The upgrade that the page is about: the first that was done, or else the first there is."""
    documents = [section(step, "document") for step in rows(report, "steps")]
    upgrades = [document for document in documents if text(document, "command") == "upgrade"]
    done = [document for document in upgrades if text(document, "outcome") == "done"]
    return next(iter(done + upgrades), {})


def _step_title(step: Document) -> str:
    return text(step, "title") or text(step, "document", "command") or "a step"


def _step_note(step: Document) -> str:
    outcome = text(step, "document", "outcome")
    return f' <span class="faint">{_safe(outcome)}</span>' if outcome else ""


def _duration(microseconds: float | None) -> str:
    return "–" if microseconds is None else duration(microseconds)


def _build(module: Document, which: str) -> str:
    build_id = text(module, which, "build_id")
    path = text(module, which, "path")
    return f'<code title="{_safe(path)}">{_safe(build_id[:12] or path or "?")}</code>'


def _listed(module: Document, part: str, kinds: tuple[str, ...], noun: str) -> Iterator[str]:
    for kind in kinds:
        found = names(module, part, kind)
        if not found:
            continue
        shown = ", ".join(found[:12]) + (f" and {len(found) - 12:,} more" if len(found) > 12 else "")
        words = kind.replace("_", " ")
        yield f"<p>{_safe(plural(len(found), noun))} {_safe(words)}: <code>{_safe(shown)}</code></p>"


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{_safe(title)}</h2>{inside}</section>"


def _mark(ok: object) -> str:
    if ok is True:
        return '<span class="good" title="as expected">✓</span>'
    if ok is False:
        return '<span class="bad" title="not as expected">✗</span>'
    return '<span class="faint" title="not judged">·</span>'


def _value(holder: Mapping[str, Any], key: str) -> str:
    """A fact's value as it is: process ids and counters keep their digits together."""
    value = holder.get(key)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(value, name)}" for name in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text(holder, key, default="–")


def _bytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 999_500 else f"{count / 1e3:.0f} kB"


def _embedded(picture: Path) -> str:
    """The picture as a ``data:`` address; a run without a picture still gets its page."""
    if not picture.is_file():
        return ""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")


def _safe(words: str) -> str:
    return html.escape(words, quote=True)

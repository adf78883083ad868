"""Many hot upgrades and roll-backs of a switch at full load, one after the other: how they are spread, and what the
slowest ones were made of (:mod:`hotupgrade.vswitch.compare.apart`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hotupgrade.vswitch import demo
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.compare import hot
from hotupgrade.vswitch.compare.apart import PARTS, observing, undisturbed
from hotupgrade.vswitch.compare.cells import joined
from hotupgrade.vswitch.compare.spread import median, percentile, spread
from hotupgrade.vswitch.compare.ways import look
from hotupgrade.vswitch.switch import Switch

Document = dict[str, Any]
Say = Callable[[str], None]
SLOWEST = 5
SHARES = (0.5, 0.9, 0.99, 1.0)
_WINDOWS = 50  # of all the time, for each upgrade, as long as the median break: the control


@dataclass(frozen=True, slots=True)
class Settings:
    """``runs`` of upgrade and roll-back each."""

    runs: int = 200


def measure(old: SwitchBuild, new: SwitchBuild, settings: Settings, say: Say) -> Iterator[tuple[str, Document]]:
    """Its key, and every break with its parts: one result, given as those of other parts are.

    Raises:
        HotUpgradeError: an upgrade or a roll-back failed.
    """
    with Switch(old) as switch:
        demo.prepare(switch)
        look(switch, new)
        rate = switch.rate()
        with observing(switch) as observer:
            rows: list[Document] = []
            for turn in range(settings.runs):
                rows.append(observer.take("upgrade", hot.upgrade(switch, new)))
                rows.append(observer.take("roll_back", hot.roll_back(switch)))
                if turn % 20 == 19:
                    say(f"distribution {turn + 1}/{settings.runs}: {_words(rows)}")
            machine = observer.control(median([row["break_us"] for row in rows]), _WINDOWS * len(rows))
    yield (
        "full speed",
        {
            "packets_per_second": rate.per_second,
            "machine": machine,
            "runs": rows,
            **{kind: _spread([row for row in rows if row["kind"] == kind]) for kind in KINDS},
        },
    )


KINDS = {"upgrade": "hot upgrade", "roll_back": "roll-back"}


def _spread(rows: Sequence[Document]) -> Document:
    breaks = [row["break_us"] for row in rows]
    rest = undisturbed(rows)
    return {
        **spread(breaks),
        "shares": {str(share): percentile(breaks, share) for share in SHARES},
        "undisturbed": spread(rest) if rest else None,
        "parts": {name: spread([row["parts_us"][name] for row in rows]) for name in PARTS},
    }


def _words(rows: Sequence[Document]) -> str:
    found = spread([row["break_us"] for row in rows])
    return f"median {found['median']:.1f} µs, 99th percentile {found['p99']:.1f} µs, longest {found['max']:.1f} µs"


def markdown(document: Document) -> str:
    """How the breaks are spread, and the slowest with their parts, in µs."""
    heads = ("", "n", "median", "90 %", "99 %", "longest", "of those without a preemption: n", "99 %", "longest")
    return joined(heads, (_row(title, document[kind]) for kind, title in KINDS.items())) + "\n" + _slowest(document)


def _row(title: str, found: Document) -> list[str]:
    rest = found["undisturbed"]
    alone = [str(rest["count"]), f"{rest['p99']:.1f}", f"{rest['max']:.1f}"] if rest else ["0", "", ""]
    return [title, str(found["count"]), *(f"{found['shares'][str(share)]:.1f}" for share in SHARES), *alone]


def _slowest(document: Document) -> str:
    rows = []
    for kind, title in KINDS.items():
        found = document[kind]
        typical = [f"{found['parts'][name]['median']:.1f}" for name in PARTS]
        rows.append([f"{title}, medians", f"{found['median']:.1f}", *typical, "", "", "", ""])
    rows += [
        [
            KINDS[row["kind"]],
            f"{row['break_us']:.1f}",
            *(f"{row['parts_us'][name]:.1f}" for name in PARTS),
            _known(row["preempted_us"]),
            _known(row["leader_preempted_us"]),
            str(row["attempts"]),
            f"{row['sleepers_us']:.0f}",
        ]
        for row in sorted(document["runs"], key=lambda row: -row["break_us"])[:SLOWEST]
    ]
    heads = ("", "break", *PARTS.values(), "PMD preempted", "leader preempted", "stops tried", "sleepers")
    return joined(heads, rows)


def _known(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1f}"

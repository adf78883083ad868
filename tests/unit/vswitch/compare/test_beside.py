"""Ways that were measured one by one are shown together."""

from __future__ import annotations

from hotupgrade.vswitch.compare import beside
from unit.vswitch.compare.samples import Document, entry, ways


def test_by_number_of_flows_in_the_usual_order() -> None:
    entries = {
        "10 hot": entry(ways(10)),
        "0 twins": entry(_of("twins", bed="other")),
        "0 hot": entry(_of("hot")),
        "0 restart": entry(_of("restart")),
    }
    found = beside.by_flows(entries)
    assert list(found) == [0, 10]
    assert [way["key"] for way in found[0]["ways"]] == ["restart", "hot", "twins"]
    assert found[0]["settings"]["flows"] == 0
    assert [row["bed"] for row in found[0]["meter"]] == ["bed", "other"], "a proof for several ways is shown once"


def test_what_was_tried_with_one_way_is_said_of_all() -> None:
    without = {key: value for key, value in ways().items() if key != "ovs_as_secondary"}
    assert "ovs_as_secondary" not in beside.together([without])
    assert beside.together([_of("secondary"), without])["ovs_as_secondary"]["says"] == "DPDK said no"


def _of(key: str, bed: str = "bed") -> Document:
    found = ways(key=key)
    return found | {"meter": [row | {"bed": bed} for row in found["meter"]]}

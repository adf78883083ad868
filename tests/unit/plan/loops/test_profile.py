"""Profiles as files: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotupgrade.errors import Refused
from hotupgrade.plan.loops.model import Door
from hotupgrade.plan.loops.profile import Returning, builtin_profiles, read_profiles

FIELDS = """
[[loop]]
module = "libworker.so.*"
function = "worker_main"
threads = "workers (worker-*)"
door = "fields"
argument = "struct worker"
ask = [["stop", 1]]
"""
LATCH = FIELDS.replace('"fields"', '"latch"').replace("ask", 'latch = "pool->exit"\n#')
SLEEP = FIELDS.replace('"fields"', '"sleep"').replace("ask", 'sleeps = ["nanosleep"]\n#')
NONE = FIELDS.replace('"fields"', '"none"').replace("ask", 'reason = "because"\n#').replace("argument", "#")


def written(folder: Path, text: str) -> Path:
    path = folder / "some.toml"
    path.write_text(text)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(Refused) as caught:
        read_profiles([path])
    (reason,) = caught.value.reasons
    assert (reason.code, reason.subject) == ("bad-profile", str(path))
    assert str(path) in reason.text
    assert "docs/loops.md" in reason.text
    return reason.text


def test_every_key(tmp_path: Path) -> None:
    text = (
        FIELDS
        + """
clear = [["stop", 0]]
wake = [["wake_up", "pool->bell"]]
leaving = "stop"
thread = "thread"
together = ["on_exit"]
hold = "main"
one-by-one = true
work = ["work"]
limit-us = 1000
[[loop.skip]]
clean = ["drop_cache"]
setup = ["make_cache", { call = "make_cache_of", returns = 1 }]
types = ["struct cache"]
[[loop.skip]]
setup = ["lock"]
first = true
required = true
"""
    )
    (profile,) = read_profiles([written(tmp_path, text)])
    assert profile.door is Door.FIELDS
    assert profile.ask == (("stop", 1),)
    assert profile.clear == (("stop", 0),)
    assert profile.wake == (("wake_up", "pool->bell"),)
    assert (profile.leaving, profile.thread, profile.hold) == ("stop", "thread", "main")
    assert (profile.one_by_one, profile.limit_us) == (True, 1000)
    assert profile.together == ("on_exit",)
    assert profile.work == ("work",)
    first, second = profile.skip
    assert first.clean == ("drop_cache",)
    assert first.setup == ("make_cache", Returning("make_cache_of", 1))
    assert (first.types, first.first, first.required) == (("struct cache",), False, False)
    assert (second.clean, second.first, second.required) == ((), True, True)


def test_what_is_left_out(tmp_path: Path) -> None:
    (profile,) = read_profiles([written(tmp_path, FIELDS)])
    assert (profile.hold, profile.one_by_one, profile.limit_us, profile.skip) == ("", False, 50_000, ())
    assert (profile.leaving, profile.latch, profile.thread, profile.group) == ("", "", "", "")


@pytest.mark.parametrize("text", [LATCH, SLEEP, NONE])
def test_the_other_doors(tmp_path: Path, text: str) -> None:
    assert len(read_profiles([written(tmp_path, text)])) == 1


def test_files_are_read_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / "b.toml", tmp_path / "a.toml"]
    for path in paths:
        path.write_text(FIELDS.replace("worker_main", f"in_{path.stem}"))
    assert [profile.function for profile in read_profiles(paths)] == ["in_b", "in_a"]


FAULTS = {
    "an unknown key": (FIELDS + 'colour = "red"', "unknown field `colour`"),
    "a key of Python": (FIELDS + "one_by_one = true", "unknown field `one_by_one`"),
    "an unknown table": (FIELDS + "[engine]\n", "unknown field `engine`"),
    "an unknown key of a skip": (FIELDS + '[[loop.skip]]\nsetup = ["f"]\nwhy = 1', "unknown field `why`"),
    "no loop": ("", "required field `loop`"),
    "no threads": (FIELDS.replace("threads", "#"), "required field `threads`"),
    "a door that is none": (FIELDS.replace('"fields"', '"window"'), "Invalid enum value 'window'"),
    "another type": (FIELDS.replace("[[", "[").replace("1]]", "1]").replace("[loop]]", "[[loop]]"), "Expected `array`"),
    "another hold": (FIELDS + 'hold = "all"', "'all'"),
    "no TOML": ("loop = [", "it is not TOML"),
    "the safe point": (FIELDS.replace('"fields"', '"flag"'), "needs no profile"),
    "a door without its key": (FIELDS.replace("ask", "#"), "door 'fields' needs 'ask'"),
    "a latch without its key": (LATCH.replace("latch = ", "#"), "door 'latch' needs 'latch'"),
    "a sleep without its key": (SLEEP.replace("sleeps", "#"), "door 'sleep' needs 'sleeps'"),
    "no reason": (NONE.replace("reason", "#"), "door 'none' needs 'reason'"),
    "a key of another door": (FIELDS + 'sleeps = ["poll"]', "'sleeps' means nothing for door 'fields'"),
    "asking a sleeper": (SLEEP + 'ask = [["stop", 1]]', "'ask' means nothing for door 'sleep'"),
    "holding for a sleeper": (SLEEP + 'hold = "main"', "'hold' means nothing for door 'sleep'"),
    "sleepers in order": (SLEEP + "one-by-one = true", "'one-by-one' means nothing for door 'sleep'"),
    "skips of no door": (NONE + '[[loop.skip]]\nsetup = ["f"]', "'skip' means nothing for door 'none'"),
    "a group one by one": (LATCH + 'group = "g"\none-by-one = true', "cannot be restarted one by one"),
    "no argument": (FIELDS.replace("argument", "#"), "no 'argument' to start from"),
    "an empty path": (FIELDS + 'clear = [["", 1]]', "'clear': a path is empty"),
    "a wrong path": (FIELDS + 'leaving = "a b"', "'leaving': 'a b' is no path"),
    "a negative number": (FIELDS + 'clear = [["stop", -1]]', "'clear': -1 for stop"),
    "a large number": (FIELDS + 'clear = [["stop", 0x10000000000000000]]', "'clear': "),
    "too much to put back": (FIELDS + 'clear = [["a", 0], ["b", 0], ["c", 0]]', "'clear' has more than 2"),
    "no time": (FIELDS + "limit-us = 0", "'limit-us' is 0"),
    "no function": (FIELDS.replace('"worker_main"', '""'), "'function': '' is no name"),
    "a name with an option": (FIELDS + 'work = ["work.isra.0"]', "'work': 'work.isra.0' is no name"),
    "no module": (FIELDS.replace('"libworker.so.*"', '""'), "'module' is empty"),
    "a skip without its way back": (FIELDS + '[[loop.skip]]\nclean = ["f"]\nsetup = []', "needs 'setup'"),
    "the first of a pair": (FIELDS + '[[loop.skip]]\nclean = ["f"]\nsetup = ["g"]\nfirst = true', "only 'setup'"),
    "a result": (
        FIELDS + '[[loop.skip]]\nsetup = [{ call = "f", returns = 0x10000000000000000 }]',
        "f cannot return 18446744073709551616",
    ),
    "twice": (FIELDS + FIELDS, "it is described twice for libworker.so.*"),
    "twice among others": (
        FIELDS + FIELDS.replace('"libworker.so.*"', '["other", "libworker.so.*"]'),
        "it is described twice for libworker.so.*",
    ),
    "no module at all": (FIELDS.replace('"libworker.so.*"', "[]"), "'module' is empty"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_makes_no_sense_is_refused(tmp_path: Path, fault: str) -> None:
    text, words = FAULTS[fault]
    assert words in refusal(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.toml")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_bytes(b"\xff\xfe")
    assert "it is not TOML" in refusal(path)


def test_the_profiles_that_come_along() -> None:
    paths = builtin_profiles()
    assert "openvswitch-3.1.toml" in [path.name for path in paths]
    profiles = read_profiles(paths)
    assert {profile.function for profile in profiles} >= {
        "pmd_thread_main",
        "udpif_revalidator",
        "dpdk_watchdog",
        "main",
    }
    assert len({(profile.module, profile.function) for profile in profiles}) == len(profiles)
    assert all(profile.is_of("ovs-vswitchd") for profile in profiles)  # as Debian links it

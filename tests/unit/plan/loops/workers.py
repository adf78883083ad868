"""A small library with a thread that never returns, in many variations; what the tests of loops share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hotupgrade.binary.build import Build
from hotupgrade.errors import Reason
from hotupgrade.plan.compare import compare
from hotupgrade.plan.loops.model import LoopPlan
from hotupgrade.plan.loops.profile import LoopProfile, read_profiles
from hotupgrade.plan.loops.resolve import resolve_loops
from hotupgrade.plan.model import Image

MODULE = "libworker.so.1"
BASE = 0x7F0000000000

TYPES = """
struct latch { int fds[2]; };
struct cache { long slots[64]; };
struct pool { long size; struct latch exit; };
struct worker { long id; struct pool *pool; struct cache cache; volatile int stop; unsigned long thread; void *bell; };
"""
IMPORTS = """
extern int rest(int);
extern int attach(int);
extern void detach(void);
extern int latch_is_set(const struct latch *);
"""
CACHE = """
__attribute__((noinline)) void make_cache(struct cache *c) { for (int i = 0; i < 64; i++) c->slots[i] = i * 3; }
__attribute__((noinline)) void drop_cache(struct cache *c) { for (int i = 0; i < 64; i++) c->slots[i] = -1; }
"""
WORK = """
__attribute__((noinline)) long work(struct worker *w, int n) { return w->id * 77 + n; }
"""
FIELDS = """
static void *worker_main(void *argument) {
    struct worker *w = argument;
    int attached = attach(w->id);
    long sum = N;
    make_cache(&w->cache);
    while (!w->stop) sum += work(w, rest(1));
    drop_cache(&w->cache);
    if (attached) detach();
    w->id = sum;
    return 0;
}
"""
LATCH = """
static void *worker_main(void *argument) {
    struct worker *w = argument;
    long sum = N;
    while (!latch_is_set(&w->pool->exit)) sum += work(w, rest(1));
    w->id = sum;
    return 0;
}
"""
SLEEP = """
static void *worker_main(void *argument) {
    struct worker *w = argument;
    attach(N);
    for (;;) work(w, rest(2 + N));
    return 0;
}
"""
START = """
void *start_of_worker = (void *) worker_main;
"""

PROFILE = f'[[loop]]\nmodule = "{MODULE}"\nfunction = "worker_main"\nthreads = "workers"\nwork = ["work"]\n'
ARGUMENT = 'argument = "struct worker"\n'
PAIRS = """
[[loop.skip]]
clean = ["drop_cache"]
setup = ["make_cache"]
types = ["struct cache"]
[[loop.skip]]
clean = ["detach"]
setup = [{ call = "attach", returns = 1 }]
"""
BY_FIELDS = PROFILE + ARGUMENT + 'door = "fields"\nask = [["stop", 1]]\nclear = [["stop", 0]]\nthread = "thread"\n'
BY_LATCH = PROFILE + ARGUMENT + 'door = "latch"\nlatch = "pool->exit"\nthread = "thread"\n'
BY_SLEEP = PROFILE + 'door = "sleep"\nsleeps = ["rest"]\n'
NO_DOOR = PROFILE.replace('work = ["work"]', 'door = "none"\nreason = "its frame is known elsewhere"')

OPTIONS = ("-g", "-fno-ipa-icf", f"-Wl,-soname,{MODULE}")


def source(loop: str, n: int, *, types: str = TYPES, cache: str = CACHE, work: str = WORK, more: str = "") -> str:
    return f"#define N {n}\n" + types + IMPORTS + cache + work + more + loop + START


@dataclass(frozen=True)
class Resolved:
    plans: list[LoopPlan]
    reasons: list[Reason]

    @property
    def plan(self) -> LoopPlan:
        assert self.reasons == []
        (plan,) = self.plans
        return plan

    @property
    def refusal(self) -> tuple[str, str]:
        """Code and text of the only refusal."""
        assert self.plans == []
        (reason,) = self.reasons
        return reason.code, reason.text


def profiles(folder: Path, *texts: str) -> list[LoopProfile]:
    paths = []
    for number, text in enumerate(texts):
        paths.append(folder / f"{number}.toml")
        paths[-1].write_text(text)
    return read_profiles(paths)


def resolve(
    folder: Path, profile: str | Sequence[str], new: Build, *old: Build, module: str = MODULE, current: int = 0
) -> Resolved:
    """``old`` are the builds that the process holds, the loader's first."""
    images = [Image(build, BASE + (index << 24)) for index, build in enumerate(old)]
    comparisons = [compare(build, new) for build in old]
    texts = [profile] if isinstance(profile, str) else profile
    return Resolved(*resolve_loops(module, images, current, new, comparisons, profiles(folder, *texts)))

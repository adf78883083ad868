"""The runs of a lab that tests and the demonstration make: which datapath, from which build to which, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hotupgrade.binary.cache import default_cache, load_build, read_ahead
from hotupgrade.plan.cache import compare_cached, concerns_cached
from hotupgrade.plan.loops.profile import builtin_profiles, read_profiles
from hotupgrade.plan.loops.resolve import loops_of
from hotupgrade.vswitch.builds import SwitchBuild, find_build
from hotupgrade.vswitch.datapaths.lab import Request, Step
from hotupgrade.vswitch.demo import LIBRARIES

EMULATED = 40  # times as long as a real processor, at the worst, on a machine that is busy with other things
HANDLERS = ("udpif_upcall_handler", "udpif_revalidator")


@dataclass(frozen=True)
class Case:
    """One run.  ``old`` and ``new`` are variants of ``scripts/build-ovs``; static ones are upgraded as a program."""

    name: str
    title: str
    old: str
    new: str
    in_guest: bool = True
    datapath: str = "system"
    port_type: str = ""
    offload: bool = False
    features: tuple[str, ...] = ()
    restarts: tuple[str, ...] = ()
    bfd_misses: int = 3
    lacp_time: str = "fast"
    back: bool = False  # roll back afterwards, too
    rate: float = 20.0  # a guest has little to spare
    seconds: float = 3.0
    other_config: dict[str, str] = field(default_factory=dict)

    @property
    def fixes(self) -> bool:
        return self.old.startswith("vulnerable") and self.new.startswith("fixed")

    def request(self, builds: Path) -> Request:
        """Of the builds in the folder ``builds``.

        Raises:
            UsageError: one is not there.
        """
        old, new = find_build(self.old, builds), find_build(self.new, builds)
        files = tuple(str(path) for path in files_of(new))
        steps = [Step("upgrade", files, self.fixes or None, self.restarts)]
        if self.back:
            steps.append(Step("roll-back", (), False if self.fixes else None))
        return Request(
            build=str(old.root),
            steps=tuple(steps),
            datapath=self.datapath,
            port_type=self.port_type,
            offload=self.offload,
            features=self.features,
            rate=self.rate,
            seconds=self.seconds,
            bfd_misses=self.bfd_misses,
            lacp_time=self.lacp_time,
            slower=EMULATED if self.in_guest else 1,
            other_config=self.other_config,
        )


KERNEL = Case(
    "kernel",
    "the kernel's datapath, shared libraries",
    "vulnerable",
    "fixed",
    features=("conntrack",),
)
KERNEL_STATIC = Case(
    "kernel-static",
    "the kernel's datapath, everything in one program",
    "vulnerable-static",
    "fixed-static",
    features=("conntrack",),
)
KERNEL_SESSIONS = Case(
    "kernel-sessions",
    "the kernel's datapath with VXLAN, BFD, a bond with LACP and connections; handlers and revalidators restarted",
    "fixed",
    "loops",
    features=("conntrack", "tunnel", "bond"),
    restarts=HANDLERS,
    rate=8.0,
    seconds=20.0,  # more than LACP's 30 between them
    # A guest on a busy machine stands still for seconds now and then, whether or not there is an upgrade.
    bfd_misses=30,
    lacp_time="slow",
)
KERNEL_OFFLOAD = Case(
    "kernel-offload",
    "flows offloaded to traffic control (tc-policy=skip_hw)",
    "vulnerable",
    "fixed",
    offload=True,
)
USER = Case(
    "user",
    "the plain datapath in user space: virtual Ethernet through packet sockets",
    "vulnerable",
    "fixed",
    in_guest=False,
    datapath="netdev",
    features=("conntrack", "bond"),
    back=True,
    rate=100.0,
    seconds=2.0,
)
USER_AFXDP = Case(
    "user-afxdp",
    "the datapath in user space with AF_XDP",
    "vulnerable",
    "fixed",
    in_guest=False,
    datapath="netdev",
    port_type="afxdp",
    features=("conntrack",),
    back=True,
    rate=100.0,
    seconds=2.0,
)
CASES = {case.name: case for case in (KERNEL, KERNEL_STATIC, KERNEL_SESSIONS, KERNEL_OFFLOAD, USER, USER_AFXDP)}


def files_of(build: SwitchBuild) -> Sequence[Path]:
    """What an upgrade to the build is given: its two large libraries, or its program if they are in there."""
    if any((build.root / "lib").iterdir()):
        return [build.library(name) for name in LIBRARIES]
    return [build.program("ovs-vswitchd")]


def analyse(case: Case, builds: Path) -> None:
    """Fill the cache with what an upgrade needs to know of the builds: a guest, which is slow, sees the host's."""
    cache, profiles = default_cache(), read_profiles(builtin_profiles())
    old, new = (files_of(find_build(name, builds)) for name in (case.old, case.new))
    for one, other in zip(old, new, strict=True):
        pair = [load_build(path.read_bytes(), str(path), cache, path) for path in (one, other)]
        read_ahead(pair, cache)
        comparison = compare_cached(pair[0], pair[1], cache, loops_of(one.name, pair[0], profiles))
        compare_cached(pair[0], pair[0], cache, loops_of(one.name, pair[0], profiles))
        concerns_cached(comparison, cache)

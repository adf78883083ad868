"""A guest with Debian's kernel: booted in QEMU's software emulation, sees the host's files, ends when its work is done.

``scripts/build-guest`` makes what it boots from.  Emulation needs no hardware and is slow, some ten times: no time that
is measured in it says anything.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotupgrade.errors import NotNow, Reason, UsageError
from hotupgrade.vswitch.processes import end, spawn

QEMU = "qemu-system-x86_64"
SHARED = "/run/hotupgrade-guest"  # where the guest sees the folder that it shares with the host
# init_on_alloc: Debian's kernel clears every page that it hands out; under emulation half of all time goes there.
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 mitigations=off init_on_alloc=0"
# smap=off: QEMU 7.2 carries out a user's IRET with the kernel's rights: under SMAP, reading the user's stack is a fault
# then, which kills the thread.  The agent uses IRET to make a processor look at changed code.
PROCESSOR = "max,smap=off"
MODULES = ("crc32c_generic", "openvswitch", "vport-vxlan", "cls_flower", "sch_ingress", "act_mirred")
START = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/root
mkdir -p /usr/lib/modules
mount --bind {modules} /usr/lib/modules
for module in {wanted}; do /run/modprobe "$module"; done
mkdir -p /sys/fs/bpf && mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
ulimit -l unlimited
cd {folder}
{command} >{shared}/output 2>&1
echo $? >{shared}/exit-code
dmesg >{shared}/dmesg 2>/dev/null || busybox dmesg >{shared}/dmesg
sync
busybox poweroff -f
"""


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """What the guest has, and how long it may take for everything."""

    processors: int = 2
    memory_mib: int = 2560  # the host gives what is touched; a large build and its debug information are read whole
    seconds: float = 900.0


@dataclass(frozen=True, slots=True)
class Ended:
    """What the guest's command left behind."""

    exit_code: int
    output: str
    result: dict[str, Any]
    kernel_log: str


def run_in_machine(
    kernel: Path,
    module: str,
    request: bytes,
    options: MachineOptions | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Ended:
    """Boot the guest of ``kernel`` (the folder of ``scripts/build-guest``), run ``python -m module REQUEST RESULT`` in
    it, and wait for its end.  ``say`` is told each line of its output.

    Raises:
        UsageError: there is no guest.
        NotNow: it did not boot, or not end in time; it has been ended.
    """
    chosen = options or MachineOptions()
    if not (kernel / "initramfs").is_file():
        raise UsageError(f"there is no guest in {kernel}: run 'scripts/build-guest'")
    with ExitStack() as resources:
        shared = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="hotupgrade-machine-")))
        (shared / "request.json").write_bytes(request)
        (shared / "start").write_text(_start(kernel, module))
        console = resources.enter_context((shared / "console").open("wb"))
        process = spawn(_command(kernel.resolve(), shared, chosen), {"PATH": "/usr/bin:/bin"}, console)
        resources.callback(end, process)
        _wait(process, shared, chosen.seconds, say)
        return _ended(shared)


def _start(kernel: Path, module: str) -> str:
    command = [sys.executable, "-m", module, f"{SHARED}/request.json", f"{SHARED}/result.json"]
    return START.format(
        modules=shlex.quote(str((kernel / "modules").resolve())),
        wanted=" ".join(MODULES),
        folder=shlex.quote(str(Path.cwd())),
        command=shlex.join(command),
        shared=SHARED,
    )


def _command(kernel: Path, shared: Path, options: MachineOptions) -> Sequence[str]:
    # multidevs: the host's tree may span several file systems, whose inode numbers must not meet.
    tree = "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
    return [
        *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", "tcg,thread=multi", "-cpu", PROCESSOR),
        *("-smp", str(options.processors), "-m", str(options.memory_mib), "-serial", "stdio"),
        *("-kernel", str(kernel / "vmlinuz"), "-initrd", str(kernel / "initramfs"), "-append", KERNEL_OPTIONS),
        *("-virtfs", tree, "-virtfs", f"local,path={shared},mount_tag=out,security_model=none"),
    ]


def _wait(process: subprocess.Popen[bytes], shared: Path, seconds: float, say: Callable[[str], None]) -> None:
    deadline, said = time.monotonic() + seconds, 0
    while True:
        running = process.poll() is None
        lines = _read(shared / "output").splitlines()
        for line in lines[said:]:
            say(line)
        said = len(lines)
        if not running:
            return
        if time.monotonic() > deadline:
            words = f"the guest did not end within {seconds:g} s; its last words:\n{_last_words(shared)}"
            raise NotNow(Reason("time-limit", QEMU, words))
        time.sleep(0.2)


def _ended(shared: Path) -> Ended:
    code, result = _read(shared / "exit-code").strip(), _read(shared / "result.json")
    if not code or not result:
        raise NotNow(
            Reason("machine", QEMU, f"the guest ended without a result; its last words:\n{_last_words(shared)}")
        )
    return Ended(int(code), _read(shared / "output"), json.loads(result), _read(shared / "dmesg"))


def _last_words(shared: Path) -> str:
    return "\n".join((_read(shared / "console") + _read(shared / "output")).splitlines()[-25:])


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

"""Where the symbols and the debug information of stripped builds are looked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from hotupgrade.binary.separate.find import Search
from hotupgrade.binary.separate.package import MAGIC
from hotupgrade.binary.separate.places import Beside, DebugRoot, NamedFolder, Package, Place
from hotupgrade.binary.separate.unpack import UnpackError
from hotupgrade.errors import Reason, Refused
from hotupgrade.files import read_regular
from hotupgrade.upgrade.trust import require_trusted

SYSTEM = Path("/usr/lib/debug")
MAX_SECONDS = 120.0  # that reading packages may take altogether


def debug_search(named: Sequence[Path] = ()) -> Search:
    """The places, nearest first: what the operator named, beside the module, the system's own folder.

    Every file must be trusted like a new build: types that are not those of the process would let an upgrade through
    that ruins it.

    Raises:
        Refused: something that was named is neither a folder nor a package, or is not to be trusted.
    """
    check_time = _limit(MAX_SECONDS)
    places: list[Place] = [_named(path, check_time) for path in named]
    places += [Beside(require_trusted), DebugRoot(SYSTEM, require_trusted)]
    return Search(tuple(places))


def _named(path: Path, check_time: Callable[[], None]) -> Place:
    if path.is_dir():
        return NamedFolder(path, require_trusted)
    content = read_regular(path, partial(require_trusted, path))
    if not content.startswith(MAGIC):
        text = f"{path} is neither a folder nor a Debian package (.deb); name one that has the debug information"
        raise Refused(Reason("bad-debug-dir", str(path), text))
    return Package(path, content, check_time)


def _limit(seconds: float) -> Callable[[], None]:
    """A clock that starts when it is first asked, and raises when the time is up."""
    deadline: list[float] = []

    def check() -> None:
        if not deadline:
            deadline.append(time.monotonic() + seconds)
        if time.monotonic() > deadline[0]:
            raise UnpackError(f"it takes more than {seconds:.0f} seconds")

    return check

"""Where the symbols and the debug information of stripped builds are looked for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from hotupgrade.binary.cache import Cache, Downloads
from hotupgrade.binary.separate.find import Search
from hotupgrade.binary.separate.package import MAGIC
from hotupgrade.binary.separate.places import Beside, DebugRoot, NamedFolder, Package, Place
from hotupgrade.binary.separate.unpack import UnpackError
from hotupgrade.errors import Reason, Refused
from hotupgrade.files import read_regular
from hotupgrade.upgrade.journal import state_folder
from hotupgrade.upgrade.trust import require_trusted

SYSTEM = Path("/usr/lib/debug")
DEBUG = "debug"  # in our state folder: what builds that processes hold have elsewhere
MAX_SECONDS = 120.0  # that reading packages may take altogether


def debug_search(named: Sequence[Path], servers: Sequence[str], cache: Cache) -> Search:
    """The places, nearest first: what the operator named, beside the module, the system's own folder, ours, servers.

    ``named`` are folders and packages; ``servers`` are addresses of debuginfod servers, in place of those of the
    environment.

    Every file must be trusted like a new build: types that are not those of the process would let an upgrade through
    that ruins it.

    Raises:
        Refused: something that was named is neither a folder nor a package, or is not to be trusted; or an address is
        none.
    """
    check_time = _limit(MAX_SECONDS)
    places: list[Place] = [_named(path, check_time) for path in named]
    places += [
        Beside(require_trusted),
        *(DebugRoot(root, require_trusted) for root in (SYSTEM, state_folder() / DEBUG)),
    ]
    if urls := servers or _servers_of_the_environment():
        from hotupgrade.binary.separate.server import Server  # and all that speaks HTTP

        places += [Server(_address(url), Downloads(cache)) for url in urls]
    return Search(tuple(places), structure=True)


def _servers_of_the_environment() -> list[str]:
    """As for gdb, perf and the rest: addresses with blanks between them.  Words that are none ask for what is not done
    here ("ima:enforcing")."""
    return [word for word in os.environ.get("DEBUGINFOD_URLS", "").split() if "://" in word]


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        good = False
    if not good:
        text = f"{url!r} is no address of a debuginfod server; say it like https://debuginfod.example.org"
        raise Refused(Reason("bad-debuginfod", url, text))
    return url


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

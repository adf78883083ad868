"""A debuginfod server as a place: ``GET URL/buildid/BUILDID/debuginfo`` (debuginfod(8), "WEBAPI").

Asked only if the operator names one.  Everything has a limit: how long it takes, how much comes, how often it is
passed on.  Proxies are not used.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Protocol
from urllib.parse import urljoin, urlsplit

import hotupgrade
from hotupgrade.binary.separate.companion import DebugFile
from hotupgrade.binary.separate.links import MAX_IDENTITY, supplement_identity
from hotupgrade.binary.separate.places import Candidate, Wanted
from hotupgrade.errors import Reason, Refused
from hotupgrade.files import MOST

MAX_SECONDS = 90.0  # for one file; what debuginfod's own clients take
MAX_SILENCE = 10.0  # seconds in which nothing comes
MAX_REDIRECTS = 4
_CHUNK = 1 << 20

_HEADERS = {"User-Agent": f"hotupgrade/{hotupgrade.__version__}"}


class Store(Protocol):
    """Keeps what was downloaded."""

    def load(self, key: str) -> bytes | None:
        """None: there is nothing."""

    def save(self, key: str, content: bytes) -> None:
        """A failure is no failure: it is downloaded again."""


class Server:
    """``url`` is its root, http or https."""

    def __init__(self, url: str, store: Store) -> None:
        self._url = url.rstrip("/")
        self._store = store

    def candidates(self, wanted: Wanted) -> Iterator[Candidate]:
        if not 2 < len(wanted.identity) <= MAX_IDENTITY:
            return
        url = self._file(wanted)
        content = self._store.load(url)
        if content is None:
            content = _download(url)
            if content is not None and _is(content, wanted.identity):
                self._store.save(url, content)
        if content is not None:
            yield Candidate(url, False, partial(bytes, content))

    def described(self, wanted: Wanted) -> list[str]:
        return [self._file(wanted)]

    def _file(self, wanted: Wanted) -> str:
        return f"{self._url}/buildid/{wanted.identity}/debuginfo"


def _is(content: bytes, identity: str) -> bool:
    with contextlib.suppress(Refused):
        file = DebugFile(content, "")
        return identity in (file.build_id(), supplement_identity(file))
    return False


def _download(url: str) -> bytes | None:
    """What a server has there; None if it has nothing.

    Raises:
        Refused: it cannot be had.
    """
    deadline = time.monotonic() + MAX_SECONDS
    try:
        return _followed(url, deadline)
    except _Answer as error:
        why = str(error)
    except TimeoutError:
        why = f"it is silent for {MAX_SILENCE:.0f} seconds"
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = str(error) or type(error).__name__
    if time.monotonic() >= deadline:  # the connection was cut, in the middle of anything
        why = f"it takes longer than {MAX_SECONDS:.0f} seconds"
    text = f"{url} cannot be had: {why}; see whether the server is the right one and runs, or leave it out"
    raise Refused(Reason("debuginfod", url, text))


class _Answer(Exception):
    """An answer that leads nowhere."""


def _followed(url: str, deadline: float) -> bytes | None:
    """Goes where the server says."""
    for _ in range(MAX_REDIRECTS + 1):
        with _Exchange(url, deadline) as exchange:
            status, location = exchange.ask()
            if status == 200:
                return exchange.content()
            if status in (404, 410):
                return None
            if status not in (301, 302, 303, 307, 308):
                raise _Answer(f"it answers with status {status}")
        target = urljoin(url, location)
        if urlsplit(url).scheme == "https" != urlsplit(target).scheme:
            raise _Answer(f"it leads to {target}, which is not encrypted")
        url = target
    raise _Answer("it leads from one place to the next without an end")


class _Exchange:
    """One question and its answer.  At the deadline (time.monotonic()) its connection is cut, whatever it does."""

    def __init__(self, url: str, deadline: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _Answer(f"{url!r} is no address of a web server")
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._deadline = deadline
        silence = min(MAX_SILENCE, left)
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=silence, context=ssl.create_default_context()
            )
            if parts.scheme == "https"
            else http.client.HTTPConnection(parts.hostname, parts.port, timeout=silence)
        )
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._socket: socket.socket | None = None
        self._answer: http.client.HTTPResponse | None = None
        self._timer = threading.Timer(left, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Exchange:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        self._connection.close()

    def _cut(self) -> None:
        if (connected := self._socket or self._connection.sock) is not None:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def ask(self) -> tuple[int, str]:
        """The status, and where else it is."""
        self._connection.request("GET", self._target, headers=_HEADERS)
        self._socket = self._connection.sock  # which it forgets when the answer is the last one
        self._answer = self._connection.getresponse()
        return self._answer.status, self._answer.headers.get("Location", "")

    def content(self) -> bytes:
        assert self._answer is not None
        parts, size = list[bytes](), 0
        while part := self._answer.read(_CHUNK):
            size += len(part)
            if size > MOST:
                raise _Answer(f"it is larger than {MOST >> 30} GiB")
            parts.append(part)
        if self._answer.length or time.monotonic() >= self._deadline:
            raise _Answer("it ends too early")
        return b"".join(parts)

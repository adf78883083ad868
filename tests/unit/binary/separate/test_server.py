"""Debuginfod servers: Debian's own, and servers that do what they should not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache, Downloads
from hotupgrade.binary.separate import server
from hotupgrade.binary.separate.find import Search
from hotupgrade.binary.separate.places import Wanted
from hotupgrade.binary.separate.server import Server
from hotupgrade.errors import Refused
from unit.binary.separate.stripped import SOURCES, assert_same, by_identity, run, strip
from unit.conftest import Compiler

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def whole(compiler: Compiler) -> Path:
    return compiler.file(SOURCES, "-g")


class Web:
    """A web server on loopback; ``answer`` is called for every question."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: handler.send_error(404)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.answer(self)

            def log_message(self, *arguments: object) -> None:
                """Nobody wants to know."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def gives(self, content: bytes) -> None:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)

        self.answer = answer

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    found = Web()
    yield found
    found.close()


def asking(web: Web, cache: Cache) -> Search:
    return Search((Server(web.url + "/", Downloads(cache)),))


def failure(web: Web) -> str:
    """Why nothing came."""
    with pytest.raises(Refused) as caught:
        list(Server(web.url, Downloads(Cache(None))).candidates(Wanted("abcdef", "", None, None)))
    (reason,) = caught.value.reasons
    assert reason.code == "debuginfod"
    assert web.url in reason.text
    return reason.text


@pytest.mark.parametrize("squeeze", [False, True])
def test_debians_own_server(whole: Path, tmp_path: Path, squeeze: bool) -> None:
    """In a network of its own, with a debug file that shares a part with another, if it may be squeezed."""
    if not shutil.which("debuginfod") or subprocess.run(["unshare", "-rn", "true"]).returncode:
        pytest.skip("no debuginfod, or no right to make a network")
    module, debug = strip(whole, tmp_path / "lib", link=False)
    (tmp_path / "served").mkdir()
    debug.rename(tmp_path / "served" / "one")
    if squeeze:
        shutil.copy(tmp_path / "served" / "one", tmp_path / "served" / "two")
        run("dwz", "-m", "common", "-M", "/nowhere/common", "one", "two", cwd=tmp_path / "served")
    script = f"""
from pathlib import Path
from hotupgrade.binary.build import Build
from hotupgrade.binary.cache import Cache
from hotupgrade.upgrade.debug_sources import debug_search
from unit.binary.separate.stripped import assert_same
build = Build.open({str(module)!r}, debug_search((), (), Cache(Path({str(tmp_path / "cache")!r}))))
assert build.separate.types.label.startswith("http://127.0.0.1"), build.separate
assert (build.separate.supplement is not None) == {squeeze}
assert_same(build, Build.open({str(whole)!r}))
"""
    words = ["unshare", "-rn", sys.executable, Path(__file__).with_name("serve.py"), tmp_path / "served"]
    environment = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(
        [*words, sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def test_what_came_is_kept(whole: Path, tmp_path: Path, web: Web) -> None:
    module, debug = strip(whole, tmp_path, link=False)
    web.gives(debug.read_bytes())
    cache = Cache(tmp_path / "cache")
    for _ in range(2):
        build = Build.open(module, asking(web, cache))
        assert_same(build, Build.open(whole))
    assert web.asked == [f"/buildid/{build.build_id}/debuginfo"]
    assert build.separate.types is not None
    assert build.separate.types.label == web.url + web.asked[0]


def test_what_is_of_another_build_is_refused_and_not_kept(
    compiler: Compiler, whole: Path, tmp_path: Path, web: Web
) -> None:
    module, _ = strip(whole, tmp_path, link=False)
    _, other = strip(compiler.file(SOURCES, "-g", "-O1"), tmp_path / "other", link=False)
    web.gives(other.read_bytes())
    cache = Cache(tmp_path / "cache")
    for count in (1, 2):
        with pytest.raises(Refused) as caught:
            Build.open(module, asking(web, cache))
        assert [reason.code for reason in caught.value.reasons] == ["debug-mismatch", "no-symbols"]
        assert len(web.asked) == count


def test_what_it_does_not_have(whole: Path, tmp_path: Path, web: Web) -> None:
    module, _ = strip(whole, tmp_path, link=False)
    with pytest.raises(Refused, match=r"none was found in http://127.*debuginfo") as caught:
        Build.open(module, asking(web, Cache(None)))
    assert [reason.code for reason in caught.value.reasons] == ["no-symbols"]


def test_nobody_is_asked_where_nothing_is_missing(whole: Path, tmp_path: Path, web: Web) -> None:
    module, debug = strip(whole, tmp_path, link=False)
    assert_same(Build.open(whole, asking(web, Cache(None))), Build.open(whole))
    debug.rename(by_identity(tmp_path, Build.open(whole).build_id))
    assert not Build.open(whole, asking(web, Cache(None))).debug.missing
    assert web.asked == []
    assert module.exists()


def test_it_leads_elsewhere(whole: Path, tmp_path: Path, web: Web) -> None:
    module, debug = strip(whole, tmp_path, link=False)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/buildid"):
            handler.send_response(302)
            handler.send_header("Location", "/there?x=1")
            handler.end_headers()
        else:
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(debug.read_bytes())

    web.answer = answer
    assert_same(Build.open(module, asking(web, Cache(None))), Build.open(whole))
    assert web.asked[1] == "/there?x=1"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("/buildid/abcdef/debuginfo", "without an end"),
        ("file:///etc/passwd", "no address of a web server"),
        ("ftp://127.0.0.1/x", "no address of a web server"),
        ("http://", "cannot be had"),
        ("http://127.0.0.1:1/x", "refused"),
        ("http://[::1", "cannot be had"),
    ],
)
def test_it_leads_nowhere(web: Web, target: str, said: str) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    web.answer = answer
    assert said in failure(web)
    assert len(web.asked) <= server.MAX_REDIRECTS + 1


def test_it_fails(web: Web) -> None:
    web.answer = lambda handler: handler.send_error(503)
    assert "status 503" in failure(web)


def test_it_is_no_web_server(web: Web) -> None:
    web.answer = lambda handler: handler.wfile.write(b"hello\n" * 100)  # type: ignore[assignment,return-value]
    assert "cannot be had" in failure(web)


def test_it_ends_too_early(web: Web) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"x" * 10)

    web.answer = answer
    assert "cannot be had" in failure(web)


def test_it_gives_more_than_anybody_needs(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST", 1 << 21)
    web.gives(bytes(1 << 23))
    assert "larger than" in failure(web)


def test_it_is_silent(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_SILENCE", 0.3)
    web.answer = lambda _: time.sleep(20)
    begin = time.monotonic()
    assert "silent for" in failure(web)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("part", ["headers", "content", "endless"])
def test_it_is_slow_without_ever_being_silent(web: Web, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setattr(server, "MAX_SECONDS", 1.0)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n")
        if part != "headers":
            handler.wfile.write(b"Content-Length: 1000\r\n\r\n" if part == "content" else b"\r\n")
        for _ in range(200):
            handler.wfile.write(b"X")
            handler.wfile.flush()
            time.sleep(0.05)

    def quiet(handler: BaseHTTPRequestHandler) -> None:
        try:
            answer(handler)
        except OSError:
            handler.close_connection = True

    web.answer = quiet
    begin = time.monotonic()
    assert "takes longer than" in failure(web)
    assert time.monotonic() - begin < 5


def test_an_identity_that_is_no_name(web: Web) -> None:
    for identity in ("", "ab", "a" * 500):
        assert not list(Server(web.url, Downloads(Cache(None))).candidates(Wanted(identity, "", None, None)))
    assert web.asked == []

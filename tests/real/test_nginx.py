"""nginx: a master and workers that it forks, TLS, and connections that are kept."""

from __future__ import annotations

import http.client
import os
import re
import signal
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from live.harness import HotUpgrade
from real.harness import (
    Builds,
    Clients,
    Journey,
    Row,
    Server,
    Tool,
    check_bounded,
    children,
    free_port,
    size_of,
    tell,
)

CONFIGURATION = """\
daemon off;
user root;
worker_processes 2;
pid {place}/pid;
error_log {place}/error.log warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
    keepalive_requests 100000000;
    ssl_certificate {place}/certificate; ssl_certificate_key {place}/key;
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_timeout 30d;
    server {{
        listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl;
        location / {{ root {place}/pages; }}
        location /rewritten {{ rewrite ^(.*) /new?c=1; set $was $1; return 200 $was; }}
    }}
}}
"""
PAGE = "a page\n" * 5000
CLIENTS, CONNECTIONS = 6, 16
WEEK = 7 * 24 * 3600


@dataclass(frozen=True)
class Site:
    server: Server
    place: Path
    plain: int
    tls: int

    def pids(self) -> list[int]:
        return [self.server.pid, *children(self.server.pid)]

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.place / "certificate"))

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", self.tls, timeout=20, context=self.context())

    def rewritten(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.plain, timeout=20)
        connection.request("GET", "/rewritten/a%20b")
        said = connection.getresponse().read().decode()
        connection.close()
        return said

    def ticket_lifetime(self) -> int:
        """What the server tells about the tickets of TLS 1.3."""
        words = ["openssl", "s_client", "-connect", f"127.0.0.1:{self.tls}", "-tls1_3", "-ign_eof"]
        done = subprocess.run(
            words, input="GET / HTTP/1.0\r\n\r\n", capture_output=True, text=True, timeout=60, errors="replace"
        )
        return int(re.findall(r"lifetime hint: (\d+)", done.stdout)[-1])


@pytest.fixture
def site(place: Path, serve: Callable[..., Server]) -> Callable[[Path, Path | None], Site]:
    """nginx of a build, with a certificate of its own and libraries from a folder."""

    def start(program: Path, libraries: Path | None = None) -> Site:
        (place / "pages").mkdir()
        (place / "pages" / "index.html").write_text(PAGE)
        words = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]
        words += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        words += ["-keyout", str(place / "key"), "-out", str(place / "certificate")]
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        plain, tls = free_port(), free_port()
        (place / "nginx.conf").write_text(CONFIGURATION.format(place=place, plain=plain, tls=tls))
        server = serve(program, "-p", place, "-c", place / "nginx.conf", library_path=libraries)
        server.wait_for_port(tls)
        return Site(server, place, plain, tls)

    return start


def fetch(connection: http.client.HTTPSConnection, number: int) -> None:
    """One request on a connection that stays."""
    connection.auto_open = 0 if connection.sock else 1
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert (answer.status, answer.read().decode()) == (200, PAGE)
    assert connection.sock is not None, "the server closed the connection"


def wrk(site: Site, seconds: int) -> Tool:
    """So many connections that a worker hardly ever sleeps."""
    words = [
        "wrk",
        "-t",
        "1",
        "-c",
        str(CONNECTIONS),
        "-d",
        f"{seconds}s",
        "--timeout",
        "20s",
        f"https://127.0.0.1:{site.tls}/",
    ]
    return Tool(*words)


def check_wrk(load: Tool) -> str:
    """wrk names socket errors and bad answers only when there are some."""
    said = load.finish(400)
    assert "Socket errors" not in said, said
    assert "Non-2xx" not in said, said
    return next(line for line in said.splitlines() if "requests in" in line).strip()


def reloaded(site: Site) -> list[int]:
    """New workers, which the master forks, take the place of those that serve."""
    before = set(children(site.server.pid))
    os.kill(site.server.pid, signal.SIGHUP)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        now = children(site.server.pid)
        if len(now) == 2 and not before & set(now):
            return now
        time.sleep(0.1)
    raise AssertionError(f"workers stayed: {before}, {children(site.server.pid)}")


def journey_of(
    site: Site, hu: HotUpgrade, files: list[Path], observe: Callable[[], object], old: object, new: object, row: Row
) -> None:
    """Under load there, back, and there; then new workers, which have the new code by fork."""
    journey = Journey(hu, site.pids, files)
    with Clients(CLIENTS, site.connect, fetch) as clients, wrk(site, 120) as load:
        time.sleep(3)  # everybody is connected
        sizes = [size_of(pid) for pid in site.pids()]
        journey.there_and_back(observe, old, new, clients.moved_on)
        for pid, before in zip(site.pids(), sizes, strict=True):
            check_bounded(before, size_of(pid))
        said = check_wrk(load)
        assert clients.errors() == []
    for pid in reloaded(site):
        assert hu.status(pid).document["generation"] == 1
    assert [observe() for _ in range(4)] == [new] * 4
    assert site.server.end(signal.SIGQUIT) == 0
    log = (site.place / "error.log").read_text()
    assert not re.search(r"\[(alert|emerg|crit)\]|exited on signal", log), log
    threads = sum(size.threads for size in sizes)
    told = Row(
        **{
            **vars(row),
            "processes": f"{len(sizes)} processes, {threads} threads",
            "break_us": journey.longest_break_us(),
            "prepare_s": journey.prepare_s(),
            "clients": f"wrk on {CONNECTIONS} TLS connections: {said}; {clients.done()} requests on {CLIENTS} others, "
            f"the longest {clients.longest_ms():.1f} ms; new workers by fork",
            "errors": len(clients.errors()),
        }
    )
    tell(told)


def test_nginx_itself(builds: Callable[[str], Builds], site: Callable[..., Site], hu: HotUpgrade) -> None:
    """CVE-2026-42945: what was captured before a rewrite with arguments came out escaped, in too small a buffer."""
    nginx = builds("nginx")
    running = site(nginx.old("bin/nginx"))
    row = Row("nginx", nginx.version, "CVE-2026-42945 (executable)", "", "works")
    wanted = ("/rewritten/a%2", "/rewritten/a b")
    journey_of(running, hu, [nginx.new("bin/nginx")], running.rewritten, *wanted, row)


def test_nginx_with_another_openssl(builds: Callable[[str], Builds], site: Callable[..., Site], hu: HotUpgrade) -> None:
    """Nine of Debian's corrections in libcrypto, and one in libssl that every client can see; one stop for both."""
    nginx, openssl = builds("nginx"), builds("openssl")
    running = site(nginx.new("bin/nginx"), openssl.old("lib"))
    row = Row("nginx with OpenSSL", openssl.version, "9 corrections (libcrypto.so.3), 1 (libssl.so.3)", "", "works")
    files = [openssl.new("lib/libssl.so.3"), openssl.new("lib/libcrypto.so.3")]
    journey_of(running, hu, files, running.ticket_lifetime, 30 * 24 * 3600, WEEK, row)

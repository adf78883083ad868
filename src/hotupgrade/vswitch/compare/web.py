"""nginx, and wrk with connections that are kept alive: failed requests, and how long the slowest took."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hotupgrade.errors import HotUpgradeError
from hotupgrade.vswitch.compare.application import Application, Figure
from hotupgrade.vswitch.compare.hosts import Host, Hosts
from hotupgrade.vswitch.compare.needs import program
from hotupgrade.vswitch.processes import end, wait_until

Document = dict[str, Any]
CONNECTIONS, DELAY_MS = 10, 5  # each connection waits so long before its next request
LIMIT_S, TIMEOUT_S = 120, 30
PORT, PAGE_BYTES = 8080, 1024
_START_S, _MARK = 15.0, "result "

_CONFIGURATION = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    default_type text/plain;
    keepalive_requests 100000000;
    keepalive_timeout 600s;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{ listen {address}:{port}; root {folder}/pages; }}
}}
"""

#: wrk corrects its latencies for what it could not send while it waited (stats_correct in its wrk.c).
_SCRIPT = """\
function delay() return {delay} end
function done(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '{mark}{{"requests": %d, "median_ms": %.3f, "p999_ms": %.3f, "max_ms": %.3f, ' ..
        '"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}}\\n',
        summary.requests, latency:percentile(50) / 1000, latency:percentile(99.9) / 1000, latency.max / 1000,
        errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
"""


@contextmanager
def _run(hosts: Hosts, folder: Path) -> Iterator[Callable[[], Document]]:
    with _server(hosts.server, folder):
        (folder / "wrk.lua").write_text(_SCRIPT.format(delay=DELAY_MS, mark=_MARK))
        words = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{LIMIT_S}s"]
        words += ["--timeout", f"{TIMEOUT_S}s", "--script", str(folder / "wrk.lua")]
        client = hosts.client.start([*words, f"http://{hosts.server.address}:{PORT}/page"], folder / "wrk")
        try:

            def finish() -> Document:
                client.send_signal(signal.SIGINT)
                client.wait(_START_S)
                return read((folder / "wrk").read_text())

            yield finish
        finally:
            end(client)


@contextmanager
def _server(host: Host, folder: Path) -> Iterator[None]:
    (folder / "pages").mkdir(exist_ok=True)
    (folder / "pages" / "page").write_bytes(b"x" * PAGE_BYTES)
    configuration = _CONFIGURATION.format(folder=folder, address=host.address, port=PORT)
    (folder / "nginx.conf").write_text(configuration)
    words = [program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    server = host.start(words, folder / "nginx")
    try:
        wait_until(lambda: (folder / "nginx.pid").exists() or server.poll() is not None, _START_S, "nginx to start")
        if server.poll() is not None:
            raise HotUpgradeError(f"nginx did not start: {(folder / 'nginx').read_text()[-300:]}")
        yield
    finally:
        end(server)


def read(text: str) -> Document:
    """What wrk says through our script; ``failed`` are requests that came to nothing, of whatever kind.

    Raises:
        HotUpgradeError: it came to no end, or made no request.
    """
    lines = [line.removeprefix(_MARK) for line in text.splitlines() if line.startswith(_MARK)]
    document: Document = json.loads(lines[-1]) if lines else {}
    if not document.get("requests"):
        raise HotUpgradeError(f"wrk has made no request: {text.strip()[-300:]}")
    kinds = ("connect", "read", "write", "timeout", "status")
    return {
        **{key: value for key, value in document.items() if key not in kinds},
        "failed": sum(document[kind] for kind in kinds),
        "errors": {kind: document[kind] for kind in kinds},
    }


WEB = Application(
    "nginx",
    f"nginx, {CONNECTIONS} connections kept alive, a request each {DELAY_MS} ms on each (wrk)",
    (
        Figure("requests", "requests"),
        Figure("failed", "failed"),
        Figure("median_ms", "median, ms", 2),
        Figure("p999_ms", "99.9th percentile, ms", 1),
        Figure("max_ms", "slowest, ms", 1),
    ),
    _run,
)

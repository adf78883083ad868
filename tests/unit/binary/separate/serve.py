"""Runs a command in a network of its own, in which Debian's debuginfod serves a folder: nobody else can reach it.

Called with unshare(1): ``unshare -rn python serve.py FOLDER COMMAND…``; the command finds it by ``DEBUGINFOD_URLS``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PORT = 8002
URL = f"http://127.0.0.1:{PORT}"
SECONDS = 60.0


def main(folder: str, *command: str) -> int:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    words = ["debuginfod", "-p", str(PORT), "-d", ":memory:", "-t", "0", "-g", "0", "-F", folder]
    environment = {key: value for key, value in os.environ.items() if key != "DEBUGINFOD_URLS"}
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as server:
        try:
            _wait(server, sum(1 for path in Path(folder).rglob("*") if path.is_file()))
            return subprocess.run(command, env={**os.environ, "DEBUGINFOD_URLS": URL}).returncode
        finally:
            server.terminate()


def _wait(server: subprocess.Popen[bytes], files: int) -> None:
    """Until it has looked at all files."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{URL}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except (urllib.error.URLError, OSError):
            lines = []
        if "ready 1" in lines and _scanned(lines) >= files:
            return
        time.sleep(0.1)
    raise SystemExit("debuginfod does not get ready")


def _scanned(lines: list[str]) -> int:
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("scanned_files_total"))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""One preparation in a process of its own, as the command line makes it, with a cache of the caller's choice.

usage: prepare_once.py PID CACHE_DIRECTORY NEW...     (a dry run: everything is planned, nothing is placed)
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    begin = time.monotonic()
    from hotupgrade.binary.cache import Cache
    from hotupgrade.upgrade.perform import Settings, upgrade

    loaded = time.monotonic()
    processor = _processor_seconds()
    document = upgrade(
        int(sys.argv[1]), [Path(word) for word in sys.argv[3:]], {}, Settings(dry_run=True), Cache(Path(sys.argv[2]))
    )
    done = time.monotonic()
    found = {
        "outcome": document["outcome"],
        "seconds": done - loaded,
        "processor_seconds": _processor_seconds() - processor,
        "import_seconds": loaded - begin,
        "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps(found))


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()

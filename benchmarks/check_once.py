"""One ``check`` in a process of its own, with a cache of the caller's choice, by whichever hotupgrade PYTHONPATH has.

usage: check_once.py PID CACHE_DIRECTORY NEW...
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    import hotupgrade
    from hotupgrade.binary.cache import Cache
    from hotupgrade.upgrade.perform import Settings, check

    before, begin = _processor_seconds(), time.monotonic()
    document = check(int(sys.argv[1]), [Path(word) for word in sys.argv[3:]], {}, Settings(), Cache(Path(sys.argv[2])))
    found = {
        "from": str(Path(hotupgrade.__file__).parent),
        "verdict": document["verdict"],
        "seconds": time.monotonic() - begin,
        "processor_seconds": _processor_seconds() - before,
    }
    print(json.dumps(found))


def _processor_seconds() -> float:
    """Of this process and those that it has started and waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()

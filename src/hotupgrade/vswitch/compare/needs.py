"""Programs of others that a part of the comparison needs, looked for before anything is begun."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hotupgrade.errors import NotNow, Reason

#: nginx is unpacked there (scripts/install-packages), not installed: as a package it would start a service.
_UNPACKED = "build/nginx/usr/sbin"


def program(name: str) -> str:
    """Where it is.

    Raises:
        NotNow: it is not there.
    """
    folders = (os.environ.get("PATH", ""), "/usr/sbin", "/sbin", str(Path(_UNPACKED).resolve()))
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise NotNow(Reason("tool", name, f"there is no {name}: run 'scripts/install-packages compare'"))
    return found

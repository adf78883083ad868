"""All ways, in the order in which they are shown; those on one bed follow one another."""

from __future__ import annotations

from typing import Any

from hotupgrade.vswitch.compare.standby import STANDBY
from hotupgrade.vswitch.compare.twins import TWINS
from hotupgrade.vswitch.compare.ways import PLAIN, RESTARTED_THREADS, WAYS, Way

ALL_WAYS: tuple[Way[Any], ...] = (*WAYS, RESTARTED_THREADS, *TWINS, *STANDBY, *PLAIN)

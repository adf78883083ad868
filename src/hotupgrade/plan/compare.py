"""SIGNATURE ONLY FOR NOW."""

from __future__ import annotations

from hotupgrade.binary.build import Build
from hotupgrade.plan.model import Comparison


def compare(old: Build, new: Build) -> Comparison:
    """Matches and compares two builds of one module."""
    raise NotImplementedError

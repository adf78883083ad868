"""Whether a new build can take over.  Looks at files only, not at the process."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hotupgrade.binary.build import Build
from hotupgrade.errors import Reason
from hotupgrade.plan.case import open_case
from hotupgrade.plan.model import Comparison, Image
from hotupgrade.plan.notes import notes
from hotupgrade.plan.options import PlanOptions
from hotupgrade.plan.refusals import refusals


def verdict(
    images: Sequence[Image],
    current: int,
    new: Build,
    comparisons: Sequence[Comparison],
    options: PlanOptions,
    exempt: Collection[str] = frozenset(),
) -> tuple[list[Reason], list[Reason]]:
    """Reasons to refuse, and notes.  No refusals: upgradable, as far as files can tell.

    ``exempt`` names the types and variables for which the operator brings a migration.
    """
    case = open_case(images, current, new, comparisons, options)
    return refusals(case, exempt), notes(case)

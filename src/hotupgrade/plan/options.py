"""What the operator may choose about a plan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlanOptions:
    """``whole``: run every function from the new image, not only what changed.  ``imports``: also re-point the import
    slots of other modules, which saves calls from there the jump at the home.  ``trust_layout``: where debug
    information is absent, believe that types are the same; a difference that is known stays a refusal."""

    whole: bool = False
    imports: bool = False
    trust_layout: bool = False

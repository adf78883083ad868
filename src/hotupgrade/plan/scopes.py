"""Which rows of a build debug information knows as variables, and to which functions statics belong."""

from __future__ import annotations

from collections import defaultdict

from hotupgrade.binary.build import Build
from hotupgrade.binary.debug.model import Variable
from hotupgrade.binary.model import Kind
from hotupgrade.plan.match import Scopes


def variables_of(build: Build) -> dict[int, list[Variable]]:
    """Row of the entities to what is said of the variable there."""
    rows: dict[tuple[int, bool], int] = {}
    entities = build.entities
    for row, (address, kind) in enumerate(zip(entities.address.tolist(), entities.kind.tolist(), strict=True)):
        if kind != Kind.FUNCTION:
            rows[address, kind == Kind.TLS] = row
    found: dict[int, list[Variable]] = defaultdict(list)
    for variable in build.debug.variables:
        row = rows.get((variable.address, variable.thread_local), -1)
        if row >= 0:
            found[row].append(variable)
    return dict(found)


def scopes_of(build: Build) -> Scopes:
    """Row of a static within a function to that function's name."""
    scopes: dict[int, str] = {}
    for row, variables in variables_of(build).items():
        names = {variable.scope for variable in variables}
        if len(names) == 1 and (name := names.pop()):
            scopes[row] = name
    return scopes

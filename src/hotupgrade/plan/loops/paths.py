"""Paths of a profile (``udpif->exit_latch``, ``slots[2].stop``), and where debug information says that they lead."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hotupgrade.binary.debug.model import ATOMIC, Debug, Definition, Field, names_in, plain
from hotupgrade.plan.loops.model import Place

_STEP = re.compile(r"(?P<link>->|\.|)(?P<name>[A-Za-z_]\w*)|\[(?P<index>\d{1,9})\]")
_SCALAR = re.compile(r"(?:int|uint|bool|float)(8|16|32|64)\Z")
_ARRAY = re.compile(r"(?P<element>.*?) \[(?P<count>\d+)\](?P<more>(?:\[\d+\])*)\Z", re.DOTALL)
_POINTER = " *"


class WrongPath(Exception):
    """A path that is not written as it should be, or that leads nowhere; says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """A member (with ``follow``: of what the word found so far points to), or an element."""

    member: str = ""
    follow: bool = False
    index: int = -1


@dataclass(frozen=True, slots=True)
class Located:
    """A place, and the type of what is there."""

    place: Place
    text: str


def parse(path: str) -> tuple[Step, ...]:
    """
    Raises:
        WrongPath: it is no path.
    """
    steps: list[Step] = []
    at = 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None or (bool(steps) == (match["link"] == "") and match["index"] is None):
            raise WrongPath(f"'{path}' is no path such as a->b.c[2]")
        if match["index"] is not None:
            if not steps:
                raise WrongPath(f"'{path}' does not begin with a member")
            steps.append(Step(index=int(match["index"])))
        else:
            steps.append(Step(match["name"], match["link"] == "->"))
        at = match.end()
    if not steps:
        raise WrongPath("a path is empty")
    return tuple(steps)


class Types:
    """The types of one build, as one of its source files sees them."""

    def __init__(self, debug: Debug, file: str) -> None:
        self._debug = debug
        name = file.rsplit("/", 1)[-1]
        self._file = debug.files.index(name) if name in debug.files else -1

    def locate(self, argument: str, path: str) -> Located:
        """Where ``path`` leads from a pointer to an ``argument``.

        Raises:
            WrongPath: it leads nowhere.
        """
        text = f"`{self.require(argument)}`"
        offsets = [0]
        for step in parse(path):
            if step.follow:
                text = self._target(text, step.member)
                offsets.append(0)
            if step.member:
                field = self._field(text, step.member)
                offsets[-1] += field.bit // 8
                text = field.text
            else:
                element, count = self._element(text)
                if step.index >= count:
                    raise WrongPath(f"there are {count} elements, so none has the number {step.index}")
                offsets[-1] += step.index * self.size(element)
                text = element
        return Located(Place(tuple(offsets), self.size(text), path), text.removesuffix(ATOMIC))

    def require(self, name: str) -> str:
        """The name by which a type is defined: its own, or that of what it is a typedef of.

        Raises:
            WrongPath: there is no such type.
        """
        candidates: list[str] = [name, *self._debug.typedefs.get(name, ())]
        for candidate in candidates:
            if self.definition(candidate) is not None:
                return candidate
        raise WrongPath(f"there is no type '{name}' there, or more than one")

    def definition(self, name: str) -> Definition | None:
        """What a name means in the file; None if that is not known."""
        known = self._debug.types.get(name, [])
        here = [index for index, files in known if self._file in files] or [index for index, _ in known]
        return self._debug.definitions[here[0]] if len(here) == 1 else None

    def size(self, text: str) -> int:
        """Bytes.

        Raises:
            WrongPath: it is not known.
        """
        text = text.removesuffix(ATOMIC)
        if _ARRAY.match(text):
            element, count = self._element(text)
            return self.size(element) * count
        if scalar := _SCALAR.match(text):
            return int(scalar[1]) // 8
        if text.endswith(_POINTER):
            return 8
        definition = self._named(text)
        if definition is None or definition.size < 0:
            raise WrongPath(f"the size of {plain(text)} is not known")
        return definition.size

    def held(self, name: str) -> frozenset[str]:
        """A type and all that objects of it hold by value."""
        found: set[str] = set()
        work = [name]
        while work:
            name = work.pop()
            definition = self.definition(name)
            if name in found:
                continue
            found.add(name)
            fields = definition.fields if definition is not None else ()
            work += [inner for field in fields if "*" not in field.text for inner in names_in(field.text)]
        return frozenset(found)

    def _named(self, text: str) -> Definition | None:
        names = names_in(text)
        return self.definition(names[0]) if names and text == f"`{names[0]}`" else None

    def _target(self, text: str, member: str) -> str:
        text = text.removesuffix(ATOMIC)
        if not text.endswith(_POINTER):
            raise WrongPath(f"before '->{member}' there is no pointer but {plain(text)}")
        return text.removesuffix(_POINTER)

    def _field(self, text: str, member: str) -> Field:
        text = text.removesuffix(ATOMIC)
        definition = self._named(text)
        if definition is None:
            raise WrongPath(f"what {plain(text)} is made of is not known, so it has no '{member}'")
        found = [field for field in definition.fields if field.name == member]
        if len(found) != 1 or found[0].bit < 0:
            raise WrongPath(f"{plain(text)} has no member '{member}'")
        if found[0].bits:
            raise WrongPath(f"'{member}' of {plain(text)} is a bit-field, which cannot be stored by itself")
        return found[0]

    def _element(self, text: str) -> tuple[str, int]:
        array = _ARRAY.match(text.removesuffix(ATOMIC))
        if array is None:
            raise WrongPath(f"{plain(text)} has no elements")
        more = f" {array['more']}" if array["more"] else ""
        return array["element"] + more, int(array["count"])

"""After the commit: the unwinder and debuggers learn of the new code.  A failure is a note, never a failed upgrade."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from hotupgrade.errors import HotUpgradeError, Reason
from hotupgrade.target.agent import Agent
from hotupgrade.target.debugger import Told, tell
from hotupgrade.upgrade.kept import store_path
from hotupgrade.upgrade.ledger import Ledger
from hotupgrade.upgrade.prepare import Planned
from hotupgrade.upgrade.session import Session
from hotupgrade.upgrade.unwinding import complete


def afterwards(agent: Agent, session: Session, ledger: Ledger, planned: Sequence[Planned]) -> list[Reason]:
    """Complete what the unwinder knows, and tell debuggers of every image of the modules that were upgraded.

    Returns:
        Notes for the operator: what could not be done, and what to do instead.
    """
    steps: tuple[Callable[[], Reason | None], ...] = (
        lambda: complete(agent, session, ledger),
        lambda: tell(agent, session.modules, [image for item in planned for image in _images(ledger, item)]),
    )
    return [note for step in steps if (note := _tried(step)) is not None]


def _tried(step: Callable[[], Reason | None]) -> Reason | None:
    try:
        return step()
    except (HotUpgradeError, OSError, ValueError) as error:
        text = f"the upgrade is done, but debuggers or the unwinder could not be told of the new code: {error}"
        return Reason("untold", "", text)


def _images(ledger: Ledger, item: Planned) -> Iterable[Told]:
    """Earlier ones too: the tool may have been killed before it told of them."""
    module = item.candidate.module
    record = ledger.module(module.name, module.base)
    for image, known in list(zip(item.record_images, record.images if record else (), strict=False))[1:]:
        dynamic = image.build.sections.get(".dynamic")
        if known.start and dynamic is not None:
            path = store_path(known.build_id)
            yield Told(known.base, known.start + known.size, known.base + dynamic.vaddr, str(path))

"""What later images of a module offer to other modules: the loader does not know it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hotupgrade.binary.model import Kind
from hotupgrade.plan.model import Image


def owned_exports(images: Sequence[Image]) -> dict[str, int]:
    """Absolute addresses of the exported names that have their home in a later image.

    A scene's ``resolve`` must know them, for every module and also for images that are only planned: the new build of
    one library may need a function that is new in another.
    """
    found: dict[str, int] = {}
    for image in images[1:]:
        entities = image.build.entities
        offered = np.flatnonzero(entities.exported & (entities.kind != Kind.TLS)).tolist()
        for row in offered:
            if row in image.owned:
                for name in entities.aliases[row]:
                    found.setdefault(name, image.base + int(entities.address[row]))
    return found

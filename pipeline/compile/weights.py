"""Which weights the file holds as kernels read them, and which as they came, to be packed on the board.

Packing a byte takes less time there than checking or reading one: docs/bundle.md has the figures. So of all that the plans
make of the same weights the file holds whichever is smaller, the packed forms or the weights themselves.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from bitkiln.pipeline.compile.plan import Made, PlannedCall, Storage

#: The least that the file becomes smaller for each byte that is packed on the board: less would not pay for the packing.
LEAST_SAVED = 1 / 8


def settle(plans: Sequence[Sequence[PlannedCall]], packs: bool = True) -> list[list[PlannedCall]]:
    """The calls of all plans; their made storages stay where that makes the file smaller, all others become constants.

    ``packs``: whether the board packs at all.
    """
    every = {id(view.storage): view.storage for calls in plans for call in calls for view in call.inputs}
    made = [storage for storage in every.values() if storage.made]
    stored = [storage for storage in made if not packs or not _pays(storage, made, every)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        packed = dict(zip(map(id, stored), pool.map(_packed, stored), strict=True))

    def settled(call: PlannedCall) -> PlannedCall:
        views = (replace(view, storage=packed.get(id(view.storage), view.storage)) for view in call.inputs)
        return replace(call, inputs=tuple(views))

    return [list(map(settled, calls)) for calls in plans]


def _pays(storage: Storage, made: Sequence[Storage], every: dict[int, Storage]) -> bool:
    """Whether the file holds what ``storage`` is made of, for all that is made of it."""
    assert storage.made
    source = storage.made.source
    forms = [other for other in made if other.made and other.made.source is source]
    if not all(form.made and form.made.packing.fits_the_board for form in forms):
        return False
    total = sum(form.nbytes for form in forms)
    return total - (0 if id(source) in every else source.nbytes) >= LEAST_SAVED * total


def _packed(storage: Storage) -> Storage:
    """A constant with what ``storage`` would be made of."""
    assert storage.made
    array = content(storage.made)
    return Storage(array.nbytes, constant=array)


def content(made: Made) -> np.ndarray:
    """What the board makes, bit for bit."""
    assert made.source.constant is not None
    return made.packing([made.source.constant])

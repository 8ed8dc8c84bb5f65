"""Whether a board can hold a network: known from shapes alone, before anything is packed or compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bitkiln.pipeline.compile.kernels import ChosenKernel
from bitkiln.pipeline.compile.plan import Network, PlannedCall, View, activation_bytes, nbytes
from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.model import Model, TensorSpec
from bitkiln.schedules.kernel import Constant
from bitkiln.targets import Target

#: Bytes that a network may take of each MB of a board: three quarters; the system and Python want the rest.
MEMORY_SHARE = 768 << 10

#: How often inputs and outputs lie in memory while they are read or written: the network's own bytes, an array, the
#: array's bytes, and the file they are part of.
COPIES = 4


def constant_bytes(network: Network) -> int:
    """Bytes of the network's constants as they came."""
    storages = {id(view.storage): view.storage for call in network.calls for view in call.inputs}
    return sum(storage.nbytes for storage in storages.values() if storage.constant is not None)


def argument_bytes(network: Network, chosen: Mapping[str, ChosenKernel]) -> int:
    """Bytes of the network's constants as the kernels of ``chosen`` read them."""
    arguments = {key: size for call in network.calls for key, size in _arguments(call, chosen[call.kernel]).items()}
    return sum(arguments.values())


def _arguments(call: PlannedCall, chosen: ChosenKernel) -> dict[object, int]:
    """Bytes of each constant argument of a call, by what it is."""
    if chosen.kernel is None:
        return {id(view.storage): view.storage.nbytes for view in call.inputs if view.storage.constant is not None}
    found: dict[object, int] = {}
    for index, argument in enumerate(chosen.kernel.arguments):
        if isinstance(argument, Constant):
            found[chosen.symbol, index] = np.asarray(argument.array).nbytes
            continue
        storages = [call.inputs[source].storage for source in argument.sources]
        if all(storage.constant is not None for storage in storages):
            found[(chosen.symbol, index, *map(id, storages))] = nbytes(argument.shape, argument.dtype)
    return found


def check_memory(model: Model, network: Network, target: Target, weights: int) -> None:
    """Raise ModelError where a board of ``target`` could not hold the network, ``weights`` bytes of it, and its outputs."""
    activations = activation_bytes(network)
    ends = [*_ends("input", network.inputs, model.inputs), *_ends("output", network.outputs, model.outputs)]
    needed = activations + COPIES * sum(size for size, _ in ends) + weights
    most = int(target.dram["size_mb"]) * MEMORY_SHARE
    if needed <= most:
        return
    largest, what = max(ends)
    if activations > COPIES * largest:
        what = f"what its layers pass on takes {activations / 1e6:.0f} MB"
    if weights > needed / 2:
        what = f"its weights take {weights / 1e6:.0f} MB"
    raise ModelError(
        f"{model.name}: {what}; the network and copies of its inputs and outputs take {needed / 1e6:.0f} MB of memory, on "
        f"{target.name} {most / 1e6:.0f} MB at most are supported: make its input smaller, let it return less, or compile "
        "for a board with more"
    )


def _ends(kind: str, views: Sequence[View], specs: Sequence[TensorSpec]) -> list[tuple[int, str]]:
    """Bytes of each of the network's inputs or outputs, and what to say of it."""
    names = [spec.name for spec in specs] if len(specs) == len(views) else [view.name for view in views]
    sizes = [nbytes(view.shape, view.dtype) for view in views]
    return [
        (size, f"{kind} {name} has {size / 1e6:.0f} MB ({view.dtype} {list(view.shape)})")
        for size, name, view in zip(sizes, names, views, strict=True)
    ]

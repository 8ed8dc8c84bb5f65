"""The arguments of each call as its kernel wants them: weights packed, tables added."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from bitkiln.pipeline.compile.kernels import ChosenKernel
from bitkiln.pipeline.compile.plan import (
    ExecutionPlan,
    Made,
    Network,
    PlannedCall,
    Storage,
    View,
    constant_view,
    make_plan,
    nbytes,
)
from bitkiln.pipeline.compile.weights import settle
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.model import Model
from bitkiln.schedules.conv2d.packing import Packing
from bitkiln.schedules.kernel import Argument, Constant


def plan_network(
    model: Model,
    network: Network,
    chosen: Mapping[str, ChosenKernel],
    several: Mapping[str, ChosenKernel] | None = None,
    packs: bool = True,
) -> ExecutionPlan:
    """The execution plan: each call's arguments as its kernel wants them, weights packed, tensors placed.

    ``several`` has the kernels that are others where several threads run the network. ``packs``: whether the board packs
    weights where that makes the file smaller.
    """
    others = several or {}
    arguments = _Arguments()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        calls = list(pool.map(lambda call: arguments.of(call, chosen[call.kernel]), network.calls))
        differing = [call for call in network.calls if call.kernel in others]
        made = list(pool.map(lambda call: arguments.of(call, others[call.kernel]), differing))
    calls, made = settle([calls, made], packs)
    replaced = {call.name: call for call in made}
    outputs = list(network.outputs)
    if len(outputs) == len(model.outputs):
        names = [spec.name for spec in model.outputs]
        outputs = [View(name, v.shape, v.dtype, v.storage) for name, v in zip(names, outputs, strict=True)]
    plan = make_plan(
        calls, network.inputs, outputs, [replaced.get(call.name, call) for call in calls] if others else ()
    )
    return replace(plan, preprocessing=model.preprocessing, head=model.head, image=model.image_size)


class _Arguments:
    """Makes the arguments of calls. What two kernels have packed alike of the same weights is one storage."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, Packing], Storage] = {}

    def of(self, call: PlannedCall, chosen: ChosenKernel) -> PlannedCall:
        """``call`` with the arguments of its kernel."""
        inputs = call.inputs
        if chosen.kernel is not None:
            inputs = tuple(
                self._argument(f"{call.name}.{index}", argument, call)
                for index, argument in enumerate(chosen.kernel.arguments)
            )
        return PlannedCall(call.name, chosen.kind, chosen.symbol, inputs, call.outputs)

    def _argument(self, name: str, argument: Argument | Constant, call: PlannedCall) -> View:
        """One argument of the emitted kernel, made from the arguments of the call."""
        if isinstance(argument, Constant):
            return constant_view(name, argument.array)
        sources = [call.inputs[index] for index in argument.sources]
        if argument.pack is None:
            (source,) = sources
            return View(source.name, tuple(argument.shape), argument.dtype, source.storage)
        arrays = []
        for source in sources:
            if source.storage.constant is None:
                raise BitkilnError(f"{call.name}: the operand {source.name} must be a constant, it is computed")
            arrays.append(source.storage.constant.reshape(source.shape))
        if isinstance(argument.pack, Packing):
            return self._packed_later(name, argument, sources[0].storage)
        packed = np.ascontiguousarray(argument.pack(arrays), dtype=argument.dtype)
        if packed.shape != tuple(argument.shape):
            raise BitkilnError(f"{call.name}: packing gave shape {packed.shape}, the kernel takes {argument.shape}")
        return constant_view(name, packed)

    def _packed_later(self, name: str, argument: Argument, source: Storage) -> View:
        assert isinstance(argument.pack, Packing)
        shape = tuple(argument.shape)
        assert (argument.pack.floats + argument.pack.spare,) == shape and argument.dtype == "float32"
        made = Storage(nbytes(shape, argument.dtype), made=Made(argument.pack, source))
        return View(name, shape, argument.dtype, self._made.setdefault((id(source), argument.pack), made))

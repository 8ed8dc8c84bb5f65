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
    Network,
    PlannedCall,
    View,
    constant_view,
    make_plan,
)
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.model import Model
from bitkiln.schedules.kernel import Argument, Constant


def plan_network(
    model: Model,
    network: Network,
    chosen: Mapping[str, ChosenKernel],
    several: Mapping[str, ChosenKernel] | None = None,
) -> ExecutionPlan:
    """The execution plan: each call's arguments as its kernel wants them, weights packed, tensors placed.

    ``several`` has the kernels that are others where several threads run the network.
    """
    others = several or {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        calls = list(pool.map(lambda call: _kernel_call(call, chosen[call.kernel]), network.calls))
        differing = [call for call in network.calls if call.kernel in others]
        made = pool.map(lambda call: _kernel_call(call, others[call.kernel]), differing)
        replaced = {call.name: call for call in made}
    outputs = list(network.outputs)
    if len(outputs) == len(model.outputs):
        names = [spec.name for spec in model.outputs]
        outputs = [View(name, v.shape, v.dtype, v.storage) for name, v in zip(names, outputs, strict=True)]
    plan = make_plan(
        calls, network.inputs, outputs, [replaced.get(call.name, call) for call in calls] if others else ()
    )
    return replace(plan, preprocessing=model.preprocessing, head=model.head, image=model.image_size)


def _kernel_call(call: PlannedCall, chosen: ChosenKernel) -> PlannedCall:
    inputs = call.inputs
    if chosen.kernel is not None:
        inputs = tuple(
            _argument(f"{call.name}.{index}", argument, call) for index, argument in enumerate(chosen.kernel.arguments)
        )
    return PlannedCall(call.name, chosen.kind, chosen.symbol, inputs, call.outputs)


def _argument(name: str, argument: Argument | Constant, call: PlannedCall) -> View:
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
    packed = np.ascontiguousarray(argument.pack(arrays), dtype=argument.dtype)
    if packed.shape != tuple(argument.shape):
        raise BitkilnError(f"{call.name}: packing gave shape {packed.shape}, the kernel takes {argument.shape}")
    return constant_view(name, packed)

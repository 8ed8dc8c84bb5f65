"""Exact zeros before a sign: the file's Sign gives 0 for them, a bit has no such value and stands for +1 or -1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import reference
from bitkiln.pipeline.ir.graph import bindings, file_names, op_name
from bitkiln.pipeline.ops import unpack_bits, workload_of
from bitkiln.pipeline.passes.pipeline import Lowered, Survey
from bitkiln.pipeline.verify.compare import Tensors
from bitkiln.schedules.workload import Conv2d


@dataclass(frozen=True)
class ExactZeros:
    """``count`` of the ``elements`` before the signs that ``layer`` reads are exact zeros."""

    layer: str
    count: int
    elements: int


class ZeroSigns:
    """The binary convolutions of a network that read signs of which the file says that of zero is 0."""

    def __init__(self, lowered: Lowered) -> None:
        self._graph: tvm.IRModule = lowered.graph
        self._names = file_names(lowered.phases["imported"]["main"])
        counted = [each.name for each in lowered.verdicts if each.facts and each.facts.zeros_count_as is not None]
        operators = Survey(lowered.phases, lowered.verdicts).binary_operators()
        #: The layer that each operator sums for.
        self._layers = {each: layer for layer in counted for each in operators.get(layer, ())}

    @cached_property
    def sources(self) -> dict[str, str]:
        """For each such convolution of the graph the tensor whose signs it reads."""
        defined = dict(bindings(self._graph["main"]))
        found = {}
        for name, value in defined.items():
            if name not in self._layers or not isinstance(value, Call):
                continue
            call = defined.get(value.args[0].name)
            if isinstance(call, Call) and op_name(call) == "reshape":
                call = defined.get(call.args[0].name)
            if isinstance(call, Call) and op_name(call) == "bitkiln.binarize":
                found[name] = call.args[0].name
        return found

    def met(self, values: Tensors) -> list[ExactZeros]:
        """Where there are exact zeros; ``values`` holds the tensors named by ``sources``. Each tensor counts once."""
        first = {source: name for name, source in reversed(self.sources.items())}
        found = [
            ExactZeros(self._called(name), int((values[source] == 0).sum()), values[source].size)
            for source, name in first.items()
        ]
        return [each for each in reversed(found) if each.count]

    def _called(self, name: str) -> str:
        """What the file calls the convolution that ``name`` sums for."""
        return self._names.get(self._layers[name], self._layers[name])

    def to_the_letter(self, inputs: Tensors) -> list[np.ndarray]:
        """The network's outputs where the sign of zero is 0, as the file says."""
        names = reference.output_names(self._graph)
        values = reference.evaluate(self._graph, inputs, [*names, *self.sources.values()], instead=self._convolve)
        return reference.outputs_of(self._graph, values)

    def _convolve(self, name: str, expr: relax.Expr, values: Mapping[str, reference.Value]) -> reference.Value | None:
        """A convolution of signs that may be 0; None for anything else."""
        source = values.get(self.sources.get(name, ""))
        if not isinstance(source, np.ndarray):
            return None
        work, weight = workload_of(expr), reference.evaluate_call(self._graph, expr.args[1], values)
        assert isinstance(work, Conv2d) and isinstance(weight, np.ndarray)
        signs = np.sign(np.nan_to_num(source, nan=-1.0)).reshape(1, work.height, work.width, work.channels)
        weight = unpack_bits(weight, work.channels // work.groups).astype(np.float32)
        return reference.convolve(signs, weight, work.strides, work.padding, work.dilation, work.groups, work.pad_value)

"""How far two right engines may come apart: what the outputs do when the signs next to zero fall the other way, and when
sums and functions are rounded otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from tvm import relax

from bitkiln.pipeline import reference
from bitkiln.pipeline.ir.graph import op_name
from bitkiln.pipeline.passes.pipeline import Lowered
from bitkiln.pipeline.verify import roundings
from bitkiln.pipeline.verify.compare import NEAR, Tensors, magnitude

#: Runs with such signs drawn at random.
DRAWS = 4

SEED = 1905


#: What engines that sum in other orders differ by, relative to a tensor's largest magnitude.
_SUMMED = 2.0**-22

#: What engines that approximate functions with results of 0 to 1 differ by.
_APPROXIMATED = 2.0**-22


def rounded_otherwise(lowered: Lowered, inputs: Tensors) -> list[list[np.ndarray]]:
    """The network's outputs in some draws of what rounding makes of sums and functions.

    Where values are rounded to whole numbers, as quantised networks do, a last bit may turn one of them.
    """
    return [_rounded(lowered, inputs, np.random.default_rng(SEED + draw)) for draw in range(DRAWS)]


def _rounded(lowered: Lowered, inputs: Tensors, rng: np.random.Generator) -> list[np.ndarray]:
    def error(value: np.ndarray, bounded: bool) -> np.ndarray:
        return (_APPROXIMATED if bounded else _SUMMED * magnitude(value)) * rng.uniform(-1, 1, value.shape)

    names = reference.output_names(lowered.graph)
    return reference.outputs_of(lowered.graph, roundings.evaluate(lowered.graph, inputs, names, error))


class Sensitivity:
    """The reference on one input, run again with the signs of values next to zero drawn at random.

    With ``zeros`` those of exact zeros too: an engine that evaluates what straight-through training left in a file gets
    whole numbers up to rounding only, and no exact zero.
    """

    def __init__(self, lowered: Lowered, inputs: Tensors, zeros: bool = False) -> None:
        self._lowered = lowered
        self._inputs = inputs
        self._zeros = zeros

    @cached_property
    def outputs(self) -> list[list[np.ndarray]]:
        """The network's outputs in each draw; empty where no value is next to zero."""
        first = self._draw(SEED)
        return [first, *(self._draw(SEED + draw) for draw in range(1, DRAWS))] if self._met else []

    @cached_property
    def near(self) -> int:
        """How many values before signs were next to zero in the first draw."""
        return self._met if self.outputs else 0

    def _draw(self, seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        self._met = 0

        def instead(_name: str, expr: relax.Expr, values: Mapping[str, reference.Value]) -> reference.Value | None:
            if op_name(expr) != "bitkiln.binarize":
                return None
            value = reference.evaluate_call(self._lowered.graph, expr.args[0], values)
            assert isinstance(value, np.ndarray)
            sign_zero = int(expr.attrs["sign_zero"])
            close = (np.abs(value) <= NEAR * magnitude(value)) & (self._zeros | (value != 0))
            self._met += int(close.sum())
            turned = np.where(value == 0, -sign_zero, -value)
            drawn = np.where(close & (rng.random(value.shape) < 0.5), turned, value)
            return reference.sign_bits(drawn.astype(value.dtype), sign_zero)

        names = reference.output_names(self._lowered.graph)
        values = reference.evaluate(self._lowered.graph, self._inputs, names, instead=instead)
        return reference.outputs_of(self._lowered.graph, values)

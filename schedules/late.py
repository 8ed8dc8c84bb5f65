"""The steps of an epilogue that a kernel's micro-kernels leave, on neighbouring results, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.kernel import MicroKernel
from bitkiln.schedules.microkernels import KernelSet
from bitkiln.schedules.steps import Step, before_exponentials

#: Below so many floats a call costs more than it saves.
_LEAST = 64


class Late:
    """Applies ``steps`` of one epilogue; ``microkernels`` are what the code that it emitted calls."""

    def __init__(self, steps: Sequence[Step], kernels: KernelSet) -> None:
        self.steps = tuple(steps)
        at = before_exponentials(self.steps)
        known = at < len(self.steps) and self.steps[at].op in kernels.curves
        self._curve: MicroKernel | None = kernels.curve(self.steps[at].op) if kernels.curve and known else None
        #: Steps before the function that a micro-kernel computes, and behind it; the first are all where there is none.
        self._before, self._after = (self.steps[:at], self.steps[at + 1 :]) if self._curve else (self.steps, ())
        self._used = False

    @property
    def microkernels(self) -> tuple[MicroKernel, ...]:
        """Those that were called."""
        return (self._curve,) if self._curve and self._used else ()

    def apply(
        self, result: Any, to: Any, first: Any, pixels: int, size: tuple[int, int], operands: Sequence[Any]
    ) -> None:
        """On ``pixels`` neighbours, the first of them pixel ``first`` of the layer's result; ``size`` is (width, channels).

        Its channels begin at ``to`` in ``result``, flat floats, which may hold a part of the result. ``operands``: one for
        each step that takes one.
        """
        floats = pixels * size[1]
        if self._curve is None or floats < _LEAST:
            loops.apply_steps(result, to, first, pixels, size, self.steps, operands)
            return
        taken = sum(bool(step.operand) for step in self._before)
        if self._before:
            loops.apply_steps(result, to, first, pixels, size, self._before, operands[:taken])
        T.evaluate(T.call_extern("int32", self._curve.symbol, T.address_of(result[to]), T.int64(floats)))
        self._used = True
        if self._after:
            loops.apply_steps(result, to, first, pixels, size, self._after, operands[taken:])

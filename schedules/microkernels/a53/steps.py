"""Steps of an epilogue on sums in registers, for the Cortex-A53: which there are, their operands and their instructions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitkiln.schedules.workload import Step

#: Steps that sums can take in their registers, with the rows of operands each reads: slopes, bounds and factors are operands
#: like any other.
OPERANDS = {"relu": 0, "add": 1, "mul": 1, "leaky": 1, "prelu": 1, "clip": 2, "hardswish": 1}
#: Registers of the first row of operands for two vectors of channels; from ``_TEMPORARY`` on all are free.
FIRST_OPERAND, _TEMPORARY = 16, 18


def known(step: Step) -> bool:
    """Whether there are instructions for ``step``: operands per channel, and a leaky ReLU that is a maximum."""
    slope = step.op != "leaky" or 0 <= step.values[0] <= 1
    return step.op in OPERANDS and step.operand in ("", "channel") and slope


def operand_rows(steps: Sequence[Step], arrays: Sequence[np.ndarray], channels: int) -> np.ndarray:
    """What the steps read, float32 [rows, channels]: the ``arrays`` of those that have one, and constants."""
    given = iter(arrays)
    rows: list[np.ndarray] = []
    for step in steps:
        values = (1 / 6,) if step.op == "hardswish" else step.values
        rows += [next(given)] if step.operand else [np.full(channels, value) for value in values]
    return np.array(rows, "float32").reshape(len(rows), channels)


def lines(step: str, sums: Sequence[tuple[int, int]], apart: int) -> list[str]:
    """One step on pairs of a sum's register and its operand's, ``apart`` registers from that of the next row."""
    if step == "relu":
        zero = FIRST_OPERAND
        return [f"movi v{zero}.16b, #0", *(f"fmax v{s}.4s, v{s}.4s, v{zero}.4s" for s, _ in sums)]
    if step == "clip":
        raised = [f"fmax v{s}.4s, v{s}.4s, v{low}.4s" for s, low in sums]
        return raised + [f"fmin v{s}.4s, v{s}.4s, v{low + apart}.4s" for s, low in sums]
    if step in ("leaky", "prelu"):
        return _sloped(step, sums)
    if step == "hardswish":
        return _hardswish(sums)
    return [f"f{step} v{s}.4s, v{s}.4s, v{v}.4s" for s, v in sums]


def _sloped(step: str, sums: Sequence[tuple[int, int]]) -> list[str]:
    """Slopes on negative values: max(x, slope*x) where slopes lie between 0 and 1, else a choice by the sign of x."""
    text = []
    for start in range(0, len(sums), 7):
        group = [(s, v, _TEMPORARY + 2 * i) for i, (s, v) in enumerate(sums[start : start + 7])]
        text += [f"fmul v{product}.4s, v{s}.4s, v{v}.4s" for s, v, product in group]
        if step == "leaky":
            text += [f"fmax v{s}.4s, v{s}.4s, v{product}.4s" for s, _, product in group]
        else:
            text += [f"fcmgt v{product + 1}.4s, v{s}.4s, #0.0" for s, _, product in group]
            text += [f"bif v{s}.16b, v{product}.16b, v{product + 1}.16b" for s, _, product in group]
    return text


def _hardswish(sums: Sequence[tuple[int, int]]) -> list[str]:
    """x * clip(x / 6 + 1 / 2, 0, 1), with 1 / 6 as the operand."""
    zero, half, one, free = _TEMPORARY, _TEMPORARY + 1, _TEMPORARY + 2, _TEMPORARY + 3
    text = [f"movi v{zero}.16b, #0", f"fmov v{half}.4s, #0.5", f"fmov v{one}.4s, #1.0"]
    for start in range(0, len(sums), 32 - free):
        group = [(s, v, free + i) for i, (s, v) in enumerate(sums[start : start + 32 - free])]
        text += [f"fmul v{gate}.4s, v{s}.4s, v{v}.4s" for s, v, gate in group]
        text += [f"fadd v{gate}.4s, v{gate}.4s, v{half}.4s" for _, _, gate in group]
        text += [f"fmax v{gate}.4s, v{gate}.4s, v{zero}.4s" for _, _, gate in group]
        text += [f"fmin v{gate}.4s, v{gate}.4s, v{one}.4s" for _, _, gate in group]
        text += [f"fmul v{s}.4s, v{s}.4s, v{gate}.4s" for s, _, gate in group]
    return text

"""Why a step differs: rounding next to a sign, another convention, a threshold, the weights of some channels, or the kernel.

Guesses are tried, not made: the reference computes the step again with another padding, another sign of zero, other signs
of the weights, and the one that gives what the bundle gave is the cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from tvm import relax

from bitkiln.pipeline import reference
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.ops import has_workload, workload_of
from bitkiln.pipeline.passes.pipeline import Lowered
from bitkiln.pipeline.verify.compare import TOLERANCE, Comparison, Tensors, magnitude, relative_error, unpack
from bitkiln.schedules.workload import Binarize, Conv2d, Workload

#: At most this share of the channels counts as "some channels".
FEW_CHANNELS = 0.25

#: From this share of elements on, "most of them" differ.
MOST = 0.25


class Cause(StrEnum):
    """Why a step's result is not the reference's; the first three are no errors."""

    EQUAL = "equal"
    ROUNDING = "rounding"
    SIGNS = "rounding next to a sign"
    PADDING = "padding"
    ZERO = "sign of zero"
    NEGATED = "signs of the weights"
    THRESHOLD = "threshold"
    CHANNELS = "weights of some channels"
    BORDER = "border"
    NOT_FINITE = "not finite"
    MOST = "most elements"
    KERNEL = "kernel"


@dataclass(frozen=True)
class Finding:
    """A cause and the sentence that says so, with its figures."""

    cause: Cause
    text: str


def explain(lowered: Lowered, comparison: Comparison, known: Tensors) -> Finding:
    """The cause of what ``comparison`` found; ``known`` is what was computed before the step."""
    if comparison.passed:
        return _excused(comparison)
    for guess in (_not_finite, _other_rule, _threshold, _channels, _most, _border):
        if found := guess(lowered, comparison, known):
            return found
    return Finding(Cause.KERNEL, "not explained by rounding, padding, thresholds or single channels")


def _excused(comparison: Comparison) -> Finding:
    count = int(comparison.undecided.sum())
    if not count:
        return Finding(Cause.ROUNDING if comparison.error else Cause.EQUAL, "")
    if comparison.signed is None:
        return Finding(Cause.ROUNDING, f"{_all(count)} as far as other rounding inside of the step moves them")
    farthest = np.abs(comparison.signed[comparison.undecided[..., : comparison.signed.shape[-1]]]).max()
    return Finding(
        Cause.SIGNS,
        f"{_all(count)} where the value is within {farthest:.1e} of zero, which rounding alone may cross (up to "
        f"{comparison.rounding:.1e}): expected between two correct runtimes",
    )


def _all(count: int) -> str:
    return "the one" if count == 1 else f"all {count:,}"


# --- Another rule that gives what the bundle gave -----------------------------------------------------------------------


def _other_rule(lowered: Lowered, comparison: Comparison, known: Tensors) -> Finding | None:
    """A convention that differs, if assuming it reproduces the bundle's result."""
    others = {name: values for name, values in known.items() if name != comparison.step.name}
    defined = dict(bindings(lowered.graph["main"]))
    for name in reversed(reference.needed(lowered.graph, others, [comparison.step.name])):
        if not has_workload(defined[name]):
            continue
        for cause, workload, text in _rules(name, workload_of(defined[name])):
            if _reproduces(lowered, comparison, others, name, workload):
                return Finding(cause, text)
        if op_name(defined[name]) == "bitkiln.bconv2d" and _reproduces(lowered, comparison, others, name, None):
            return Finding(Cause.NEGATED, f"the bundle has the weights of {name} with opposite signs")
    return None


def _rules(name: str, workload: Workload) -> Iterator[tuple[Cause, Workload, str]]:
    """What the operator ``name`` might have been taken for, and how to say so."""
    if isinstance(workload, Binarize):
        other = -workload.sign_zero
        text = f"the bundle counts zeros before the sign as {other:+d}, the model as {workload.sign_zero:+d}"
        yield Cause.ZERO, replace(workload, sign_zero=other), text
    if isinstance(workload, Conv2d) and workload.binary and any(workload.padding):
        for other in {-1, 0, 1} - {workload.pad_value}:
            text = f"the bundle pads {name} with {_padding(other)}, the model with {_padding(workload.pad_value)}"
            yield Cause.PADDING, replace(workload, pad_value=other), text


def _padding(value: int) -> str:
    return f"{value:+d}" if value else "true zeros"


def _reproduces(lowered: Lowered, comparison: Comparison, known: Tensors, name: str, workload: Workload | None) -> bool:
    """Does the reference give the bundle's result if ``name`` computes ``workload`` (None: the negative of it)?"""

    def instead(each: str, expr: relax.Expr, values: Mapping[str, reference.Value]) -> reference.Value | None:
        if each != name:
            return None
        args: list[Any] = [reference.evaluate_call(lowered.graph, arg, values) for arg in expr.args]
        return -reference.compute(workload_of(expr), args) if workload is None else reference.compute(workload, args)

    step = comparison.step.name
    result = reference.evaluate(lowered.graph, known, [step], instead=instead)[step]
    if not comparison.bits:
        return relative_error(comparison.actual, result) <= TOLERANCE
    left = (unpack(result) ^ comparison.actual).sum()
    # Rounding next to a sign may remain.
    return bool(left <= 0.02 * comparison.wrong.sum())


# --- Where the differences are ------------------------------------------------------------------------------------------


def _bad(comparison: Comparison) -> np.ndarray:
    return comparison.wrong & ~comparison.undecided


def _not_finite(_lowered: Lowered, comparison: Comparison, _known: Tensors) -> Finding | None:
    if comparison.bits:
        return None
    count = int((~np.isfinite(comparison.actual) & np.isfinite(comparison.expected)).sum())
    if not count:
        return None
    return Finding(Cause.NOT_FINITE, f"{count:,} values are infinite or NaN where the model has numbers")


def _threshold(lowered: Lowered, comparison: Comparison, known: Tensors) -> Finding | None:
    """Bits that follow the sums as those of another threshold would, in the channels that differ."""
    sums = _sums(lowered, comparison, known)
    if sums is None or sums.shape[:3] != comparison.actual.shape[:3] or sums.shape[3] > comparison.actual.shape[3]:
        return None
    channels = np.flatnonzero(_bad(comparison).any(axis=(0, 1, 2)))
    if channels.max() >= sums.shape[3] or len(channels) > FEW_CHANNELS * sums.shape[3]:
        return None
    shifts = []
    for channel in channels:
        actual, expected = (bits[..., channel].ravel() for bits in (comparison.actual, comparison.expected))
        steps = [_edge(sums[..., channel].ravel(), bits) for bits in (actual, expected)]
        if None in steps:
            return None
        shifts.append(f"channel {channel} ({steps[0]}, the model's {steps[1]})")
    named = ", ".join(shifts[:3]) + (f" and {len(shifts) - 3} more" if len(shifts) > 3 else "")
    return Finding(Cause.THRESHOLD, f"the weights are right, the threshold is not, in {named}")


def _sums(lowered: Lowered, comparison: Comparison, known: Tensors) -> np.ndarray | None:
    """The sums of the binary convolution whose bits these are, float32 NHWC; None where there is none or a pooling between."""
    if not comparison.bits or comparison.actual.ndim != 4:
        return None
    others = {name: values for name, values in known.items() if name != comparison.step.name}
    defined = dict(bindings(lowered.graph["main"]))
    names = reference.needed(lowered.graph, others, [comparison.step.name])
    convolutions = [name for name in names if op_name(defined[name]) == "bitkiln.bconv2d"]
    if len(convolutions) != 1:
        return None
    return reference.evaluate(lowered.graph, others, convolutions)[convolutions[0]]


def _edge(sums: np.ndarray, bits: np.ndarray) -> str | None:
    """The rule "sum >= t" or "sum <= t" that gives ``bits``; None where no such rule does."""
    if bits.all() or not bits.any():
        return f"always {'+1' if bits.all() else '-1'}"
    set_, clear = sums[bits], sums[~bits]
    if set_.min() > clear.max():
        return f"{clear.max():g} < sum"
    if set_.max() < clear.min():
        return f"sum < {clear.min():g}"
    return None


def _channels(lowered: Lowered, comparison: Comparison, _known: Tensors) -> Finding | None:
    bad = _bad(comparison)
    count = comparison.signed.shape[-1] if comparison.signed is not None else bad.shape[-1] if bad.ndim else 1
    channels = np.flatnonzero(bad.reshape(-1, bad.shape[-1]).any(axis=0)) if bad.ndim else np.zeros(0, int)
    if not len(channels) or len(channels) > max(1, FEW_CHANNELS * count) or count < 4:
        return None
    named = ", ".join(map(str, channels[:4])) + (f" and {len(channels) - 4} more" if len(channels) > 4 else "")
    plural = "channel" if len(channels) == 1 else "channels"
    share = bad[..., channels].mean()
    return Finding(
        Cause.CHANNELS,
        f"all in {plural} {named} of {count}, where {100 * share:.2g} % of the elements differ: the bundle has other "
        "weights or constants there",
    )


def _border(lowered: Lowered, comparison: Comparison, _known: Tensors) -> Finding | None:
    bad = _bad(comparison)
    work = comparison.step.workload
    if bad.ndim != 4 or not isinstance(work, Conv2d) or not any(work.padding):
        return None
    where = np.asarray(bad.any(axis=(0, 3)))
    reach = max(work.padding)
    inner = where[reach:-reach, reach:-reach] if min(where.shape) > 2 * reach else where
    if inner.any():
        return None
    return Finding(Cause.BORDER, "all at the edge of the image, where the window reaches over the padding")


def _most(_lowered: Lowered, comparison: Comparison, _known: Tensors) -> Finding | None:
    bad = _bad(comparison)
    share = bad.sum() / comparison.elements
    if share < MOST:
        return None
    return Finding(Cause.MOST, "so many that the bundle has other weights than the model, or its kernel is wrong")


# --- The worst element --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spot:
    """The element that differs most: where it is, and its value in the bundle and in the reference.

    ``value`` is the float whose sign the bit is, NaN where there is none.
    """

    index: tuple[int, ...]
    actual: float
    expected: float
    value: float = float("nan")

    def __str__(self) -> str:
        if len(self.index) == 4:
            where = "row {}, column {}, channel {}".format(*self.index[1:])
        else:
            where = "element " + ", ".join(map(str, self.index[1:] or self.index))
        behind = f" (the sign of {self.value:.6g})" if self.value == self.value else ""
        return f"{where}: bundle {self.actual:.6g}, model {self.expected:.6g}{behind}"


def worst(comparison: Comparison) -> Spot | None:
    """The bit that is farthest from its threshold, or the float that differs most, among what is wrong or else differs."""
    bad = _bad(comparison) if _bad(comparison).any() else comparison.wrong
    if not bad.any():
        return None
    if not comparison.bits:
        weight = np.abs(comparison.actual.astype(np.float64) - comparison.expected.astype(np.float64))
        weight = np.where(bad, np.nan_to_num(weight, nan=np.inf), -1.0)
        index = _first(weight)
        return Spot(index, float(comparison.actual[index]), float(comparison.expected[index]))
    signs = (-1.0, 1.0)
    weight = bad.astype(np.float64)
    signed = comparison.signed
    if signed is not None:
        weight[..., : signed.shape[-1]] *= 1 + np.abs(np.nan_to_num(signed.astype(np.float64))) / magnitude(signed)
    index = _first(weight)
    within = signed is not None and index[-1] < signed.shape[-1]
    value = float(signed[index]) if within and signed is not None else float("nan")
    return Spot(index, signs[int(comparison.actual[index])], signs[int(comparison.expected[index])], value)


def _first(weight: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(weight)), weight.shape))

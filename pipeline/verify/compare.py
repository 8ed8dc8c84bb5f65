"""One step against the reference on the inputs that the step really had.

Bits must be equal. Floats may differ by ``TOLERANCE`` relative to the largest value of the tensor, and by what other
rounding inside of the step makes of them: behind a function of large sums, or where sums are rounded to whole numbers.
Bits that are signs of floats may differ only where the float is so close to zero that rounding decides its sign: those are
undecided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.ir.graph import bindings, op_name, variables
from bitkiln.pipeline.passes.pipeline import Lowered
from bitkiln.pipeline.verify import roundings
from bitkiln.pipeline.verify.steps import BundleStep
from bitkiln.schedules.workload import Conv2d

#: How much a float may differ, relative to the largest magnitude of its tensor.
TOLERANCE = 1e-4

#: Other orders of summation, Winograd's among them, round up to this many times worse than numpy does.
ROUNDINGS = 64.0

#: How far engines that sum in other orders come apart, relative to the largest magnitude.
NEAR = 1e-5

#: The least rounding that is taken for possible, relative to the largest magnitude: 8 units in the last place.
LEAST = 8 * float(np.finfo(np.float32).eps)

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What the bundle gave (``actual``) and what the reference gives for the same inputs (``expected``), alike in shape.

    Bits are bool with one element a channel, the tail bits included. ``wrong`` marks what differs (floats: by more than
    the tolerance), ``undecided`` those of them that rounding excuses. Bits that are signs come with the floats they are
    signs of, ``signed``, and with ``rounding``, the distance from zero within which they are undecided.
    ``error`` is the largest difference of floats relative to their largest magnitude.
    """

    step: BundleStep
    actual: np.ndarray
    expected: np.ndarray
    wrong: np.ndarray
    undecided: np.ndarray
    error: float = 0.0
    exact: bool = True
    signed: np.ndarray | None = field(default=None, repr=False)
    rounding: float = 0.0

    @property
    def bits(self) -> bool:
        """Is the result packed signs?"""
        return self.actual.dtype == bool

    @property
    def passed(self) -> bool:
        """Does the step compute what the model says?"""
        return not (self.wrong & ~self.undecided).any()

    @property
    def elements(self) -> int:
        """How many bits or floats there are, tail bits not counted."""
        return int(self.signed.size if self.signed is not None else self.actual.size)


def compare_step(lowered: Lowered, step: BundleStep, known: Tensors) -> Comparison:
    """Compare the result of ``step`` with the reference; ``known`` holds it and all that was computed before it."""
    actual = known[step.name]
    others = {name: values for name, values in known.items() if name != step.name}
    if actual.dtype == np.uint8 and _holds_bits(lowered.graph, step.name):
        return _compare_bits(lowered.graph, step, others, actual)
    expected = reference.evaluate(lowered.graph, others, [step.name])[step.name]
    sums = isinstance(step.workload, Conv2d) and step.workload.binary and not step.workload.epilogue
    # A wrong bit of a word of bits may be a small number.
    exact = sums or expected.dtype.kind != "f"
    compared = compare_floats(step, actual.reshape(expected.shape), expected, 0.0 if exact else TOLERANCE)
    if sums or not compared.wrong.any():
        return compared
    reach = _reach(lowered.graph, others, step.name, expected)
    return replace(compared, undecided=compared.wrong & (distance(compared.actual, expected) <= reach))


def _reach(graph: tvm.IRModule, known: Tensors, name: str, expected: np.ndarray) -> np.ndarray:
    """How far each element of a step's result moves where all that the step rounds is a little more, or a little less."""

    def moved(by: float) -> np.ndarray:
        shifted = roundings.evaluate(
            graph, known, [name], lambda value, bounded: by * (1 if bounded else magnitude(value))
        )
        return distance(shifted[name], expected)

    return np.asarray(np.maximum(moved(NEAR), moved(-NEAR)))


def _holds_bits(graph: tvm.IRModule, name: str) -> bool:
    """Is the tensor made of bits by operators of ours, rather than of the file's own integers of 8 bits?"""
    defined = dict(bindings(graph["main"]))
    value = defined.get(name)
    while value is not None and not op_name(value).startswith("bitkiln."):
        source = next(iter(variables(value)), None)
        if op_name(value) == "astype" or source is None:
            return False
        value = defined.get(source.name)
    return value is not None


def compare_floats(step: BundleStep, actual: np.ndarray, expected: np.ndarray, tolerance: float) -> Comparison:
    """Floats (or integers) of one shape; ``tolerance`` is relative to the largest magnitude."""
    difference = distance(actual, expected)
    size = magnitude(expected)
    wrong = difference > tolerance * size
    error = float(difference.max(initial=0.0) / size)
    return Comparison(step, actual, expected, wrong, np.zeros_like(wrong), error, exact=tolerance == 0)


def distance(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """|actual - expected| in float64: 0 where both are the same infinity or NaN, infinite where only one is."""
    with np.errstate(invalid="ignore"):
        difference = np.array(np.abs(actual.astype(np.float64) - expected.astype(np.float64)))
    same = (actual == expected) | ((actual != actual) & (expected != expected))
    difference[np.isnan(difference) | ~(np.isfinite(actual) & np.isfinite(expected))] = np.inf
    difference[same] = 0.0
    return difference


def magnitude(values: np.ndarray) -> float:
    """The largest finite magnitude; 1 where there is none, and for integers, of which none is near another."""
    if values.dtype.kind != "f":
        return 1.0
    finite = values[np.isfinite(values)]
    return float(np.abs(finite).max(initial=0.0)) or 1.0


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference relative to the largest expected magnitude."""
    return float(distance(actual.reshape(expected.shape), expected).max(initial=0.0) / magnitude(expected))


def unpack(packed: np.ndarray) -> np.ndarray:
    """uint8 [..., B] as bool [..., 8 * B]."""
    return np.unpackbits(packed, axis=-1, bitorder="little").astype(bool)


def signed_by(graph: tvm.IRModule, name: str) -> str | None:
    """The tensor whose signs the bits ``name`` are; None where they come about otherwise."""
    call = dict(bindings(graph["main"])).get(name)
    if op_name(call) != "bitkiln.binarize":
        return None
    return call.args[0].name if isinstance(call, Call) and isinstance(call.args[0], relax.Var) else None


def _compare_bits(graph: tvm.IRModule, step: BundleStep, known: Tensors, actual: np.ndarray) -> Comparison:
    source = signed_by(graph, step.name)
    values = reference.evaluate(graph, known, [step.name, source] if source else [step.name])
    expected = values[step.name]
    bits = unpack(actual.reshape(expected.shape)), unpack(expected)
    wrong = bits[0] ^ bits[1]
    undecided = np.zeros_like(wrong)
    if source is None:
        return Comparison(step, *bits, wrong, undecided)
    signed, limit = values[source], 0.0
    if wrong.any() and not _whole_numbers(step) and source not in known:
        limit = rounding(graph, known, source, signed)
        undecided[..., : signed.shape[-1]] = wrong[..., : signed.shape[-1]] & close_to_zero(signed, limit, wrong)
    return Comparison(step, *bits, wrong, undecided, signed=signed, rounding=limit)


def _whole_numbers(step: BundleStep) -> bool:
    """Are the bits those of sums of bits, where rounding plays no part?"""
    return isinstance(step.workload, Conv2d) and bool(step.workload.threshold)


def close_to_zero(signed: np.ndarray, limit: float, wrong: np.ndarray) -> np.ndarray:
    """Where rounding may have decided the sign. Not at exact zeros that differ one and all: that is another convention."""
    close = np.abs(signed) <= limit
    zeros = signed == 0
    if zeros.sum() > 1 and wrong[..., : signed.shape[-1]][zeros].all():
        close &= ~zeros
    return close


def rounding(graph: tvm.IRModule, known: Tensors, name: str, values: np.ndarray) -> float:
    """The distance from zero within which rounding may turn the sign of the tensor ``name``.

    It is ROUNDINGS times what rounding did to the reference's own ``values``, found by evaluating once more in float64, and
    never beyond the tolerance for floats.
    """
    size = magnitude(values)
    try:
        wide = reference.evaluate(graph, known, [name], wide=True)[name]
        own = distance(values, wide)
        error = float(own[np.isfinite(own)].max(initial=0.0))
    except (BitkilnError, TypeError, ValueError, tvm.error.InternalError):
        # An operator that TVM alone defines need not exist in float64.
        return TOLERANCE * size
    return min(TOLERANCE * size, max(ROUNDINGS * error, LEAST * size))

"""The outputs of the whole network against the reference and against other engines that ran the model on the same input.

Right engines differ where a float next to zero decides a sign, and then in all that follows. So a difference beyond the
tolerance is accepted where such signs were met, and only as far as drawing them at random moves the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.ir.graph import bindings
from bitkiln.pipeline.passes.pipeline import Lowered
from bitkiln.pipeline.verify.compare import TOLERANCE, Tensors, magnitude, relative_error
from bitkiln.pipeline.verify.rivals import REFERENCE, Rival
from bitkiln.pipeline.verify.sensitivity import Sensitivity, rounded_otherwise
from bitkiln.pipeline.verify.zeros import ExactZeros, ZeroSigns

#: Outputs may differ this many times more than the widest draw of signs next to zero moved them.
SPREAD = 2.0

#: What float rounding alone may add up to over a whole network, relative to the largest output.
DRIFT = 1e-3

#: Levels of a tensor of signs that are closer than this, relative to the largest, are one but for rounding.
APART = 1e-3

#: Name and values of an output; None where the board gave none of that name.
Output = tuple[str, np.ndarray | None]


@dataclass(frozen=True)
class Decision:
    """An output of the whole network against another engine that ran the model on the same input, called ``sample``.

    ``error`` is the largest difference relative to the largest value, ``allowed`` how much is accepted and ``why``.
    ``top`` and ``expected_top`` are the best classes, empty for outputs that are no row of scores; ``margin`` is how far
    the other engine's first choice is ahead of its second. ``hint`` says what would explain a wrong output.
    """

    output: str
    against: str
    error: float
    passed: bool
    top: tuple[int, ...] = ()
    expected_top: tuple[int, ...] = ()
    margin: float = 0.0
    allowed: float = TOLERANCE
    why: str = ""
    sample: str = ""
    hint: str = ""

    @property
    def changed(self) -> bool:
        """Is the first choice another?"""
        return bool(self.top) and self.top[0] != self.expected_top[0]


class Judge:
    """Decides on one input's outputs. ``flips`` is how many bits of the bundle rounding turned, ``faithful`` whether every
    step was right about its own inputs.
    """

    def __init__(
        self,
        lowered: Lowered,
        inputs: Tensors,
        sample: str,
        zero_signs: ZeroSigns,
        met: Sequence[ExactZeros],
        flips: int,
        faithful: bool,
    ) -> None:
        self.inputs, self.sample, self.zero_signs, self.met = inputs, sample, zero_signs, met
        self.lowered, self.graph, self.flips, self.faithful = lowered, lowered.graph, flips, faithful
        self.sensitivity, self.with_zeros = (Sensitivity(lowered, inputs, zeros) for zeros in (False, True))

    @cached_property
    def letter(self) -> list[np.ndarray]:
        """The outputs where exact zeros have the sign 0, as in the file."""
        return self.zero_signs.to_the_letter(self.inputs)

    def decide(self, outputs: Sequence[Output], rival: Rival) -> list[Decision]:
        """A decision for each output that both engines have."""
        return [
            self._decide(at, name, actual, expected, rival)
            for at, ((name, actual), expected) in enumerate(zip(outputs, rival.outputs, strict=True))
            if actual is not None and expected is not None
        ]

    def _decide(self, at: int, name: str, actual: np.ndarray, expected: np.ndarray, rival: Rival) -> Decision:
        error = relative_error(actual, expected)
        allowed, why = (TOLERANCE, "") if error <= TOLERANCE else self._allowance(at, actual, expected, rival)
        passed = error <= allowed and (rival.name != REFERENCE or self.faithful or error <= TOLERANCE)
        top, expected_top, margin = _choices(actual, expected)
        hint = "" if passed or rival.name == REFERENCE else self._hint(at, actual, expected)
        return Decision(name, rival.name, error, passed, top, expected_top, margin, allowed, why, self.sample, hint)

    def _hint(self, at: int, actual: np.ndarray, expected: np.ndarray) -> str:
        """What the other engine may have been given or asked for instead."""
        with np.errstate(all="ignore"):
            for scores, text in ((_softmax(actual), "after"), (_softmax(expected), "before")):
                pair = (scores, expected) if text == "after" else (actual, scores)
                if expected.size > 1 and relative_error(*pair) <= DRIFT:
                    return f"; it is the output {text} a softmax"
        for name, values in self.inputs.items():
            for axis in [axis for axis in range(1, values.ndim) if values.ndim == 4 and values.shape[axis] == 3]:
                turned = {**self.inputs, name: np.ascontiguousarray(np.flip(values, axis))}
                if relative_error(reference.run(self.graph, turned)[at], expected) <= DRIFT:
                    return f"; it is the output for {name} with its channels the other way round (RGB, BGR)"
        return ""

    def _allowance(self, at: int, actual: np.ndarray, expected: np.ndarray, rival: Rival) -> tuple[float, str]:
        """How much the outputs may differ beyond the tolerance, and why."""
        if rival.name == REFERENCE and self.faithful and self.flips:
            # Each step was right about what it got, so nothing but these signs can have begun it.
            return relative_error(actual, expected), f"rounding next to a sign: {self.flips:,} fell otherwise"
        if self._holds_nan and np.isfinite(actual).all() and not np.isfinite(expected).all():
            return float("inf"), "the input holds NaN, whose bit is that of -1 here and which spreads there"
        if self.met and rival.by_file and self._follows_file(at, expected):
            count = sum(each.count for each in self.met)
            return relative_error(actual, expected), f"{count:,} exact zeros before signs count as +1 here, as 0 there"
        if self.lowered.bf16 and rival.name != REFERENCE:
            moved = self._moved_by_weights(at)
            return DRIFT + SPREAD * moved, "large weights are rounded to bfloat16, as it was compiled"
        error, flips = relative_error(actual, expected), f"{self.flips:,} signs fell otherwise, " if self.flips else ""
        allowed, why = DRIFT, "float rounding through the whole network"
        for drawn, values in ((self.sensitivity, "values near zero"), (self.with_zeros, "values near zero or zero")):
            if error <= allowed or (drawn is self.with_zeros and not has_residue(self.lowered, self.inputs)):
                break
            spread = _spread(drawn, at)
            if spread:
                allowed = max(DRIFT, SPREAD * spread)
                why = f"rounding next to a sign: {flips}{drawn.near:,} {values}"
        if error > allowed and rival.name != REFERENCE:
            spread = SPREAD * _apart(self.rounded, at)
            if spread > allowed:
                allowed, why = spread, "rounding of sums and functions, drawn at random"
        return allowed, why

    def _moved_by_weights(self, at: int) -> float:
        """How far rounding the weights moves output ``at``."""
        return relative_error(self.of_weights[0][at], self.of_weights[1][at])

    @cached_property
    def of_weights(self) -> list[list[np.ndarray]]:
        """The outputs with rounded weights, and with those of the file."""
        return [reference.run(graph, self.inputs) for graph in (self.graph, self.lowered.phases["fold_affine"])]

    @cached_property
    def rounded(self) -> list[list[np.ndarray]]:
        """The outputs with other rounding."""
        return rounded_otherwise(self.lowered, self.inputs)

    @property
    def _holds_nan(self) -> bool:
        return any(values.dtype.kind == "f" and bool(np.isnan(values).any()) for values in self.inputs.values())

    def _follows_file(self, at: int, expected: np.ndarray) -> bool:
        """Does the other engine give what the reference does where exact zeros have the sign 0?"""
        return relative_error(self.letter[at], expected) <= max(DRIFT, SPREAD * _spread(self.sensitivity, at))


def has_residue(lowered: Lowered, inputs: Tensors) -> bool:
    """Are the signs that binary layers read signs up to rounding only, when the file is evaluated as it stands?

    So it is where straight-through training left its arithmetic: whole numbers are then none, nor zeros zero.
    """
    module = lowered.phases["imported"]
    defined = dict(bindings(module["main"]))
    layers = [defined[verdict.name] for verdict in lowered.verdicts if verdict.binary and verdict.name in defined]
    names = {call.args[0].name for call in layers if isinstance(call, Call) and isinstance(call.args[0], relax.Var)}
    try:
        values = reference.evaluate(module, inputs, names)
    except BitkilnError:
        return False
    return any(np.any(np.diff(np.unique(tensor)) < APART * magnitude(tensor)) for tensor in values.values())


def _spread(sensitivity: Sensitivity, at: int) -> float:
    """How far drawing the signs next to zero moves output ``at``."""
    return _apart(sensitivity.outputs, at)


def _apart(drawn: Sequence[Sequence[np.ndarray]], at: int) -> float:
    """The largest difference of output ``at`` between two draws."""
    draws = [outputs[at] for outputs in drawn]
    pairs = [(a, b) for i, a in enumerate(draws) for b in draws[:i]]
    return max((relative_error(a, b) for a, b in pairs), default=0.0)


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores.astype(np.float64) - scores.max())
    return powers / powers.sum()


def _choices(actual: np.ndarray, expected: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    """The best classes of both and the second's margin; nothing for outputs that are no row of scores."""
    if expected.size < 2 or max(expected.shape, default=0) != expected.size:
        return (), (), 0.0
    count = min(5, max(1, expected.size // 4))
    rows = actual.reshape(-1), expected.reshape(-1)
    first, second = (tuple(int(i) for i in np.argsort(-row.astype(np.float64), kind="stable")[:count]) for row in rows)
    best = np.sort(np.nan_to_num(rows[1].astype(np.float64), nan=-np.inf))
    margin = float(best[-1] - best[-2]) if np.isfinite(best[-2:]).all() else 0.0
    return first, second, margin

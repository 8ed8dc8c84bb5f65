"""Find the binary convolutions: signs of an activation against weights that are +-s, however the file spells them.

``binary_signs`` follows the activation back to the sign or comparison that decides it, ``binary_weights`` looks at the
weights. Padding before or in the convolution may be +1, -1 or a true zero. An exact zero where the file says Sign(0) = 0
counts as +1, but for signs of whole numbers, which are often 0: half the sum of two convolutions, to which zeros count as +1
and as -1, is exact. So it is of weights among which are zeros.

An activation of other two levels, such as 0 and 1, is m + h * sign: its convolution is h times that of the signs plus m
times the sum of the weights, in whole numbers for 0 and 1, whose true zero padding is the sign -1. A factor of each input
channel goes into the weights, one of the whole activation behind the convolution.

Every convolution gets a verdict with its reason: none becomes a float convolution silently.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import Graph, array_of, constant, op_name, rewrite, shape_of
from bitkiln.pipeline.ir.operands import channel_operand
from bitkiln.pipeline.ops.register import ints, pair, sides, workload_of
from bitkiln.pipeline.passes.binary.reasons import no_signs, other_kind
from bitkiln.pipeline.passes.binary.signs import SignFinder, Signs
from bitkiln.pipeline.passes.binary.verdict import BinaryFacts, NotBinary, Verdict
from bitkiln.pipeline.passes.binary.weights import TOLERANCE, binary_weights
from bitkiln.pipeline.passes.binary.whole_numbers import often_zero
from bitkiln.schedules.workload import Conv2d

__all__ = ["TOLERANCE", "Verdict", "recognise"]


def recognise(module: tvm.IRModule) -> tuple[tvm.IRModule, list[Verdict]]:
    """Rewrite binary convolutions of an NHWC network into our operators; a verdict on every convolution, in order."""
    recogniser = _Recogniser()
    return rewrite(module, recogniser.visit), recogniser.verdicts


@dataclass(frozen=True)
class _Padding:
    """Rows and columns around an image: top, left, bottom, right; ``value`` is in the levels of the padded tensor."""

    widths: tuple[int, int, int, int]
    value: float


@dataclass(frozen=True)
class _Input:
    """The signs a convolution reads, and how they are padded before the convolution's own padding."""

    signs: Signs
    padding: tuple[_Padding, ...] = ()


class _Recogniser:
    """One rewrite of a network."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self._found: SignFinder | None = None
        self._bits: dict[tuple[str, int], relax.Expr] = {}

    def visit(self, graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
        """A binary convolution as ours; None for anything else."""
        operator = op_name(value)
        if operator == "bitkiln.binarize":
            self._remember(graph, name, value)
        if operator == "bitkiln.bconv2d":
            workload = workload_of(value, Conv2d)
            padding = workload.pad_value if any(workload.padding) else None
            self.verdicts.append(Verdict(name, BinaryFacts(padding=padding, stored=True)))
        elif operator == "nn.conv2d":
            try:
                return self._binary(graph, name, value)
            except NotBinary as refusal:
                self.verdicts.append(Verdict(name, None, str(refusal), refusal.suspicious))
        elif (reason := other_kind(self._finder(graph), value)) is not None:
            self.verdicts.append(Verdict(name, refusal=reason))
        return None

    def _finder(self, graph: Graph) -> SignFinder:
        """The one finder of the rewrite: what it has found out holds for all of the network."""
        self._found = self._found or SignFinder(graph)
        return self._found

    def _remember(self, graph: Graph, name: str, call: Call) -> None:
        """Bits that the file makes itself: convolutions found here may read the same signs."""
        if len(call.args) == 1 and isinstance(call.args[0], relax.Var):
            key = (call.args[0].name, int(call.attrs["sign_zero"]))
            self._bits.setdefault(key, relax.DataflowVar(name, graph.normalized(call).ty))

    def _binary(self, graph: Graph, name: str, call: Call) -> relax.Expr:
        scales, weight = self._weights(graph, call)
        found = self._input(graph, call)
        signs, half = found.signs, (found.signs.positive - found.signs.negative) / 2
        padding, pad_value = _merged(found, sides(call.attrs["padding"]))
        zeros = int((weight == 0).sum())
        twice = signs.zero == signs.middle and often_zero(graph, self._finder(graph), signs.source)
        convs = [
            ops.bconv2d(
                self._packed(graph, name, signs, sign_zero),
                relax.const(ops.pack_bits(weights if half > 0 else -weights), "uint8"),
                channels=shape_of(call.args[0])[3],
                strides=pair(call.attrs["strides"]),
                padding=padding,
                dilation=pair(call.attrs["dilation"]),
                groups=int(call.attrs["groups"]),
                pad_value=pad_value,
            )
            for sign_zero in ((1, -1) if twice else (_sign_zero(signs),))
            for weights in ([np.where(weight == 0, sign, weight) for sign in (1, -1)] if zeros else [weight])
        ]
        shift = signs.middle / abs(half) * weight.sum(axis=(1, 2, 3), dtype=np.float64)
        padded = pad_value if any(padding) else None
        self.verdicts.append(Verdict(name, _facts(signs, padded, scales * abs(half), twice, zeros)))
        count, sums = len(convs), convs[0]
        for conv in convs[1:]:
            sums = relax.op.add(*(graph.emit(part, f"{name}.sums") for part in (sums, conv)))
        return _finished(graph, name, sums, count * shift, scales * abs(half) / count, signs.factor)

    def _weights(self, graph: Graph, call: Call) -> tuple[np.ndarray, np.ndarray]:
        """Scale of each output channel and signs (float +-1, OHWI), or NotBinary."""
        x = call.args[0]
        if str(call.attrs["data_layout"]) != "NHWC" or shape_of(x)[0] != 1 or str(x.ty.dtype) != "float32":
            raise NotBinary("only images of batch 1, in float32, can be binary", False)
        signs = self._finder(graph).of(_before_padding(graph, x))
        expected = signs is not None and signs.binary
        weight = array_of(call.args[1])
        if weight is None:
            raise NotBinary("its weights are computed while the network runs", expected)
        factor = array_of(signs.factor) if signs is not None and expected else None
        if factor is None:
            return binary_weights(weight, expected)
        try:
            return binary_weights(_with_factor(weight, factor, shape_of(x)[3]), expected)
        except NotBinary:
            binary_weights(weight, expected)
            reason = "its input is signs times another factor for each channel, which cannot be taken out of its sums"
            raise NotBinary(reason, True) from None

    def _input(self, graph: Graph, call: Call) -> _Input:
        """The signs that a convolution reads, or NotBinary."""
        data = call.args[0]
        pad = graph.call_of(data, "nn.pad")
        inner = _before_padding(graph, data)
        signs = self._finder(graph).of(inner)
        if signs is None or not signs.binary:
            raise NotBinary(no_signs(graph, self._finder(graph), inner), True)
        behind = (_padding_of(pad),) if not inner.same_as(data) else ()
        before = graph.call_of(signs.source, "nn.pad")
        if before is None or signs.shape or str(before.attrs["pad_mode"]) != "constant":
            return _Input(signs, behind)
        around = _padding_of(before)
        value = signs.levels[int(np.sign(around.value)) + 1]
        return _Input(replace(signs, source=before.args[0]), (*behind, _Padding(around.widths, float(value))))

    def _packed(self, graph: Graph, name: str, signs: Signs, sign_zero: int) -> relax.Expr:
        """The packed signs, made once for all convolutions that read them."""
        source, shape = signs.source, shape_of(signs.source)
        whole_bytes = (
            len(shape) == 4 and shape[:1] == signs.shape[:1] == (1,) and shape[3] % 8 == signs.shape[3] % 8 == 0
        )
        if signs.shape and not whole_bytes:
            source = self._finder(graph).source(signs)
        key = (source.name, sign_zero)
        unpacked = graph.call_of(source, "bitkiln.unpack")
        if unpacked is not None:
            self._bits[key] = unpacked.args[0]
        if key not in self._bits:
            self._bits[key] = graph.emit(ops.binarize(source, sign_zero=sign_zero), f"{name}.bits")
        if not signs.shape or not whole_bytes:
            return self._bits[key]
        packed = (*signs.shape[:3], signs.shape[3] // 8)
        return graph.emit(relax.op.reshape(self._bits[key], packed), f"{name}.bits")


def _finished(
    graph: Graph, name: str, sums: Call, shift: np.ndarray, scales: np.ndarray, factor: relax.Expr | None
) -> relax.Expr:
    """(sums + shift) * scales * factor, without what changes nothing; a constant factor is in the weights already."""
    if np.any(shift):
        sums = relax.op.add(graph.emit(sums, f"{name}.sums"), constant(shift))
    if not np.all(scales == 1):
        sums = relax.op.multiply(graph.emit(sums, f"{name}.sums"), constant(scales))
    if factor is None or array_of(factor) is not None:
        return sums
    single = graph.emit(relax.op.reshape(factor, (1, 1, 1, 1)), f"{name}.factor")
    return relax.op.multiply(graph.emit(sums, f"{name}.sums"), single)


def _with_factor(weight: np.ndarray, factor: np.ndarray, channels: int) -> np.ndarray:
    """OHWI weights of a convolution whose input channels are multiplied by ``factor``; float64."""
    values = channel_operand(factor, channels)
    if values is None:
        raise NotBinary("its input is signs times a factor that differs between pixels", True)
    groups = channels // weight.shape[3]
    of_output = np.repeat(values.reshape(groups, -1), len(weight) // groups, axis=0)
    return weight * of_output[:, None, None, :].astype(np.float64)


def _before_padding(graph: Graph, data: relax.Expr) -> relax.Expr:
    pad = graph.call_of(data, "nn.pad")
    return pad.args[0] if pad is not None and str(pad.attrs["pad_mode"]) == "constant" else data


def _padding_of(call: Call) -> _Padding:
    widths = ints(call.attrs["pad_width"])
    if any(widths[:2]) or any(widths[6:]) or min(widths) < 0:
        raise NotBinary("its input is padded by other than a constant around the image", True)
    top, bottom, left, right = widths[2:6]
    return _Padding((top, left, bottom, right), float(call.attrs["pad_value"]))


def _merged(found: _Input, own: tuple[int, int, int, int]) -> tuple[tuple[int, int, int, int], int]:
    """All padding as one, and the sign that it holds: +1 and -1 are those of ``source``, 0 a true zero."""
    paddings = [padding for padding in (*found.padding, _Padding(own, 0.0)) if any(padding.widths)]
    values = [_sign_of(found.signs, padding.value) for padding in paddings]
    if len(set(values)) > 1:
        texts = " and then with ".join(f"{padding.value:g}" for padding in paddings)
        raise NotBinary(f"its input is padded with {texts}, for which there is no one value", True)
    widths = sides(map(sum, zip((0, 0, 0, 0), *(padding.widths for padding in paddings), strict=True)))
    return widths, values[0] if values else 0


def _sign_of(signs: Signs, value: float) -> int:
    """Which sign of the source gives ``value``; 0 where half of both does."""
    if value and array_of(signs.factor) is not None:
        raise NotBinary(f"its input is padded with {value:g}, the signs have a factor of each channel", True)
    levels = {signs.middle: 0, signs.negative: -1, signs.positive: 1}
    if value not in levels or (value and signs.factor is not None):
        raise NotBinary(f"its input is padded with {value:g}, {_levels_text(signs)}", True)
    return levels[value]


def _sign_zero(signs: Signs) -> int:
    """+1 where a zero has the bit of a positive number; where the file says the sign of zero is 0, it counts as +1."""
    if signs.zero == signs.middle:
        return 1 if signs.positive > signs.negative else -1
    return 1 if signs.zero == signs.positive else -1


def _facts(signs: Signs, padding: int | None, scales: np.ndarray, exact_zeros: bool, zero_weights: int) -> BinaryFacts:
    """``padding`` is a sign of the source, 0 a true zero, or None without padding."""
    of_signs = (signs.negative, signs.middle, signs.positive)
    if not signs.middle:  # a factor of the signs is in ``scales``
        of_signs = (-1.0, 0.0, 1.0) if signs.positive > 0 else (1.0, 0.0, -1.0)
    return BinaryFacts(
        levels=(min(of_signs), max(of_signs)),
        padding=None if padding is None else of_signs[padding + 1],
        scaled=bool(np.any(scales != 1)),
        zeros_count_as=max(of_signs) if signs.zero == signs.middle and not exact_zeros else None,
        exact_zeros=exact_zeros,
        zero_weights=zero_weights,
    )


def _levels_text(signs: Signs) -> str:
    if not signs.middle:
        return f"the signs are +-{abs(signs.positive):g}"
    return f"its levels are {signs.negative:g} and {signs.positive:g}"

"""Find the binary convolutions: signs of an activation against weights that are +-s, however the file spells them.

The value of an activation is followed back through elementwise operators to one comparison or sign, as the three values it
takes for a negative, zero and positive number. That covers Sign, Sign -> Add(0.1) -> Sign, Where(Greater) and
2 * (x >= 0) - 1 alike. The residue of straight-through estimators, (Sign(x) - p) + p, is its sign. Padding before or in the
convolution may be +1, -1 or a true zero. An exact zero where the file says Sign(0) = 0 counts as +1.

Every convolution gets a verdict with its reason: none becomes a float convolution silently.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ops.register import ints, workload_of
from bitkiln.pipeline.passes.canonicalize import clip_bounds
from bitkiln.pipeline.passes.graph import Graph, array_of, constant, op_name, rewrite, shape_of

#: How much magnitudes of one channel's weights may differ, relative to their mean: rounding of an exporter's arithmetic.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Verdict:
    """What a convolution is. ``suspicious`` when half of the binary pattern is there, so that the user will want to know."""

    name: str
    binary: bool
    reason: str
    suspicious: bool = False


@dataclass(frozen=True)
class Signs:
    """A tensor that takes one value where ``source`` is negative, one where it is zero and one where it is positive.

    ``shape`` is the tensor's where it differs from that of ``source``: the elements are the same, in the same order.
    """

    source: relax.Expr
    negative: float
    zero: float
    positive: float
    shape: tuple[int, ...] = ()

    def mapped(self, function: np.ufunc, *others: float) -> Signs:
        """The tensor after an elementwise function."""
        values = [float(function(v, *others)) for v in (self.negative, self.zero, self.positive)]
        return replace(self, negative=values[0], zero=values[1], positive=values[2])

    @property
    def magnitude(self) -> float:
        """s where the values are +-s; 0 where they are not."""
        size = abs(self.positive)
        balanced = self.negative == -self.positive and self.zero in (-size, 0.0, size)
        return size if balanced and np.isfinite(size) else 0.0


@dataclass(frozen=True)
class _Input:
    """The signs a convolution reads, and how they are padded: top, left, bottom, right, and the padded value."""

    signs: Signs
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_value: float = 0.0


class _NotBinary(Exception):
    """Why a convolution is none; the second argument tells whether it looks as if it had been meant to be one."""


def recognise(module: tvm.IRModule) -> tuple[tvm.IRModule, list[Verdict]]:
    """Rewrite binary convolutions of an NHWC network into our operators; a verdict on every convolution, in order."""
    verdicts: list[Verdict] = []
    shared: dict[tuple[str, int], relax.Expr] = {}

    def visit(graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
        match op_name(value):
            case "bitkiln.bconv2d":
                workload = workload_of(value)
                verdicts.append(Verdict(name, True, f"stored as binary, {_padding_text(workload.pad_value)}"))
            case "nn.conv2d":
                try:
                    return _binary(graph, name, value, verdicts, shared)
                except _NotBinary as reason:
                    verdicts.append(Verdict(name, False, str(reason.args[0]), bool(reason.args[1])))
        return None

    return rewrite(module, visit), verdicts


def _binary(
    graph: Graph, name: str, call: Call, verdicts: list[Verdict], shared: dict[tuple[str, int], relax.Expr]
) -> relax.Expr:
    scales, signs_of_weight = _weights(graph, call)
    found = _input(graph, call.args[0])
    magnitude = found.signs.magnitude
    attrs = call.attrs
    padding, pad_value = _merged_padding(ints(attrs["padding"]), found, magnitude)
    bits = _bits(graph, name, found.signs, shared)
    if found.signs.positive < 0:
        signs_of_weight, pad_value = -signs_of_weight, -pad_value
    conv = ops.bconv2d(
        bits,
        relax.const(ops.pack_bits(signs_of_weight), "uint8"),
        channels=shape_of(call.args[0])[3],
        strides=ints(attrs["strides"]),
        padding=padding,
        dilation=ints(attrs["dilation"]),
        groups=int(attrs["groups"]),
        pad_value=pad_value,
    )
    scales = scales * magnitude
    plain = bool(np.all(scales == 1))
    reason = f"signs x {'+-1' if plain else 'scaled +-1'}, {_padding_text(pad_value, padding)}"
    verdicts.append(Verdict(name, True, reason if found.signs.zero else f"{reason}, zeros count as +1"))
    if plain:
        return conv
    return relax.op.multiply(graph.emit(conv, f"{name}.sums"), constant(scales))


def _bits(graph: Graph, name: str, signs: Signs, shared: dict[tuple[str, int], relax.Expr]) -> relax.Expr:
    """The packed signs, made once for all convolutions that read them."""
    source, sign_zero, shape = signs.source, _sign_zero(signs), shape_of(signs.source)
    whole_bytes = len(shape) == 4 and shape[:1] == signs.shape[:1] == (1,) and shape[3] % 8 == signs.shape[3] % 8 == 0
    if signs.shape and not whole_bytes:
        source = graph.emit(relax.op.reshape(source, signs.shape), f"{source.name}.reshaped")
    key = (source.name, sign_zero)
    if key not in shared:
        shared[key] = graph.emit(ops.binarize(source, sign_zero=sign_zero), f"{name}.bits")
    if not signs.shape or not whole_bytes:
        return shared[key]
    return graph.emit(relax.op.reshape(shared[key], (*signs.shape[:3], signs.shape[3] // 8)), f"{name}.bits")


def _padding_text(value: int, padding: tuple[int, ...] = (1,)) -> str:
    if not any(padding):
        return "no padding"
    return "true zero padding" if value == 0 else f"padding {value:+d}"


def _weights(graph: Graph, call: Call) -> tuple[np.ndarray, np.ndarray]:
    """Scale of each output channel and signs (float +-1, OHWI), or _NotBinary."""
    x = call.args[0]
    if str(call.attrs["data_layout"]) != "NHWC" or shape_of(x)[0] != 1 or str(x.ty.dtype) != "float32":
        raise _NotBinary("only images of batch 1, in float32, can be binary", False)
    weight = array_of(call.args[1])
    active = _signs(graph, _before_padding(graph, call.args[0]))
    input_is_binary = active is not None and active.magnitude > 0
    if weight is None:
        raise _NotBinary("its weights are computed while the network runs", input_is_binary)
    size = np.abs(weight.reshape(len(weight), -1))
    scales = size.mean(axis=1, dtype=np.float64)
    spread = np.abs(size - scales[:, None]).max(axis=1)
    uneven = np.flatnonzero(spread > TOLERANCE * scales)
    if len(uneven) or not np.all(np.isfinite(scales)):
        channel = int(uneven[0]) if len(uneven) else 0
        low, high = size[channel].min(), size[channel].max()
        raise _NotBinary(
            f"float weights: magnitudes in output channel {channel} go from {low:.4g} to {high:.4g}", input_is_binary
        )
    if np.all(scales == 0):
        raise _NotBinary("all its weights are zero", input_is_binary)
    if not input_is_binary and (size.shape[1] == 1 or np.all(weight >= 0)):
        # One weight a channel, or equal ones, have equal magnitudes without meaning anything by it.
        raise _NotBinary("float weights", False)
    return scales, np.where(weight > 0, np.float32(1), np.float32(-1))


def _input(graph: Graph, data: relax.Expr) -> _Input:
    """The signs that ``data`` holds, or _NotBinary."""
    pad = graph.call_of(data, "nn.pad")
    inner = pad.args[0] if pad is not None else data
    signs = _signs(graph, inner)
    if signs is None:
        raise _NotBinary("its input is not the sign of anything, though its weights are +-s", True)
    if not signs.magnitude:
        levels = sorted({signs.negative, signs.zero, signs.positive})
        raise _NotBinary(f"its input takes the values {', '.join(f'{v:g}' for v in levels)}, not +-s", True)
    if pad is not None:
        return _Input(signs, *_pad_of(pad))
    before = graph.call_of(signs.source, "nn.pad")
    if before is not None and not signs.shape:
        padding, value = _pad_of(before)
        padded = signs.positive if value > 0 else signs.negative if value < 0 else _zero_of(signs)
        return _Input(replace(signs, source=before.args[0]), padding, padded)
    return _Input(signs)


def _zero_of(signs: Signs) -> float:
    return signs.zero or abs(signs.positive)


def _before_padding(graph: Graph, data: relax.Expr) -> relax.Expr:
    pad = graph.call_of(data, "nn.pad")
    return pad.args[0] if pad is not None else data


def _pad_of(call: Call) -> tuple[tuple[int, int, int, int], float]:
    widths = ints(call.attrs["pad_width"])
    if str(call.attrs["pad_mode"]) != "constant" or any(widths[:2]) or any(widths[6:]) or min(widths) < 0:
        raise _NotBinary("its input is padded by other than a constant around the image", True)
    top, bottom, left, right = widths[2:6]
    return (top, left, bottom, right), float(call.attrs["pad_value"])


def _merged_padding(own: tuple[int, ...], found: _Input, magnitude: float) -> tuple[tuple[int, int, int, int], int]:
    """Padding of the convolution and of what comes before it as one, and its value in units of the input's magnitude."""
    if not any(found.padding):
        return own, 0
    value = found.pad_value / magnitude
    if value not in (-1.0, 0.0, 1.0):
        raise _NotBinary(f"its input is padded with {found.pad_value:g}, the signs are +-{magnitude:g}", True)
    if any(own) and value:
        raise _NotBinary(f"its input is padded with {found.pad_value:g} and then with zeros", True)
    return tuple(a + b for a, b in zip(own, found.padding, strict=True)), int(value)


def _sign_zero(signs: Signs) -> int:
    """+1 where a zero has the bit of a positive number; where the file says the sign of zero is 0, it counts as +1."""
    if signs.zero == 0:
        return 1 if signs.positive > 0 else -1
    return 1 if signs.zero == signs.positive else -1


def _signs(graph: Graph, expr: relax.Expr) -> Signs | None:
    """What values ``expr`` takes, if one sign or comparison decides it."""
    call = graph.definition(expr)
    operator = op_name(call)
    if operator == "sign":
        inner = _signs(graph, call.args[0])
        # Of a ReLU, many values are exact zeros, which are then no rounding matter.
        lowest = 0.0 if _never_negative(graph, call.args[0]) else -1.0
        return inner.mapped(np.sign) if inner is not None else Signs(call.args[0], lowest, 0.0, 1.0)
    if operator in _COMPARISONS:
        return _comparison(graph, call)
    if operator == "where":
        return _where(graph, call)
    if operator in ("astype", "negative", "nn.relu", "abs", "logical_not"):
        inner = _signs(graph, call.args[0])
        return inner.mapped(_UNARY[operator]) if inner is not None else None
    if operator in ("add", "multiply", "subtract", "divide"):
        return _arithmetic(graph, call)
    if operator == "reshape":
        return _reshaped(graph, call)
    if operator == "nn.max_pool2d":
        return _pooled(graph, call)
    if operator == "clip":
        inner = _signs(graph, call.args[0])
        return inner.mapped(np.clip, *clip_bounds(call)) if inner is not None else None
    return None


def _never_negative(graph: Graph, expr: relax.Expr) -> bool:
    """Is ``expr`` a ReLU or the like, perhaps after a max pooling?"""
    pooled = graph.call_of(expr, "nn.max_pool2d")
    call = graph.call_of(pooled.args[0] if pooled is not None else expr, "nn.relu", "nn.relu6", "clip")
    return call is not None and clip_bounds(call)[0] >= 0


_UNARY = {
    "astype": np.float32,
    "negative": np.negative,
    "nn.relu": lambda v: max(v, 0.0),
    "abs": np.abs,
    "logical_not": np.logical_not,
}

#: What a comparison with zero is for a negative, zero and positive number.
_COMPARISONS = {
    "greater": (0.0, 0.0, 1.0),
    "greater_equal": (0.0, 1.0, 1.0),
    "less": (1.0, 0.0, 0.0),
    "less_equal": (1.0, 1.0, 0.0),
}


def _reshaped(graph: Graph, call: Call) -> Signs | None:
    inner = _signs(graph, call.args[0])
    return None if inner is None else replace(inner, shape=tuple(int(size) for size in call.args[1].values))


def _pooled(graph: Graph, call: Call) -> Signs | None:
    """The greatest sign is the sign of the greatest."""
    inner = _signs(graph, call.args[0])
    if inner is None or inner.shape or not inner.negative <= inner.zero <= inner.positive:
        return None
    source = Call(call.op, [inner.source], call.attrs)
    return replace(inner, source=graph.emit(source, f"{inner.source.name}.pooled"))


def _comparison(graph: Graph, call: Call) -> Signs | None:
    first, second = call.args
    turned = array_of(first) is not None
    x, level = (second, first) if turned else (first, second)
    value = array_of(level)
    if value is None or str(x.ty.dtype) != "float32" or not _fits(value, x):
        return None
    below, equal, above = _COMPARISONS[op_name(call)]
    if turned:
        below, above = above, below
    inner = _signs(graph, x)
    if inner is not None and value.size == 1:
        level = value.item()
        return inner.mapped(lambda v: below if v < level else above if v > level else equal)
    if np.any(value):
        # The difference of two floats has the exact sign of their comparison.
        x = graph.emit(relax.op.add(x, constant(-value)), f"{x.name}.shifted")
    return Signs(x, below, equal, above)


def _fits(value: np.ndarray, x: relax.Expr) -> bool:
    """Does an operation of ``x`` with the constant have the shape of ``x``?"""
    return np.broadcast_shapes(value.shape, shape_of(x)) == shape_of(x)


def _where(graph: Graph, call: Call) -> Signs | None:
    condition, first, second = call.args
    inner = _signs(graph, condition)
    values = (array_of(first), array_of(second))
    if inner is None or any(value is None or np.ptp(value) or not _fits(value, condition) for value in values):
        return None
    true, false = (value.flat[0].item() for value in values)
    return inner.mapped(lambda v: true if v else false)


def _arithmetic(graph: Graph, call: Call) -> Signs | None:
    operator = op_name(call)
    residue = _straight_through(graph, call)
    if residue is not None:
        return residue
    function = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide}[operator]
    first, second = call.args
    value = array_of(second)
    if value is None or np.ptp(value) or not _fits(value, first) or (operator == "divide" and not np.any(value)):
        return None
    inner = _signs(graph, first)
    return inner.mapped(function, value.flat[0].item()) if inner is not None else None


def _straight_through(graph: Graph, call: Call) -> Signs | None:
    """(signs - p) + p, p + (signs - p) and (signs + p) - p are the signs, whatever p is."""
    outer = op_name(call)
    if outer not in ("add", "subtract"):
        return None
    pairs = [tuple(call.args)] + ([tuple(call.args)[::-1]] if outer == "add" else [])
    for difference, p in pairs:
        inner = graph.call_of(difference, "subtract" if outer == "add" else "add")
        if inner is None or not isinstance(p, relax.Var):
            continue
        inner_pairs = [tuple(inner.args)] + ([tuple(inner.args)[::-1]] if outer == "subtract" else [])
        for signs, same in inner_pairs:
            if same.same_as(p):
                return _signs(graph, signs)
    return None

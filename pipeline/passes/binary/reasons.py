"""Why what a convolution reads is no tensor of signs, in words for whoever made the network."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import Graph, array_of, op_name, shape_of
from bitkiln.pipeline.passes.binary.rounding import ROUNDINGS
from bitkiln.pipeline.passes.binary.signs import SignFinder, Signs
from bitkiln.pipeline.passes.binary.weights import TOLERANCE

#: Operators that are looked through for the one that decides what a tensor is.
_TRANSPARENT = ("reshape", "permute_dims", "astype", "nn.max_pool2d", "strided_slice", "nn.pad", "clip")

_OTHER_KINDS = {
    "nn.conv2d_transpose": "transposed convolutions",
    "nn.conv1d": "one-dimensional convolutions that were not made two-dimensional",
    "nn.conv1d_transpose": "transposed convolutions",
    "nn.conv3d": "three-dimensional convolutions",
    "nn.conv3d_transpose": "transposed convolutions",
}


def no_signs(graph: Graph, finder: SignFinder, data: relax.Expr) -> str:
    """Why the tensor ``data``, that +-s weights meet, takes not just two values."""
    signs = finder.of(data)
    if signs is not None:
        return f"its input takes the values {_listed(signs)}, not two"
    call = graph.definition(data)
    while isinstance(call, Call) and op_name(call) in _TRANSPARENT:
        data = call.args[0]
        call = graph.definition(data)
    found = _product(finder, call) or _soft_sign(graph, call) or _rounded(graph, call) or _mixed(finder, call)
    if found is not None:
        return found
    made_by = f"{_kind(op_name(call))} {data.name!r}" if op_name(call) else _plain(data)
    return f"its input is not the sign of anything, though its weights are +-s: it comes from {made_by}"


def other_kind(finder: SignFinder, value: relax.Expr) -> str | None:
    """Why a layer with weights that is no two-dimensional convolution runs in floats; None for what is no such layer."""
    operator = op_name(value)
    if operator in _OTHER_KINDS:
        signs = finder.of(value.args[0])
        both = signs is not None and signs.binary and _even(array_of(value.args[1]))
        what = (
            "; its input and weights are signs, which only convolutions and dense layers compute in bits"
            if both
            else ""
        )
        return f"{_OTHER_KINDS[operator]} run in floats{what}"
    if operator == "einsum":
        return "products written as Einsum run in floats; MatMul and Gemm can be binary"
    if operator == "matmul":
        if array_of(value.args[0]) is not None:
            return "matrix products with their weights on the left run in floats"
        return "matrix products with weights that are computed while the network runs are done in floats"
    return None


def _kind(operator: str) -> str:
    """An operator as people call it."""
    return "the binary convolution" if operator == "bitkiln.bconv2d" else operator.rpartition(".")[2]


def _listed(signs: Signs) -> str:
    return ", ".join(f"{level:g}" for level in sorted({float(level) for level in signs.levels}))


def _plain(data: relax.Expr) -> str:
    return f"the network's input {data.name!r}" if isinstance(data, relax.Var) else "a constant"


def _product(finder: SignFinder, call: relax.Expr | None) -> str | None:
    """Signs times something that no binary convolution can take out of its sums."""
    if not isinstance(call, Call) or op_name(call) != "multiply":
        return None
    for signs, factor in (call.args, list(call.args)[::-1]):
        if finder.of(signs) is None or not isinstance(factor, relax.Var):
            continue
        if finder.of(factor) is not None:
            return f"its input combines the signs of two tensors ({signs.name!r} times {factor.name!r})"
        where = "pixel" if math.prod(shape_of(factor)[:-1]) > 1 else "channel"
        return (
            f"its input is signs times {factor.name!r}, another number for each {where}, which cannot be taken out of its "
            "sums: multiply the convolution's result instead, as XNOR-Net does"
        )
    return None


def _soft_sign(graph: Graph, call: relax.Expr | None) -> str | None:
    """x / (|x| + eps)."""
    if not isinstance(call, Call) or op_name(call) != "divide":
        return None
    around = graph.call_of(call.args[1], "add", "maximum", "clip")
    below = graph.call_of(call.args[1] if around is None else around.args[0], "abs")
    if below is None or not below.args[0].same_as(call.args[0]):
        return None
    return "its input is x / (|x| + eps), which comes near +-1 but is no sign: export sign(x), or where(x >= 0, 1, -1)"


def _rounded(graph: Graph, call: relax.Expr | None) -> str | None:
    """Rounding behind scales and shifts."""
    while (
        isinstance(call, Call)
        and op_name(call) in ("multiply", "add", "divide", "clip")
        and op_name(call) not in ROUNDINGS
    ):
        call = graph.definition(call.args[0])
    if op_name(call) not in ROUNDINGS:
        return None
    return "its input is rounded to more than two levels: only activations of one bit run in bits"


def _mixed(finder: SignFinder, call: relax.Expr | None) -> str | None:
    """An operator on the signs of several tensors."""
    args = [arg for arg in getattr(call, "args", []) if isinstance(arg, relax.Var)]
    if isinstance(call, Call) and len(args) > 1 and all(finder.of(arg) is not None for arg in args):
        return f"its input combines the signs of {len(args)} tensors ({', '.join(repr(arg.name) for arg in args)})"
    return None


def _even(weight: np.ndarray | None) -> bool:
    """Have all weights one magnitude?"""
    if weight is None:
        return False
    size = np.abs(weight)
    return bool(size.max() > 0 and np.ptp(size) <= TOLERANCE * size.max())

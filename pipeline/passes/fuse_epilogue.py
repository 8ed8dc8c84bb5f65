"""Draw into our operators what follows them: the epilogue's steps, a pooling, the sign.

A convolution takes the elementwise steps behind it, then a pooling, then the sign. Steps behind the pooling that keep the
order of numbers move in front of it: a maximum commutes with them exactly, rounding included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import Graph, array_of, constant, op_name, rewrite, shape_of
from bitkiln.pipeline.ir.operands import clip_bounds, is_image, operand
from bitkiln.pipeline.ops.register import call_of, workload_of
from bitkiln.pipeline.passes import concats
from bitkiln.schedules.steps import EXPONENTIALS, STEPS, Step, commutes_with_maximum
from bitkiln.schedules.workload import Binarize, Conv2d, Pool2d, Workload

#: Exponentials of one epilogue, at most: within each other they take TVM's passes minutes to lower, or do not lower at all.
MOST_EXPONENTIALS = 1

_OURS = (
    "bitkiln.conv2d",
    "bitkiln.bconv2d",
    "bitkiln.conv2d_transpose",
    "bitkiln.pool2d",
    "bitkiln.concat",
    "bitkiln.resize2d",
    "bitkiln.product",
)
#: Those that write floats and bits alike.
_GIVE_SIGNS = ("bitkiln.conv2d", "bitkiln.pool2d")


def fuse_epilogue(module: tvm.IRModule) -> tvm.IRModule:
    """Draw elementwise steps, poolings and signs into the operators before them."""
    return rewrite(module, _visit)


def _visit(graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
    if not isinstance(value, Call):
        return None
    if op_name(value) == "bitkiln.pool2d":
        return _fuse_pool(graph, value)
    if op_name(value) == "bitkiln.concat":
        return concats.siblings(graph, value)
    if op_name(value) == "bitkiln.binarize":
        fused = _fuse_sign(graph, value)
        split = concats.signs(graph, name, value if fused is None else fused, partial(_fuse_sign, graph))
        return fused if split is None else split
    return _fuse_step(graph, value)


def _fuse_pool(graph: Graph, call: Call) -> Call | None:
    conv = _host(graph, call.args[0])
    window = workload_of(call, Pool2d).pool
    work = workload_of(conv) if conv is not None else None
    if conv is None or not isinstance(work, Conv2d) or work.pool:
        return None
    return None if window.kind == "avg" and window.kernel == work.conv_size else _again(conv, pool=window)


def _fuse_sign(graph: Graph, call: Call) -> Call | None:
    """Signs of what a float operator of ours computes are written as bits at once; steps before others join the signs.

    A binary convolution gives bits by thresholds only, which the next pass finds; a concatenation gives those of its parts.
    """
    x = call.args[0]
    workload = workload_of(call, Binarize)
    host = _host(graph, x)
    if host is not None and not workload.epilogue and op_name(host) in _GIVE_SIGNS:
        return _again(host, out="bits", sign_zero=workload.sign_zero)
    steps: list[tuple[Step, list[relax.Expr]]] = []
    while graph.used_once(x) and graph.definition(x) is not None and _host(graph, x) is None:
        taken = next(iter(_steps(graph, graph.definition(x))), None)
        if taken is None or taken[1].operand == "tensor":
            break
        x, step, operands = taken
        steps.insert(0, (step, operands))
    if not steps:
        return None
    operands = [expr for _, exprs in steps for expr in exprs] + list(call.args[1:])
    epilogue = (*(step for step, _ in steps), *workload.epilogue)
    return ops.binarize(x, *operands, sign_zero=workload.sign_zero, epilogue=epilogue)


def _fuse_step(graph: Graph, call: Call) -> Call | None:
    hosts = []
    for x, step, operands in _steps(graph, call):
        host = _host(graph, x)
        if host is not None and _accepts(workload_of(host), step, operands):
            hosts.append((graph.position(x), host, step, operands))
    if not hosts:
        return None
    _, host, step, operands = max(hosts, key=lambda found: found[0])
    return _again(host, operands, epilogue=(*workload_of(host).epilogue, step))


def _accepts(workload: Workload, step: Step, operands: list[relax.Expr]) -> bool:
    """May ``step`` be appended to the epilogue? Behind a fused pooling only if it commutes with it."""
    if step.op in EXPONENTIALS and sum(before.op in EXPONENTIALS for before in workload.epilogue) >= MOST_EXPONENTIALS:
        return False
    if not isinstance(workload, Conv2d) or not workload.pool:
        return True
    values = array_of(operands[0]) if operands else None
    known = values is not None or not step.operand
    return workload.pool.kind == "max" and known and commutes_with_maximum(step, values)


def _host(graph: Graph, x: relax.Expr) -> Call | None:
    """The operator of ours that makes ``x``, as floats, for this use alone."""
    host = graph.call_of(x, *_OURS)
    if host is None or not graph.used_once(x):
        return None
    return host if getattr(workload_of(host), "out", "bits") == "float32" else None


def _again(host: Call, operands: list[relax.Expr] | None = None, **changed: Any) -> Call:
    """``host`` with further operands and other attributes."""
    return call_of(replace(workload_of(host), **changed), [*host.args, *(operands or [])])


Taken = tuple[relax.Expr, Step, list[relax.Expr]]


def _steps(graph: Graph, call: Call) -> list[Taken]:
    """The ways to see ``call`` as a step of an epilogue: the tensor it works on, the step, the step's operand."""
    rule = _STEPS.get(op_name(call))
    if rule is None:
        return []
    return [taken for taken in rule(graph, call) if is_image(taken[0])]


def _arithmetic(graph: Graph, call: Call) -> list[Taken]:
    op = {"multiply": "mul", "divide": "div", "add": "add"}[op_name(call)]
    first, second = call.args
    shape = shape_of(first)
    array = array_of(second)
    if op == "div" and (array is None or not np.all(array)):
        return []
    if array is not None:
        found = operand(array, shape[1:]) if len(shape) == 4 and array.dtype == np.float32 else None
        return [(first, Step(op, found[0]), [constant(found[1])])] if found else []
    if array_of(first) is not None or shape_of(second) != shape or first.same_as(second):
        return []
    return [(first, Step(op, "tensor"), [second]), (second, Step(op, "tensor"), [first])]


def _prelu(_graph: Graph, call: Call) -> list[Taken]:
    x, slope = call.args
    array = array_of(slope)
    shape = shape_of(x)
    found = operand(array, shape[1:]) if array is not None and len(shape) == 4 else None
    return [(x, Step("prelu", found[0]), [constant(found[1])])] if found else []


def _clip(_graph: Graph, call: Call) -> list[Taken]:
    low, high = clip_bounds(call)
    return [(call.args[0], Step("relu") if (low, high) == (0, np.inf) else Step("clip", "", (low, high)), [])]


def _plain(op: str) -> Callable[[Graph, Call], list[Taken]]:
    return lambda _graph, call: [(call.args[0], Step(op), [])]


def _leaky(_graph: Graph, call: Call) -> list[Taken]:
    return [(call.args[0], Step("leaky", "", (float(call.attrs["alpha"]),)), [])]


_STEPS: dict[str, Callable[[Graph, Call], list[Taken]]] = {
    "add": _arithmetic,
    "multiply": _arithmetic,
    "divide": _arithmetic,
    "bitkiln.prelu": _prelu,
    "nn.relu": _clip,
    "nn.relu6": _clip,
    "clip": _clip,
    "nn.leakyrelu": _leaky,
    **{row.relax: _plain(op) for op, row in STEPS.items() if row.relax},
}

"""Concatenations along the channels: as our operator, without copies of copies, and signs taken of the parts instead.

A densely connected network joins all it has so far again and again, and takes signs of it. Here each concatenation joins the
tensors themselves, a slice of one along its seams is those parts, and the signs of one are its parts' signs side by side:
then nobody needs the floats side by side any more. Binary convolutions of the same bits are one, as wide as all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import Graph, array_of, constant, op_name, shape_of, value_of
from bitkiln.pipeline.ir.operands import is_image, is_whole_image
from bitkiln.pipeline.ops.concat import images_of
from bitkiln.pipeline.ops.register import workload_of
from bitkiln.schedules.workload import Binarize, Concat, Conv2d


def joined(graph: Graph, call: Call) -> relax.Expr | None:
    """``relax.concat`` of images along their channels as ``bitkiln.concat``, of parts that are no concats themselves."""
    images = call.args[0]
    if not isinstance(images, relax.Tuple) or call.attrs["axis"] is None:
        return None
    fields = list(images.fields)
    if int(call.attrs["axis"]) % len(shape_of(fields[0])) != 3 or not all(map(_is_image, fields)):
        return None
    return _concat([part for field in fields for part in _parts(graph, field)])


def sliced(graph: Graph, call: Call) -> relax.Expr | None:
    """A slice of whole parts of a concatenation, without the concatenation."""
    x = call.args[0]
    if graph.call_of(x, "bitkiln.concat") is None:
        return None
    axes, begins, ends, *steps = ([int(getattr(item, "value", item)) for item in arg] for arg in call.args[1:])
    size = shape_of(x)[3]
    if [axis % 4 for axis in axes] != [3] or (steps and steps[0] != [1]):
        return None
    begin, end, _ = slice(begins[0], ends[0]).indices(size)
    taken, at = [], 0
    for part in _parts(graph, x):
        until = at + shape_of(part)[3]
        if begin <= at and until <= end:
            taken.append(part)
        elif at < end and begin < until:
            return None
        at = until
    return _concat(taken) if taken else None


def signs(graph: Graph, name: str, call: Call, fuse: Callable[[Call], Call | None]) -> Call | None:
    """The signs of a concatenation as those of its parts, joined, where each fills whole bytes.

    ``fuse`` draws a sign into what makes its floats; it is asked where nobody else needs them.
    """
    x = call.args[0]
    host = graph.call_of(x, "bitkiln.concat") if op_name(call) == "bitkiln.binarize" else None
    if host is None:
        return None
    whole, sign, parts = workload_of(host, Concat), workload_of(call, Binarize), images_of(host)
    steps = (*whole.epilogue, *sign.epilogue)
    arrays = [array_of(expr) for expr in (*host.args[len(parts) :], *call.args[1:])]
    operands = [values for values in arrays if values is not None]
    if whole.begins or any(channels % 8 for channels in whole.parts[:-1]) or len(operands) < len(arrays):
        return None
    bits, at = [], 0
    for i, part in enumerate(parts):
        until = at + whole.parts[i]
        own = [constant(np.ascontiguousarray(values[..., at:until])) for values in operands]
        taken = ops.binarize(part, *own, sign_zero=sign.sign_zero, epilogue=steps)
        fused = fuse(taken) if graph.used_once(x) and graph.used_once(part) else None
        bits.append(graph.emit(taken if fused is None else fused, f"{name}.part{i}"))
        at = until
    return ops.concat(bits, parts=whole.parts)


def siblings(graph: Graph, call: Call) -> Call | None:
    """Binary convolutions of the same bits, side by side, as one with all their channels.

    Residual networks double their channels so: two convolutions, and the same activation added to each.
    """
    found = [graph.call_of(part, "bitkiln.bconv2d") for part in images_of(call)]
    hosts = [host for host in found if host is not None]
    whole_parts = not workload_of(call, Concat).begins
    if len(hosts) < max(2, len(found)) or not whole_parts or not all(map(graph.used_once, images_of(call))):
        return None
    works = [workload_of(host, Conv2d) for host in hosts]
    whole = replace(works[0], out_channels=sum(work.out_channels for work in works))
    alike = {replace(work, out_channels=whole.out_channels) for work in works} == {whole}
    same_bits = all(host.args[0].same_as(hosts[0].args[0]) for host in hosts)
    if not alike or not same_bits or whole.out != "float32" or whole.pool or workload_of(call).epilogue:
        return None
    operands = []
    for step, *values in zip([s for s in whole.epilogue if s.operand], *(host.args[2:] for host in hosts), strict=True):
        if step.operand == "tensor":
            if len(works) != 2 or works[0].out_channels != works[1].out_channels or not values[0].same_as(values[1]):
                return None
            operands.append(values[0])
        else:
            operands.append(constant(np.concatenate([value_of(value) for value in values], axis=-1)))
    epilogue = (replace(step, operand="half") if step.operand == "tensor" else step for step in whole.epilogue)
    weight = constant(np.concatenate([value_of(host.args[1]) for host in hosts]), "uint8")
    return ops.call_of(replace(whole, epilogue=tuple(epilogue)), [hosts[0].args[0], weight, *operands])


def _parts(graph: Graph, x: relax.Expr) -> list[relax.Expr]:
    host = graph.call_of(x, "bitkiln.concat")
    if host is None or workload_of(host).epilogue or workload_of(host, Concat).begins:
        return [x]
    return images_of(host)


def _concat(parts: list[relax.Expr]) -> relax.Expr:
    if len(parts) == 1:
        return parts[0]
    return ops.concat(parts, parts=tuple(shape_of(part)[3] for part in parts))


def _is_image(x: relax.Expr) -> bool:
    return isinstance(x, relax.Var) and (is_image(x) or is_whole_image(x))

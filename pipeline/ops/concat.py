"""``relax.bitkiln.concat``: images side by side along the channels."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import attributes, epilogue_of, ints, register, shape_of
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Concat


def concat(
    parts: Sequence[relax.Expr],
    *operands: relax.Expr,
    channels: tuple[int, ...],
    begins: tuple[int, ...] = (),
    epilogue: tuple[Step, ...] = (),
) -> Call:
    """parts float32 [1, H, W, channels[i]], or their bits -> float32 [1, H, W, C], or bits. The epilogue is for floats.

    With ``begins`` parts may be wider: channels[i] from begins[i] on are taken.
    """
    return Call(_OP, [*parts, *operands], attributes(channels=channels, begins=begins, epilogue=epilogue))


def parts_of(call: Call) -> list[relax.Expr]:
    """The images that a concat joins."""
    return list(call.args[: len(call.attrs["channels"])])


def _describe(call: Call) -> Concat:
    first = call.args[0]
    _, height, width, _ = shape_of(first)
    bits, begins = str(first.ty.dtype) == "uint8", ints(call.attrs["begins"])
    widths = tuple(shape_of(part)[3] for part in parts_of(call)) if begins else ()
    return Concat(height, width, ints(call.attrs["channels"]), bits, epilogue_of(call), begins, widths)


_OP = register("concat", "Images side by side along the channels.", ("data",), _describe)

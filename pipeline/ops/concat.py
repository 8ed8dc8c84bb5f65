"""``relax.bitkiln.concat``: images side by side along the channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Required, TypedDict, Unpack

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import shape_of
from bitkiln.pipeline.ops.register import packed_size, register
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Concat


class ConcatAttributes(TypedDict, total=False):
    """``parts[i]`` channels are taken of image i, from ``begins[i]`` on where there are ``begins``."""

    parts: Required[tuple[int, ...]]
    begins: tuple[int, ...]
    epilogue: tuple[Step, ...]


def concat(images: Sequence[relax.Expr], *operands: relax.Expr, **attributes: Unpack[ConcatAttributes]) -> Call:
    """images float32 or int8 [1, H, W, parts[i]], or their bits -> [1, H, W, C] alike. The epilogue is for floats."""
    return _CONCAT.call([*images, *operands], attributes)


def images_of(call: Call) -> list[relax.Expr]:
    """The images that a concat joins."""
    return list(call.args[: len(call.attrs["parts"])])


def _sizes(call: Call) -> dict[str, Any]:
    widths = tuple(shape_of(image)[3] for image in images_of(call)) if len(call.attrs["begins"]) else ()
    dtype = str(call.args[0].ty.dtype)
    return {**packed_size(call), "bits": dtype == "uint8", "whole": dtype == "int8", "widths": widths}


_CONCAT = register("concat", "Images side by side along the channels.", ("data",), Concat, ConcatAttributes, _sizes)

"""ONNX's transposed convolution and poolings, of images and of rows as images of one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.onnx.operands import Operands, width_of
from bitkiln.pipeline.ir.windows import Windows, of_lines


def pooling(node: Operands) -> relax.Expr:
    """MaxPool and AveragePool; of volumes, what TVM's frontend converts rightly."""
    shape = node.shape()
    if any(node.node.output[1:]):
        raise node.unsupported("its indices are not supported")
    if len(shape) == 5:
        return _of_volumes(node)
    return _of_images(node, node.value(0), _pool_of(node.node.op_type == "MaxPool"))


def lp_pooling(node: Operands) -> relax.Expr:
    """The root of the sum of powers of a window's elements."""
    power = float(node.attributes.get("p", 2))
    if power < 1:
        raise node.unsupported(f"its attribute p={power:g} is not supported")
    shape, kernel = node.shape(), node.attributes.get("kernel_shape", ())
    if len(shape) not in (3, 4):
        raise node.unsupported(f"pools {list(shape)}; images and rows are supported")
    size = node.step(relax.op.abs(node.value(0)), "sizes")
    powers = node.step(relax.op.power(size, relax.const(np.float32(power))), "powers")
    means = node.step(_of_images(node, powers, _sums), "means")
    sums = node.step(relax.op.multiply(means, relax.const(np.float32(math.prod(kernel)))), "sums")
    return relax.op.power(sums, relax.const(np.float32(1 / power)))


_Pool = Callable[[Operands, relax.Expr, tuple[int, int], Mapping[str, Any]], relax.Expr]


def _of_images(node: Operands, x: relax.Expr, pool: _Pool) -> relax.Expr:
    """``pool`` on images, and on rows."""
    shape = node.shape()
    if len(shape) == 4:
        return pool(node, x, shape[2:], node.attributes)
    if len(shape) != 3:
        raise node.unsupported(f"pools {list(shape)}; images, rows and volumes are supported")
    image = node.step(relax.op.reshape(x, (*shape[:2], 1, shape[2])), "image")
    lines = node.step(pool(node, image, (1, shape[2]), of_lines(node.attributes)), "lines")
    return relax.op.reshape(lines, (*shape[:2], width_of(lines)))


def _pool_of(largest: bool) -> _Pool:
    def pool(node: Operands, x: relax.Expr, size: tuple[int, int], attributes: Mapping[str, Any]) -> relax.Expr:
        windows = _windows(node, size, attributes)
        counted = bool(attributes.get("count_include_pad", 0))
        padding = windows.padding
        if any(windows.overruns) and counted and not largest:
            # What a window reads behind the padding does not count: that padding is the pooling's, the file's one before it.
            bottom, right = windows.overruns
            top, left, *_ = padding
            around = [0, 0, 0, 0, top, padding[2] - bottom, left, padding[3] - right]
            x = node.step(relax.op.nn.pad(x, around), "padded")
            padding, counted = (0, 0, bottom, right), False
        operator = relax.op.nn.max_pool2d if largest else relax.op.nn.avg_pool2d
        counting = counted and not largest
        return operator(x, windows.kernel, windows.strides, padding, windows.dilations, count_include_pad=counting)

    return pool


def _sums(node: Operands, x: relax.Expr, size: tuple[int, int], attributes: Mapping[str, Any]) -> relax.Expr:
    """Sums of windows, over the number of their elements; what lies outside is zero."""
    windows = _windows(node, size, attributes)
    return relax.op.nn.avg_pool2d(
        x, windows.kernel, windows.strides, windows.padding, windows.dilations, count_include_pad=True
    )


def _windows(node: Operands, size: tuple[int, int], attributes: Mapping[str, Any]) -> Windows:
    dilated = any(step != 1 for step in attributes.get("dilations", ()))
    if dilated and attributes.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        raise node.unsupported("pads its dilated windows automatically, which runtimes take differently: give pads")
    return Windows.of(attributes, size, tuple(attributes["kernel_shape"]))


def _of_volumes(node: Operands) -> relax.Expr:
    for name, default in (("auto_pad", b"NOTSET"), ("ceil_mode", 0)):
        if node.attributes.get(name, default) not in (default, b"VALID"):
            raise node.unsupported(f"its attribute {name} is not supported for volumes")
    return node.by_frontend()


def transposed_convolution(node: Operands) -> relax.Expr:
    """ConvTranspose of images and of rows; padding is given, or what makes the shape that is asked for."""
    shape, weight = node.shape(), node.weight(1, "weight")
    groups = node.attributes.get("group", 1)
    if len(shape) == 5 and "output_shape" not in node.attributes and node.text("auto_pad", "NOTSET") == "NOTSET":
        return node.by_frontend()
    if len(shape) not in (3, 4):
        raise node.unsupported(f"convolves {list(shape)}; images, rows and plain volumes are supported")
    if weight.ndim != len(shape) or weight.shape[0] != shape[1] or groups < 1 or shape[1] % groups:
        raise node.unsupported(f"weight {weight.shape} does not fit its input {shape} in {groups} groups")
    if tuple(node.attributes.get("kernel_shape", weight.shape[2:])) != weight.shape[2:]:
        raise node.unsupported(f"its attribute kernel_shape is not that of its weight {list(weight.shape)}")
    if len(shape) == 4:
        return _transposed(node, node.value(0), shape[2:], weight, node.attributes)
    image = node.step(relax.op.reshape(node.value(0), (*shape[:2], 1, shape[2])), "image")
    attributes = of_lines(node.attributes)
    if "output_shape" in attributes:
        attributes["output_shape"] = [1, *attributes["output_shape"]]
    if "output_padding" in attributes:
        attributes["output_padding"] = [0, *attributes["output_padding"]]
    lines = node.step(_transposed(node, image, (1, shape[2]), weight[:, :, None], attributes), "lines")
    return relax.op.reshape(lines, (*(int(size) for size in lines.ty.shape.values[:2]), width_of(lines)))


def _transposed(
    node: Operands, x: relax.Expr, size: tuple[int, int], weight: np.ndarray, attributes: Mapping[str, Any]
) -> relax.Expr:
    strides, dilations = (tuple(attributes.get(name, (1, 1))) for name in ("strides", "dilations"))
    extra = list(attributes.get("output_padding", (0, 0)))
    pads = list(attributes.get("pads", (0, 0, 0, 0)))
    auto = attributes.get("auto_pad", b"NOTSET").decode(errors="replace")
    if not len(strides) == len(dilations) == len(extra) == 2 or len(pads) != 4 or min(*strides, *dilations) < 1:
        raise node.unsupported(f"strides {strides}, dilations {dilations} and pads {pads} are not those of images")
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    # As long as possible, without padding.
    longest = [(n - 1) * s + r + e for n, s, r, e in zip(size, strides, reach, extra, strict=True)]
    wanted = attributes.get("output_shape") or ()
    if auto in ("SAME_UPPER", "SAME_LOWER") and not wanted:
        wanted = [n * s for n, s in zip(size, strides, strict=True)]
        if any(each > most for each, most in zip(wanted, longest, strict=True)):
            raise node.unsupported(
                f"its attribute auto_pad={auto} asks for {wanted} where windows reach {longest}, which runtimes take "
                "differently: export it with output_shape"
            )
    if wanted:
        if len(wanted) != 2:
            raise node.unsupported(f"its attribute output_shape={list(wanted)} is not rows and columns")
        # What the windows do not reach is added behind them, and is zero.
        extra = [more + max(each - most, 0) for more, each, most in zip(extra, wanted, longest, strict=True)]
        totals = [max(most - each, 0) for most, each in zip(longest, wanted, strict=True)]
        halves = [total // 2 for total in totals]
        rests = [total - half for total, half in zip(totals, halves, strict=True)]
        pads = [*halves, *rests] if auto == "SAME_UPPER" else [*rests, *halves]
    elif auto == "VALID":
        pads = [0, 0, 0, 0]
    if any(not 0 <= each < stride for each, stride in zip(extra, strides, strict=True)) or min(pads) < 0:
        raise node.unsupported(f"its attributes output_padding={extra} and pads={pads} are not supported together")
    result = relax.op.nn.conv2d_transpose(
        x,
        relax.const(weight),
        strides=strides,
        padding=pads,
        output_padding=tuple(extra),
        dilation=dilations,
        groups=attributes.get("group", 1),
    )
    if not node.has(2):
        return result
    bias = node.weight(2, "bias").astype(np.float32).reshape(1, -1, 1, 1)
    return relax.op.add(node.step(result, "conv"), relax.const(bias))

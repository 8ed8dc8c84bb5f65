"""Operators of Relax that move windows over images, in any layout."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm.ir import Call

from bitkiln.pipeline.ops.register import ints
from bitkiln.pipeline.reference.values import Operator
from bitkiln.pipeline.reference.windows import convolve, pad, to_layout, windows


def _conv2d(call: Call, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    attrs = call.attrs
    x = to_layout(x, str(attrs["data_layout"]), "NHWC")
    w = to_layout(w, str(attrs["kernel_layout"]), "OHWI")
    y = convolve(x, w, ints(attrs["strides"]), ints(attrs["padding"]), ints(attrs["dilation"]), int(attrs["groups"]))
    return to_layout(y, "NHWC", str(attrs["out_layout"] or attrs["data_layout"]))


def _conv2d_transpose(call: Call, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Every input pixel adds its weighted window to the output, which is then cropped by the padding."""
    attrs = call.attrs
    x, w = to_layout(x, str(attrs["data_layout"]), "NHWC"), to_layout(w, str(attrs["kernel_layout"]), "IOHW")
    (stride_y, stride_x), (step_y, step_x) = ints(attrs["strides"]), ints(attrs["dilation"])
    top, left, bottom, right = ints(attrs["padding"])
    extra_y, extra_x = ints(attrs["output_padding"])
    groups, (ins, outs, height, width) = int(attrs["groups"]), w.shape
    rows, columns = x.shape[1:3]
    size = [(rows - 1) * stride_y + (height - 1) * step_y + 1, (columns - 1) * stride_x + (width - 1) * step_x + 1]
    y = np.zeros((len(x), size[0] + extra_y, size[1] + extra_x, outs * groups), np.float32)
    for group in range(groups):
        data = x[..., group * ins // groups : (group + 1) * ins // groups]
        filters = w[group * ins // groups : (group + 1) * ins // groups]
        for ky in range(height):
            for kx in range(width):
                spread = y[:, ky * step_y :, kx * step_x :, group * outs : (group + 1) * outs]
                spread[:, : rows * stride_y : stride_y, : columns * stride_x : stride_x] += data @ filters[:, :, ky, kx]
    y = y[:, top : y.shape[1] - bottom, left : y.shape[2] - right]
    return to_layout(y, "NHWC", str(attrs["out_layout"] or attrs["data_layout"]))


def _pool2d(kind: str) -> Callable[[Call, np.ndarray], np.ndarray]:
    def compute_pool(call: Call, x: np.ndarray) -> np.ndarray:
        attrs, layout = call.attrs, str(call.attrs["layout"])
        x = to_layout(x, layout, "NHWC")
        top, left, bottom, right = ints(attrs["padding"])
        kernel, strides, dilation = ints(attrs["pool_size"]), ints(attrs["strides"]), ints(attrs["dilation"])
        extra = [0, 0]
        if attrs["ceil_mode"]:
            for i, size in enumerate((x.shape[1] + top + bottom, x.shape[2] + left + right)):
                extra[i] = -(size - (kernel[i] - 1) * dilation[i] - 1) % strides[i]
        padding = (top, left, bottom + extra[0], right + extra[1])
        if kind == "max":
            taps = windows(pad(x, padding, np.finfo(np.float32).min), kernel, strides, dilation)
            return to_layout(taps.max(axis=(3, 4)), "NHWC", layout)
        taps = windows(pad(x, padding, 0), kernel, strides, dilation)
        inside = np.ones_like(x)
        if attrs["count_include_pad"]:
            inside = pad(inside, (top, left, bottom, right), 1)
            inside = pad(inside, (0, 0, *extra), 0)
        else:
            inside = pad(inside, padding, 0)
        counts = windows(inside, kernel, strides, dilation).sum(axis=(3, 4))
        return to_layout(taps.sum(axis=(3, 4)) / counts, "NHWC", layout)

    return compute_pool


def _adaptive_average(call: Call, x: np.ndarray) -> np.ndarray:
    layout = str(call.attrs["layout"])
    height, width = layout.index("H"), layout.index("W")
    if call.attrs["output_size"] is not None and ints(call.attrs["output_size"]) != (1, 1):
        raise NotImplementedError("adaptive_avg_pool2d to more than one pixel")
    return x.mean(axis=(height, width), keepdims=True)


OPERATORS: dict[str, Operator] = {
    "nn.conv2d": _conv2d,
    "nn.conv2d_transpose": _conv2d_transpose,
    "nn.max_pool2d": _pool2d("max"),
    "nn.avg_pool2d": _pool2d("avg"),
    "nn.adaptive_avg_pool2d": _adaptive_average,
}

"""Operators of Relax that move windows over images, in any layout."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm.ir import Call

from bitkiln.pipeline.ops.register import ints
from bitkiln.pipeline.reference.values import Operator
from bitkiln.pipeline.reference.windows import convolve, lowest, pad, spread, to_layout, windows


def _conv2d(call: Call, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    attrs = call.attrs
    x = to_layout(x, str(attrs["data_layout"]), "NHWC")
    w = to_layout(w, str(attrs["kernel_layout"]), "OHWI")
    y = convolve(x, w, ints(attrs["strides"]), ints(attrs["padding"]), ints(attrs["dilation"]), int(attrs["groups"]))
    return to_layout(y, "NHWC", str(attrs["out_layout"] or attrs["data_layout"]))


def _conv2d_transpose(call: Call, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    attrs, groups = call.attrs, int(call.attrs["groups"])
    x, w = to_layout(x, str(attrs["data_layout"]), "NHWC"), to_layout(w, str(attrs["kernel_layout"]), "IOHW")
    ins, outs, *size = w.shape
    own = w.reshape(groups, ins // groups, outs, *size).transpose(0, 2, 3, 4, 1).reshape(groups * outs, *size, -1)
    strides, padding, dilation = (ints(attrs[name]) for name in ("strides", "padding", "dilation"))
    y = spread(x, own, strides, padding, dilation, groups, ints(attrs["output_padding"]))
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
            taps = windows(pad(x, padding, lowest(x.dtype)), kernel, strides, dilation)
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

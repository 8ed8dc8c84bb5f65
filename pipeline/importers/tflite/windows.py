"""The windows of TensorFlow Lite's convolutions and poolings: padding is SAME or VALID, never given in numbers."""

from __future__ import annotations

from bitkiln.pipeline.importers.tflite.operands import Operands
from bitkiln.pipeline.ir.windows import Windows
from bitkiln.pipeline.ops.register import pair

_Pair = tuple[int, int]

#: No network has windows, strides or gaps like these; padding for them would fill the memory.
_MAX_REACH = 1 << 12


def windows_of(node: Operands, table: str, size: _Pair, kernel: _Pair, *, dilated: bool = True) -> Windows:
    """From the options in ``table``, for an image of ``size`` rows and columns."""
    strides = (int(node.option(table, "StrideH")), int(node.option(table, "StrideW")))
    dilation = (1, 1)
    if dilated:
        dilation = (int(node.option(table, "DilationHFactor")), int(node.option(table, "DilationWFactor")))
    padding = node.option(table, "Padding")
    if padding not in (0, 1):
        raise node.error(f"padding {padding} is neither SAME nor VALID")
    return check_windows(node, size, kernel, strides, dilation, same=padding == 0)


def check_windows(
    node: Operands, size: _Pair, kernel: _Pair, strides: _Pair, dilation: _Pair, *, same: bool
) -> Windows:
    """Windows of these numbers, at least one of which fits the image; what SAME has to pad unevenly goes to the end."""
    attributes = {"strides": strides, "dilations": dilation, "auto_pad": b"SAME_UPPER" if same else b"VALID"}
    if max(*kernel, *strides, *dilation) > _MAX_REACH:
        raise node.error(f"window {kernel}, strides {strides} and dilation {dilation} are absurd")
    try:
        windows = Windows.of(attributes, pair(size), pair(kernel))
    except ValueError as problem:
        raise node.error(str(problem)) from None
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if max(reach) > _MAX_REACH or (not same and any(r > n for r, n in zip(reach, size, strict=True))):
        raise node.error(f"a window of {reach[0]}x{reach[1]} does not fit an image of {size[0]}x{size[1]}")
    return windows

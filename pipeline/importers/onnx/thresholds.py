"""ONNX's quantisers that need to know their input's shape: QuantizeLinear, DequantizeLinear and FINN's MultiThreshold.

Quantised tensors stay float32 that hold whole numbers: every step is exact, and they meet signs and convolutions as they are.
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.onnx.operands import Operands


def quantize(node: Operands) -> relax.Expr:
    """clip(round(x / scale) + zero point), halves to even."""
    _check_blocks(node)
    zero = node.array(2, "zero point") if node.has(2) else np.uint8(0)
    if zero.dtype.kind not in "iu" or zero.dtype.itemsize > 2:
        raise node.unsupported(f"quantises to {zero.dtype}; integers of 8 and 16 bits are supported")
    limits = np.iinfo(zero.dtype)
    shares = node.step(relax.op.divide(node.value(0), _along_axis(node, node.weight(1, "scale"))), "shares")
    whole = node.step(relax.op.round(shares), "rounded")
    if np.any(zero):
        whole = node.step(relax.op.add(whole, _along_axis(node, zero)), "shifted")
    return relax.op.clip(whole, float(limits.min), float(limits.max))


def dequantize(node: Operands) -> relax.Expr:
    """(x - zero point) * scale."""
    _check_blocks(node)
    x = node.value(0)
    if str(x.ty.dtype) != "float32":
        x = node.step(relax.op.astype(x, "float32"), "floats")
    if node.has(2) and np.any(node.array(2, "zero point")):
        x = node.step(relax.op.subtract(x, _along_axis(node, node.array(2, "zero point"))), "shifted")
    return relax.op.multiply(x, _along_axis(node, node.weight(1, "scale")))


def multi_threshold(node: Operands) -> relax.Expr:
    """bias + scale where x reaches its channel's threshold, bias elsewhere."""
    shape, thresholds = node.shape(), node.weight(1, "thresholds")
    layout = node.attributes.get("data_layout", b"NCHW").decode(errors="replace")
    axis = 1 if layout != "NHWC" and len(shape) in (2, 4) else len(shape) - 1
    if thresholds.ndim != 2 or len(thresholds) not in (1, shape[axis]):
        raise node.unsupported(f"has thresholds of shape {list(thresholds.shape)} for {shape[axis]} channels")
    if thresholds.shape[1] != 1:
        raise node.unsupported(
            f"has {thresholds.shape[1]} thresholds, so its activations take more than one bit; only one is supported: "
            "export the network before FINN's streamlining"
        )
    spread = [1] * len(shape)
    spread[axis] = len(thresholds)
    reached = relax.op.greater_equal(node.value(0), relax.const(thresholds.reshape(spread)))
    scale, bias = (np.float32(node.attributes.get(name, value)) for name, value in (("out_scale", 1), ("out_bias", 0)))
    high, low = (relax.const(np.float32(value)) for value in (scale + bias, bias))
    return relax.op.where(node.step(reached, "reached"), high, low)


def _check_blocks(node: Operands) -> None:
    if node.attributes.get("block_size", 0):
        raise node.unsupported("scales of blocks are not supported")


def _along_axis(node: Operands, values: np.ndarray) -> relax.Expr:
    """A number, or one for each index of the node's axis, as float32 that fits its input."""
    shape = node.shape()
    if values.size == 1:
        return relax.const(np.float32(values.reshape(-1)[0]))
    axis = node.attributes.get("axis", 1)
    if values.ndim != 1 or not -len(shape) <= axis < len(shape) or values.size != shape[axis]:
        raise node.unsupported(f"has {list(values.shape)} scales or zero points for an input of {list(shape)}")
    spread = [1] * len(shape)
    spread[axis] = values.size
    return relax.const(values.astype(np.float32).reshape(spread))

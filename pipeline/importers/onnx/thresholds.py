"""ONNX's quantisers that need to know their input's shape: QuantizeLinear, DequantizeLinear and FINN's MultiThreshold.

Quantised tensors stay float32 that hold whole numbers: every step is exact, and they meet signs and convolutions as they are.
"""

from __future__ import annotations

import numpy as np
import onnx
from tvm import relax

from bitkiln.pipeline.importers.onnx.operands import Operands, Whole


def quantize(node: Operands) -> Whole:
    """clip(round(x / scale) + zero point), halves to even."""
    kind = _quantized_type(node)
    limits = np.iinfo(kind)
    shares = node.step(relax.op.divide(node.floats(0), _along_axis(node, 1, "scale")), "shares")
    whole = node.step(relax.op.round(shares), "rounded")
    if node.has(2) and not (node.is_constant(2) and not np.any(node.array(2, "zero point"))):
        whole = node.step(relax.op.add(whole, _along_axis(node, 2, "zero point")), "shifted")
    return Whole(relax.op.clip(whole, float(limits.min), float(limits.max)), kind)


def _quantized_type(node: Operands) -> str:
    """That of the zero point, or of ``output_dtype``, or uint8."""
    kind = node.file_dtype(2) if node.has(2) else "uint8"
    stated = node.attributes.get("output_dtype", 0)
    if stated:
        named = str(onnx.helper.tensor_dtype_to_np_dtype(stated))
        if node.has(2) and named != kind:
            raise node.unsupported(f"its attribute output_dtype={named} is not the type of its zero point, {kind}")
        kind = named
    if kind not in QUANTIZED:
        raise node.unsupported(f"quantises to {kind}; integers of 8 and 16 bits are supported")
    return kind


#: Types that reals are quantised to.
QUANTIZED = frozenset({"int8", "uint8", "int16", "uint16"})


def dequantize(node: Operands) -> relax.Expr:
    """(x - zero point) * scale."""
    x = node.floats(0)
    if node.file_dtype(0) == "int32" and node.is_constant(0) and np.any(np.abs(node.array(0, "input")) > 1 << 24):
        raise node.unsupported("its integers are larger than floats hold exactly")
    if node.has(2) and not (node.is_constant(2) and not np.any(node.array(2, "zero point"))):
        x = node.step(relax.op.subtract(x, _along_axis(node, 2, "zero point")), "shifted")
    return relax.op.multiply(x, _along_axis(node, 1, "scale"))


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


def _along_axis(node: Operands, index: int, what: str) -> relax.Expr:
    """A number, or one for each index of the node's axis, as float32 that fits its input."""
    if not node.is_constant(index):
        if int(np.prod(node.shape(index))) != 1:
            raise node.unsupported(f"its {what} is computed while the network runs, and has more than one value")
        value = node.floats(index)
        return value if not node.shape(index) else node.step(relax.op.reshape(value, ()), what.replace(" ", "_"))
    values = node.weight(index, what) if what == "scale" else node.array(index, what)
    if what == "scale" and not np.all(values > 0):
        raise node.unsupported("its scale is not positive")
    shape = node.shape()
    if values.size == 1:
        return relax.const(np.float32(values.reshape(-1)[0]))
    axis = node.attributes.get("axis", 1)
    if values.ndim != 1 or not -len(shape) <= axis < len(shape) or values.size != shape[axis]:
        raise node.unsupported(f"has {list(values.shape)} scales or zero points for an input of {list(shape)}")
    spread = [1] * len(shape)
    spread[axis] = values.size
    return relax.const(values.astype(np.float32).reshape(spread))

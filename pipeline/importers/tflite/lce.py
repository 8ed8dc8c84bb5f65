"""The operators of Larq Compute Engine, each as binary operators of ours with explicit conventions.

Its files keep signs in int32 words, least significant bit first: a set bit is -1, and a zero's sign is +1. Operators,
inputs and options are those of its kernels (project larq/compute-engine, ``tflite/kernels``). Files of its first releases
differ: options are texts and lists, inputs and filters may still be floats, which the operator binarises itself, and
bits are the signs of the float result where there are no thresholds.

A binary convolution counts the bits p in which K taps and weights differ. With v = K - 2p, the dot product, its result is
``activation(v) * multiplier + bias``, or the bit ``p > threshold``: in our terms +1 where v >= K - 2 * threshold.
Padding is +1, or a true zero, which counts as half a difference. One thing differs: a NaN's bit is that of -1, in its
runtime that of +1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flatbuffers import flexbuffers
from tvm import relax

from bitkiln.pipeline import ops
from bitkiln.pipeline.importers.tflite.file import DAMAGE
from bitkiln.pipeline.importers.tflite.operands import SET_BIT, Bits, Operands, bits_of, sign_of
from bitkiln.pipeline.importers.tflite.windows import check_windows
from bitkiln.pipeline.ir.windows import Windows
from bitkiln.pipeline.ops import words
from bitkiln.pipeline.ops.register import pair
from bitkiln.schedules.workload import Pool

#: Activations by number, and the bounds they put on v.
_ACTIVATIONS = {
    0: None,
    1: (0.0, np.inf),
    2: (-1.0, 1.0),
    3: (0.0, 6.0),
}
_LAST_ACTIVATION = 3
_ACTIVATION_NAMES = {"": 0, "NONE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
_SAME, _VALID, _OLD_VALID = range(3)
_PADDING_NAMES = {"SAME": _SAME, "VALID": _VALID}


class _Options:
    """Options of a custom operator: a map of a flexbuffer, of which only the fields asked for are read."""

    def __init__(self, node: Operands) -> None:
        self._node = node
        self._map = self._reading(lambda: flexbuffers.GetRoot(bytearray(node.operator.custom_options)).AsMap)

    def number(self, name: str, default: int | None = None, low: int = 0, high: int = 1 << 20) -> int:
        """A whole number within bounds; ``default`` where the field is missing."""
        return self._checked(name, self._find(name), default, low, high)

    def pair(self, names: tuple[str, str], old: str) -> tuple[int, int]:
        """Two numbers of at least 1, or those in the middle of the list ``old`` [1, h, w, 1] that was once in their place."""
        found = self._find(old)
        if found is None:
            return self.number(names[0], low=1), self.number(names[1], low=1)
        values = self._reading(lambda: [found.AsTypedVector[index].AsInt for index in range(4)])
        if values[0] != 1 or values[3] != 1:
            raise self._node.unsupported(f"{old} {values} are not those of an image")
        return values[1], values[2]

    def choice(self, name: str, known: dict[str, int], highest: int, default: int | None = None) -> int:
        """One of ``known`` by its name, or a number up to ``highest``."""
        found = self._find(name)
        if found is None or not found.IsString:
            return self._checked(name, found, default, 0, highest)
        text = self._reading(lambda: found.AsString).upper()
        if text not in known:
            raise self._node.unsupported(f"{name} {text[:20]!r} is not known")
        return known[text]

    def text(self, name: str) -> str:
        """A text; empty where the field is missing or is none."""
        found = self._find(name)
        return self._reading(lambda: found.AsString) if found is not None and found.IsString else ""

    def _checked(self, name: str, found: flexbuffers.Ref | None, default: int | None, low: int, high: int) -> int:
        value = (
            default if found is None else self._reading(lambda: found.AsInt if found.IsInt or found.IsBool else None)
        )
        if value is None or not low <= value <= high:
            raise self._node.error(f"its option {name} is {'missing' if found is None else value}")
        return value

    def _find(self, name: str) -> flexbuffers.Ref | None:
        def look_up() -> flexbuffers.Ref | None:
            try:
                return self._map[name]
            except KeyError:
                return None

        found = self._reading(look_up)
        return None if found is None or found.IsNull else found

    def _reading(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (*DAMAGE, RecursionError):
            raise self._node.error("its options are damaged; download the file again") from None


def _quantize(node: Operands) -> Bits:
    node.check_types()
    x = node.value(0)
    if str(x.ty.dtype) == "bool":
        x = node.step(relax.op.where(x, relax.const(1.0, "float32"), relax.const(-1.0, "float32")), "signs")
    if str(x.ty.dtype) != "float32":
        raise node.unsupported(f"binarises {x.ty.dtype}; only float32 is supported")
    return bits_of(node, x)


def _dequantize(node: Operands) -> relax.Expr:
    node.check_types()
    shape = node.result().shape
    if not shape or shape[-1] is None:
        raise node.error("its result does not say how many channels it has")
    bits = node.bits(0, shape[-1])
    if bits.source is not None:
        return sign_of(node, bits.source)
    signs = words.unpack(bits.expr, channels=bits.channels)
    values = node.step(signs, "signs")
    return relax.op.reshape(values, bits.shape)


def _bmaxpool2d(node: Operands) -> Bits:
    """The sign of the greatest is that of the greatest sign."""
    node.check_types()
    options = _Options(node)
    kernel = (options.number("filter_height", low=1), options.number("filter_width", low=1))
    strides = (options.number("stride_height", low=1), options.number("stride_width", low=1))
    bits = _input(node, 0)
    windows = _windows(node, bits, kernel, strides, (1, 1), options.choice("padding", _PADDING_NAMES, _OLD_VALID))
    pooled = ops.bmaxpool2d(bits.expr, channels=bits.channels, pool=Pool(kernel, strides, windows.padding))
    made = node.step(pooled, "bits")
    return Bits(made, (1, *(int(size) for size in made.ty.shape.values[1:3]), bits.channels))


def _bconv2d(node: Operands) -> Bits | relax.Expr:
    node.check_types(exempt=(2, 3, 4))
    options = _Options(node)
    if options.text("filter_format").startswith("HWIO"):
        raise node.unsupported("its filter has its output channels last; convert the model with a later release")
    bits = _input(node, channels_in(node))
    weight, groups = _filter(node, bits.channels)
    strides = options.pair(("stride_height", "stride_width"), "strides")
    dilation = options.pair(("dilation_height_factor", "dilation_width_factor"), "dilations")
    kernel = weight.shape[1:3]
    windows = _windows(node, bits, kernel, strides, dilation, options.choice("padding", _PADDING_NAMES, _OLD_VALID))
    attributes: dict[str, Any] = {
        "channels": bits.channels,
        "strides": strides,
        "padding": windows.padding,
        "dilation": dilation,
        "groups": groups,
        "pad_value": options.number("pad_values", default=0, high=1) if any(windows.padding) else 0,
    }
    # The first releases called it just "activation".
    activation = options.choice("fused_activation_function", _ACTIVATION_NAMES, _LAST_ACTIVATION, default=0)
    activation = options.choice("activation", _ACTIVATION_NAMES, _LAST_ACTIVATION, default=activation)
    weights = relax.const(weight, "uint8")
    if node.has(4) and node.result().dtype == "int32":
        reach = kernel[0] * kernel[1] * (bits.channels // groups)
        thresholds = relax.const(_thresholds(node, len(weight), reach), "int32")
        conv = ops.bconv2d(bits.expr, weights, thresholds, **attributes, out="bits", threshold="channel")
        made = node.step(conv, "bits")
        return Bits(made, (1, *(int(size) for size in made.ty.shape.values[1:3]), len(weight)))
    result = _transformed(node, ops.bconv2d(bits.expr, weights, **attributes), _ACTIVATIONS[activation], len(weight))
    return bits_of(node, node.step(result, "sums")) if node.result().dtype == "int32" else result


def channels_in(node: Operands) -> int:
    """Channels that a binary convolution says its input has; 0 where it does not say."""
    return _Options(node).number("channels_in", default=0, high=1 << 16)


def _input(node: Operands, channels: int) -> Bits:
    """The image's bits. Early releases read floats and made bits of them; ``channels`` is 0 where nothing states it."""
    if not node.is_bits(0):
        shape = node.image()
        if channels not in (0, shape[3]):
            raise node.error(f"its option channels_in is {channels}, its input has {shape[3]}")
        bits = bits_of(node, node.value(0), "input_bits")
    else:
        bits = node.bits(0, channels or node.tensors.channels_of(node.tensor(0).index))
    if len(bits.shape) != 4 or bits.shape[0] != 1:
        raise node.unsupported(f"reads {list(bits.shape)}; only images of batch 1 are supported")
    return bits


def _windows(
    node: Operands,
    bits: Bits,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
    padding: int,
) -> Windows:
    """Early releases numbered SAME 1 and VALID 2, later ones 0 and 1: what a 1 means, the shape of the result tells."""
    same = padding == _SAME or (padding == _VALID and _is_old_same(node, bits, kernel, strides, dilation))
    return check_windows(node, pair(bits.shape[1:3]), kernel, strides, dilation, same=same)


def _is_old_same(
    node: Operands, bits: Bits, kernel: tuple[int, int], strides: tuple[int, int], dilation: tuple[int, int]
) -> bool:
    """Is the result as large as only SAME makes it? Where both make it as large, nothing is padded."""
    size = bits.shape[1:3]
    if (node.tensor(0).shape or ())[1:3] != size:
        return False  # the user gave other shapes than the file has
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    same = tuple(-(-n // s) for n, s in zip(size, strides, strict=True))
    valid = tuple((n - r) // s + 1 for n, r, s in zip(size, reach, strides, strict=True))
    return node.result().shape[1:3] == same != valid


def _filter(node: Operands, channels: int) -> tuple[np.ndarray, int]:
    """Packed weights uint8 [O, kh, kw, ceil(channels/groups/8)], and the number of groups."""
    array = node.array(1, "filter")
    if array.ndim != 4 or array.dtype not in (np.int32, np.float32):
        raise node.error(f"its filter is {array.dtype} {list(array.shape)}")
    depth = array.shape[3]
    if array.dtype == np.float32:
        if depth != channels:
            raise node.error(f"its filter has {depth} channels, its input {channels}")
        return ops.pack_bits(np.where(node.weight(1, "filter") >= 0, 1, -1)), 1
    if depth == words.words_for(channels):
        groups = 1
    else:
        groups = words.words_for(channels) // depth if depth else 0
        per_group = channels // groups if groups else 0
        if not groups or per_group * groups != channels or per_group != depth * 32 or len(array) % groups:
            raise node.error(f"its filter of {depth} words a tap does not fit its input of {channels} channels")
    per_group = channels // groups
    packed = words.bytes_of_words(array, per_group, SET_BIT)
    if (words.words_of_bytes(packed, per_group, SET_BIT) != array).any():
        raise node.error(f"its filter has bits behind those of its {per_group} channels")
    return packed, groups


def _thresholds(node: Operands, filters: int, reach: int) -> np.ndarray:
    """int32 [O]: a bit of ours is v >= threshold. Sums lie in [-reach, reach], and so do thresholds, or just above."""
    given = node.array(4, "thresholds")
    if given.dtype != np.int32 or given.shape != (filters,):
        raise node.error(f"its thresholds are {given.dtype} {list(given.shape)}, {filters} of int32 are needed")
    return np.clip(reach - 2 * given.astype(np.int64), -reach, reach + 1).astype(np.int32)


def _transformed(node: Operands, conv: relax.Expr, bounds: tuple[float, float] | None, filters: int) -> relax.Expr:
    """The activation, then multiplier and bias where they do anything."""
    result, name = conv, "conv"
    if bounds is not None:
        result = node.step(result, name)
        result, name = (relax.op.nn.relu(result) if bounds[1] == np.inf else relax.op.clip(result, *bounds)), "bounded"
    steps = ((2, "multiplier", relax.op.multiply, 1), (3, "bias", relax.op.add, 0))
    for position, what, operator, neutral in steps:
        values = node.weight(position, what)
        if values.shape != (filters,):
            raise node.error(f"its {what} is {list(values.shape)}, its filter makes {filters} channels")
        if (values != neutral).any():
            result, name = operator(node.step(result, name), relax.const(values.reshape(1, 1, 1, -1))), "scaled"
    return result


def _bsign(node: Operands) -> relax.Expr:
    """The sign of the first releases, of which a zero's is +1."""
    node.check_types()
    return sign_of(node, node.value(0))


#: Custom code -> converter. The first releases called their operators otherwise.
CONVERTERS: dict[str, Callable[[Operands], relax.Expr | Bits]] = {
    "LceQuantize": _quantize,
    "LceDequantize": _dequantize,
    "LceBMaxPool2d": _bmaxpool2d,
    "LceBconv2d": _bconv2d,
    "LceBsign": _bsign,
    "LqceBsign": _bsign,
    **{f"LqceBconv2d{bits}": _bconv2d for bits in (8, 32, 64)},
}

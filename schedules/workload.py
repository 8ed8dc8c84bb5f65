"""Workloads: what an operator has to compute, complete enough to choose, build and time a kernel for it.

A workload is a value: it names shapes, attributes and the fused epilogue, and no weights. Its ``key()`` is the identity
of a task and of its tuning records. All tensors are NHWC with batch 1, weights OHWI (``I`` = input channels of a group).

Bits: a binarised tensor is uint8 [1, H, W, ceil(C/8)]; channel c is bit c%8 (least significant first) of byte c//8; a set
bit stands for +1, a clear one for -1; the tail bits of the last byte are clear in activations and in weights alike.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, get_args

from bitkiln.schedules.steps import Step


@dataclass(frozen=True)
class Pool:
    """A pooling window: ``kind`` "max" or "avg"; padding is top, left, bottom, right.

    Padded elements never win a maximum. An average divides by the window's size, or by the elements inside the input
    where ``count_include_pad`` is false.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    kind: str = "max"
    count_include_pad: bool = True

    def __str__(self) -> str:
        text = f"{self.kind}pool{self.kernel[0]}x{self.kernel[1]}s{self.strides[0]}x{self.strides[1]}"
        return text + f"p{_commas(self.padding)}" + ("" if self.count_include_pad else "x")

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Spatial size of the output."""
        top, left, bottom, right = self.padding
        return (
            (height + top + bottom - self.kernel[0]) // self.strides[0] + 1,
            (width + left + right - self.kernel[1]) // self.strides[1] + 1,
        )


@dataclass(frozen=True)
class Signs:
    """Bits that a kernel writes beside its floats: what ``Binarize`` makes of them, with its ``epilogue`` and ``sign_zero``."""

    epilogue: tuple[Step, ...] = ()
    sign_zero: int = 1

    def __str__(self) -> str:
        return f"signs({','.join([*map(str, self.epilogue), f'sign0{self.sign_zero:+d}'])})"


@dataclass(frozen=True)
class Convolution:
    """What convolutions of floats, of bits and of 8 bits have in common; padding is top, left, bottom, right."""

    height: int
    width: int
    channels: int
    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def conv_size(self) -> tuple[int, int]:
        """Spatial size of the convolution's result, before pooling."""
        top, left, bottom, right = self.padding
        reach_y = (self.kernel[0] - 1) * self.dilation[0] + 1
        reach_x = (self.kernel[1] - 1) * self.dilation[1] + 1
        return (
            (self.height + top + bottom - reach_y) // self.strides[0] + 1,
            (self.width + left + right - reach_x) // self.strides[1] + 1,
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates, binary ones counted like float ones; padded taps included."""
        oh, ow = self.conv_size
        return oh * ow * self.out_channels * self.kernel[0] * self.kernel[1] * (self.channels // self.groups)


@dataclass(frozen=True)
class Conv2d(Convolution):
    """A convolution with its fused epilogue and, after it, an optional fused pooling; then float32 or bits.

    Float (``binary`` false): x float32[1, H, W, C]; padding is zeros.
    Binary: x and weights are bits; the accumulator is the integer dot product of the +-1 values. ``pad_value`` is what a
    padded tap holds: +1, -1, or 0, a true zero that contributes nothing.

    Arguments of its kernels, in order: data, weight, one operand for each step that takes one, then ``thresholds`` where
    ``threshold`` is set ("channel": int32[O], "element": int32[OH, OW, O], of several ``thresholds`` int32[n, ...]), then where
    ``shift`` is set float32[C], which is added to the data before its zero padding. ``layout`` is the data's, "NHWC" or "NCHW";
    the result is NHWC.
    Output: float32 [1, H, W, O] or bits. With thresholds, of a binary convolution, bit = accumulator >= threshold, with
    several their exclusive or; and then neither epilogue nor pooling. Any other convolution that gives bits
    ends in sign(y) after epilogue and pooling: bit = y > 0, or y >= 0 where ``sign_zero`` is +1. Dense layers are 1x1
    convolutions of a 1x1 image.
    ``signs``, of a result of floats, are further outputs behind it; their operands follow those of the epilogue.
    ``whole``: data and weights are whole numbers whose sums float32 holds, and those sums have to be exact.
    With ``parts`` the data are several images side by side, as ``Concat`` joins them; those behind the first are the last
    arguments. What is computed, and so the key, is the same as of one image.
    ``halves``: the weights, still float32 here, are bfloat16 values: kernels may keep their upper halves alone in memory.
    """

    tag: ClassVar[str] = "conv2d"
    binary: bool = False
    pad_value: int = 0
    epilogue: tuple[Step, ...] = ()
    pool: Pool | None = None
    out: str = "float32"
    threshold: str = ""
    sign_zero: int = 1
    shift: bool = False
    layout: str = "NHWC"
    thresholds: int = 1
    whole: bool = False
    signs: tuple[Signs, ...] = ()
    parts: tuple[int, ...] = field(default=(), kw_only=True)
    begins: tuple[int, ...] = field(default=(), kw_only=True)
    widths: tuple[int, ...] = field(default=(), kw_only=True)
    halves: bool = field(default=False, kw_only=True)

    @property
    def out_size(self) -> tuple[int, int]:
        """Spatial size of the output."""
        return self.pool.out_size(*self.conv_size) if self.pool else self.conv_size

    @property
    def depthwise(self) -> bool:
        """Each group has one input channel."""
        return not self.binary and self.groups == self.channels and self.groups > 1

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each argument of the kernel, the outputs last."""
        per_group = self.channels // self.groups
        weights = (self.out_channels, *self.kernel)
        args: list[tuple[tuple[int, ...], str]]
        if self.binary:
            args = [
                ((1, self.height, self.width, packed(self.channels)), "uint8"),
                ((*weights, packed(per_group)), "uint8"),
            ]
        else:
            images = self.widths or self.parts
            size = (self.height, self.width, images[0] if images else self.channels)
            data = (1, *size) if self.layout == "NHWC" else (1, size[2], size[0], size[1])
            args = [(data, "float32"), ((*weights, per_group), "float32")]
        args += operand_shapes(self.epilogue, (*self.conv_size, self.out_channels))
        result = (*self.out_size, self.out_channels)
        args += signs_operand_shapes(self.signs, result)
        if self.threshold:
            element = self.threshold == "element"
            several = (self.thresholds,) if self.thresholds > 1 else ()
            args.append(((*several, *(self.conv_size if element else ()), self.out_channels), "int32"))
        if self.shift:
            args.append(((self.channels,), "float32"))
        args += [((1, self.height, self.width, width), "float32") for width in (self.widths or self.parts)[1:]]
        return (*args, result_shape(result, self.out), *(result_shape(result, "bits") for _ in self.signs))

    def key(self) -> str:
        """The task's identity, readable and stable."""
        words = ["bconv2d" if self.binary else "conv2d", *_window_words(self)]
        words += [f"pad{self.pad_value:+d}"] if self.binary else []
        words += ["nchw"] if self.layout == "NCHW" else []
        words += ["shift"] if self.shift else []
        words += ["whole"] if self.whole else []
        words += ["bf16"] if self.halves else []
        words += [str(step) for step in self.epilogue]
        words += [str(self.pool)] if self.pool else []
        several = f"x{self.thresholds}" if self.thresholds > 1 else ""
        words += [f"threshold:{self.threshold}{several}"] if self.threshold else []
        words += [f"bits{self.sign_zero:+d}"] if self.out == "bits" and not self.threshold else []
        return " ".join([*words, *map(str, self.signs)])


@dataclass(frozen=True)
class QConv2d(Convolution):
    """A convolution of whole numbers of 8 bits: clip(round(factor * (sum + bias)) + out_zero, low, high), of 8 bits again.

    x int8[1, H, W, C], weights int16 OHWI. The sum is that of (x - ``zero``) * weight, exactly, in 32 bits; padding holds
    ``zero``. It becomes a float32, as does its product with the factor; halves are rounded to even. Arguments: data, weight,
    bias int32[O], factor float32[O]. Output: int8 [1, H', W', O].
    ``segment`` and ``segments`` are what ``schedules.qconv2d.segments`` plans from the weights; without them nothing is
    planned, and sums have 32 bits throughout. Without ``segments`` alone, sums of so many products fit 16 bits in any order.
    """

    tag: ClassVar[str] = "qconv2d"
    #: What follows the sums is always the same.
    epilogue: ClassVar[tuple[Step, ...]] = ()
    zero: int = 0
    out_zero: int = 0
    low: int = -128
    high: int = 127
    segment: int = 0
    segments: int = 0

    @property
    def out(self) -> str:
        """Type of the result."""
        return "int8"

    @property
    def out_size(self) -> tuple[int, int]:
        """Spatial size of the output."""
        return self.conv_size

    @property
    def depthwise(self) -> bool:
        """Each group has one input channel and one output channel."""
        return self.groups == self.channels == self.out_channels and self.groups > 1

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each argument of the kernel, the output last."""
        return (
            ((1, self.height, self.width, self.channels), "int8"),
            ((self.out_channels, *self.kernel, self.channels // self.groups), "int16"),
            ((self.out_channels,), "int32"),
            ((self.out_channels,), "float32"),
            ((1, *self.out_size, self.out_channels), "int8"),
        )

    def key(self) -> str:
        """The task's identity, readable and stable."""
        words = ["qconv2d", *_window_words(self)]
        words += [f"zero{self.zero:+d}{self.out_zero:+d}", f"clip{self.low},{self.high}"]
        words += [f"segments{self.segments}x{self.segment}"] if self.segments else ["pairs"] if self.segment else []
        return " ".join(words)


@dataclass(frozen=True)
class ConvTranspose2d:
    """A transposed convolution with its epilogue: every input pixel adds its weighted window to the result.

    x float32[1, H, W, C], weights OHWI. Input pixel i meets tap k at result pixel i*strides + k*dilation - padding; what falls
    outside is dropped. ``padding`` (top, left, bottom, right) crops the result and ``output_padding`` (bottom, right) adds to
    it. Arguments: data, weight, one operand for each step that takes one. Output: float32 [1, H', W', O].
    """

    tag: ClassVar[str] = "conv2d_transpose"
    height: int
    width: int
    channels: int
    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    output_padding: tuple[int, int] = (0, 0)
    epilogue: tuple[Step, ...] = ()

    @property
    def out(self) -> str:
        """Type of the result."""
        return "float32"

    @property
    def out_size(self) -> tuple[int, int]:
        """Spatial size of the output."""
        sizes = []
        for axis, extent in enumerate((self.height, self.width)):
            reach = (extent - 1) * self.strides[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1
            sizes.append(reach + self.output_padding[axis] - self.padding[axis] - self.padding[axis + 2])
        return sizes[0], sizes[1]

    @property
    def macs(self) -> int:
        """Multiply-accumulates; those of dropped results included."""
        taps = self.kernel[0] * self.kernel[1]
        return self.height * self.width * self.channels * taps * (self.out_channels // self.groups)

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each argument of the kernel, the outputs last."""
        size = (*self.out_size, self.out_channels)
        return (
            ((1, self.height, self.width, self.channels), "float32"),
            ((self.out_channels, *self.kernel, self.channels // self.groups), "float32"),
            *operand_shapes(self.epilogue, size),
            result_shape(size, "float32"),
        )

    def key(self) -> str:
        """The task's identity, readable and stable."""
        words = ["conv2d_transpose", *_window_words(self)]
        words += [f"op{_commas(self.output_padding)}"] if any(self.output_padding) else []
        return " ".join([*words, *map(str, self.epilogue)])


@dataclass(frozen=True)
class DepthFirst:
    """Convolutions of floats one after the other; what lies between them is needed by nobody else.

    ``layers``: one of 1x1 or none, a depthwise one, one of 1x1 or none; two at least. Arguments: data, then of each layer its
    weight and one operand for each step that takes one. Output: that of the last layer.
    """

    tag: ClassVar[str] = "depth_first"
    layers: tuple[Conv2d, ...]

    @property
    def height(self) -> int:
        """Height of the data."""
        return self.layers[0].height

    @property
    def width(self) -> int:
        """Width of the data."""
        return self.layers[0].width

    @property
    def channels(self) -> int:
        """Channels of the data."""
        return self.layers[0].channels

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return self.layers[-1].out_channels

    @property
    def epilogue(self) -> tuple[Step, ...]:
        """That of the last layer."""
        return self.layers[-1].epilogue

    @property
    def out(self) -> str:
        """Type of the result."""
        return self.layers[-1].out

    @property
    def out_size(self) -> tuple[int, int]:
        """Spatial size of the output."""
        return self.layers[-1].out_size

    @property
    def macs(self) -> int:
        """Those of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each argument of the kernel, the output last."""
        constants = (spec for layer in self.layers for spec in layer.shapes[1:-1])
        return (self.layers[0].shapes[0], *constants, self.layers[-1].shapes[-1])

    def key(self) -> str:
        """The task's identity, readable and stable."""
        return " ".join(["depth_first", *(layer.key() for layer in self.layers)])


@dataclass(frozen=True)
class Binarize:
    """Signs to bits: x float32[1, H, W, C], operands of ``epilogue`` -> uint8[1, H, W, ceil(C/8)].

    The epilogue's steps come before the sign. bit = y > 0, or y >= 0 where ``sign_zero`` is +1. Without an epilogue NaN gives a
    clear bit; with one its bit is either. ``signs`` are further bits of x, with steps of their own, as in ``Conv2d``.
    """

    tag: ClassVar[str] = "binarize"
    height: int
    width: int
    channels: int
    epilogue: tuple[Step, ...] = ()
    sign_zero: int = 1
    signs: tuple[Signs, ...] = ()

    @property
    def macs(self) -> int:
        """None are counted."""
        return 0

    @property
    def out_size(self) -> tuple[int, int]:
        """Spatial size of the output."""
        return self.height, self.width

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each argument of the kernel, the outputs last."""
        size = (self.height, self.width, self.channels)
        operands = *operand_shapes(self.epilogue, size), *signs_operand_shapes(self.signs, size)
        return (((1, *size), "float32"), *operands, *(result_shape(size, "bits") for _ in (self, *self.signs)))

    def key(self) -> str:
        """The task's identity, readable and stable."""
        words = ["binarize", f"{self.height}x{self.width}x{self.channels}", *map(str, self.epilogue)]
        return " ".join([*words, f"sign0{self.sign_zero:+d}", *map(str, self.signs)])


@dataclass(frozen=True)
class Pool2d:
    """Pooling on its own. Float: x float32 NHWC, then the epilogue with its operands, then float32 or bits (sign(y)).

    ``whole``: x and the result are int8, the maximum of each window; no epilogue.
    ``bits``: x and the result are bits; "max" is the bitwise OR over the window; then, where ``invert`` is true, an
    exclusive or with the argument uint8[ceil(C/8)], which turns the OR of some channels into a NOR. No epilogue.
    ``signs`` as in ``Conv2d``.
    """

    tag: ClassVar[str] = "pool2d"
    height: int
    width: int
    channels: int
    pool: Pool
    bits: bool = False
    invert: bool = False
    epilogue: tuple[Step, ...] = ()
    out: str = "float32"
    sign_zero: int = 1
    signs: tuple[Signs, ...] = ()
    whole: bool = False

    @property
    def macs(self) -> int:
        """None are counted."""
        return 0

    @property
    def out_size(self) -> tuple[int, int]:
        """Spatial size of the output."""
        return self.pool.out_size(self.height, self.width)

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each argument of the kernel, the outputs last."""
        out = (*self.out_size, self.channels)
        if self.whole:
            return ((1, self.height, self.width, self.channels), "int8"), ((1, *out), "int8")
        if self.bits:
            invert = (((packed(self.channels),), "uint8"),) if self.invert else ()
            return (((1, self.height, self.width, packed(self.channels)), "uint8"), *invert, result_shape(out, "bits"))
        data = ((1, self.height, self.width, self.channels), "float32")
        operands = *operand_shapes(self.epilogue, out), *signs_operand_shapes(self.signs, out)
        return (data, *operands, result_shape(out, self.out), *(result_shape(out, "bits") for _ in self.signs))

    def key(self) -> str:
        """The task's identity, readable and stable."""
        name = "bpool2d" if self.bits else "qpool2d" if self.whole else "pool2d"
        words = [name, f"{self.height}x{self.width}x{self.channels}", str(self.pool)]
        words += [str(step) for step in self.epilogue]
        words += ["invert"] if self.invert else []
        words += [f"bits{self.sign_zero:+d}"] if self.out == "bits" and not self.bits else []
        return " ".join([*words, *map(str, self.signs)])


@dataclass(frozen=True)
class Concat:
    """Images side by side along the channels: ``parts`` are the channels of each.

    Floats, then the epilogue with its operands. ``bits``: bits, no epilogue; only the last part may end inside a byte.
    ``whole``: int8, no epilogue.
    With ``begins``, not for bits, part i is channels begins[i] to begins[i] + parts[i] of an image of widths[i] channels.
    """

    tag: ClassVar[str] = "concat"
    height: int
    width: int
    parts: tuple[int, ...]
    bits: bool = False
    epilogue: tuple[Step, ...] = ()
    begins: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    whole: bool = False

    @property
    def channels(self) -> int:
        """Channels of the result."""
        return sum(self.parts)

    @property
    def out(self) -> str:
        """Type of the result: "float32", "bits" or "int8"."""
        return "bits" if self.bits else "int8" if self.whole else "float32"

    @property
    def macs(self) -> int:
        """None are counted."""
        return 0

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each argument of the kernel, the outputs last."""
        size = (self.height, self.width, self.channels)
        parts = (result_shape((*size[:2], channels), self.out) for channels in self.widths or self.parts)
        return (*parts, *operand_shapes(self.epilogue, size), result_shape(size, self.out))

    def key(self) -> str:
        """The task's identity, readable and stable."""
        pieces = zip(self.begins, self.widths, strict=True) if self.begins else [(0, part) for part in self.parts]
        taken = [
            str(part) if part == width else f"{part}({begin}/{width})"
            for part, (begin, width) in zip(self.parts, pieces, strict=True)
        ]
        size = f"{self.height}x{self.width}x{'+'.join(taken)}"
        name = "bconcat" if self.bits else "qconcat" if self.whole else "concat"
        return " ".join([name, size, *map(str, self.epilogue)])


@dataclass(frozen=True)
class Lookup:
    """Each number of 8 bits replaced by what a table has for it: x int8 ``shape``, table int8[256] -> int8 ``shape``.

    Entry i of the table is that of the number i - 128.
    """

    tag: ClassVar[str] = "lookup"
    epilogue: ClassVar[tuple[Step, ...]] = ()
    shape: tuple[int, ...]

    @property
    def out(self) -> str:
        """Type of the result."""
        return "int8"

    @property
    def macs(self) -> int:
        """None are counted."""
        return 0

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each argument of the kernel, the output last."""
        return (self.shape, "int8"), ((256,), "int8"), (self.shape, "int8")

    def key(self) -> str:
        """The task's identity, readable and stable."""
        return f"lookup {'x'.join(map(str, self.shape))}"


@dataclass(frozen=True)
class Resize:
    """An image brought to another size: x float32[1, H, W, C] -> float32[1, H', W', C], then the epilogue.

    ``method`` "nearest_neighbor" or "linear". ``coordinates`` say where in the input an output pixel lies and ``rounding``
    which neighbour is the nearest, in the words of ``relax.image.resize2d``; the input's edge goes on outside.
    """

    tag: ClassVar[str] = "resize2d"
    height: int
    width: int
    channels: int
    size: tuple[int, int]
    method: str
    coordinates: str
    rounding: str = ""
    epilogue: tuple[Step, ...] = ()

    @property
    def out(self) -> str:
        """Type of the result."""
        return "float32"

    @property
    def macs(self) -> int:
        """None are counted."""
        return 0

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each argument of the kernel, the outputs last."""
        size = (*self.size, self.channels)
        data = ((1, self.height, self.width, self.channels), "float32")
        return (data, *operand_shapes(self.epilogue, size), result_shape(size, "float32"))

    def key(self) -> str:
        """The task's identity, readable and stable."""
        words = ["resize2d", f"{self.height}x{self.width}x{self.channels}", f"to{self.size[0]}x{self.size[1]}"]
        words += [word for word in (self.method, self.coordinates, self.rounding) if word]
        return " ".join([*words, *map(str, self.epilogue)])


@dataclass(frozen=True)
class Matrices:
    """A stack of matrices in a tensor of ``shape``.

    Element (y, x) of matrix (i, j, ...) is float ``begin`` + i*stack[0] + j*stack[1] + ... + y*``row`` + x*``column``.
    """

    shape: tuple[int, ...]
    begin: int
    stack: tuple[int, ...]
    row: int
    column: int

    def __str__(self) -> str:
        begin = f"+{self.begin}" if self.begin else ""
        return f"{_commas(self.shape)}{begin}[{_commas((*self.stack, self.row, self.column))}]"


class _OfRows:
    """What workloads of rows have in common."""

    @property
    def out(self) -> str:
        """Type of the result."""
        return "float32"


class _OfMatrices(_OfRows):
    """What products of stacks of matrices have in common."""

    tag: ClassVar[str]
    stack: tuple[int, ...]
    factor: float
    epilogue: tuple[Step, ...]

    @property
    def matrices(self) -> int:
        """How many there are in a stack."""
        return math.prod(self.stack)

    def _key(self, size: str, *tensors: Matrices) -> str:
        words = [self.tag, f"{'x'.join(map(str, self.stack)) or 1} of {size}", *map(str, tensors)]
        words += [f"factor{self.factor:.9g}"] if self.factor != 1 else []
        return " ".join([*words, *map(str, self.epilogue)])


@dataclass(frozen=True)
class Product(_OfMatrices):
    """Products of two stacks of matrices, both computed while the network runs, times ``factor``; then the epilogue.

    The matrices of ``first`` are [rows, inner], those of ``second`` [inner, columns], those of ``result`` [rows, columns], and
    nothing lies between those. ``stack`` has the extents of the axes along which each lies. Arguments: the tensors of ``first``
    and ``second``, one operand for each step that takes one: for a result of (matrices, rows, columns) as (H, W, C).
    """

    tag: ClassVar[str] = "product"
    stack: tuple[int, ...]
    rows: int
    inner: int
    columns: int
    first: Matrices
    second: Matrices
    result: Matrices
    factor: float = 1.0
    epilogue: tuple[Step, ...] = ()

    @property
    def size(self) -> tuple[int, int, int]:
        """The result as an image."""
        return self.matrices, self.rows, self.columns

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.matrices * self.rows * self.inner * self.columns

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each argument of the kernel, the output last."""
        operands = operand_shapes(self.epilogue, self.size)
        tensors = (self.first.shape, "float32"), (self.second.shape, "float32")
        return (*tensors, *operands, (self.result.shape, "float32"))

    def key(self) -> str:
        """The task's identity, readable and stable."""
        return self._key(f"{self.rows}x{self.inner}x{self.columns}", self.first, self.second, self.result)


@dataclass(frozen=True)
class Attention(_OfMatrices):
    """Weighted means of values for each row: softmax(``factor`` * first @ second, after the epilogue) @ third.

    The matrices of ``first`` are [rows, inner], of ``second`` [inner, columns], of ``third`` [columns, width], of ``result``
    [rows, width]; the softmax is along columns. All else is as in ``Product``; the epilogue's operands come last. Kernels keep
    sums finite where a value of ``third`` times ``columns`` is below 2^96.
    """

    tag: ClassVar[str] = "attention"
    stack: tuple[int, ...]
    rows: int
    inner: int
    columns: int
    width: int
    first: Matrices
    second: Matrices
    third: Matrices
    result: Matrices
    factor: float = 1.0
    epilogue: tuple[Step, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.matrices * self.rows * self.columns * (self.inner + self.width)

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each argument of the kernel, the output last."""
        operands = operand_shapes(self.epilogue, (self.matrices, self.rows, self.columns))
        tensors = ((each.shape, "float32") for each in (self.first, self.second, self.third))
        return (*tensors, *operands, (self.result.shape, "float32"))

    def key(self) -> str:
        """The task's identity, readable and stable."""
        size = f"{self.rows}x{self.inner}x{self.columns}x{self.width}"
        return self._key(size, self.first, self.second, self.third, self.result)


class _AlongRows(_OfRows):
    """What workloads along the last axis of ``shape`` have in common."""

    shape: tuple[int, ...]
    #: Nothing follows them.
    epilogue: ClassVar[tuple[Step, ...]] = ()

    @property
    def rows(self) -> int:
        """How many there are."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """The length of each."""
        return self.shape[-1]

    @property
    def macs(self) -> int:
        """None are counted."""
        return 0


@dataclass(frozen=True)
class Softmax(_AlongRows):
    """e^x over its sum along the last axis of x float32 ``shape``; with ``log`` the logarithm of that."""

    tag: ClassVar[str] = "softmax"
    shape: tuple[int, ...]
    log: bool = False

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each argument of the kernel, the output last."""
        return (self.shape, "float32"), (self.shape, "float32")

    def key(self) -> str:
        """The task's identity, readable and stable."""
        return f"{'log_softmax' if self.log else 'softmax'} {self.rows}x{self.columns}"


@dataclass(frozen=True)
class Normalize(_AlongRows):
    """Rows along the last axis of x float32 ``shape`` with mean 0 and variance 1, then scaled and moved channel by channel.

    (x - mean) / sqrt(variance + ``epsilon``) * scale + shift. Arguments: x, scale float32[C], shift float32[C].
    """

    tag: ClassVar[str] = "normalize"
    shape: tuple[int, ...]
    epsilon: float

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each argument of the kernel, the output last."""
        data, channel = (self.shape, "float32"), ((self.columns,), "float32")
        return data, channel, channel, data

    def key(self) -> str:
        """The task's identity, readable and stable."""
        return f"normalize {self.rows}x{self.columns} epsilon{self.epsilon:.9g}"


@dataclass(frozen=True)
class Generic:
    """A function that no operator of ours computes, as TVM's lowering wrote it.

    ``name`` is the function's, ``function`` its JSON, ``shapes`` shape and dtype of each argument, the output last. ``macs``
    are the iterations of its sums.
    """

    tag: ClassVar[str] = "tir"
    name: str
    shapes: tuple[tuple[tuple[int, ...], str], ...]
    macs: int
    function: str

    def key(self) -> str:
        """The task's identity: name and shapes for people, and a digest of the function."""
        digest = hashlib.sha256(self.function.encode()).hexdigest()[:12]
        shapes = ["x".join(map(str, shape)) or "1" for shape, _ in self.shapes]
        return f"tir {self.name} {','.join(shapes[:-1])} to {shapes[-1]} {digest}"


#: What operators of ours compute, and what there may be tuning records of.
Workload = (
    Conv2d
    | QConv2d
    | ConvTranspose2d
    | DepthFirst
    | Binarize
    | Pool2d
    | Concat
    | Resize
    | Lookup
    | Product
    | Attention
    | Softmax
    | Normalize
)
Tunable = Workload | Generic

#: Shape and dtype of a tensor.
Spec = tuple[tuple[int, ...], str]


def signs_of(workload: Tunable) -> tuple[Signs, ...]:
    """The signs that ``workload`` gives beside its floats."""
    signs: tuple[Signs, ...] = getattr(workload, "signs", ())
    return signs


def without_signs(workload: Tunable) -> Tunable:
    """``workload`` with its floats alone."""
    return replace(workload, signs=()) if isinstance(workload, Conv2d | Pool2d | Binarize) else workload


def argument_specs(workload: Tunable) -> tuple[Spec, ...]:
    """What the kernel reads."""
    return workload.shapes[: -1 - len(signs_of(workload))]


def result_specs(workload: Tunable) -> tuple[Spec, ...]:
    """What the kernel writes: the result, then its signs."""
    return workload.shapes[-1 - len(signs_of(workload)) :]


def result_spec(workload: Tunable) -> Spec:
    """The result itself, without signs beside it."""
    return result_specs(workload)[0]


def packed(channels: int) -> int:
    """Bytes that hold the bits of ``channels``."""
    return -(-channels // 8)


def operand_shapes(epilogue: tuple[Step, ...], size: tuple[int, int, int]) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of the operands of ``epilogue`` for a result of ``size`` (H, W, C)."""
    shapes = {"channel": (size[2],), "element": size, "tensor": (1, *size), "half": (1, *size[:2], size[2] // 2)}
    return [(shapes[step.operand], "float32") for step in epilogue if step.operand]


def signs_operand_shapes(signs: tuple[Signs, ...], size: tuple[int, int, int]) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of the operands of all ``signs``, in order, of a result of ``size`` (H, W, C)."""
    return [spec for each in signs for spec in operand_shapes(each.epilogue, size)]


def result_shape(size: tuple[int, int, int], out: str) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of an output of ``size`` (H, W, C) that is "float32", "int8" or "bits"."""
    if out == "bits":
        return (1, size[0], size[1], packed(size[2])), "uint8"
    return (1, *size), out


#: Attribute of the PrimFuncs that implement a workload; its value is the workload's JSON.
WORKLOAD_ATTR = "bitkiln.workload"


def to_json(workload: Tunable) -> str:
    """The workload as one line of JSON, as the attribute ``WORKLOAD_ATTR`` carries it."""
    return json.dumps({"tag": workload.tag, **asdict(workload)}, sort_keys=True)


def from_json(text: str) -> Workload:
    """The inverse of ``to_json`` for workloads of operators."""
    found = tunable_from_json(text)
    assert not isinstance(found, Generic)
    return found


def tunable_from_json(text: str) -> Tunable:
    """The inverse of ``to_json``."""
    table = json.loads(text)
    kind = {each.tag: each for each in get_args(Tunable)}[table.pop("tag")]
    return kind(**_fields(table))


def _fields(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _revive(name, value) for name, value in table.items()}


def _revive(name: str, value: Any) -> Any:
    if name == "epilogue":
        return tuple(Step(step["op"], step["operand"], tuple(step["values"])) for step in value)
    if name == "signs":
        return tuple(Signs(_revive("epilogue", each["epilogue"]), each["sign_zero"]) for each in value)
    if name == "layers":
        return tuple(Conv2d(**_fields(each)) for each in value)
    if name in ("first", "second", "third", "result"):
        return Matrices(**{key: _revive("", item) for key, item in value.items()})
    if name == "pool" and isinstance(value, Mapping):
        return Pool(**_fields(value))
    return tuple(_revive("", item) for item in value) if isinstance(value, list) else value


def _window_words(work: Conv2d | QConv2d | ConvTranspose2d) -> list[str]:
    """Sizes and windows of a convolution, as its key has them."""
    words = [f"{work.height}x{work.width}x{work.channels}", f"o{work.out_channels}"]
    words += [
        f"k{work.kernel[0]}x{work.kernel[1]}",
        f"s{work.strides[0]}x{work.strides[1]}",
        f"p{_commas(work.padding)}",
    ]
    words += [f"d{work.dilation[0]}x{work.dilation[1]}"] if work.dilation != (1, 1) else []
    return words + ([f"g{work.groups}"] if work.groups != 1 else [])


def _commas(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))

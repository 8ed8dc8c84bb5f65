"""What each layer of an ELL network computes, as Relax in NHWC.

In ELL a tensor carries the padding its consumer wants: a layer's ``outputPaddingSize`` is the border of the next layer's
input, filled as ``outputPaddingScheme`` says. Here a ``Tensor`` is the active part with its border kept aside, so that the
next convolution or pooling takes the border as its own padding attribute. A border no attribute can express becomes a
``relax.nn.pad``.

Semantics follow ELL's layer classes: cross-correlation; PReLU and leaky ReLU take the slope at x <= 0; the bits of a
binary convolution are x > 0 and w > 0, and its zero padding contributes nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from bitkiln.pipeline import ops
from bitkiln.pipeline.errors import ModelError, UnsupportedLayer
from bitkiln.pipeline.importers.ell.archive import Node, shape_of, shown, whole_number
from bitkiln.pipeline.importers.ell.fields import check_fields

#: Lowest float32: ELL's "min" padding, which never wins a maximum.
LOWEST = float(np.finfo(np.float32).min)

#: PaddingScheme -> value of the border; alternating (2) and random (3) have no single value.
_FILL = {0: 0.0, 1: -1.0, 4: LOWEST, 5: -LOWEST}

#: Slope of a leaky ReLU whose archive does not state one.
_LEAKY_DEFAULT = 0.1


@dataclass(frozen=True)
class Tensor:
    """The result of a layer: ``expr`` is float32 [1, rows, columns, channels], without its border.

    ``padding`` is the border's width on each side, ``fill`` what it holds (None: no single value).
    """

    expr: relax.Expr
    size: tuple[int, int, int]
    padding: int = 0
    fill: float | None = 0.0


@dataclass(frozen=True)
class Layer:
    """One layer being imported: its archive node, its input, and ``emit(expr, part)``, which names the result."""

    node: Node
    source: Tensor
    emit: Callable[..., relax.Var]
    leaky_factor: float | None = None

    def field(self, name: str) -> Any:
        """A field that must be there."""
        if name not in self.node.fields:
            raise self.error(f"has no {name}")
        return self.node.fields[name]

    def number(self, name: str, low: int = 0, high: int = 1 << 20) -> int:
        """A whole number within bounds."""
        return whole_number(self.node.where, name, self.field(name), low, high)

    def values(self, name: str, shape: tuple[int, ...], table: Any = None) -> np.ndarray:
        """float32 numbers of a field in ``shape``, all finite."""
        raw = (table or self.node.fields).get(name)
        try:
            array = np.asarray([] if raw is None else raw, np.float64)
        except (ValueError, TypeError):
            raise self.error(f"{name} holds something else than numbers") from None
        if array.size != np.prod(shape):
            wanted = "x".join(map(str, shape))
            raise self.error(f"{name} has {array.size} numbers, its shape {wanted} needs {int(np.prod(shape))}")
        if not np.isfinite(array).all() or np.abs(array).max() > -LOWEST:
            raise self.error(f"non-finite weight in {name}")
        return array.reshape(shape).astype(np.float32)

    @property
    def output_size(self) -> tuple[int, int, int]:
        """Active size of the output: the declared shape without its padding."""
        rows, columns, channels = shape_of(self.node.where, self.field("outputShape"))
        padding = 2 * self.number("outputPaddingSize")
        return rows - padding, columns - padding, channels

    def error(self, text: str) -> ModelError:
        """The error to raise, naming the node."""
        return ModelError(f"{self.node.where}: {text}")


def import_layer(layer: Layer) -> Tensor:
    """Emit the layer's computation; ModelError where its shapes and numbers do not agree."""
    expected = layer.number("inputPaddingSize")
    if layer.node.kind != "InputLayer" and expected != layer.source.padding:
        raise layer.error(f"wants an input padding of {expected}, its input has {layer.source.padding}")
    result = _IMPORTERS[layer.node.kind](layer)
    _, height, width, channels = (int(extent) for extent in result.ty.shape.values)
    size = (height, width, channels)
    # Old archives declare one element for a softmax over many.
    old = layer.node.kind == "SoftmaxLayer" and layer.output_size == (1, 1, 1)
    if size != layer.output_size and not old:
        raise layer.error(f"gives {_by(size)}, the archive says {_by(layer.output_size)}")
    scheme = layer.number("outputPaddingScheme")
    return Tensor(result, size, layer.number("outputPaddingSize"), _FILL.get(scheme))


def constant(array: np.ndarray) -> relax.Expr:
    """A float32 (or packed uint8) constant."""
    return relax.const(np.ascontiguousarray(array))


def _input(layer: Layer) -> relax.Expr:
    scale = layer.node.fields.get("scale", 1)
    if type(scale) not in (int, float) or not np.isfinite(scale):
        raise layer.error(f"scale is {shown(scale)}")
    if scale == 1:
        return layer.source.expr
    return layer.emit(relax.op.multiply(layer.source.expr, constant(np.full((1, 1, 1, 1), scale, np.float32))))


def _bias(layer: Layer) -> relax.Expr:
    return layer.emit(relax.op.add(layer.source.expr, _per_channel(layer, "bias")))


def _scaling(layer: Layer) -> relax.Expr:
    return layer.emit(relax.op.multiply(layer.source.expr, _per_channel(layer, "scales")))


def _batch_normalization(layer: Layer) -> relax.Expr:
    product = relax.op.multiply(layer.source.expr, _per_channel(layer, "multiplicationValues"))
    return layer.emit(relax.op.add(layer.emit(product, "mul"), _per_channel(layer, "additionValues")))


def _per_channel(layer: Layer, name: str) -> relax.Expr:
    return constant(layer.values(name, (1, 1, 1, layer.source.size[2])))


def _convolution(layer: Layer) -> relax.Expr:
    kernel, stride = layer.number("receptiveField", 1, 1 << 10), layer.number("stride", 1, 1 << 10)
    channels, filters = layer.source.size[2], layer.output_size[2]
    depth = layer.number("weights_channels", 1)
    if depth not in (1, channels):
        raise layer.error(f"its filters have {depth} channels, its input has {channels}")
    declared = (layer.number("weights_rows", 1), layer.number("weights_columns", 1))
    if declared != (filters * kernel, kernel):
        raise layer.error(
            f"weights are {_by((*declared, depth))}; {filters} filters of {kernel}x{kernel} need "
            f"{_by((filters * kernel, kernel, depth))}"
        )
    depthwise = depth == 1 and channels > 1
    if depthwise and filters != channels:
        raise layer.error(f"is depthwise with {filters} filters on {channels} channels")
    data, padding = _bordered(layer, _window_padding(layer, kernel, stride), 0.0)
    weights = layer.values("weights_values", (filters, kernel, kernel, depth))
    return layer.emit(
        relax.op.nn.conv2d(
            data,
            constant(weights),
            strides=stride,
            padding=padding,
            groups=channels if depthwise else 1,
            data_layout="NHWC",
            kernel_layout="OHWI",
        )
    )


def _binary_convolution(layer: Layer) -> relax.Expr:
    kernel, stride = layer.number("receptiveField", 1, 1 << 10), layer.number("stride", 1, 1 << 10)
    channels, filters = layer.source.size[2], layer.output_size[2]
    fill = layer.source.fill
    if fill is None and layer.source.padding:
        raise _scheme_error(layer)
    pad_value = 0 if layer.number("inputPaddingScheme") == 0 or fill is None else (1 if fill > 0 else -1)
    product = ops.bconv2d(
        layer.emit(ops.binarize(layer.source.expr, sign_zero=-1), "bits"),
        constant(_packed_filters(layer, filters, kernel, channels)),
        channels=channels,
        strides=(stride, stride),
        padding=_window_padding(layer, kernel, stride),
        pad_value=pad_value,
    )
    if layer.number("weightsScale", 0, 1) == 0:
        return layer.emit(product)
    means = constant(layer.values("filterMeans", (1, 1, 1, filters)))
    return layer.emit(relax.op.multiply(layer.emit(product, "dot"), means))


def _packed_filters(layer: Layer, filters: int, kernel: int, channels: int) -> np.ndarray:
    """uint8 [filters, k, k, ceil(channels/8)] from ELL's uint64 words, whose bits run through k*k*channels without gaps."""
    count = kernel * kernel * channels
    words = -(-count // 64)
    raw = layer.field("binarizedWeights_values")
    try:
        array = np.array(raw, np.uint64)
    except (ValueError, TypeError, OverflowError):
        raise layer.error("binarizedWeights_values holds something else than 64-bit words") from None
    if layer.number("binarizedWeights_numVectors") != filters or array.shape != (filters * words,):
        raise layer.error(
            f"binarizedWeights_values has {array.size} words; {filters} filters of {kernel}x{kernel}x{channels} bits "
            f"need {filters * words}"
        )
    stream = np.unpackbits(array.astype("<u8").view(np.uint8).reshape(filters, -1), axis=1, bitorder="little")
    return ops.pack_bits(stream[:, :count].reshape(filters, kernel, kernel, channels))


def _pooling(layer: Layer) -> relax.Expr:
    size, stride = layer.number("poolingSize", 1, 1 << 10), layer.number("stride", 1, 1 << 10)
    largest = "MaxPooling" in layer.node.full_type
    if not largest and "MeanPooling" not in layer.node.full_type:
        raise UnsupportedLayer(f"{layer.node.where}: this pooling function is not supported")
    # A window may start inside its input and end outside: what it reads there never wins a maximum.
    padding = _window_padding(layer, size, stride, overrun=True)
    if largest:
        data, padding = _bordered(layer, padding, LOWEST)
        return layer.emit(relax.op.nn.max_pool2d(data, (size, size), (stride, stride), padding, layout="NHWC"))
    data, padding = _bordered(layer, padding, 0.0)
    return layer.emit(
        relax.op.nn.avg_pool2d(data, (size, size), (stride, stride), padding, count_include_pad=True, layout="NHWC")
    )


def _window_padding(layer: Layer, kernel: int, stride: int, overrun: bool = False) -> tuple[int, int, int, int]:
    """Padding (top, left, bottom, right) with which windows give the declared output."""
    border = layer.source.padding
    ends = []
    for extent, out in zip(layer.source.size[:2], layer.output_size[:2], strict=True):
        natural = (extent + 2 * border - kernel) // stride + 1
        reach = (out - 1) * stride + kernel - (extent + 2 * border)
        if out != natural and not (overrun and 0 < reach < kernel):
            raise layer.error(
                f"{kernel}x{kernel} windows at stride {stride} give {natural} of {extent} (padding {border}), "
                f"the archive says {out}"
            )
        ends.append(border + max(reach, 0))
    return border, border, ends[0], ends[1]


def _bordered(
    layer: Layer, padding: tuple[int, int, int, int], native: float
) -> tuple[relax.Expr, tuple[int, int, int, int]]:
    """Data and padding for an operator that pads with ``native``: any other border is written by a ``relax.nn.pad``."""
    border, fill = layer.source.padding, layer.source.fill
    if border == 0 or fill == native:
        return layer.source.expr, padding
    if fill is None:
        raise _scheme_error(layer)
    widths = [0, 0, border, border, border, border, 0, 0]
    padded = layer.emit(relax.op.nn.pad(layer.source.expr, widths, "constant", fill), "pad")
    return padded, (0, 0, padding[2] - border, padding[3] - border)


def _scheme_error(layer: Layer) -> UnsupportedLayer:
    return UnsupportedLayer(f"{layer.node.where}: alternating and random padding are not supported")


def _activation(layer: Layer) -> relax.Expr:
    nested = layer.node.fields.get("activation")
    table = nested if isinstance(nested, dict) else layer.node.fields
    kind = str(nested.get("_type", "")) if isinstance(nested, dict) else layer.node.full_type
    if isinstance(nested, dict):
        check_fields(f"{layer.node.where}, activation", kind.partition("<")[0], nested)
    x = layer.source.expr
    if "ParametricReLU" in kind:
        return _parametric_relu(layer, table)
    if "LeakyReLU" in kind:
        return layer.emit(relax.op.nn.leakyrelu(x, _slope(layer, table)))
    if "HardTanh" in kind:
        return layer.emit(relax.op.clip(x, -1.0, 1.0))
    if "HardSigmoid" in kind:
        return _hard_sigmoid(layer)
    for name, operator in (("ReLU", relax.op.nn.relu), ("Sigmoid", relax.op.sigmoid), ("Tanh", relax.op.tanh)):
        if name in kind:
            return layer.emit(operator(x))
    raise UnsupportedLayer(f"{layer.node.where}: activation {shown(kind)} is not supported")


def _hard_sigmoid(layer: Layer) -> relax.Expr:
    """0.2 x + 0.5 within 0..1."""
    shape = (1, 1, 1, 1)
    scaled = layer.emit(relax.op.multiply(layer.source.expr, constant(np.full(shape, 0.2, np.float32))), "scaled")
    moved = layer.emit(relax.op.add(scaled, constant(np.full(shape, 0.5, np.float32))), "moved")
    return layer.emit(relax.op.clip(moved, 0.0, 1.0))


def _slope(layer: Layer, table: Mapping[str, Any]) -> float:
    if layer.leaky_factor is not None:
        return layer.leaky_factor
    slope = table.get("leakyFactor", _LEAKY_DEFAULT)
    if type(slope) not in (int, float) or not np.isfinite(slope):
        raise layer.error(f"leakyFactor is {shown(slope)}")
    return float(slope)


def _parametric_relu(layer: Layer, table: Mapping[str, Any]) -> relax.Expr:
    """ELL's slopes are per element; where they do not vary over the image they become one per channel."""
    shape = tuple(table.get(f"alpha_{axis}") for axis in ("rows", "columns", "channels"))
    if shape != layer.source.size:
        raise layer.error(f"alpha is {_by(shape)}, its input {_by(layer.source.size)}")
    alpha = layer.values("alpha_values", shape, table)
    if (alpha == alpha[:1, :1]).all():
        alpha = alpha[0, 0]
    return layer.emit(ops.prelu(layer.source.expr, constant(alpha)))


def _fully_connected(layer: Layer) -> relax.Expr:
    inputs, size = int(np.prod(layer.source.size)), layer.output_size
    outputs = int(np.prod(size))
    declared = (layer.number("weights_rows", 1), layer.number("weights_columns", 1))
    if declared != (outputs, inputs):
        raise layer.error(f"weights are {_by(declared)}; {inputs} inputs and {outputs} outputs need {outputs}x{inputs}")
    weights = layer.values("weights_values", declared)
    flat = layer.emit(relax.op.reshape(layer.source.expr, (1, inputs)), "flat")
    product = layer.emit(relax.op.matmul(flat, constant(weights.T)), "matmul")
    return layer.emit(relax.op.reshape(product, (1, *size)))


def _softmax(layer: Layer) -> relax.Expr:
    size = layer.source.size
    if size[:2] == (1, 1):
        return layer.emit(relax.op.nn.softmax(layer.source.expr, axis=-1))
    flat = layer.emit(relax.op.reshape(layer.source.expr, (1, int(np.prod(size)))), "flat")
    return layer.emit(relax.op.reshape(layer.emit(relax.op.nn.softmax(flat, axis=-1), "all"), (1, *size)))


def _by(shape: tuple[Any, ...]) -> str:
    return "x".join(map(shown, shape))


_IMPORTERS: dict[str, Callable[[Layer], relax.Expr]] = {
    "InputLayer": _input,
    "ActivationLayer": _activation,
    "BatchNormalizationLayer": _batch_normalization,
    "BiasLayer": _bias,
    "BinaryConvolutionalLayer": _binary_convolution,
    "ConvolutionalLayer": _convolution,
    "FullyConnectedLayer": _fully_connected,
    "PoolingLayer": _pooling,
    "ScalingLayer": _scaling,
    "SoftmaxLayer": _softmax,
}

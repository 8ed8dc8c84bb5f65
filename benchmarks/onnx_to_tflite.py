"""Turns a float ONNX network (NCHW, batch 1) into a TensorFlow Lite file (NHWC), as a good converter would.

Batch norms become a multiply and an add, and a ReLU or a clamp to +-1 is fused into the operator in front. Only what
our benchmark's networks need is known; anything else raises ``UnsupportedLayer``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import tflite
from onnx import helper, numpy_helper

from benchmarks.quantise import Range, quantise
from benchmarks.tflite_file import TfliteFile
from bitkiln.pipeline.errors import UnsupportedLayer

ACTIVATION = tflite.ActivationFunctionType
#: Operators whose options can name a fused activation.
FUSING = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SUB", "MUL", "FULLY_CONNECTED"})
#: Clamps that can be fused, by their bounds.
CLAMPS = {(-1, 1): "RELU_N1_TO_1", (0, 6): "RELU6"}
#: Where the axes of a value of so many dimensions are in the file: channels last, those of groups among them.
ORDERS = {4: (0, 2, 3, 1), 5: (0, 3, 4, 1, 2)}


def convert(model: onnx.ModelProto, ranges: Mapping[str, Range] | None = None) -> bytes:
    """The network as a ``.tflite`` file; ``model`` carries inferred shapes.

    With ``ranges``, which every value has, one of int8.
    """
    return _Converter(model.graph).convert(ranges)


class _Converter:
    """Maps every value of the ONNX graph to a tensor of the file, node by node."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph, self.file = graph, TfliteFile()
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        values = [*graph.input, *graph.value_info, *graph.output]
        self.shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        self.readers = [name for node in graph.node for name in node.input]
        self.tensors: dict[str, int] = {}
        #: Of tensors that no value of the ONNX graph stands for.
        self.ranges: dict[int, Range] = {}

    def convert(self, ranges: Mapping[str, Range] | None) -> bytes:
        inputs = [value.name for value in self.graph.input if value.name not in self.constants]
        self.tensors[inputs[0]] = source = self.file.tensor(self.shape(inputs[0]))
        for node in self.graph.node:
            method: Callable | None = getattr(self, f"_{node.op_type}", None)
            if method is None:
                raise UnsupportedLayer(f"node {node.name or node.output[0]} ({node.op_type}) has no LiteRT form here")
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            results = method(node, **attributes)
            self.tensors |= zip(node.output, [results] if isinstance(results, int) else results, strict=True)
        if ranges is not None:
            # A fused activation shares its tensor with the value in front of it, and comes later.
            quantise(self.file, self.ranges | {tensor: ranges[name] for name, tensor in self.tensors.items()})
        return self.file.write(source, [self.tensors[value.name] for value in self.graph.output])

    def shape(self, name: str) -> list[int]:
        """Of an ONNX value, in the file's order."""
        return nhwc(self.shapes[name])

    def operand(self, name: str) -> int:
        """The tensor of a value; a constant that broadcasts over NCHW is turned to broadcast over NHWC."""
        if name not in self.constants:
            return self.tensors[name]
        values = self.constants[name].astype(np.float32)
        return self.file.constant(values.transpose(1, 2, 0) if values.ndim == 3 else values)

    def unary(self, node: onnx.NodeProto, name: str, table: str = "", **options: Any) -> int:
        return self.file.operator(name, [self.operand(node.input[0])], self.shape(node.output[0]), table, **options)

    def binary(self, node: onnx.NodeProto, name: str, table: str) -> int:
        inputs = [self.operand(name) for name in node.input]
        return self.file.operator(name, inputs, self.shape(node.output[0]), table, FusedActivationFunction=0)

    def fused(self, node: onnx.NodeProto, activation: int) -> int | None:
        """Let the operator in front apply ``activation``, if nothing else reads its result."""
        source = node.input[0]
        if self.readers.count(source) != 1 or not self.file.operators:
            return None
        last = self.file.operators[-1]
        fusing = {getattr(tflite.BuiltinOperator, name) for name in FUSING}
        of_source = last.code in fusing and last.results == (self.tensors[source],)
        if not of_source or isinstance(last.options, bytes) or last.options.get("FusedActivationFunction"):
            return None
        last.options["FusedActivationFunction"] = activation
        return self.tensors[source]

    def padded(self, source: int, shape: list[int], pads: list[int], value: float = 0.0) -> int:
        """``pads`` is top, left, bottom, right."""
        top, left, bottom, right = pads
        amounts = self.file.constant(np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32))
        size = [shape[0], shape[1] + top + bottom, shape[2] + left + right, shape[3]]
        if value == 0:
            return self.file.operator("PAD", [source, amounts], size, "PadOptions")
        filling = self.file.constant(np.array(value, np.float32))
        return self.file.operator("PADV2", [source, amounts, filling], size, "PadV2Options")

    def axis(self, node: onnx.NodeProto, axis: int) -> int:
        """The file's axis of the axis of a node's operand."""
        dimensions = len(self.shapes[node.input[0]])
        axis %= dimensions
        return ORDERS[dimensions].index(axis) if dimensions in ORDERS else axis

    def _Conv(
        self,
        node: onnx.NodeProto,
        kernel_shape: list[int],
        strides: tuple[int, ...] = (1, 1),
        pads: tuple[int, ...] = (0, 0, 0, 0),
        dilations: tuple[int, ...] = (1, 1),
        group: int = 1,
    ) -> int:
        source, shape = self.tensors[node.input[0]], self.shape(node.input[0])
        weight = self.constants[node.input[1]].transpose(0, 2, 3, 1)
        depthwise = group == shape[3] and group > 1
        if (group != 1 and not depthwise) or list(dilations) != [1, 1]:
            raise UnsupportedLayer(f"node {node.name or node.output[0]} (Conv): groups or dilation have no LiteRT form")
        padding = padding_of(shape, kernel_shape, strides, pads)
        if padding is None:
            source, padding = self.padded(source, shape, list(pads)), tflite.Padding.VALID
        bias = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight), np.float32)
        options: dict[str, Any] = {
            "Padding": padding,
            "StrideH": strides[0],
            "StrideW": strides[1],
            "FusedActivationFunction": 0,
        }
        name, table = "CONV_2D", "Conv2DOptions"
        if depthwise:
            # One filter, with the results of all channels side by side.
            name, table, weight = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", weight.transpose(3, 1, 2, 0)
            options["DepthMultiplier"] = weight.shape[3] // group
        inputs = [source, self.file.constant(np.ascontiguousarray(weight)), self.file.constant(bias)]
        return self.file.operator(name, inputs, self.shape(node.output[0]), table, **options)

    def _ConvTranspose(
        self,
        node: onnx.NodeProto,
        kernel_shape: list[int],
        strides: tuple[int, ...] = (1, 1),
        pads: tuple[int, ...] = (0, 0, 0, 0),
        group: int = 1,
        **_: object,
    ) -> int:
        shape = self.shape(node.output[0])
        if group != 1 or any(pads) or list(kernel_shape) != list(strides):
            raise UnsupportedLayer(
                f"node {node.name or node.output[0]} (ConvTranspose): only as large as its stride here"
            )
        weight = self.constants[node.input[1]].transpose(1, 2, 3, 0)
        bias = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight), np.float32)
        constants = (np.array(shape, np.int32), np.ascontiguousarray(weight))
        inputs = [*map(self.file.constant, constants), self.tensors[node.input[0]], self.file.constant(bias)]
        options: dict[str, Any] = {"Padding": tflite.Padding.VALID, "StrideH": strides[0], "StrideW": strides[1]}
        return self.file.operator("TRANSPOSE_CONV", inputs, shape, "TransposeConvOptions", **options)

    def _BatchNormalization(self, node: onnx.NodeProto, epsilon: float = 1e-5, **_: object) -> int:
        gamma, beta, mean, variance = (self.constants[name].astype(np.float64) for name in node.input[1:5])
        scale = gamma / np.sqrt(variance + epsilon)
        shape, result = self.shape(node.output[0]), self.tensors[node.input[0]]
        for name, table, values in (("MUL", "MulOptions", scale), ("ADD", "AddOptions", beta - mean * scale)):
            constant = self.file.constant(values.astype(np.float32))
            result = self.file.operator(name, [result, constant], shape, table, FusedActivationFunction=0)
        return result

    def _pool(
        self, node: onnx.NodeProto, name: str, kernel_shape: list[int], strides: list[int], pads: list[int]
    ) -> int:
        source, shape = self.tensors[node.input[0]], self.shape(node.input[0])
        padding = padding_of(shape, kernel_shape, strides, pads)
        if padding is None and name == "MAX_POOL_2D":
            lowest = float(np.finfo(np.float32).min)
            source, padding = self.padded(source, shape, list(pads), lowest), tflite.Padding.VALID
        if padding is None:
            raise UnsupportedLayer(f"node {node.name or node.output[0]} ({node.op_type}): padding has no LiteRT form")
        options: dict[str, Any] = {"Padding": padding, "StrideH": strides[0], "StrideW": strides[1]}
        options |= {"FilterHeight": kernel_shape[0], "FilterWidth": kernel_shape[1]}
        return self.file.operator(name, [source], self.shape(node.output[0]), "Pool2DOptions", **options)

    def _MaxPool(
        self, node: onnx.NodeProto, kernel_shape: list, strides: list, pads: tuple = (0, 0, 0, 0), **_: object
    ) -> int:
        return self._pool(node, "MAX_POOL_2D", kernel_shape, strides, list(pads))

    def _AveragePool(
        self, node: onnx.NodeProto, kernel_shape: list, strides: list, pads: tuple = (0, 0, 0, 0), **_: object
    ) -> int:
        return self._pool(node, "AVERAGE_POOL_2D", kernel_shape, strides, list(pads))

    def _GlobalAveragePool(self, node: onnx.NodeProto) -> int:
        inputs = [self.tensors[node.input[0]], self.file.constant(np.array([1, 2], np.int32))]
        return self.file.operator("MEAN", inputs, self.shape(node.output[0]), "ReducerOptions", KeepDims=True)

    def _Gemm(self, node: onnx.NodeProto, transB: int = 0, **_: object) -> int:
        weight = self.constants[node.input[1]]
        constants = [weight if transB else weight.T, self.constants[node.input[2]]]
        inputs = [self.tensors[node.input[0]], *map(self.file.constant, constants)]
        shape = self.shape(node.output[0])
        return self.file.operator("FULLY_CONNECTED", inputs, shape, "FullyConnectedOptions", FusedActivationFunction=0)

    def _Pad(self, node: onnx.NodeProto, **_: object) -> int:
        pads = self.constants[node.input[1]].tolist()
        value = float(self.constants[node.input[2]].item()) if len(node.input) > 2 else 0.0
        amounts = [pads[2], pads[3], pads[6], pads[7]]
        return self.padded(self.tensors[node.input[0]], self.shape(node.input[0]), amounts, value)

    def _Flatten(self, node: onnx.NodeProto, **_: object) -> int:
        if self.shape(node.input[0])[1:3] != [1, 1]:
            raise UnsupportedLayer(f"node {node.name or node.output[0]} (Flatten): of a whole image, in another order")
        shape = self.shape(node.output[0])
        inputs = [self.tensors[node.input[0]], self.file.constant(np.array(shape, np.int32))]
        return self.file.operator("RESHAPE", inputs, shape, "ReshapeOptions")

    def _Clip(self, node: onnx.NodeProto) -> int:
        name = CLAMPS.get(tuple(self.constants[name].item() for name in node.input[1:]))
        if name is None:
            clamps = " and ".join(f"{low}..{high}" for low, high in CLAMPS)
            raise UnsupportedLayer(f"node {node.name or node.output[0]} (Clip): only {clamps} have a LiteRT form here")
        fused = self.fused(node, getattr(ACTIVATION, name))
        return fused if fused is not None else self.unary(node, name)

    def _Relu(self, node: onnx.NodeProto) -> int:
        fused = self.fused(node, ACTIVATION.RELU)
        return fused if fused is not None else self.unary(node, "RELU")

    def _LeakyRelu(self, node: onnx.NodeProto, alpha: float = 0.01) -> int:
        return self.unary(node, "LEAKY_RELU", "LeakyReluOptions", Alpha=alpha)

    def _PRelu(self, node: onnx.NodeProto) -> int:
        inputs = [self.operand(name) for name in node.input]
        return self.file.operator("PRELU", inputs, self.shape(node.output[0]))

    def _Softmax(self, node: onnx.NodeProto, **_: object) -> int:
        return self.unary(node, "SOFTMAX", "SoftmaxOptions", Beta=1.0)

    def _Sigmoid(self, node: onnx.NodeProto) -> int:
        return self.unary(node, "LOGISTIC")

    def _HardSwish(self, node: onnx.NodeProto) -> int:
        return self.unary(node, "HARD_SWISH", "HardSwishOptions")

    def _HardSigmoid(self, node: onnx.NodeProto, alpha: float = 0.2, beta: float = 0.5) -> int:
        # As TensorFlow exports it: a sixth of relu6(x + 3).
        if abs(alpha - 1 / 6) > 1e-6 or beta != 0.5:
            raise UnsupportedLayer(
                f"node {node.name or node.output[0]} (HardSigmoid): only x/6 + 1/2 has a LiteRT form here"
            )
        x, shape = self.tensors[node.input[0]], self.shape(node.output[0])
        for name, table, value, activation in (
            ("ADD", "AddOptions", 3, ACTIVATION.RELU6),
            ("MUL", "MulOptions", 1 / 6, 0),
        ):
            inputs = [x, self.file.constant(np.array([value], np.float32))]
            x = self.file.operator(name, inputs, shape, table, FusedActivationFunction=activation)
            self.ranges[x] = (0.0, 6.0)
        return x

    def _Concat(self, node: onnx.NodeProto, axis: int) -> int:
        shape = self.shape(node.output[0])
        options: dict[str, Any] = {"Axis": self.axis(node, axis), "FusedActivationFunction": 0}
        inputs = [self.tensors[name] for name in node.input]
        return self.file.operator("CONCATENATION", inputs, shape, "ConcatenationOptions", **options)

    def _Split(self, node: onnx.NodeProto, axis: int = 0, **_: object) -> list[int]:
        shapes = [self.shape(name) for name in node.output]
        if any(shape != shapes[0] for shape in shapes):
            raise UnsupportedLayer(
                f"node {node.name or node.output[0]} (Split): unequal parts have no LiteRT form here"
            )
        where = self.file.constant(np.array(self.axis(node, axis), np.int32))
        inputs, count = [where, self.tensors[node.input[0]]], len(shapes)
        return self.file.operator_of_many("SPLIT", inputs, shapes, "SplitOptions", NumSplits=count)

    def _Reshape(self, node: onnx.NodeProto, **_: object) -> int:
        before, after = (self.shapes[name] for name in (node.input[0], node.output[0]))
        if len(before) < 4 or len(after) < 4 or (before[0], before[-2:]) != (after[0], after[-2:]):
            raise UnsupportedLayer(f"node {node.name or node.output[0]} (Reshape): only channels into groups and back")
        shape = self.shape(node.output[0])
        inputs = [self.tensors[node.input[0]], self.file.constant(np.array(shape, np.int32))]
        return self.file.operator("RESHAPE", inputs, shape, "ReshapeOptions")

    def _Transpose(self, node: onnx.NodeProto, perm: list[int]) -> int:
        order = ORDERS.get(len(perm), tuple(range(len(perm))))
        moved = np.array([order.index(perm[axis]) for axis in order], np.int32)
        inputs = [self.tensors[node.input[0]], self.file.constant(moved)]
        return self.file.operator("TRANSPOSE", inputs, self.shape(node.output[0]), "TransposeOptions")

    def _Resize(self, node: onnx.NodeProto, mode: bytes = b"nearest", **attributes: object) -> int:
        how = (mode, attributes.get("coordinate_transformation_mode"), attributes.get("nearest_mode"))
        if how != (b"nearest", b"asymmetric", b"floor"):
            raise UnsupportedLayer(f"node {node.name or node.output[0]} (Resize): only nearest, asymmetric, floor")
        shape = self.shape(node.output[0])
        inputs = [self.tensors[node.input[0]], self.file.constant(np.array(shape[1:3], np.int32))]
        return self.file.operator("RESIZE_NEAREST_NEIGHBOR", inputs, shape, "ResizeNearestNeighborOptions")

    def _Sign(self, node: onnx.NodeProto) -> int:
        return self.unary(node, "SIGN")

    def _Identity(self, node: onnx.NodeProto) -> int:
        return self.tensors[node.input[0]]

    def _Add(self, node: onnx.NodeProto) -> int:
        return self.binary(node, "ADD", "AddOptions")

    def _Sub(self, node: onnx.NodeProto) -> int:
        return self.binary(node, "SUB", "SubOptions")

    def _Mul(self, node: onnx.NodeProto) -> int:
        return self.binary(node, "MUL", "MulOptions")


def nhwc(shape: list[int]) -> list[int]:
    """An image's shape in the file's order; other shapes as they are."""
    return [shape[axis] for axis in ORDERS.get(len(shape), range(len(shape)))]


def padding_of(shape: list[int], kernel: list[int], strides: Sequence[int], pads: Sequence[int]) -> int | None:
    """The schema's word for ``pads`` (top, left, bottom, right) on an NHWC image; None where it has none."""
    if not any(pads):
        return tflite.Padding.VALID
    same = []
    for size, window, stride in zip(shape[1:3], kernel, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        same.append((total // 2, total - total // 2))
    begins, ends = zip(*same, strict=True)
    return tflite.Padding.SAME if list(pads) == [*begins, *ends] else None

"""Turns a float ONNX network (NCHW, batch 1) into a TensorFlow Lite file (NHWC), as a good converter would.

Batch norms become a multiply and an add, and a ReLU or a clamp to +-1 is fused into the operator in front. Only what
our benchmark's networks need is known; anything else raises ``UnsupportedLayer``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import tflite
from onnx import helper, numpy_helper

from benchmarks.tflite_file import TfliteFile
from bitkiln.pipeline.errors import UnsupportedLayer

ACTIVATION = tflite.ActivationFunctionType
#: Operators whose options can name a fused activation.
FUSING = frozenset({"CONV_2D", "ADD", "SUB", "MUL", "FULLY_CONNECTED"})


def convert(model: onnx.ModelProto) -> bytes:
    """The network as a ``.tflite`` file; ``model`` carries inferred shapes."""
    return _Converter(model.graph).convert()


class _Converter:
    """Maps every value of the ONNX graph to a tensor of the file, node by node."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph, self.file = graph, TfliteFile()
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        values = [*graph.input, *graph.value_info, *graph.output]
        self.shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        self.readers = [name for node in graph.node for name in node.input]
        self.tensors: dict[str, int] = {}

    def convert(self) -> bytes:
        inputs = [value.name for value in self.graph.input if value.name not in self.constants]
        self.tensors[inputs[0]] = source = self.file.tensor(self.shape(inputs[0]))
        for node in self.graph.node:
            method: Callable | None = getattr(self, f"_{node.op_type}", None)
            if method is None:
                raise UnsupportedLayer(f"node {node.name or node.output[0]} ({node.op_type}) has no LiteRT form here")
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            self.tensors[node.output[0]] = method(node, **attributes)
        return self.file.write(source, self.tensors[self.graph.output[0].name])

    def shape(self, name: str) -> list[int]:
        """Of an ONNX value, in the file's order."""
        return nhwc(self.shapes[name])

    def operand(self, name: str) -> int:
        """The tensor of a value; a constant that broadcasts over NCHW is turned to broadcast over NHWC."""
        if name not in self.constants:
            return self.tensors[name]
        values = self.constants[name].astype(np.float32)
        return self.file.constant(values.transpose(1, 2, 0) if values.ndim == 3 else values)

    def unary(self, node: onnx.NodeProto, name: str, table: str = "", **options: float) -> int:
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
        if not of_source or last.options.get("FusedActivationFunction"):
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

    def _Conv(
        self,
        node: onnx.NodeProto,
        kernel_shape: list[int],
        strides: tuple[int, ...] = (1, 1),
        pads: tuple[int, ...] = (0, 0, 0, 0),
        dilations: tuple[int, ...] = (1, 1),
        group: int = 1,
    ) -> int:
        if group != 1 or list(dilations) != [1, 1]:
            raise UnsupportedLayer(f"node {node.name or node.output[0]} (Conv): groups or dilation have no LiteRT form")
        source, shape = self.tensors[node.input[0]], self.shape(node.input[0])
        padding = padding_of(shape, kernel_shape, strides, pads)
        if padding is None:
            source, padding = self.padded(source, shape, list(pads)), tflite.Padding.VALID
        weight = self.constants[node.input[1]].transpose(0, 2, 3, 1)
        bias = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight), np.float32)
        inputs = [source, self.file.constant(weight), self.file.constant(bias)]
        options = {"Padding": padding, "StrideH": strides[0], "StrideW": strides[1], "FusedActivationFunction": 0}
        return self.file.operator("CONV_2D", inputs, self.shape(node.output[0]), "Conv2DOptions", **options)

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
        options = {"Padding": padding, "StrideH": strides[0], "StrideW": strides[1]}
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
        options = {"FusedActivationFunction": 0}
        return self.file.operator(
            "FULLY_CONNECTED", inputs, self.shape(node.output[0]), "FullyConnectedOptions", **options
        )

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
        if [self.constants[name].item() for name in node.input[1:]] != [-1, 1]:
            raise UnsupportedLayer(f"node {node.name or node.output[0]} (Clip): only -1..1 has a LiteRT form here")
        fused = self.fused(node, ACTIVATION.RELU_N1_TO_1)
        return fused if fused is not None else self.unary(node, "RELU_N1_TO_1")

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
    return [shape[0], shape[2], shape[3], shape[1]] if len(shape) == 4 else list(shape)


def padding_of(shape: list[int], kernel: list[int], strides: tuple[int, ...], pads: tuple[int, ...]) -> int | None:
    """The schema's word for ``pads`` (top, left, bottom, right) on an NHWC image; None where it has none."""
    if not any(pads):
        return tflite.Padding.VALID
    same = []
    for size, window, stride in zip(shape[1:3], kernel, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        same.append((total // 2, total - total // 2))
    begins, ends = zip(*same, strict=True)
    return tflite.Padding.SAME if list(pads) == [*begins, *ends] else None

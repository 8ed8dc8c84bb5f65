"""Builds float ONNX networks, NCHW and batch 1, node by node, with random seeded weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Nodes in the order they are added; values are named, and ``shapes`` has theirs. The input is ``self.input``.

    With ``same``, windows of stride 2 pad as TensorFlow's SAME does (bottom and right first), else by half a window on each
    side: formats that know no other padding need it. It is as much work, of other windows.
    """

    def __init__(self, shape: tuple[int, int, int, int], seed: int, same: bool = False) -> None:
        self.input, self.same = "input", same
        self.shapes: dict[str, tuple[int, ...]] = {self.input: shape}
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def channels(self, x: str) -> int:
        """Of a value."""
        return self.shapes[x][1]

    def add(
        self,
        op: str,
        inputs: str | Sequence[str],
        *operands: np.ndarray | np.generic,
        shape: Sequence[int] = (),
        **attributes: object,
    ) -> str:
        """A node that takes ``inputs``, then ``operands`` as constants; its result has the first input's shape or ``shape``."""
        result = f"{op.lower()}{len(self.nodes)}"
        names = [f"{result}.{i}" for i in range(len(operands))]
        self.constants += [numpy_helper.from_array(np.asarray(o), n) for o, n in zip(operands, names, strict=True)]
        sources = [inputs] if isinstance(inputs, str) else list(inputs)
        self.nodes.append(helper.make_node(op, [*sources, *names], [result], name=result, **attributes))
        self.shapes[result] = tuple(shape) or self.shapes[sources[0]]
        return result

    def conv(
        self,
        x: str,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        groups: int = 1,
        binary: bool = False,
        bias: bool = True,
        gain: float = 1.0,
    ) -> str:
        """``gain`` scales the weights, which without it keep the variance of what they are applied to."""
        inputs = self.channels(x) // groups
        weight = self.normal((out_channels, inputs, kernel, kernel), gain * (2 / (inputs * kernel * kernel)) ** 0.5)
        if binary:
            weight = np.where(weight > 0, 1, -1).astype(np.float32)
        operands = [weight, self.normal((out_channels,))] if bias else [weight]
        pads = self.pads(x, kernel, stride)
        attributes: dict[str, object] = {"strides": [stride, stride]} if stride > 1 else {}
        attributes |= {"group": groups} if groups > 1 else {}
        shape = (1, out_channels, *self._windows(x, kernel, stride, pads))
        return self.add("Conv", x, *operands, shape=shape, kernel_shape=[kernel, kernel], pads=pads, **attributes)

    def depthwise(self, x: str, kernel: int = 3, stride: int = 1) -> str:
        """A convolution of each channel by itself."""
        return self.conv(x, self.channels(x), kernel, stride, groups=self.channels(x))

    def transposed(self, x: str, out_channels: int) -> str:
        """A transposed convolution of 2x2 and stride 2."""
        _, channels, height, width = self.shapes[x]
        weight = self.normal((channels, out_channels, 2, 2), channels**-0.5)
        shape = (1, out_channels, 2 * height, 2 * width)
        attributes = {"kernel_shape": [2, 2], "strides": [2, 2]}
        return self.add("ConvTranspose", x, weight, self.normal((out_channels,)), shape=shape, **attributes)

    def dense(self, x: str, outputs: int) -> str:
        """A fully connected layer."""
        inputs = self.shapes[x][1]
        weight = self.normal((outputs, inputs), inputs**-0.5)
        return self.add("Gemm", x, weight, self.normal((outputs,)), shape=(1, outputs), transB=1)

    def batch_norm(self, x: str, scale: float = 1.0) -> str:
        """``scale`` multiplies the result."""
        channels = (self.channels(x),)
        gamma = self.random.uniform(0.5, 1.5, channels).astype(np.float32) * np.float32(scale)
        beta = self.normal(channels) * np.float32(scale)
        mean, variance = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        return self.add("BatchNormalization", x, gamma, beta, mean, variance, epsilon=0.0)

    def prelu(self, x: str) -> str:
        """Slopes per channel."""
        return self.add("PRelu", x, self.random.uniform(0.05, 0.5, (self.channels(x), 1, 1)).astype(np.float32))

    def clip(self, x: str, low: float, high: float) -> str:
        """A clamp."""
        return self.add("Clip", x, np.float32(low), np.float32(high))

    def pool(self, x: str, kernel: int, stride: int = 2, kind: str = "MaxPool", *, padded: bool = True) -> str:
        """A window of odd size pads by half of it if ``padded``, one of even size never."""
        pads = self.pads(x, kernel, stride) if kernel % 2 and padded else [0] * 4
        shape = (1, self.channels(x), *self._windows(x, kernel, stride, pads))
        return self.add(kind, x, shape=shape, kernel_shape=[kernel, kernel], strides=[stride, stride], pads=pads)

    def global_pool(self, x: str) -> str:
        """The average over the whole image."""
        return self.add("GlobalAveragePool", x, shape=(1, self.channels(x), 1, 1))

    def flatten(self, x: str) -> str:
        """One row."""
        return self.add("Flatten", x, shape=(1, int(np.prod(self.shapes[x]))), axis=1)

    def concat(self, *values: str) -> str:
        """Side by side in channels."""
        shape = (1, sum(map(self.channels, values)), *self.shapes[values[0]][2:])
        return self.add("Concat", values, shape=shape, axis=1)

    def halves(self, x: str) -> tuple[str, str]:
        """The first and the second half of the channels."""
        half = self.channels(x) // 2
        first = self.add("Split", x, np.array([half, half], np.int64), shape=(1, half, *self.shapes[x][2:]), axis=1)
        second = f"{first}.second"
        self.nodes[-1].output.append(second)
        self.shapes[second] = self.shapes[first]
        return first, second

    def shuffle(self, x: str, groups: int) -> str:
        """Interleave the channels of ``groups`` groups."""
        _, channels, height, width = shape = self.shapes[x]
        for op, split in (("Reshape", (groups, channels // groups)), ("Transpose", (channels // groups, groups))):
            size = (1, *split, height, width)
            constants = [np.array(size, np.int64)] if op == "Reshape" else []
            x = self.add(op, x, *constants, shape=size, **({} if constants else {"perm": [0, 2, 1, 3, 4]}))
        return self.add("Reshape", x, np.array(shape, np.int64), shape=shape)

    def doubled(self, x: str) -> str:
        """Each pixel four times."""
        _, channels, height, width = self.shapes[x]
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.add(
            "Resize", [x, ""], np.array([1, 1, 2, 2], np.float32), shape=(1, channels, 2 * height, 2 * width), **how
        )

    def pads(self, x: str, kernel: int, stride: int) -> list[int]:
        """Top, left, bottom, right: so many that the image keeps its size, or the part that the stride leaves of it."""
        total = max(kernel - stride + (-self.shapes[x][2] % stride), 0) if self.same else (kernel - 1) // 2 * 2
        return [total // 2] * 2 + [total - total // 2] * 2

    def _windows(self, x: str, kernel: int, stride: int, pads: Sequence[int]) -> list[int]:
        top, left, bottom, right = pads
        sums = zip(self.shapes[x][2:], (top + bottom, left + right), strict=True)
        return [(size + padding - kernel) // stride + 1 for size, padding in sums]

    def normal(self, shape: tuple[int, ...], deviation: float = 0.1) -> np.ndarray:
        """Random float32 values."""
        return (self.random.standard_normal(shape) * deviation).astype(np.float32)

    def model(self, name: str, *outputs: str) -> onnx.ModelProto:
        """The network, shapes inferred; its output is the last node's result, or ``outputs``."""
        results = outputs or (self.nodes[-1].output[0],)
        values = [helper.make_tensor_value_info(result, TensorProto.FLOAT, None) for result in results]
        source = helper.make_tensor_value_info(self.input, TensorProto.FLOAT, self.shapes[self.input])
        graph = helper.make_graph(self.nodes, name, [source], values, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)

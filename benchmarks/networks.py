"""The networks and layers that are measured, in the form every engine can take: float ONNX models, NCHW, batch 1.

A binarised layer is written as the float operations that compute the same values: its weights are +-1, and the sign
before it is ``clip(1e30 * x, -1, 1)``, with the factor folded into the batch norm in front, so that it costs an engine one
clamp. Its slopes of PReLU are per channel (the card's network has one per element, which is more work, and no engine but
onnxruntime can run it). Batch norms that follow a convolution directly are folded into it. All of this helps the engines
that we are compared with. Weights are random and seeded: no engine's time depends on them.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bitkiln.pipeline.errors import ModelError

#: Makes ``clip(x * STEEP, -1, 1)`` the sign of every x that is not denormally small.
STEEP = 1e30
#: Brings the last layer's results to a few units: a softmax that is not saturated shows an engine's errors.
LOGIT_GAIN = 0.02


@dataclass(frozen=True)
class Work:
    """Something to measure: a whole network or a single layer.

    ``onnx(same_pools)`` builds it as float ONNX; with ``same_pools`` 3x3 max pools of stride 2 pad like TensorFlow's SAME
    (bottom and right first), for formats that know no other padding of pools: as much work, other windows.
    ``model`` is what our own compiler takes: a built-in name, a file, or "" for a single layer.
    """

    name: str
    onnx: Callable[[bool], onnx.ModelProto]
    model: str = ""
    layer: Layer | None = None

    def input(self, model: onnx.ModelProto) -> np.ndarray:
        """A seeded input of ``model``: an image of 0..255, or the +-1 that a binary layer expects."""
        shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        image = np.random.default_rng(4).uniform(0, 255, shape).astype(np.float32)
        return np.where(image > 127, 1, -1).astype(np.float32) if self.layer and self.layer.binary else image


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution of stride 1 with padding 1 on a square image; float ones end in ReLU."""

    channels: int
    out_channels: int
    size: int
    binary: bool

    @property
    def name(self) -> str:
        """As the table names it."""
        kind = "binary" if self.binary else "float"
        return f"{kind} conv 3x3 {self.channels}->{self.out_channels}@{self.size}"


LAYERS = (
    Layer(64, 64, 56, binary=True),
    Layer(128, 128, 28, binary=True),
    Layer(256, 256, 14, binary=True),
    Layer(512, 512, 7, binary=True),
    Layer(512, 1024, 4, binary=True),
    Layer(64, 64, 56, binary=False),
    Layer(16, 64, 112, binary=False),
    Layer(3, 16, 224, binary=False),
)


#: A binary network with real weights that is no part of this repository.
TRAINED = Path(__file__).parents[2] / "shared/models/onnx/imagenet_resnet18_w1a1.onnx.xz"


class _Graph:
    """Appends layers to a chain of ONNX nodes; ``shape`` is that of the chain's end, NCHW."""

    def __init__(self, shape: tuple[int, int, int, int], seed: int) -> None:
        self.input = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
        self.shape, self.end = shape, "input"
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op: str, *operands: np.ndarray, **attributes: object) -> None:
        """A node that takes the chain's end, then ``operands`` as constants."""
        result = f"{op.lower()}{len(self.nodes)}"
        names = [f"{result}.{i}" for i in range(len(operands))]
        self.constants += [numpy_helper.from_array(o, n) for o, n in zip(operands, names, strict=True)]
        self.nodes.append(helper.make_node(op, [self.end, *names], [result], name=result, **attributes))
        self.end = result

    def conv(
        self, out_channels: int, kernel: int = 3, *, binary: bool = False, bias: bool = True, gain: float = 1.0
    ) -> None:
        """``gain`` scales the weights, which without it keep the variance of what they are applied to."""
        channels = self.shape[1]
        deviation = gain * (2 / (channels * kernel * kernel)) ** 0.5
        weight = self.normal((out_channels, channels, kernel, kernel), deviation)
        if binary:
            weight = np.where(weight > 0, 1, -1).astype(np.float32)
        operands = [weight, self.normal((out_channels,))] if bias else [weight]
        self.add("Conv", *operands, kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4)
        self.shape = (1, out_channels, *self.shape[2:])

    def batch_norm(self, scale: float = 1.0) -> None:
        """``scale`` multiplies the result."""
        channels = (self.shape[1],)
        gamma = self.random.uniform(0.5, 1.5, channels).astype(np.float32) * np.float32(scale)
        beta = self.normal(channels) * np.float32(scale)
        mean, variance = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        self.add("BatchNormalization", gamma, beta, mean, variance, epsilon=0.0)

    def prelu(self) -> None:
        self.add("PRelu", self.random.uniform(0.05, 0.5, (self.shape[1], 1, 1)).astype(np.float32))

    def pool(self, kernel: int, kind: str = "MaxPool", *, same: bool = False) -> None:
        """Halves the image; a 3x3 window pads by one, on both sides or, with ``same``, as TensorFlow does."""
        odd = self.shape[2] % 2
        pads = [0] * 4 if kernel == 2 else [0, 0, 1, 1] if same and not odd else [1] * 4
        self.add(kind, kernel_shape=[kernel, kernel], strides=[2, 2], pads=pads)
        size = (self.shape[2] + pads[0] + pads[2] - kernel) // 2 + 1
        self.shape = (1, self.shape[1], size, size)

    def normal(self, shape: tuple[int, ...], deviation: float = 0.1) -> np.ndarray:
        return (self.random.standard_normal(shape) * deviation).astype(np.float32)

    def model(self, name: str) -> onnx.ModelProto:
        output = helper.make_tensor_value_info(self.end, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, name, [self.input], [output], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def card_float(same_pools: bool = False) -> onnx.ModelProto:
    """ELL's float gallery network: seven blocks of convolution, batch norm, leaky ReLU and pool; 256x256."""
    del same_pools  # It has no 3x3 pool.
    graph = _Graph((1, 3, 256, 256), seed=1)
    for channels in (16, 32, 64, 128, 256, 512, 1024):
        graph.conv(channels)
        graph.add("LeakyRelu", alpha=0.1)
        graph.pool(2)
    graph.conv(1000, kernel=1, gain=LOGIT_GAIN)
    graph.add("LeakyRelu", alpha=0.1)
    graph.pool(2, "AveragePool")
    graph.add("Flatten", axis=1)
    graph.add("Softmax", axis=1)
    return graph.model("card-float")


def card_binary(same_pools: bool = False) -> onnx.ModelProto:
    """ELL's binarised gallery network: two float blocks, five binary ones, a float tail; 224x224."""
    graph = _Graph((1, 3, 224, 224), seed=2)
    graph.add("Sub", np.float32(114))
    for channels in (16, 64):
        graph.conv(channels)
        graph.add("Relu")
        graph.batch_norm(scale=STEEP if channels == 64 else 1)
        graph.pool(2)
    for channels in (64, 128, 256, 512, 1024):
        graph.add("Clip", np.float32(-1), np.float32(1))
        graph.conv(channels, binary=True)
        graph.prelu()
        graph.pool(3, same=same_pools)
        graph.batch_norm(scale=STEEP if channels < 1024 else 1)
    graph.conv(1000, kernel=1, gain=LOGIT_GAIN)
    graph.pool(2, "AveragePool")
    graph.add("Flatten", axis=1)
    graph.add("Softmax", axis=1)
    return graph.model("card-binary")


def single(layer: Layer) -> onnx.ModelProto:
    """One layer; a binary one from and to float, its input already +-1."""
    graph = _Graph((1, layer.channels, layer.size, layer.size), seed=3)
    graph.conv(layer.out_channels, binary=layer.binary, bias=not layer.binary)
    if not layer.binary:
        graph.add("Relu")
    return graph.model(layer.name)


def from_file(path: Path) -> Work:
    """A user's ``.onnx`` file, ``.xz`` allowed; named after it."""
    name = path.name.removesuffix(".xz").removesuffix(".onnx")
    return Work(name, lambda same_pools: _read(path), model=str(path))


def _read(path: Path) -> onnx.ModelProto:
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(lzma.decompress(data) if path.suffix == ".xz" else data)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # onnx raises protobuf's own errors, lzma its own.
        raise ModelError(f"{path}: not an ONNX model: {str(error).splitlines()[0]}") from error


def known() -> list[Work]:
    """Both cards' networks, the trained ResNet-18 if the models are beside the repository, then the single layers."""
    networks = [Work("card-binary", card_binary, "card-binary"), Work("card-float", card_float, "card-float")]
    trained = [from_file(TRAINED)] if TRAINED.exists() else []
    return (
        networks + trained + [Work(layer.name, lambda _, layer=layer: single(layer), layer=layer) for layer in LAYERS]
    )

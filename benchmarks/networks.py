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
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from benchmarks.graph import Graph
from benchmarks.zoo import ZOO
from bitkiln.pipeline.errors import ModelError

#: Makes ``clip(x * STEEP, -1, 1)`` the sign of every x that is not denormally small.
STEEP = 1e30
#: Brings the last layer's results to a few units: a softmax that is not saturated shows an engine's errors.
LOGIT_GAIN = 0.02


@dataclass(frozen=True)
class Work:
    """Something to measure: a whole network or a single layer.

    ``onnx(same)`` builds it as float ONNX; with ``same`` windows of stride 2 pad like TensorFlow's SAME, as in Graph.
    ``model`` is what our own compiler takes: a built-in name or a file; "" for a single layer, and where it takes the ONNX.
    """

    name: str
    onnx: Callable[[bool], ModelProto]
    model: str = ""
    layer: Layer | None = None

    def input(self, model: ModelProto) -> np.ndarray:
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


def card_float(same: bool = False) -> ModelProto:
    """ELL's float gallery network: seven blocks of convolution, batch norm, leaky ReLU and pool; 256x256."""
    graph = Graph((1, 3, 256, 256), seed=1, same=same)
    x = graph.input
    for channels in (16, 32, 64, 128, 256, 512, 1024):
        x = graph.pool(graph.add("LeakyRelu", graph.conv(x, channels), alpha=0.1), 2)
    x = graph.pool(graph.add("LeakyRelu", graph.conv(x, 1000, 1, gain=LOGIT_GAIN), alpha=0.1), 2, kind="AveragePool")
    graph.add("Softmax", graph.flatten(x), axis=1)
    return graph.model("card-float")


def card_binary(same: bool = False) -> ModelProto:
    """ELL's binarised gallery network: two float blocks, five binary ones, a float tail; 224x224."""
    graph = Graph((1, 3, 224, 224), seed=2, same=same)
    x = graph.add("Sub", graph.input, np.float32(114))
    for channels in (16, 64):
        x = graph.add("Relu", graph.conv(x, channels))
        x = graph.pool(graph.batch_norm(x, scale=STEEP if channels == 64 else 1), 2)
    for channels in (64, 128, 256, 512, 1024):
        x = graph.prelu(graph.conv(graph.clip(x, -1, 1), channels, binary=True))
        x = graph.batch_norm(graph.pool(x, 3), scale=STEEP if channels < 1024 else 1)
    x = graph.pool(graph.conv(x, 1000, 1, gain=LOGIT_GAIN), 2, kind="AveragePool")
    graph.add("Softmax", graph.flatten(x), axis=1)
    return graph.model("card-binary")


def single(layer: Layer) -> ModelProto:
    """One layer; a binary one from and to float, its input already +-1."""
    graph = Graph((1, layer.channels, layer.size, layer.size), seed=3)
    x = graph.conv(graph.input, layer.out_channels, binary=layer.binary, bias=not layer.binary)
    if not layer.binary:
        graph.add("Relu", x)
    return graph.model(layer.name)


def from_file(path: Path) -> Work:
    """A user's ``.onnx`` file, ``.xz`` allowed; named after it."""
    name = path.name.removesuffix(".xz").removesuffix(".onnx")
    return Work(name, lambda same: _read(path), model=str(path))


def _read(path: Path) -> ModelProto:
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(lzma.decompress(data) if path.suffix == ".xz" else data)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # onnx raises protobuf's own errors, lzma its own.
        raise ModelError(f"{path}: not an ONNX model: {str(error).splitlines()[0]}") from error


def _alone(layer: Layer, same: bool) -> ModelProto:
    """``single`` in the form that a Work takes: a single layer pads one way only."""
    return single(layer)


def known() -> list[Work]:
    """Both cards' networks, the trained ResNet-18 if the models are beside the repository, the zoo, then the single layers."""
    networks = [Work("card-binary", card_binary, "card-binary"), Work("card-float", card_float, "card-float")]
    trained = [from_file(TRAINED)] if TRAINED.exists() else []
    zoo = [Work(name, build) for name, build in ZOO.items()]
    layers = [Work(layer.name, partial(_alone, layer), layer=layer) for layer in LAYERS]
    return networks + trained + zoo + layers

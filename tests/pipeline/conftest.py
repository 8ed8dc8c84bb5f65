"""A small network, compiled once, for everything that handles bundles."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline.bundle import Bundle, open_bundle
from bitkiln.pipeline.compile import compile_lowered
from bitkiln.pipeline.model import Model, Preprocessing, TensorSpec
from bitkiln.targets import Target

SHAPE = (1, 4, 4, 3)


class NoRecords:
    """Nothing was ever tuned."""

    def best(self, workload: str, target: Target, threads: int) -> None:
        """Nothing is known."""


def toy_module() -> tvm.IRModule:
    """x[1,4,4,3] -> relu(x) + [1,2,3] -> flatten -> (softmax, the flattened itself)."""
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            relu = builder.emit(relax.op.nn.relu(x))
            added = builder.emit(relax.op.add(relu, relax.const(np.array([1, 2, 3], "float32"))))
            flat = builder.emit(relax.op.reshape(added, (1, 48)))
            softmax = builder.emit(relax.op.nn.softmax(flat))
            result = builder.emit_output(relax.Tuple([softmax, flat]))
        builder.emit_func_output(result)
    return relax.transform.LegalizeOps()(builder.get())


@pytest.fixture(scope="session")
def toy_answer() -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """What ``toy_module`` computes."""

    def answer(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flat = (np.maximum(x, 0) + np.array([1, 2, 3], "float32")).reshape(1, 48)
        powers = np.exp(flat - flat.max())
        return powers / powers.sum(), flat

    return answer


@pytest.fixture(scope="session")
def toy() -> Model:
    """The small network as an importer would give it: an image classifier with 48 classes."""
    return Model(
        name="toy",
        module=toy_module(),
        inputs=(TensorSpec("x", SHAPE, layout="NHWC"),),
        outputs=(TensorSpec("scores", (1, 48)), TensorSpec("flat", (1, 48))),
        source_digest="0" * 64,
        preprocessing=Preprocessing(height=4, width=4, mean=(127.5, 100.0, 90.0), scale=(0.01, 0.02, 0.015)),
        labels=tuple(f"thing {index}" for index in range(48)),
    )


@pytest.fixture(scope="session")
def no_records() -> NoRecords:
    """Records of somebody who never tuned anything."""
    return NoRecords()


@pytest.fixture(scope="session")
def compiled_toy(tmp_path_factory: pytest.TempPathFactory, toy: Model, no_records: NoRecords) -> Path:
    """Its bundle for rasp3b; not to be altered."""
    folder = tmp_path_factory.mktemp("compiled") / "toy"
    compile_lowered(toy, toy.module, targets.load("rasp3b"), no_records, folder)
    return folder


@pytest.fixture
def toy_bundle(compiled_toy: Path, tmp_path: Path) -> Bundle:
    """A copy of the bundle that a test may alter."""
    shutil.copytree(compiled_toy, tmp_path / "toy")
    return open_bundle(tmp_path / "toy")


@pytest.fixture(scope="session")
def toy_input() -> np.ndarray:
    """An input of the small network."""
    return np.random.default_rng(1).normal(size=SHAPE).astype("float32")

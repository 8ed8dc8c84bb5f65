"""A small classifier of images, built once."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline import schema
from bitkiln.pipeline.compile import compile_model
from bitkiln.pipeline.model import Candidates, Head, Model, Preprocessing, TensorSpec
from bitkiln.pipeline.records import Records
from bitkiln.pipeline.verdict.build import Wanted, build
from tests.pipeline.verify.fakes import small_model

UNTUNED = Wanted(targets.load("rasp3b"), trials=None)


@pytest.fixture(scope="session")
def classifier() -> Model:
    """8 x 8 pixels to ten classes, partly on bits."""
    how = Preprocessing(8, 8, mean=(128.0,) * 3, scale=(1 / 64,) * 3)
    return replace(small_model(), preprocessing=how, labels=tuple(f"thing {index}" for index in range(10)))


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a network that finds boxes of two classes on 16 x 16 pixels: three anchors in each of 4 x 4 cells."""
    rng = np.random.default_rng(6)
    x = relax.Var("x", relax.TensorType((1, 16, 16, 3), "float32"))
    weight = relax.const(rng.standard_normal((21, 4, 4, 3)).astype("float32") * 0.3)
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            layouts = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}
            cells = builder.emit(relax.op.nn.conv2d(x, weight, strides=4, **layouts), "cells")
            planes = builder.emit_output(builder.emit(relax.op.permute_dims(cells, (0, 3, 1, 2)), "planes"))
        builder.emit_func_output(planes)
    anchors = ((6.0, 5.0), (3.0, 9.0), (10.0, 10.0))
    part = Candidates("y", "y", "planes", "cell-exp", activation="sigmoid", anchors=anchors, grid=(4, 4))
    model = Model(
        "finder", relax.transform.Normalize()(builder.finalize()),
        (TensorSpec("x", (1, 16, 16, 3), layout="NHWC"),), (TensorSpec("y", (1, 21, 4, 4)),), "1" * 64,
        preprocessing=Preprocessing(16, 16, mean=(128.0,) * 3, scale=(1 / 64,) * 3), labels=("cup", "cat"),
        head=Head("detect", "test", 2, (part,), objectness=True, threshold=0.3),
    )  # fmt: skip
    return compile_model(model, UNTUNED.target, Records([]), tmp_path_factory.mktemp("detector") / "finder")


@pytest.fixture(scope="session")
def built(classifier: Model, tmp_path_factory: pytest.TempPathFactory) -> schema.Build:
    """Its build; not to be altered."""
    folder = tmp_path_factory.mktemp("built") / "small"
    return build(classifier, None, folder, UNTUNED, Console(file=io.StringIO()))


@pytest.fixture(scope="session")
def bundle(built: schema.Build) -> Path:
    """Its bundle; not to be altered."""
    return Path(built["bundle"])

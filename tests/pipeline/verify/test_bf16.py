"""Bundles whose large weights were rounded to bfloat16: right by themselves, and how far from the file is said."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline.bundle import open_bundle
from bitkiln.pipeline.compile import compile_model
from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.model import Model, TensorSpec
from bitkiln.pipeline.verify import verify_bundle
from bitkiln.pipeline.verify.rivals import IMPORTED, REFERENCE


@pytest.fixture(scope="module")
def model() -> Model:
    """A dense layer of 600 kB of weights."""
    weights = np.random.default_rng(0).normal(size=(384, 400)).astype("float32")
    x = relax.Var("x", relax.TensorType((1, 384), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(relax.op.matmul(x, relax.const(weights)), "scores"))
        builder.emit_func_output(result)
    module = relax.transform.Normalize()(builder.finalize())
    return Model("dense", module, (TensorSpec("x", (1, 384)),), (TensorSpec("y", (1, 400)),), "0" * 64)


def test_what_rounding_changes_is_said(model, tmp_path, no_records):
    rasp3b = targets.load("rasp3b")
    whole = compile_model(model, rasp3b, no_records, tmp_path / "whole")
    rounded = compile_model(model, rasp3b, no_records, tmp_path / "rounded", bf16=True)
    sizes = [open_bundle(each).manifest["files"]["model.so"]["size"] for each in (whole, rounded)]
    assert sizes[0] - sizes[1] > 2 * 384 * 400 * 0.95
    report = verify_bundle(rounded, model)
    assert report.passed
    by_engine = {decision.against: decision for decision in report.decisions}
    assert by_engine[REFERENCE].error < 1e-6
    assert 1e-4 < by_engine[IMPORTED].error < 1e-2
    assert "bfloat16" in by_engine[IMPORTED].why
    assert not any(decision.why for decision in verify_bundle(whole, model).decisions)


def test_targets_without_kernels_for_it_are_refused(model, tmp_path, no_records):
    with pytest.raises(ModelError, match="rasp3b32"):
        compile_model(model, targets.load("rasp3b32"), no_records, tmp_path / "bundle", bf16=True)
    assert not (tmp_path / "bundle").exists()

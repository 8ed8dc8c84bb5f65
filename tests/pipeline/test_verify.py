"""Verification finds what differs, names the step, and is not misled by rounding."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline import ops, reference
from bitkiln.pipeline import verify as verifying
from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.errors import VerifyError
from bitkiln.pipeline.model import Model, Preprocessing, TensorSpec
from bitkiln.pipeline.passes.graph import bindings, op_name
from bitkiln.pipeline.passes.lower import lower
from bitkiln.pipeline.verify import Report, compare_outputs, compare_steps, make_inputs, print_report

op, nn = relax.op, relax.op.nn
RNG = np.random.default_rng(2)


def normal(*shape):
    return relax.const(RNG.standard_normal(shape).astype("float32"))


@pytest.fixture(scope="module")
def model():
    """A float stem, two binary layers (one with a pooling), a dense layer and softmax, NHWC."""
    x = relax.Var("x", relax.TensorType((1, 8, 8, 3), "float32"))
    builder = relax.BlockBuilder()

    def conv(x, channels, outs, name):
        weight = normal(outs, 3, 3, channels)
        call = nn.conv2d(x, weight, padding=1, data_layout="NHWC", kernel_layout="OHWI", out_layout="NHWC")
        return builder.emit(op.add(builder.emit(call), normal(outs)), name)

    def binary(x, channels, outs, name):
        weight = relax.const(ops.pack_bits(RNG.choice([-1, 1], (outs, 3, 3, channels))), "uint8")
        bits = builder.emit(ops.binarize(x), f"{name}_bits")
        return builder.emit(ops.bconv2d(bits, weight, channels=channels, padding=(1, 1, 1, 1)), name)

    with builder.function("main", [x]):
        with builder.dataflow():
            stem = conv(x, 3, 16, "stem")
            first = binary(stem, 16, 24, "first")
            pooled = builder.emit(nn.max_pool2d(first, (2, 2), (2, 2), layout="NHWC", out_layout="NHWC"), "pooled")
            second = binary(builder.emit(op.add(pooled, normal(24)), "norm"), 24, 16, "second")
            row = builder.emit(op.reshape(builder.emit(nn.relu(second), "relu"), (1, 256)), "row")
            logits = builder.emit(op.matmul(row, normal(256, 10)), "logits")
            result = builder.emit_output(builder.emit(nn.softmax(logits, 1), "softmax"))
        builder.emit_func_output(result)
    specs = (TensorSpec("x", (1, 8, 8, 3), layout="NHWC"),), (TensorSpec("y", (1, 10)),)
    return Model("test", relax.transform.Normalize()(builder.finalize()), *specs, "0" * 64)


@pytest.fixture(scope="module")
def lowered(model):
    return lower(model, targets.load("rasp3b"))


@pytest.fixture
def trace(model, lowered):
    """What a faithful board would give: every step's result."""
    inputs = make_inputs(model)
    steps = [name for name, _ in steps_of(lowered)]
    thresholds = lowered.phases["thresholds"]
    return {**inputs, **reference.evaluate(thresholds, inputs, steps)}


def steps_of(lowered):
    names = [(name, op_name(value)) for name, value in bindings(lowered.module["main"])]
    return [(name, "kernel") for name, operator in names if operator == "call_tir"]


def test_faithful_network_passes(lowered, trace):
    rows = compare_steps(lowered, steps_of(lowered), trace)
    assert all(row.passed for row in rows)
    assert {row.name for row in rows} >= {"first_bits", "second_bits", "logits", "softmax"} - {"softmax"}
    assert [row.exact for row in rows][:1] == [True]


def test_bits_before_a_pooling_are_checked_with_it(lowered, trace):
    unpooled = next(name for name, _ in steps_of(lowered) if name.endswith(".unpooled"))
    rows = {row.name: row for row in compare_steps(lowered, steps_of(lowered), trace)}
    assert unpooled not in rows
    trace["second_bits"] = trace["second_bits"] ^ np.uint8(1)
    rows = {row.name: row for row in compare_steps(lowered, steps_of(lowered), trace)}
    assert rows["second_bits"].wrong == trace["second_bits"].size
    assert not rows["second_bits"].passed


def test_only_the_wrong_step_is_blamed(lowered, trace):
    """What follows is computed from what the wrong step gave, and is right about it."""
    trace["relu"] = trace["relu"] + np.float32(1)
    failed = [row.name for row in compare_steps(lowered, steps_of(lowered), trace) if not row.passed]
    assert failed == ["relu", "logits"]  # logits was traced from the right one.


def test_rounding_of_floats_passes_and_more_does_not(lowered, trace):
    size = np.abs(trace["logits"]).max()
    trace["logits"] = trace["logits"] + np.float32(5e-5) * size
    rows = {row.name: row for row in compare_steps(lowered, steps_of(lowered), trace)}
    assert rows["logits"].passed
    trace["logits"] = trace["logits"] + np.float32(5e-4) * size
    rows = {row.name: row for row in compare_steps(lowered, steps_of(lowered), trace)}
    assert not rows["logits"].passed


def test_nan_fails(lowered, trace):
    trace["logits"] = np.full_like(trace["logits"], np.nan)
    rows = {row.name: row for row in compare_steps(lowered, steps_of(lowered), trace)}
    assert not rows["logits"].passed


def test_signs_of_floats_near_zero_are_undecided(model, lowered, trace):
    """The stem's bits may differ where the float is next to zero, and nowhere else."""
    stem = reference.evaluate(lowered.graph, make_inputs(model), ["stem"])["stem"]
    order = np.argsort(np.abs(stem).reshape(-1))
    flipped = np.unpackbits(trace["first_bits"].reshape(-1), bitorder="little")
    far = flipped.copy()
    far[order[-1]] ^= 1
    trace["first_bits"] = np.packbits(far, bitorder="little").reshape(trace["first_bits"].shape)
    row = compare_steps(lowered, steps_of(lowered), trace)[0]
    assert (row.wrong, row.undecided, row.passed) == (1, 0, False)
    nearest = np.abs(stem).min()
    if nearest <= 1e-4 * np.abs(stem).max():
        flipped[order[0]] ^= 1
        trace["first_bits"] = np.packbits(flipped, bitorder="little").reshape(trace["first_bits"].shape)
        row = compare_steps(lowered, steps_of(lowered), trace)[0]
        assert (row.wrong, row.undecided, row.passed) == (1, 1, True)


def test_decisions_and_report(model, lowered, trace):
    inputs = make_inputs(model)
    (expected,) = reference.run(lowered.graph, inputs)
    rows = tuple(compare_steps(lowered, steps_of(lowered), trace))
    good = Report(rows, tuple(compare_outputs(lowered, inputs, [("y", expected)])))
    assert good.passed
    assert good.as_json()["decisions"][0]["top"][0] == int(expected.argmax())
    bad = Report(
        rows, tuple(compare_outputs(lowered, inputs, [("y", np.eye(10, dtype="float32")[[expected.argmin()]])]))
    )
    assert not bad.passed
    text = io.StringIO()
    print_report(bad, Console(file=text, width=200))
    assert "disagrees" in text.getvalue()
    text = io.StringIO()
    print_report(good, Console(file=text, width=200))
    assert "computes what the model says" in text.getvalue()


def test_inputs_look_like_preprocessed_pixels(model):
    how = Preprocessing(8, 8, mean=(100.0, 110.0, 120.0), scale=(0.5, 1.0, 2.0))
    pixels = make_inputs(Model("m", model.module, model.inputs, model.outputs, "0" * 64, how))["x"]
    assert pixels.shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(pixels / np.float32([0.5, 1, 2]) + np.float32([100, 110, 120]) >= 0, True)
    np.testing.assert_array_equal(make_inputs(model)["x"], make_inputs(model)["x"])


def test_bundle_of_another_model_or_version_is_refused(model, lowered, trace, tmp_path, monkeypatch):
    names = [{"name": name, "kind": kind} for name, kind in steps_of(lowered)]
    made_from = {"name": "test", "sha256": model.source_digest}

    def bundle(**changed):
        manifest = {"model": made_from, "target": "rasp3b", "steps": names} | changed
        return Bundle(tmp_path, manifest)

    def verify(**changed):
        monkeypatch.setattr(verifying, "open_bundle", lambda _folder: bundle(**changed))
        return verifying.verify_bundle(tmp_path, model, tracer=lambda _folder, _inputs: trace)

    report = verify()
    assert report.passed
    assert [decision.against for decision in report.decisions] == ["reference"]
    assert [row.name for row in report.rows] == [row["name"] for row in names if ".unpooled" not in row["name"]]
    with pytest.raises(VerifyError, match="another file than test"):
        verify(model={"name": "other", "sha256": "1" * 64})
    with pytest.raises(VerifyError, match="compile it again"):
        verify(steps=[{"name": "something", "kind": "conv2d"}, *names])

"""Faults put into the network that a board computes are named for what they are."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.errors import VerifyError
from bitkiln.pipeline.ir.graph import Graph, array_of, rewrite
from bitkiln.pipeline.verify import verify_bundle
from bitkiln.pipeline.verify.explain import Cause
from bitkiln.pipeline.verify.samples import Sample
from tests.pipeline.verify.fakes import Case, FakeBoard, small_model


@pytest.fixture
def verify(monkeypatch, board):
    """Verify a fake board's bundle against a model, the small one unless given."""

    def run(made: FakeBoard, model=None, **options):
        monkeypatch.setattr("bitkiln.pipeline.verify.open_bundle", lambda _folder: made.bundle)
        return verify_bundle(made.bundle.folder, model or small_model(), tracer=made, **options)

    return run


def with_constants(module: tvm.IRModule, step: str, change) -> tvm.IRModule:
    """The module with the arguments of the operation ``step`` changed: ``change(position, array)`` gives an array."""

    def visit(_graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
        if name != step:
            return None
        args = [
            arg if array_of(arg) is None else relax.const(change(at, array_of(arg).copy()), str(arg.ty.dtype))
            for at, arg in enumerate(value.args)
        ]
        return Call(value.op, args, value.attrs, value.ty_args)

    return rewrite(module, visit)


def damage(made: FakeBoard, step: str, change) -> FakeBoard:
    """Change constants of a step of the network that the board runs."""
    phases = made.lowered.phases | {
        "fold_threshold": with_constants(made.lowered.phases["fold_threshold"], step, change)
    }
    made.lowered = replace(made.lowered, phases=phases)
    return made


def test_the_right_board_agrees(verify, board):
    report = verify(board())
    assert report.passed and report.verdict.startswith("agrees") and report.as_json()["cause"] is None
    assert {decision.against for decision in report.decisions} == {"reference", "model as imported"}


def test_one_weight_bit(verify, board):
    def change(at, array):
        array[(7, 1, 1, 0) if at == 1 else ()] ^= array.dtype.type(1 if at == 1 else 0)
        return array

    report = verify(damage(board(), "second_bits", change))
    (row,) = report.wrong
    assert row.name == "second_bits" and row.cause in (Cause.CHANNELS, Cause.THRESHOLD)
    assert "channel 7" in row.reason and row.worst.index[3] == 7
    assert "first" in row.layers
    assert not report.passed and "first in second_bits" in report.verdict


def test_one_threshold(verify, board):
    def change(at, array):
        if at == 2:
            array[3] += 8
        return array

    report = verify(damage(board(), "second_bits", change))
    (row,) = report.wrong
    assert row.cause == Cause.THRESHOLD and "channel 3" in row.reason
    # The steps behind it are right about what they were given, and so not blamed.
    assert next(each.name for each in report.rows if each.drift > 0) == "second_bits"


def test_one_output_of_a_float_layer(verify, board):
    def change(at, array):
        if at == 1:
            array[4] += 1
        return array

    report = verify(damage(board(), "logits", change))
    (row,) = report.wrong
    assert row.name == "logits" and row.cause == Cause.CHANNELS and "channel 4 of 10" in row.reason
    assert row.differing == 1 and row.worst.index[-1] == 4 and row.worst.actual > row.worst.expected
    assert not report.decisions[0].passed


@pytest.mark.parametrize("pad_value", [-1, 1])
def test_another_padding_is_named(verify, board, pad_value):
    report = verify(board(Case(pad_value=pad_value), source_digest="0" * 64))
    assert report.wrong[0].name == "second_bits"
    assert report.wrong[0].cause == Cause.PADDING
    assert f"pads first with {pad_value:+d}, the model with true zeros" in report.wrong[0].reason


def test_another_sign_of_zero_is_named(verify, board):
    """Sums of an even number of bits are often exactly zero before the third sign."""
    report = verify(board(Case(sign_zero=-1)))
    assert report.wrong and report.wrong[0].cause == Cause.ZERO
    assert "counts zeros before the sign as -1, the model as +1" in report.wrong[0].reason


def test_exact_zeros_that_differ_are_no_rounding(verify, board):
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 3)).astype("float32")
    report = verify(board(Case(sign_zero=-1)), samples=[Sample({"x": x}, "zeros")])
    assert not report.passed


def test_other_weights_of_the_same_layers(verify, board):
    report = verify(board(Case(seed=5), source_digest="1" * 64))
    assert not report.passed and not report.same_file
    assert report.wrong[0].name == "first_bits" and report.wrong[0].cause == Cause.MOST
    assert "other weights than small, first in first_bits" in report.verdict
    assert "compiled from another file" in " ".join(report.reasons())


def test_another_file_with_the_same_network_agrees(verify, board):
    report = verify(board(source_digest="1" * 64))
    assert report.passed and "compiled from another file" in " ".join(report.reasons())


def test_another_shape_is_no_bundle_of_this_model(verify, board):
    made = board(source_digest="1" * 64)
    made.bundle.manifest["inputs"][0]["shape"] = [1, 16, 16, 3]
    report = verify(made)
    assert not report.passed and "1x16x16x3" in report.mismatch and "1x8x8x3" in report.mismatch
    assert "no bundle of small" in report.verdict


def test_other_steps_are_another_network_or_another_version(verify, board):
    made = board(source_digest="1" * 64)
    made.bundle.manifest["steps"].insert(0, {"name": "something", "kind": "conv2d"})
    report = verify(made)
    assert not report.passed and "'something'" in report.mismatch
    made.bundle.manifest["model"]["sha256"] = "0" * 64
    with pytest.raises(VerifyError, match="compile it again"):
        verify(made)


def test_json_is_strict_and_complete(verify, board):
    def change(at, array):
        return array * np.float32("nan") if at == 1 else array

    found = verify(damage(board(), "logits", change)).as_json()
    json.dumps(found, allow_nan=False)
    assert found["passed"] is False and found["first_wrong"] == "logits" and found["cause"] == Cause.NOT_FINITE
    row = next(each for each in found["steps"] if each["name"] == "logits")
    assert row["error"] is None and row["worst"]["actual"] is None and row["layers"][-1] == "logits"

"""Outputs of whole networks against other engines: rounding next to signs and exact zeros excuse what they explain, no more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline import reference
from bitkiln.pipeline.ir.graph import rewrite
from bitkiln.pipeline.model import Model, TensorSpec
from bitkiln.pipeline.passes.pipeline import lower
from bitkiln.pipeline.verify import outputs as judging
from bitkiln.pipeline.verify.outputs import Judge, has_residue
from bitkiln.pipeline.verify.rivals import REFERENCE, Rival, as_imported
from bitkiln.pipeline.verify.samples import make_inputs
from bitkiln.pipeline.verify.zeros import ZeroSigns

op, nn = relax.op, relax.op.nn


def sign_model() -> Model:
    """Sign -> Conv with +-1 weights -> mean -> 8 scores, as ONNX files have it: the sign of 0 is 0."""
    rng = np.random.default_rng(7)
    x = relax.Var("x", relax.TensorType((1, 16, 6, 6), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            sign = builder.emit(op.sign(x), "signs")
            weight = relax.const(rng.choice([-1.0, 1.0], (8, 16, 3, 3)).astype("float32"))
            conv = builder.emit(nn.conv2d(sign, weight, padding=1), "conv")
            result = builder.emit_output(builder.emit(op.mean(conv, [2, 3]), "scores"))
        builder.emit_func_output(result)
    specs = (TensorSpec("x", (1, 16, 6, 6), layout="NCHW"),), (TensorSpec("scores", (1, 8)),)
    return Model("signs", relax.transform.Normalize()(builder.finalize()), *specs, "0" * 64)


@pytest.fixture(scope="module")
def signs():
    return lower(sign_model(), targets.load("rasp3b"))


def judge(lowered, inputs, flips=0, faithful=True) -> tuple[Judge, list]:
    signs, names = ZeroSigns(lowered), reference.output_names(lowered.graph)
    values = reference.evaluate(lowered.graph, inputs, [*signs.sources.values(), *names])
    ours = [("scores", values[name]) for name in names]
    return Judge(lowered, inputs, "numbers", signs, signs.met(values), flips, faithful), ours


def with_zeros(share: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, 16, 6, 6)).astype("float32")
    x[rng.random(x.shape) < share] = 0
    return {"x": x}


def test_exact_zeros_before_signs_are_counted(signs):
    inputs = with_zeros(0.25)
    (found,) = judge(signs, inputs)[0].met
    assert (found.layer, found.count, found.elements) == ("conv", int((inputs["x"] == 0).sum()), 16 * 36)
    assert judge(signs, with_zeros(0))[0].met == []


def test_an_engine_that_follows_the_file_differs_by_the_zeros_alone(signs):
    inputs = with_zeros(0.25)
    judged, ours = judge(signs, inputs)
    letter = as_imported(signs, inputs)
    (decision,) = judged.decide(ours, Rival("onnxruntime", letter))
    assert decision.error > 1e-2 and decision.passed and "exact zeros" in decision.why


def test_exact_zeros_excuse_nothing_else(signs):
    """Though the first choice is right: the whole output is looked at, not only where it is largest."""
    inputs = with_zeros(0.25)
    judged, ours = judge(signs, inputs)
    letter = as_imported(signs, inputs)[0].copy()
    letter[0, int(ours[0][1].argmin())] -= 1
    (decision,) = judged.decide(ours, Rival("onnxruntime", [letter]))
    assert not decision.passed


def test_zeros_taken_to_the_letter_are_what_the_model_as_imported_gives(signs):
    inputs = with_zeros(0.25)
    (letter,) = ZeroSigns(signs).to_the_letter(inputs)
    np.testing.assert_allclose(letter, as_imported(signs, inputs)[0], rtol=0, atol=1e-6)
    assert np.abs(letter - reference.run(signs.graph, inputs)[0]).max() > 1e-2


def test_without_signs_next_to_zero_a_difference_is_one(signs):
    judged, ours = judge(signs, with_zeros(0))
    assert judged.sensitivity.near == 0
    other = ours[0][1] + np.float32(0.05) * np.abs(ours[0][1]).max()
    (decision,) = judged.decide(ours, Rival("expected", [other]))
    assert not decision.passed and decision.allowed == judging.DRIFT


def test_signs_next_to_zero_excuse_as_much_as_they_can_move(signs):
    inputs = with_zeros(0)
    inputs["x"].reshape(-1)[::40] *= np.float32(1e-7)
    judged, ours = judge(signs, inputs)
    flipped = {"x": np.where(np.abs(inputs["x"]) < 1e-6, -inputs["x"], inputs["x"])}
    other = reference.run(signs.graph, flipped)
    (decision,) = judged.decide(ours, Rival("expected", other))
    assert decision.error > 1e-3 and decision.passed and "next to a sign" in decision.why
    (decision,) = judged.decide(ours, Rival("expected", [-other[0]]))
    assert not decision.passed


def test_our_own_reference_is_held_to_the_steps(signs):
    judged, ours = judge(signs, with_zeros(0), flips=1, faithful=False)
    far = [ours[0][1] * np.float32(1.5)]
    assert not judged.decide(ours, Rival(REFERENCE, far, by_file=False))[0].passed
    judged, ours = judge(signs, with_zeros(0), flips=1, faithful=True)
    (decision,) = judged.decide(ours, Rival(REFERENCE, far, by_file=False))
    assert decision.passed and "1 fell otherwise" in decision.why


def test_first_choices_and_margins_are_those_of_score_rows(signs):
    judged, ours = judge(signs, make_inputs(sign_model()))
    (decision,) = judged.decide(ours, Rival("expected", [ours[0][1]]))
    ordered = np.sort(ours[0][1].reshape(-1))
    assert decision.top[0] == int(ours[0][1].argmax()) and not decision.changed
    assert decision.margin == pytest.approx(ordered[-1] - ordered[-2])
    image = np.zeros((1, 2, 2, 2), "float32")
    (decision,) = judged.decide([("image", image)], Rival("expected", [image]))
    assert decision.top == () and not decision.changed and replace(decision, error=1.0).output == "image"


def test_a_wrong_output_is_told_from_one_of_another_question(signs):
    judged, ours = judge(signs, with_zeros(0))
    powers = np.exp(ours[0][1] - ours[0][1].max())
    (decision,) = judged.decide(ours, Rival("expected", [powers / powers.sum()]))
    assert not decision.passed and "after a softmax" in decision.hint
    (decision,) = judged.decide(ours, Rival("expected", [-ours[0][1]]))
    assert not decision.passed and not decision.hint


def test_turned_channels_are_noticed(lowered, model):
    inputs = make_inputs(model)
    turned = {"x": np.ascontiguousarray(inputs["x"][..., ::-1])}
    (expected,) = reference.run(lowered.graph, turned)
    judged, ours = judge(lowered, inputs)
    (decision,) = judged.decide(ours, Rival("expected", [expected]))
    assert not decision.passed and "channels the other way round" in decision.hint


def test_what_nan_becomes_elsewhere_is_said(signs):
    inputs = with_zeros(0)
    inputs["x"][0, 3, 2, 2] = np.nan
    judged, ours = judge(signs, inputs)
    (decision,) = judged.decide(ours, Rival("onnxruntime", as_imported(signs, inputs)))
    assert decision.passed and decision.error == np.inf and "NaN" in decision.why and decision.margin == 0


def test_what_straight_through_training_leaves_is_noticed(signs):
    """(sign(x) - p) + p is the sign of x up to rounding: exact zeros behind it are none for who evaluates it."""
    inputs = make_inputs(sign_model())
    assert not has_residue(signs, inputs)
    plain = sign_model()

    def visit(graph, name, value):
        if name != "signs":
            return None
        p = graph.emit(op.multiply(value.args[0], relax.const(np.float32(-7.3))), "p")
        return op.add(graph.emit(op.subtract(graph.emit(value, "s"), p), "d"), p)

    left = replace(plain, module=rewrite(plain.module, visit))
    assert has_residue(lower(left, targets.load("rasp3b")), inputs)


def network(kind: str) -> Model:
    """A convolution, then a sigmoid of far below zero, or a quantiser of steps of a tenth; sums of both."""
    rng = np.random.default_rng(9)
    x = relax.Var("x", relax.TensorType((1, 16, 6, 6), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            weights = rng.standard_normal((8, 16, 3, 3)).astype("float32") / 8
            weights[:2, 0] = np.array([0.25, 0.31]).reshape(2, 1, 1)
            weight = relax.const(weights)
            value = builder.emit(nn.conv2d(x, weight, padding=1), "conv")
            if kind == "sigmoid":
                low = builder.emit(op.subtract(value, relax.const(np.float32(14))), "low")
                value = builder.emit(op.sigmoid(low), "shares")
            else:
                tenths = builder.emit(op.divide(value, relax.const(np.float32(0.1))), "tenths")
                value = builder.emit(op.round(tenths), "whole")
            result = builder.emit_output(builder.emit(op.max(value, [2, 3]), "scores"))
        builder.emit_func_output(result)
    specs = (TensorSpec("x", (1, 16, 6, 6), layout="NCHW"),), (TensorSpec("scores", (1, 8)),)
    return Model(kind, relax.transform.Normalize()(builder.finalize()), *specs, "0" * 64)


def test_functions_are_as_exact_as_their_range_allows():
    """Sigmoids of other engines are off by 1e-7 wherever their result lies."""
    lowered = lower(network("sigmoid"), targets.load("rasp3b"))
    judged, ours = judge(lowered, {"x": np.random.default_rng(1).standard_normal((1, 16, 6, 6)).astype("float32")})
    (_, values), *_ = ours
    assert values.max() < 1e-4
    decisions = [judged.decide(ours, Rival("other", [values + np.float32(shift)]))[0] for shift in (1.3e-7, 2e-5)]
    assert [decision.passed for decision in decisions] == [True, False]
    assert "rounding" in decisions[0].why


def test_whole_numbers_may_turn_where_sums_lie_between_two():
    """A sum of 2.5 steps is 2 or 3 of them, never 11."""
    lowered = lower(network("steps"), targets.load("rasp3b"))
    x = np.zeros((1, 16, 6, 6), "float32")
    x[0, 0, 2, 2] = 1
    judged, ours = judge(lowered, {"x": x})
    ((_, values),) = ours
    assert values[0, 0] == 2
    for steps, passed in ((1, True), (9, False)):
        other = values.copy()
        other[0, 0] += steps
        assert judged.decide(ours, Rival("other", [other]))[0].passed == passed

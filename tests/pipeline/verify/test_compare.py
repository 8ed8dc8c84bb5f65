"""Steps against the reference: what differs is found, in the step where it began, and rounding is no error."""

from __future__ import annotations

import numpy as np

from bitkiln.pipeline import reference
from bitkiln.pipeline.verify.compare import close_to_zero, relative_error
from bitkiln.pipeline.verify.explain import Cause
from bitkiln.pipeline.verify.samples import make_inputs


def flip(packed: np.ndarray, *indices: int) -> np.ndarray:
    """``packed`` with single bits turned."""
    bits = np.unpackbits(packed.reshape(-1), bitorder="little")
    bits[list(indices)] ^= 1
    return np.packbits(bits, bitorder="little").reshape(packed.shape)


def test_exact_zeros_that_differ_one_and_all_are_no_rounding():
    """They follow another convention; a few of them, and numbers within the limit, rounding may have decided."""
    signed = np.array([0.0, 0.0, 1e-7, -0.5], "float32")
    assert close_to_zero(signed, 1e-6, np.array([True, True, True, True])).tolist() == [False, False, True, False]
    assert close_to_zero(signed, 1e-6, np.array([True, False, True, True])).tolist() == [True, True, True, False]
    assert close_to_zero(signed[1:], 1e-6, np.array([True, True, True])).tolist() == [True, True, False]


def test_a_faithful_board_passes(rows, trace):
    found = rows(trace)
    assert list(found) == ["first_bits", "second_bits", "third_bits", "relu", "logits", "gv"]
    assert all(row.passed for row in found.values())
    assert found["first_bits"].exact and not found["logits"].exact
    assert {row.cause for row in found.values()} <= {Cause.EQUAL, Cause.ROUNDING}


def test_steps_name_the_layers_of_the_file(rows, trace):
    found = rows(trace)
    assert "stem" in found["first_bits"].layers
    assert {"first", "norm"} <= set(found["second_bits"].layers)
    assert {"second", "pooled"} <= set(found["third_bits"].layers)
    assert found["logits"].layers[-1] == "logits"


def test_bits_before_a_pooling_are_checked_with_it(rows, trace):
    assert not any(name.endswith(".unpooled") for name in rows(trace))
    trace["third_bits"] = trace["third_bits"] ^ np.uint8(1)
    row = rows(trace)["third_bits"]
    assert row.differing == trace["third_bits"].size and not row.passed


def test_only_the_wrong_step_is_blamed(rows, trace):
    """What follows is computed from what the wrong step gave, and is right about it."""
    trace["relu"] = trace["relu"] + np.float32(1)
    failed = [row.name for row in rows(trace).values() if not row.passed]
    assert failed == ["relu", "logits"]  # logits was traced from the right one.


def test_rounding_of_floats_passes_and_more_does_not(rows, trace):
    right, size = trace["logits"], np.abs(trace["logits"]).max()
    trace["logits"] = right + np.float32(5e-5) * size
    assert rows(trace)["logits"].passed and rows(trace)["logits"].cause == Cause.ROUNDING
    trace["logits"] = right + np.float32(5e-4) * size
    row = rows(trace)["logits"]
    assert not row.passed and row.differing == 10 and 4e-4 < row.error < 6e-4


def test_what_is_no_number_fails_and_equal_infinities_pass(rows, trace):
    trace["logits"] = np.full_like(trace["logits"], np.nan)
    row = rows(trace)["logits"]
    assert not row.passed and row.cause == Cause.NOT_FINITE and row.error == np.inf


def test_signs_of_floats_are_undecided_next_to_zero_only(model, lowered, rows, trace):
    stem = reference.evaluate(lowered.graph, make_inputs(model), ["stem"])["stem"]
    order = np.argsort(np.abs(stem).reshape(-1))
    right = trace["first_bits"]
    trace["first_bits"] = flip(right, order[-1])
    row = rows(trace)["first_bits"]
    assert (row.differing, row.undecided, row.passed) == (1, 0, False)
    assert row.worst is not None and abs(row.worst.value) == np.abs(stem).max()
    assert row.worst.index == tuple(np.unravel_index(order[-1], stem.shape))
    # A thousandth of the largest is far more than rounding can do to sums of 27 products.
    far = order[np.searchsorted(np.sort(np.abs(stem).reshape(-1)), 1e-3 * np.abs(stem).max())]
    trace["first_bits"] = flip(right, far)
    assert not rows(trace)["first_bits"].passed


def test_rounding_next_to_a_sign_is_told_with_its_distance(model, lowered, rows, trace):
    """An input is moved until one value before the first sign is all but zero."""
    inputs = make_inputs(model)
    stem = reference.evaluate(lowered.graph, inputs, ["stem"])["stem"]
    at = np.unravel_index(int(np.argmin(np.abs(stem))), stem.shape)
    tap = inputs["x"].copy()
    for _ in range(40):
        tap[0, at[1], at[2], 0] += np.float32(1e-3)
        slope = (reference.evaluate(lowered.graph, {"x": tap}, ["stem"])["stem"][at] - stem[at]) / 1e-3
        tap = inputs["x"].copy()
        tap[0, at[1], at[2], 0] -= np.float32(stem[at] / slope)
        inputs, stem = {"x": tap.copy()}, reference.evaluate(lowered.graph, {"x": tap}, ["stem"])["stem"]
        if abs(stem[at]) < 2e-7:
            break
    names = [name for name in trace if name != "x"]
    trace = {**inputs, **reference.evaluate(lowered.phases["fold_threshold"], inputs, names)}
    trace["first_bits"] = flip(trace["first_bits"], int(np.ravel_multi_index(at, stem.shape)))
    row = rows(trace)["first_bits"]
    assert (row.differing, row.undecided, row.passed, row.cause) == (1, 1, True, Cause.SIGNS)
    assert "rounding" in row.reason and "expected between two correct runtimes" in row.reason


def test_sums_of_bits_are_whole_numbers_that_no_rounding_excuses(rows, trace):
    trace["second_bits"] = flip(trace["second_bits"], 5)
    row = rows(trace)["second_bits"]
    assert (row.differing, row.undecided, row.passed) == (1, 0, False)


def test_set_tail_bits_are_wrong(rows, trace, lowered):
    """Bits behind the last channel must be clear: the next layer counts them."""
    assert trace["second_bits"].shape[-1] == 3
    trace["logits"] = trace["logits"].copy()
    assert rows(trace)["second_bits"].elements == 8 * 8 * 24


def test_integers_are_equal_or_wrong():
    """Of a word of bits the least wrong bit is a small number beside the largest."""
    words = np.array([-(2**31), 0, 1 << 30], np.int32)
    assert relative_error(words, words) == 0
    assert relative_error(words ^ np.int32(1), words) == 1

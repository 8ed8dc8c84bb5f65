"""What inspect warns of, and what it notes."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from bitkiln.pipeline.inspect import layer_table
from tests.pipeline.inspect.networks import model_of, weight


def warned(body, shape=(1, 16, 6, 6)):
    """The warnings of each layer, and the notes."""
    rows = layer_table(model_of(body, shape))
    return {row.name: row.warnings for row in rows if row.warnings}, {row.name: row.notes for row in rows if row.notes}


def conv(x, channels=16, out=16, binary=True, size=3, **options):
    return relax.op.nn.conv2d(x, weight(out, channels, size, size, binary=binary), padding=size // 2, **options)


def test_a_plain_network_gives_no_cause():
    def body(emit, x):
        first = emit(conv(x, binary=False), "first")
        return conv(emit(relax.op.sign(first), "sign"))

    assert warned(body) == ({}, {})


def test_binary_weights_with_float_input():
    found, _ = warned(lambda emit, x: emit(conv(x), "conv"))
    assert "not binary" in found["conv"][0]
    assert "a sign right before it" in found["conv"][0]


def test_binary_input_with_uneven_weights_names_the_channel_furthest_off():
    values = np.sign(np.random.default_rng(1).normal(size=(16, 16, 3, 3))).astype(np.float32) * np.float32(0.5)
    values[3, 0, 0, 0] *= 1.1
    values[11, 2, 1, 1] *= 3

    def body(emit, x):
        sign = emit(relax.op.sign(x), "sign")
        return emit(relax.op.nn.conv2d(sign, relax.const(values), padding=1), "conv")

    found, _ = warned(body)
    assert "2 of 16 output channels are not +-s, channel 11 is the furthest off (|w| 0.5 to 1.5)" in found["conv"][0]
    assert "feeds only y" in found["sign"][0]


def test_a_sign_that_float_layers_read_too():
    def body(emit, x):
        sign = emit(relax.op.sign(x), "sign")
        return relax.op.add(emit(conv(sign), "bits"), emit(conv(sign, binary=False), "floats"))

    found, _ = warned(body)
    assert "also feeds floats" in found["sign"][0]
    assert "bits" not in found


def test_a_sign_that_is_a_result():
    def body(emit, x):
        sign = emit(relax.op.sign(x), "sign")
        return relax.op.concat([sign, emit(conv(sign), "bits")], axis=1)

    assert "also feeds y" in warned(body)[0]["sign"][0]


@pytest.mark.parametrize(("channels", "out", "warns"), [(3, 16, True), (33, 16, True), (16, 9, True), (48, 24, False)])
def test_channels_that_leave_vectors_empty(channels, out, warns):
    def body(emit, x):
        return emit(conv(relax.op.sign(x), channels, out), "conv")

    found, _ = warned(body, (1, channels, 6, 6))
    assert ("conv" in found) == warns
    if warns:
        assert f"{channels} channels in and {out} out" in found["conv"][0]


def test_waste_that_hardly_matters_is_a_note():
    def body(emit, x):
        first = emit(conv(relax.op.sign(x), 64, 64), "first")
        return emit(conv(emit(relax.op.sign(first), "sign"), 64, 3, size=1), "last")

    found, notes = warned(body, (1, 64, 6, 6))
    assert "last" not in found and "3 out" in notes["last"][0]


@pytest.mark.parametrize(
    ("channels", "words"),
    [(4, "4 groups of 4 channels in and 4 out"), (8, "in each of 4 groups, 8 channels in"), (64, "")],
)
def test_groups(channels, words):
    def body(emit, x):
        weights = weight(4 * channels, channels, 3, 3, binary=True)
        return emit(relax.op.nn.conv2d(relax.op.sign(x), weights, padding=1, groups=4), "conv")

    found = warned(body, (1, 4 * channels, 6, 6))[0]
    assert words in found["conv"][0] if words else "conv" not in found


@pytest.mark.parametrize("compare", [relax.op.greater_equal, relax.op.greater])
def test_the_sign_of_a_relu(compare):
    def body(emit, x):
        relu = emit(relax.op.nn.relu(x), "relu")
        zero, one, less = (relax.const(np.float32(value)) for value in (0, 1, -1))
        sign = emit(relax.op.where(emit(compare(relu, zero), "positive"), one, less), "sign")
        return emit(conv(sign), "conv")

    found, notes = warned(body)
    if compare is relax.op.greater_equal:
        assert "every bit is +1" in found["conv"][0]
    else:
        assert "exact zeros are common" in notes["conv"][0]


def test_a_threshold_that_does_not_exist():
    def body(emit, x):
        first = emit(conv(relax.op.sign(x)), "first")
        both = emit(relax.op.add(x, first), "both")
        return conv(emit(relax.op.sign(both), "sign"))

    found, notes = warned(body)
    assert not found
    assert "no threshold can stand for it" in notes["first"][0]


def test_weights_that_are_no_numbers():
    broken = np.ones((8, 16, 1, 1), np.float32)
    broken[2, 3] = np.nan
    found, _ = warned(lambda emit, x: emit(relax.op.nn.conv2d(x, relax.const(broken)), "conv"))
    assert any("not a number" in text for text in found["conv"])

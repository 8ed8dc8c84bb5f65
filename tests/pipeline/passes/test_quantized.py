"""Which layers of a quantised network are computed in 8 bits, and that they give what the floats give."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline import reference
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.passes.quantized import quantized
from tests.schedules.kernels import without_set

BOARD = targets.load("rasp3b")


def conv(x, weight, **attributes):
    return relax.op.nn.conv2d(
        x, relax.const(weight.astype("float32")), data_layout="NHWC", kernel_layout="OHWI", **attributes
    )


def rescaled(builder, sums, rng, low=-128, high=127, name="layer"):
    sums = builder.emit(sums, f"{name}_conv")
    channels = int(sums.ty.shape.values[-1])
    bias = rng.integers(-500, 500, channels).astype("float32")
    factor = rng.uniform(0.002, 0.01, channels).astype("float32")
    biased = builder.emit(relax.op.add(sums, relax.const(bias)), f"{name}_biased")
    scaled = builder.emit(relax.op.multiply(biased, relax.const(factor)), f"{name}_scaled")
    rounded = builder.emit(relax.op.round(scaled), f"{name}_rounded")
    return builder.emit(relax.op.clip(rounded, low, high), name)


def built(shape, body, dtype="int8"):
    x = relax.Var("x", relax.TensorType(shape, dtype))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            floats = builder.emit(relax.op.astype(x, "float32"), "floats")
            result = builder.emit_output(body(builder, builder.emit(relax.op.add(floats, relax.const(3.0)), "whole")))
        builder.emit_func_output(result)
    return builder.get()


def kinds(module):
    return [op_name(value) for _, value in bindings(module["main"])]


def same(module, changed, dtype="int8"):
    """Both give the same numbers, which are not all alike."""
    param = module["main"].params[0]
    shape = [int(extent) for extent in param.ty.shape.values]
    info = np.iinfo(dtype)
    x = np.random.default_rng(1).integers(info.min, info.max + 1, shape).astype(dtype)
    want, got = (reference.run(each, {"x": x})[0] for each in (module, changed))
    assert np.ptp(want.astype(float)) > 3
    np.testing.assert_array_equal(want, got)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_layers_follow_each_other_in_8_bits(rng, dtype):
    def body(builder, x):
        first = rescaled(builder, conv(x, rng.integers(-127, 128, (12, 3, 3, 4)), padding=[1, 1, 1, 1]), rng, 0, 200)
        weight = rng.integers(-127, 128, (12, 3, 3, 1))
        return rescaled(builder, conv(first, weight, groups=12), rng, -131, 124, "depthwise")

    module = built((1, 6, 7, 4), body, dtype)
    changed = quantized(module, BOARD)
    assert kinds(changed).count("bitkiln.qconv2d") == 2
    assert "nn.conv2d" not in kinds(changed) and kinds(changed).count("round") == 0
    same(module, changed, dtype)


def test_zero_points_are_part_of_the_numbers(rng):
    """As ONNX's QLinearConv has it: a result is rounded, moved and limited, and moved back where it is read."""

    def moved(builder, sums, name):
        scaled = builder.emit(
            relax.op.multiply(builder.emit(sums, f"{name}_conv"), relax.const(0.004)), f"{name}_scaled"
        )
        rounded = builder.emit(relax.op.round(scaled), f"{name}_rounded")
        shifted = builder.emit(relax.op.add(rounded, relax.const(100.0)), f"{name}_shifted")
        whole = builder.emit(relax.op.clip(shifted, 0, 255), name)
        return builder.emit(relax.op.add(whole, relax.const(-100.0)), f"{name}_centred")

    def body(builder, x):
        first = moved(builder, conv(x, rng.integers(-127, 128, (9, 3, 3, 4)), padding=[1, 1, 1, 1]), "first")
        return moved(builder, conv(first, rng.integers(-127, 128, (9, 1, 1, 9))), "second")

    module = built((1, 6, 7, 4), body)
    changed = quantized(module, BOARD)
    assert kinds(changed).count("bitkiln.qconv2d") == 2
    # The network's input is int8 already, and the result of the first is read as it is.
    assert kinds(changed).count("astype") == 1
    same(module, changed)


def test_what_else_reads_a_tensor_gets_floats(rng):
    def body(builder, x):
        first = rescaled(builder, conv(x, rng.integers(-9, 10, (8, 1, 1, 8))), rng, name="first")
        pooled = builder.emit(relax.op.nn.max_pool2d(first, (2, 2), (2, 2), layout="NHWC"), "pooled")
        second = rescaled(builder, conv(pooled, rng.integers(-255, 256, (8, 1, 1, 8))), rng, name="second")
        half = builder.emit(relax.op.multiply(second, relax.const(0.37)), "half")
        total = builder.emit(relax.op.add(half, pooled), "total")
        summed = builder.emit(relax.op.clip(builder.emit(relax.op.round(total), "rounded"), -100, 100), "sum")
        return rescaled(builder, conv(summed, rng.integers(-127, 128, (8, 1, 1, 8))), rng, name="third")

    module = built((1, 4, 6, 8), body)
    changed = quantized(module, BOARD)
    assert kinds(changed).count("bitkiln.qconv2d") == 3
    same(module, changed)


def scaled(builder, x, factor, name):
    """Reals that whole numbers stand for."""
    return builder.emit(relax.op.multiply(x, relax.const(factor)), name)


def whole(builder, x, low, high, name):
    """Reals as whole numbers again."""
    rounded = builder.emit(relax.op.round(scaled(builder, x, 1 / 0.05, f"{name}_shares")), f"{name}_rounded")
    return builder.emit(relax.op.clip(rounded, low, high), name)


def test_steps_that_one_tensor_decides_are_tables(rng):
    """An activation of its own, and the product of a tensor with one: SiLU as such files write it."""

    def body(builder, x):
        first = rescaled(builder, conv(x, rng.integers(-9, 10, (8, 1, 1, 8))), rng, name="first")
        reals = scaled(builder, first, 0.05, "reals")
        gate = builder.emit(relax.op.sigmoid(reals), "gate")
        shares = builder.emit(relax.op.round(scaled(builder, gate, 256.0, "gate_shares")), "gate_rounded")
        gate = scaled(builder, builder.emit(relax.op.clip(shares, 0, 255), "gate_whole"), 1 / 256, "gate_reals")
        silu = whole(builder, builder.emit(relax.op.multiply(reals, gate), "product"), -5, 127, "silu")
        second = rescaled(builder, conv(silu, rng.integers(-99, 100, (8, 1, 1, 8))), rng, name="second")
        tanh = builder.emit(relax.op.tanh(scaled(builder, second, 0.05, "second_reals")), "tanh")
        return rescaled(builder, conv(whole(builder, tanh, -20, 20, "bent"), rng.integers(-9, 10, (8, 1, 1, 8))), rng)

    module = built((1, 4, 6, 8), body)
    changed = quantized(module, BOARD)
    assert kinds(changed).count("bitkiln.lookup") == 2 and kinds(changed).count("bitkiln.qconv2d") == 3
    assert not {"sigmoid", "tanh", "round", "multiply"} & set(kinds(changed))
    same(module, changed)


def test_elements_are_moved_as_bytes(rng):
    """Joined tensors have one zero point, though their limits differ."""

    def body(builder, x):
        first = rescaled(builder, conv(x, rng.integers(-9, 10, (8, 1, 1, 8))), rng, -100, 90, name="first")
        second = rescaled(builder, conv(x, rng.integers(-9, 10, (8, 1, 1, 8))), rng, 0, 155, name="second")
        pooled = builder.emit(relax.op.nn.max_pool2d(second, (3, 3), (1, 1), (1, 1, 1, 1), layout="NHWC"), "pooled")
        joined = builder.emit(relax.op.concat([first, pooled], 3), "joined")
        half = builder.emit(relax.op.strided_slice(joined, [3], [4], [12]), "half")
        return rescaled(builder, conv(half, rng.integers(-9, 10, (8, 1, 1, 8))), rng, name="third")

    module = built((1, 4, 6, 8), body)
    changed = quantized(module, BOARD)
    assert kinds(changed).count("bitkiln.qconv2d") == 3
    types = {op_name(value): str(value.ty.dtype) for _, value in bindings(changed["main"])}
    assert all(types[each] == "int8" for each in ("nn.max_pool2d", "concat", "strided_slice"))
    same(module, changed)


def test_reals_of_8_bits_are_moved_and_joined_as_bytes(rng):
    """A maximum of what integers stand for, and a concatenation of tensors with scales of their own: a table each."""

    def body(builder, x):
        first = rescaled(builder, conv(x, rng.integers(-9, 10, (8, 1, 1, 8))), rng, -101, 100, name="first")
        second = rescaled(builder, conv(x, rng.integers(-9, 10, (8, 1, 1, 8))), rng, name="second")
        reals = scaled(builder, first, 0.05, "first_reals")
        pooled = builder.emit(relax.op.nn.max_pool2d(reals, (2, 2), (1, 1), (0, 0, 1, 1), layout="NHWC"), "pooled")
        joined = builder.emit(relax.op.concat([pooled, scaled(builder, second, 0.03, "second_reals")], 3), "joined")
        both = whole(builder, joined, -128, 127, "both")
        third = rescaled(builder, conv(both, rng.integers(-9, 10, (8, 1, 1, 16))), rng, name="third")
        mean = builder.emit(relax.op.mean(scaled(builder, third, 0.05, "third_reals"), [1, 2], keepdims=True), "mean")
        return rescaled(builder, conv(whole(builder, mean, -128, 127, "averaged"), np.ones((8, 1, 1, 8))), rng)

    module = built((1, 4, 6, 8), body)
    changed = quantized(module, BOARD)
    types = {op_name(value): str(value.ty.dtype) for _, value in bindings(changed["main"])}
    assert types["nn.max_pool2d"] == types["concat"] == "int8" and "mean" not in types
    # The first one's scale is that of the concatenation.
    assert kinds(changed).count("bitkiln.lookup") == 1
    same(module, changed)


def test_an_average_of_an_image_sums_whole_numbers(rng):
    def body(builder, x):
        first = rescaled(builder, conv(x, rng.integers(-9, 10, (8, 1, 1, 8))), rng, -100, 90, name="first")
        mean = builder.emit(relax.op.mean(first, [1, 2], keepdims=True), "mean")
        shares = builder.emit(relax.op.round(scaled(builder, mean, 4.0, "shares")), "rounded")
        averaged = builder.emit(relax.op.clip(shares, -128, 127), "averaged")
        return rescaled(builder, conv(averaged, rng.integers(-9, 10, (8, 1, 1, 8))), rng, name="second")

    module = built((1, 4, 8, 8), body)
    changed = quantized(module, BOARD)
    assert "mean" not in kinds(changed) and kinds(changed).count("sum") == 1
    same(module, changed)


def test_transposed_convolutions_whose_windows_lie_side_by_side(rng):
    def body(builder, x):
        first = rescaled(builder, conv(x, rng.integers(-9, 10, (8, 1, 1, 8))), rng, name="first")
        weight = relax.const(rng.integers(-99, 100, (8, 5, 2, 3)).astype("float32"))
        made = relax.op.nn.conv2d_transpose(first, weight, (2, 3), data_layout="NHWC", kernel_layout="IOHW")
        return rescaled(builder, made, rng, name="second")

    module = built((1, 4, 6, 8), body)
    changed = quantized(module, BOARD)
    assert kinds(changed).count("bitkiln.qconv2d") == 2 and "nn.conv2d_transpose" not in kinds(changed)
    same(module, changed)


def test_what_8_bits_do_not_hold_stays_in_floats(rng):
    def body(builder, x):
        wide = rescaled(builder, conv(x, rng.integers(-9, 10, (8, 1, 1, 8))), rng, -200, 200, "wide")
        heavy = rescaled(builder, conv(wide, rng.integers(-9, 10, (8, 1, 1, 8))), rng, name="after_wide")
        many = rescaled(builder, conv(heavy, rng.integers(-400, 401, (8, 1, 1, 8))), rng, name="heavy")
        parts = conv(many, rng.integers(-9, 10, (8, 1, 1, 4)), groups=2)
        return rescaled(builder, parts, rng, name="grouped")

    module = built((1, 4, 4, 8), body)
    changed = quantized(module, BOARD)
    assert "bitkiln.qconv2d" not in kinds(changed)
    same(module, changed)


def test_targets_without_such_kernels_keep_floats(rng):
    module = built((1, 4, 4, 8), lambda builder, x: rescaled(builder, conv(x, np.ones((8, 1, 1, 8))), rng))
    assert "bitkiln.qconv2d" in kinds(quantized(module, BOARD))
    assert quantized(module, without_set()) is module

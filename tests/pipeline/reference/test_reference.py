"""The numpy reference against naive loops and against TVM's own definitions of the operators."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from bitkiln.pipeline import ops, reference
from bitkiln.schedules import steps
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Conv2d, Pool

RNG = np.random.default_rng(3)


def naive_convolution(x, w, strides, padding, dilation, groups, pad_value):
    top, left, bottom, right = padding
    x = np.pad(x[0], ((top, bottom), (left, right), (0, 0)), constant_values=pad_value)
    outs, height, width, per_group = w.shape
    rows = (x.shape[0] - (height - 1) * dilation[0] - 1) // strides[0] + 1
    columns = (x.shape[1] - (width - 1) * dilation[1] - 1) // strides[1] + 1
    y = np.zeros((1, rows, columns, outs))
    for row, column, out, ky, kx, i in np.ndindex(rows, columns, outs, height, width, per_group):
        channel = out // (outs // groups) * per_group + i
        tap = x[row * strides[0] + ky * dilation[0], column * strides[1] + kx * dilation[1], channel]
        y[0, row, column, out] += tap * w[out, ky, kx, i]
    return y


@pytest.mark.parametrize(
    ("channels", "outs", "kernel", "strides", "padding", "dilation", "groups", "pad_value"),
    [
        (3, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 0),
        (4, 6, (3, 2), (2, 1), (0, 1, 2, 0), (1, 2), 2, 0),
        (6, 6, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 6, 0),
        (5, 3, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, 0),
        (3, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, -1),
        (3, 4, (3, 3), (1, 1), (1, 0, 1, 2), (2, 1), 1, 1),
    ],
)
def test_convolution(channels, outs, kernel, strides, padding, dilation, groups, pad_value):
    x = RNG.standard_normal((1, 7, 6, channels)).astype("float32")
    w = RNG.standard_normal((outs, *kernel, channels // groups)).astype("float32")
    actual = reference.convolve(x, w, strides, padding, dilation, groups, pad_value)
    wanted = naive_convolution(x, w, strides, padding, dilation, groups, pad_value)
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pad_value", [-1, 0, 1])
@pytest.mark.parametrize(("channels", "groups"), [(20, 1), (32, 2), (9, 1)])
def test_binary_convolution_is_exact(channels, groups, pad_value):
    x = RNG.choice([-1, 1], (1, 6, 5, channels))
    w = RNG.choice([-1, 1], (8, 3, 3, channels // groups))
    workload = Conv2d(6, 5, channels, 8, (3, 3), padding=(1, 1, 1, 1), groups=groups, binary=True, pad_value=pad_value)
    actual = reference.compute(workload, [ops.pack_bits(x), ops.pack_bits(w)])
    wanted = naive_convolution(x, w, (1, 1), (1, 1, 1, 1), (1, 1), groups, pad_value)
    np.testing.assert_array_equal(actual, wanted)


def test_thresholds_compare_the_sum():
    x, w = RNG.choice([-1, 1], (1, 4, 4, 8)), RNG.choice([-1, 1], (10, 1, 1, 8))
    limits = RNG.integers(-8, 8, 10).astype("int32")
    workload = Conv2d(4, 4, 8, 10, (1, 1), binary=True, out="bits", threshold="channel")
    bits = reference.compute(workload, [ops.pack_bits(x), ops.pack_bits(w), limits])
    np.testing.assert_array_equal(ops.unpack_bits(bits, 10) > 0, (x[0] @ w[:, 0, 0].T >= limits)[None])


@pytest.mark.parametrize(
    ("sign_zero", "value", "bit"),
    [(1, 0.0, 1), (1, -0.0, 1), (-1, 0.0, 0), (1, np.nan, 0), (-1, 1e-45, 1), (1, -1e-45, 0)],
)
def test_sign_of_zero(sign_zero, value, bit):
    assert reference.sign_bits(np.full((1, 1, 1, 1), value, "float32"), sign_zero).item() == bit


def test_average_may_leave_padding_out():
    x = np.ones((1, 3, 3, 1), "float32")
    window = Pool((3, 3), (2, 2), (1, 1, 1, 1), "avg")
    assert reference.pool(x, window).reshape(-1) == pytest.approx([4 / 9] * 4)
    assert reference.pool(x, Pool((3, 3), (2, 2), (1, 1, 1, 1), "avg", False)).reshape(-1) == pytest.approx([1.0] * 4)


def test_padding_never_wins_a_maximum():
    x = np.full((1, 2, 2, 1), -5.0, "float32")
    assert reference.pool(x, Pool((3, 3), (2, 2), (1, 1, 1, 1))).max() == -5


def test_epilogue_steps():
    x = np.array([-4.0, -1.0, 0.0, 2.0, 8.0], "float32").reshape(1, 1, 5, 1)

    def after(step, *operands):
        return steps.compute([step], x, operands).reshape(-1).tolist()

    assert after(Step("mul", "channel"), np.float32([2])) == [-8, -2, 0, 4, 16]
    assert after(Step("add", "channel"), np.float32([1])) == [-3, 0, 1, 3, 9]
    assert after(Step("prelu", "channel"), np.float32([-1])) == [4, 1, 0, 2, 8]
    assert after(Step("relu")) == [0, 0, 0, 2, 8]
    assert after(Step("clip", "", (-1.0, 6.0))) == [-1, -1, 0, 2, 6]
    assert after(Step("leaky", "", (0.5,))) == [-2, -0.5, 0, 2, 8]
    assert after(Step("hardswish")) == pytest.approx([0, -1 / 3, 0, 5 / 3, 8])
    assert after(Step("sigmoid")) == pytest.approx([0.01798621, 0.26894142, 0.5, 0.88079708, 0.99966465])
    assert after(Step("silu")) == pytest.approx([-0.07194484, -0.26894142, 0, 1.76159416, 7.99731717], rel=1e-6)
    assert after(Step("tanh")) == pytest.approx(np.tanh([-4, -1, 0, 2, 8]).tolist())


X = (1, 4, 7, 6)
NN = relax.op.nn
AGAINST_TVM = {
    "conv2d NCHW": lambda x: NN.conv2d(x, weight(5, 4, 3, 3), strides=(2, 1), padding=(1, 0, 2, 1)),
    "conv2d grouped": lambda x: NN.conv2d(x, weight(6, 2, 3, 3), groups=2, dilation=(2, 1)),
    "conv2d_transpose": lambda x: NN.conv2d_transpose(
        x, weight(4, 5, 3, 2), strides=(2, 3), padding=(1, 0, 0, 1), output_padding=(1, 2)
    ),
    "max_pool2d ceil": lambda x: NN.max_pool2d(x, (3, 2), (2, 2), (1, 0, 1, 0), ceil_mode=True),
    "avg_pool2d": lambda x: NN.avg_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1), count_include_pad=False),
    "avg_pool2d with pads": lambda x: NN.avg_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1), count_include_pad=True),
    "avg_pool2d ceil": lambda x: NN.avg_pool2d(x, (2, 3), (2, 2), ceil_mode=True, count_include_pad=True),
    "adaptive": lambda x: NN.adaptive_avg_pool2d(x, (1, 1)),
    "softmax": lambda x: NN.softmax(x, 1),
    "log_softmax": lambda x: NN.log_softmax(x, 1),
    "leakyrelu": lambda x: NN.leakyrelu(x, 0.2),
    "prelu": lambda x: NN.prelu(x, weight(4), 1),
    "our prelu": lambda x: ops.prelu(x, weight(7, 6)),
    "our hardswish": lambda x: ops.hardswish(relax.op.multiply(x, relax.const(4.0))),
    "silu": NN.silu,
    "gelu": NN.gelu,
    "softplus": NN.softplus,
    "pad": lambda x: NN.pad(x, [0, 0, 0, 0, 1, 2, 3, 0], "constant", 1.5),
    "layer_norm": lambda x: NN.layer_norm(x, weight(6), weight(6), [3]),
    "clip": lambda x: relax.op.clip(x, -0.5, 0.25),
    "mean": lambda x: relax.op.mean(x, [2, 3], keepdims=True),
    "variance": lambda x: relax.op.variance(x, [1]),
    "sum": lambda x: relax.op.sum(x, [-1]),
    "permute_dims": lambda x: relax.op.permute_dims(x, [0, 2, 3, 1]),
    "reshape": lambda x: relax.op.reshape(x, (4, 42)),
    "concat": lambda x: relax.op.concat([x, relax.op.negative(x)], 1),
    "split": lambda x: relax.op.split(x, [1, 3], 1)[1],
    "strided_slice": lambda x: relax.op.strided_slice(x, [1, 2], [1, 0], [4, 6], [2, 3]),
    "where": lambda x: relax.op.where(relax.op.greater(x, relax.const(0.3)), x, relax.const(-1.0)),
    "tile": lambda x: relax.op.tile(x, (1, 2, 1, 1)),
    "resize nearest": lambda x: relax.op.image.resize2d(
        x,
        (14, 9),
        layout="NCHW",
        method="nearest_neighbor",
        coordinate_transformation_mode="asymmetric",
        rounding_method="floor",
    ),
    "resize linear": lambda x: relax.op.image.resize2d(x, (11, 12), layout="NCHW", method="linear"),
    "erf": relax.op.erf,
    "sign": relax.op.sign,
    "matmul": lambda x: relax.op.matmul(x, weight(6, 5)),
}


def weight(*shape):
    return relax.const(np.random.default_rng(len(shape)).standard_normal(shape).astype("float32"))


@pytest.mark.parametrize("name", AGAINST_TVM)
def test_against_tvm(name):
    x = relax.Var("x", relax.TensorType(X, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(AGAINST_TVM[name](x)))
        builder.emit_func_output(result)
    module = relax.transform.Normalize()(builder.finalize())
    data = np.random.default_rng(1).standard_normal(X).astype("float32")
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    wanted = machine["main"](tvm.runtime.tensor(data)).numpy()
    (actual,) = reference.run(module, {"x": data})
    np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)


def chain():
    x = relax.Var("x", relax.TensorType((1, 3), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            a = builder.emit(relax.op.add(x, relax.const(1.0)), "a")
            b = builder.emit(relax.op.multiply(a, relax.const(2.0)), "b")
            c = builder.emit(relax.op.add(a, b), "c")
            result = builder.emit_output(c, "d")
        builder.emit_func_output(result)
    return builder.finalize()


def test_a_part_is_run_from_its_own_inputs():
    a = np.float32([[1, 2, 3]])
    values = reference.evaluate(chain(), {"a": a}, ["c"])
    assert set(values) == {"c"}
    np.testing.assert_array_equal(values["c"], 3 * a)
    np.testing.assert_array_equal(reference.evaluate(chain(), {"a": a, "b": a}, ["c"])["c"], 2 * a)
    with pytest.raises(KeyError, match="x is neither"):
        reference.evaluate(chain(), {"b": a}, ["c"])


def single(make):
    x = relax.Var("x", relax.TensorType((1, 3), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(make(x), "odd"))
        builder.emit_func_output(result)
    return builder.finalize()


def test_uncommon_operator_is_run_by_tvm():
    x = np.float32([[0.5, 1, 2]])
    np.testing.assert_allclose(reference.run(single(relax.op.sinh), {"x": x})[0], np.sinh(x), rtol=1e-6)

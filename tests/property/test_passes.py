"""Every pass against plain numpy: random networks before and after it, with numbers that arithmetic may stumble over.

A pass that only moves operators about must not change a bit. Numbers are small multiples of 1/8, so that sums and products
are exact in any order, with infinities, denormals and what is not a number among the inputs.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline import ops
from bitkiln.pipeline.passes.absorb_image import absorb_image
from bitkiln.pipeline.passes.canonicalize import canonicalize
from bitkiln.pipeline.passes.dense_to_conv import dense_to_conv
from bitkiln.pipeline.passes.fold_affine import fold_affine
from bitkiln.pipeline.passes.fuse_epilogue import fuse_epilogue, to_operators
from bitkiln.pipeline.passes.to_nhwc import to_nhwc
from tests.property import plain
from tests.property.draws import ODD, ODDER, Draw, Network, constant, draws

op, nn = relax.op, relax.op.nn


def shape(x):
    return tuple(int(size) for size in x.ty.shape.values)


def inputs_of(net, d, odd=ODD):
    return {"x": d.numbers(*net.shape, odd=odd)}


def assert_same(before, after, inputs):
    for wanted, actual in zip(plain.run(before, inputs), plain.run(after, inputs), strict=True):
        assert actual.shape == wanted.shape
        assert actual.dtype == wanted.dtype
        np.testing.assert_array_equal(actual, wanted)


def layout(net):
    return net.layout


def channel_axis(net):
    return net.layout.index("C")


def per_channel(net, d, x, values):
    """A constant with a value for each channel, or for each element, or one."""
    size = list(shape(x))
    kind = d.pick(["channel", "channel", "one", "element"])
    if len(size) != 4:
        return constant(values(*size[1:]))
    axis = channel_axis(net)
    if kind == "element":
        return constant(values(*size[1:]))
    wanted = [1] * 4
    wanted[axis] = size[axis] if kind == "channel" else 1
    array = values(*wanted)
    return constant(array[0] if d.chance() else array)


def start(d, layouts=("NCHW", "NHWC"), most=8):
    """A network whose input is an image."""
    where = d.pick(layouts)
    sizes = {"N": 1, "C": d.pick([1, 2, 3, 8, 9, 17]), "H": d.whole(1, most), "W": d.whole(1, most)}
    net = Network(tuple(sizes[letter] for letter in where), d.rng)
    net.layout = where
    return net


def size_of(net, x):
    return [shape(x)[net.layout.index(letter)] for letter in "HW"]


def convolution(net, d, x, weights=None):
    how = d.window(size_of(net, x))
    channels = shape(x)[channel_axis(net)]
    groups = d.pick([1, 1, *[g for g in (2, 3, channels) if channels % g == 0]])
    outs = d.whole(1, 4) * groups
    kernel = how.pop("kernel")
    weight = (weights or d.numbers)(outs, channels // groups, *kernel)
    return net.add(
        nn.conv2d(
            x,
            constant(weight),
            **{name: list(values) for name, values in how.items()},
            groups=groups,
            data_layout=net.layout,
            kernel_layout="OIHW",
        )
    )


def pooling(net, d, x):
    pool = d.pool(size_of(net, x))
    if pool is None:
        return x
    make = nn.max_pool2d if pool.kind == "max" else nn.avg_pool2d
    how = list(pool.kernel), list(pool.strides), list(pool.padding)
    return net.add(make(x, *how, [1, 1], False, pool.count_include_pad, net.layout, net.layout))


def batch_norm(net, d, x, numbers):
    channels = shape(x)[channel_axis(net)]
    gamma, beta, mean = (constant(numbers(channels)) for _ in range(3))
    variance = constant(np.abs(numbers(channels)) + np.float32(0.1))
    result = net.add(nn.batch_norm(x, gamma, beta, mean, variance, axis=channel_axis(net), epsilon=1e-5))
    return net.add(relax.TupleGetItem(result, 0))


def elementwise(net, d, x, numbers, kinds=None):
    """One elementwise operator on ``x``, as importers give them."""
    of = lambda: per_channel(net, d, x, numbers)  # noqa: E731
    zero, low, high = constant(np.float32(0)), *sorted(map(float, d.rng.normal(0, 3, 2)))
    power = lambda: constant(np.exp2(d.rng.integers(-3, 4, ())).astype("float32"))  # noqa: E731
    made = {
        "add": lambda: op.add(x, of()),
        "add, constant first": lambda: op.add(of(), x),
        "multiply": lambda: op.multiply(x, of()),
        "subtract": lambda: op.subtract(x, of()),
        "subtract from": lambda: op.subtract(of(), x),
        "divide": lambda: op.divide(x, of()),
        "divide by power": lambda: op.divide(x, power()),
        "negative": lambda: op.negative(x),
        "maximum": lambda: op.maximum(x, constant(np.float32(low))),
        "maximum of zero": lambda: op.maximum(zero, x),
        "minimum": lambda: op.minimum(constant(np.float32(high)), x),
        "relu": lambda: nn.relu(x),
        "relu6": lambda: nn.relu6(x),
        "clip": lambda: op.clip(x, low, high),
        "leaky": lambda: nn.leakyrelu(x, float(d.rng.normal())),
        "prelu": lambda: nn.prelu(x, constant(numbers(shape(x)[channel_axis(net)])), channel_axis(net)),
        "our prelu": lambda: ops.prelu(x, of()),
        "tanh": lambda: op.tanh(x),
        "silu": lambda: op.multiply(x, net.add(op.sigmoid(x))),
        "where": lambda: op.where(net.add(d.pick([op.less, op.less_equal])(x, zero)), net.add(op.multiply(x, of())), x),
        "where, otherwise": lambda: op.where(
            net.add(d.pick([op.greater, op.greater_equal])(x, zero)), x, net.add(op.multiply(x, of()))
        ),
        "add itself": lambda: op.add(x, x),
    }
    return net.add(made[d.pick(kinds or list(made))]())


def residual(net, d, x, others):
    fits = [other for other in others if shape(other) == shape(x)]
    return net.add(op.add(*([x, d.pick(fits)] if d.chance() else [d.pick(fits), x]))) if fits else x


def finish(net, d, x, seen):
    """Outputs: the last tensor and sometimes one in between, so that not everything is used once."""
    return net.module(x, d.pick(seen)) if d.chance() else net.module(x)


@settings(max_examples=60)
@given(draws())
def test_canonicalize(d: Draw):
    net = start(d)
    x, seen = net.x, [net.x]
    for _ in range(d.whole(1, 4)):
        x = batch_norm(net, d, x, d.numbers) if d.whole(0, 4) == 0 else elementwise(net, d, x, d.numbers)
        seen.append(x)
    before = finish(net, d, x, seen)
    assert_same(before, canonicalize(before), inputs_of(net, d, ODDER))


@settings(max_examples=80)
@given(draws())
def test_to_nhwc(d: Draw):
    net = start(d, ("NCHW", "NCHW", "NHWC"))
    x, seen = net.x, [net.x]
    for _ in range(d.whole(1, 5)):
        match d.pick(["conv", "pool", "elementwise", "pad", "concat", "mean", "split", "residual"]):
            case "conv":
                x = convolution(net, d, x)
            case "pool":
                x = pooling(net, d, x)
            case "elementwise":
                x = elementwise(net, d, x, d.numbers)
            case "pad":
                widths = {"N": [0, 0], "C": [0, d.whole(0, 1)], "H": [1, 0], "W": [d.whole(0, 2), 1]}
                flat = [width for letter in net.layout for width in widths[letter]]
                x = net.add(nn.pad(x, flat, "constant", d.pick([0.0, 1.0, -1.0])))
            case "concat":
                x = net.add(op.concat([x, x], d.pick([1, 2, 3, -1])))
            case "mean":
                axes = [net.layout.index("H"), net.layout.index("W")]
                x = net.add(op.mean(x, axes, keepdims=True))
            case "split":
                axis = d.whole(1, 3)
                if shape(x)[axis] % 2 == 0:
                    parts = net.add(op.split(x, 2, axis))
                    x = net.add(op.add(net.add(relax.TupleGetItem(parts, 0)), net.add(relax.TupleGetItem(parts, 1))))
            case "residual":
                x = residual(net, d, x, seen)
        seen.append(x)
    if d.chance():
        flat = net.add(op.reshape(x, (1, int(np.prod(shape(x))))))
        if d.chance():
            flat = elementwise(net, d, flat, d.numbers, ["add", "multiply", "relu", "our prelu"])
        x = net.add(op.matmul(flat, constant(d.numbers(shape(flat)[1], d.whole(1, 5)))))
    before = finish(net, d, x, seen)
    assert_same(before, to_nhwc(before), inputs_of(net, d))


@settings(max_examples=40)
@given(draws())
def test_dense_to_conv(d: Draw):
    net = Network((1, *(d.whole(1, 4) for _ in range(d.pick([1, 3])))), d.rng)
    net.layout = "NHWC"
    x = net.add(op.reshape(net.x, (1, int(np.prod(net.shape[1:])))))
    seen = [x]
    for _ in range(d.whole(1, 5)):
        match d.pick(["dense", "elementwise", "residual", "reshape"]):
            case "dense":
                x = net.add(op.matmul(x, constant(d.numbers(shape(x)[1], d.channels()))))
            case "elementwise":
                x = elementwise(net, d, x, d.numbers, ["add", "multiply", "relu", "our prelu", "clip", "where"])
            case "residual":
                x = residual(net, d, x, seen)
            case "reshape":
                x = net.add(op.reshape(net.add(op.reshape(x, (shape(x)[1], 1))), shape(x)))
        seen.append(x)
    before = finish(net, d, x, seen)
    assert_same(before, dense_to_conv(before), inputs_of(net, d))


def layers(d: Draw, numbers, most=5):
    """An NHWC network of float and binary convolutions, poolings, elementwise operators, residuals and signs."""
    net = start(d, ["NHWC"])
    x, seen = net.x, [net.x]
    for _ in range(d.whole(1, most)):
        channels, size = shape(x)[3], size_of(net, x)
        match d.pick(["conv", "binary", "pool", "elementwise", "elementwise", "elementwise", "residual", "mean"]):
            case "conv":
                how = d.window(size)
                weight = numbers(d.whole(1, 9), *how.pop("kernel"), channels)
                how = {name: list(values) for name, values in how.items()}
                x = net.add(nn.conv2d(x, constant(weight), **how, data_layout="NHWC", kernel_layout="OHWI"))
            case "binary":
                bits = net.add(ops.binarize(x, sign_zero=d.pick([1, -1])))
                how = d.window(size)
                weight = constant(d.bits(d.whole(1, 9), *how.pop("kernel"), channels))
                x = net.add(ops.bconv2d(bits, weight, channels=channels, pad_value=d.pick([-1, 0, 1]), **how))
            case "pool":
                x = pooling(net, d, x)
            case "elementwise":
                kinds = ["add", "multiply", "relu", "clip", "leaky", "our prelu", "tanh"]
                x = elementwise(net, d, x, numbers, kinds)
            case "residual":
                x = residual(net, d, x, seen)
            case "mean":
                x = net.add(op.mean(x, [1, 2], keepdims=True))
        seen.append(x)
    if d.chance():
        x = net.add(ops.binarize(x, sign_zero=d.pick([1, -1])))
        seen = [x]
    return net, finish(net, d, x, seen)


@settings(max_examples=100)
@given(draws())
def test_to_operators_and_fuse_epilogue(d: Draw):
    net, before = layers(d, lambda *size: d.numbers(*size, odd=ODD if d.whole(0, 9) == 0 else None))
    found = to_operators(before)
    inputs = inputs_of(net, d)
    assert_same(before, found, inputs)
    assert_same(before, fuse_epilogue(found), inputs)


@settings(max_examples=100)
@given(draws())
def test_fold_affine(d: Draw):
    """Constants are rounded once where they were twice; no more than that."""
    net, before = layers(d, d.floats)
    inputs = inputs_of(net, d, odd=None)
    after = fold_affine(before)
    for wanted, actual in zip(plain.run(before, inputs), plain.run(after, inputs), strict=True):
        assert actual.shape == wanted.shape
        assert actual.dtype == wanted.dtype


@settings(max_examples=40)
@given(draws())
def test_absorb_image(d: Draw):
    net = start(d, most=12)
    x = net.x
    for _ in range(d.whole(0, 3)):
        x = elementwise(net, d, x, d.numbers, ["add", "multiply"])
    if net.layout == "NCHW":
        x = net.add(op.permute_dims(x, [0, 2, 3, 1]))
    net.layout = "NHWC"
    how = d.window(size_of(net, x))
    weight = constant(d.numbers(8, *how.pop("kernel"), shape(x)[3]))
    how = {name: list(values) for name, values in how.items()}
    x = net.add(nn.conv2d(x, weight, **how, data_layout="NHWC", kernel_layout="OHWI"))
    x = elementwise(net, d, x, d.numbers, ["add", "relu"])
    before = fuse_epilogue(to_operators(net.module(x)))
    after = absorb_image(before, targets.load("rasp3b"))
    inputs = inputs_of(net, d, odd=None)
    for wanted, actual in zip(plain.run(before, inputs), plain.run(after, inputs), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())

"""Random pieces of networks, as importers give them."""

from __future__ import annotations

import numpy as np
from tvm import relax

from bitkiln.pipeline import ops
from tests.property import plain
from tests.property.draws import ODD, Network, constant

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


def pooling(net, d, x, kinds=("max", "avg")):
    pool = d.pool(size_of(net, x), kinds)
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

"""Many ways of writing one thing become one, and the network computes what it did."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from bitkiln.pipeline.ir.graph import bindings
from bitkiln.pipeline.passes.canonicalize import canonicalize

nn = relax.op.nn
C = relax.const

REWRITES = {
    "subtract": (lambda x: relax.op.subtract(x, C(2.0)), ["add"]),
    "subtract from": (lambda x: relax.op.subtract(C(2.0), x), ["multiply", "add"]),
    "divide": (lambda x: relax.op.divide(x, C(4.0)), ["multiply"]),
    "negative": (relax.op.negative, ["multiply"]),
    "constant first": (lambda x: relax.op.add(C(2.0), x), ["add"]),
    "maximum with 0": (lambda x: relax.op.maximum(C(0.0), x), ["nn.relu"]),
    "minimum": (lambda x: relax.op.minimum(x, C(1.0)), ["clip"]),
    "flatten": (relax.op.flatten, ["reshape"]),
    "squeeze": (relax.op.squeeze, ["reshape"]),
    "expand_dims": (lambda x: relax.op.expand_dims(x, 0), ["reshape"]),
    "nn.prelu": (lambda x: nn.prelu(x, C(np.float32([0.1, -0.2, 0.3])), 1), ["bitkiln.prelu"]),
}


def _of_erf(net, x):
    return net.add(relax.op.add(net.add(relax.op.erf(net.add(relax.op.divide(x, C(2**0.5))))), C(1.0)))


def _of_tanh(net, x, factor=0.044715):
    cube = net.add(relax.op.power(x, C(3.0)))
    total = net.add(relax.op.add(x, net.add(relax.op.multiply(cube, C(factor)))))
    return net.add(
        relax.op.add(net.add(relax.op.tanh(net.add(relax.op.multiply(total, C((2 / np.pi) ** 0.5))))), C(1.0))
    )


def _of_product(net, x):
    y = net.add(relax.op.multiply(x, net.normal(1, 3, 5, 4)))
    return _halved(net, net.add(relax.op.multiply(y, _of_erf(net, y))))


def _of_cubes(net, x):
    cube = net.add(relax.op.multiply(net.add(relax.op.multiply(x, x)), x))
    total = net.add(relax.op.add(net.add(relax.op.multiply(cube, C(0.044715))), x))
    gate = net.add(relax.op.tanh(net.add(relax.op.multiply(total, C((2 / np.pi) ** 0.5)))))
    return net.add(relax.op.multiply(_halved(net, net.add(relax.op.add(gate, C(1.0)))), x))


def _halved(net, y):
    return net.add(relax.op.multiply(y, C(0.5)))


#: Spellings of GELU: the half before, after and inside of the product.
GELUS = {
    "torch": (lambda n, x: _halved(n, n.add(relax.op.multiply(x, _of_erf(n, x)))), ["nn.gelu"]),
    "half first": (lambda n, x: n.add(relax.op.multiply(_halved(n, x), _of_erf(n, x))), ["nn.gelu"]),
    "half of the gate": (lambda n, x: n.add(relax.op.multiply(_halved(n, _of_erf(n, x)), x)), ["nn.gelu"]),
    "of a product": (_of_product, ["multiply", "nn.gelu"]),
    "cube of products": (_of_cubes, ["nn.gelu_tanh"]),
    "tanh": (lambda n, x: n.add(relax.op.multiply(_halved(n, x), _of_tanh(n, x))), ["nn.gelu_tanh"]),
}


@pytest.mark.parametrize("name", GELUS)
def test_spellings_of_gelu(network, same, operators, name):
    net = network((1, 3, 5, 4))
    make, expected = GELUS[name]
    before = net.module(make(net, net.x))
    after = canonicalize(before)
    assert operators(after) == expected
    same(before, after, 1e-6, scale=4.0)


def test_squares_of_squares_are_not_multiplied_out(network, operators):
    net = network((1, 3, 5, 4))
    x = net.x
    for _ in range(40):
        x = net.add(relax.op.multiply(x, x))
    assert operators(canonicalize(net.module(x))) == ["multiply"] * 40


def test_what_is_near_a_gelu_is_none(network, same, operators):
    net = network((1, 3, 5, 4))
    other = net.add(relax.op.abs(net.x))
    for gate, factor in ((_of_erf(net, other), net.x), (_of_tanh(net, net.x, 0.05), net.x)):
        before = net.module(net.add(relax.op.multiply(_halved(net, factor), gate)))
        after = canonicalize(before)
        assert not {"nn.gelu", "nn.gelu_tanh"} & set(operators(after))
        same(before, after, 1e-6, scale=4.0)


@pytest.mark.parametrize("name", REWRITES)
def test_one_operator(network, same, operators, name):
    net = network((1, 3, 5, 4))
    make, expected = REWRITES[name]
    before = net.module(net.add(make(net.x)))
    after = canonicalize(before)
    assert operators(after) == expected
    same(before, after, 1e-6)


def test_constants_are_computed(network, same, operators):
    net = network((1, 4))
    size = net.add(relax.op.mean(net.add(relax.op.abs(net.normal(3, 4))), [0], keepdims=True))
    before = net.module(net.add(relax.op.multiply(net.x, size)))
    after = canonicalize(before)
    assert operators(after) == ["multiply"]
    same(before, after)


def test_clamp_of_maximum_and_minimum(network, same, operators):
    net = network((1, 4))
    low = net.add(relax.op.maximum(net.x, C(0.0)))
    before = net.module(net.add(relax.op.minimum(low, C(1.0))))
    after = canonicalize(before)
    assert operators(after) == ["clip"]
    same(before, after)


def test_silu_and_hardswish(network, same, operators):
    net = network((1, 4, 3, 3))
    x = net.add(relax.op.multiply(net.x, net.add(relax.op.sigmoid(net.x))))
    gate = net.add(relax.op.clip(net.add(relax.op.add(x, C(3.0))), 0.0, 6.0))
    y = net.add(relax.op.divide(net.add(relax.op.multiply(x, gate)), C(6.0)))
    gate = net.add(relax.op.clip(net.add(relax.op.add(net.add(relax.op.multiply(y, C(1 / 6))), C(0.5))), 0.0, 1.0))
    before = net.module(net.add(relax.op.multiply(y, gate)))
    after = canonicalize(before)
    assert operators(after) == ["nn.silu", "bitkiln.hardswish", "bitkiln.hardswish"]
    same(before, after, 1e-6, scale=5.0)


@pytest.mark.parametrize(
    ("slope", "shift", "low", "high"),
    [(0.2, 0.5, 0, 1), (1 / 6, 0.51, 0, 1), (1 / 6, 0.5, 0.01, 1), (1 / 6, 0.5, 0, 0.99)],
)
def test_what_is_near_a_hardswish_is_none(network, same, operators, slope, shift, low, high):
    net = network((1, 4, 3, 3))
    line = net.add(relax.op.add(net.add(relax.op.multiply(net.x, C(slope))), C(shift)))
    before = net.module(net.add(relax.op.multiply(net.x, net.add(relax.op.clip(line, low, high)))))
    after = canonicalize(before)
    assert "bitkiln.hardswish" not in operators(after)
    same(before, after, 1e-6, scale=5.0)


def test_prelu_written_as_where(network, same, operators):
    net = network((1, 4, 3, 3))
    slopes = net.normal(1, 4, 3, 3)
    scaled = net.add(relax.op.multiply(net.x, slopes))
    below = net.add(relax.op.less(net.x, C(0.0)))
    before = net.module(net.add(relax.op.where(below, scaled, net.x)))
    after = canonicalize(before)
    assert operators(after) == ["bitkiln.prelu"]
    same(before, after)


@pytest.mark.parametrize(("center", "scale"), [(True, True), (False, True), (True, False)])
def test_batch_norm(network, same, operators, center, scale):
    net = network((1, 4, 5, 5))
    variance = C(net.rng.uniform(0.5, 2, 4).astype("float32"))
    norm = nn.batch_norm(net.x, net.normal(4), net.normal(4), net.normal(4), variance, 1, 1e-3, center, scale)
    before = net.module(net.add(relax.TupleGetItem(net.add(norm), 0)))
    after = canonicalize(before)
    assert operators(after) == ["add", "multiply", *(["add"] if center else [])]
    same(before, after, 1e-6)


def test_names_stay(network):
    net = network((1, 4))
    a = net.add(relax.op.subtract(net.x, C(1.0)), "first")
    after = canonicalize(net.module(net.add(relax.op.negative(a), "second")))
    assert [name for name, _ in bindings(after["main"])] == ["first", "out0"]

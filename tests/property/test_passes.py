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
from bitkiln.pipeline.passes.fold_steps import fold_steps
from bitkiln.pipeline.passes.fuse_epilogue import fuse_epilogue
from bitkiln.pipeline.passes.layout import layout
from bitkiln.pipeline.passes.to_operators import to_operators
from tests.property import plain
from tests.property.draws import ODD, ODDER, Draw, draws
from tests.property.networks import (
    Network,
    assert_same,
    batch_norm,
    constant,
    convolution,
    elementwise,
    finish,
    inputs_of,
    pooling,
    residual,
    shape,
    size_of,
    start,
)

op, nn = relax.op, relax.op.nn


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
    assert_same(before, layout(before), inputs_of(net, d))


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


def layers(d: Draw, numbers, whole=False):
    """An NHWC network of float and binary convolutions, poolings, elementwise operators, residuals, concats and signs.

    With ``whole`` nothing in it makes small multiples of powers of two into other numbers.
    """
    net = start(d, ["NHWC"])
    x, seen = net.x, [net.x]
    kinds = ["conv", "binary", "pool", "elementwise", "elementwise", "elementwise", "residual", "concat"]
    for _ in range(d.whole(1, 5)):
        channels, size = shape(x)[3], size_of(net, x)
        match d.pick(kinds if whole else [*kinds, "mean"]):
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
                x = pooling(net, d, x, ["max"] if whole else ["max", "avg"])
            case "elementwise":
                steps = ["add", "multiply", "relu", "our prelu", *([] if whole else ["clip", "leaky", "tanh"])]
                x = elementwise(net, d, x, numbers, steps)
            case "residual":
                x = residual(net, d, x, seen)
            case "mean":
                x = net.add(op.mean(x, [1, 2], keepdims=True))
            case "concat":
                others = [other for other in seen if list(shape(other)[1:3]) == size]
                x = net.add(op.concat([x, d.pick(others)], 3))
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
    """Exact where float32 holds the merged constants exactly."""
    net, before = layers(d, lambda *size: d.rng.choice(np.float32([0, 0.5, 1, 2, -1, -3]), size), whole=True)
    inputs = inputs_of(net, d, odd=None)
    assert_same(before, fold_affine(before), inputs)
    fused = fuse_epilogue(to_operators(before))
    assert_same(before, fold_steps(fused), inputs)


@settings(max_examples=100)
@given(draws())
def test_fold_affine_and_numbers_that_float32_hardly_holds(d: Draw):
    """Factors that float32 cannot hold once merged stay apart."""
    net = Network((1, 2, 2, 3), d.rng)
    inputs = {"x": np.where(net.rng.random(net.shape) < 0.5, np.float32(1.5), np.float32(-0.75))}
    x, wanted, normal = net.x, inputs["x"], True
    for _ in range(d.whole(1, 5)):
        value = constant(np.float32(d.pick([1e30, -1e30, 1e-30, 1e38, 1.5e-38, 3.0, 0.0, 1e-45])))
        make, function = d.pick([(op.multiply, np.multiply), (op.divide, np.divide)])
        x = net.add(make(x, value))
        with np.errstate(all="ignore"):
            wanted = function(wanted, value.value.numpy())
        normal &= bool(np.all((np.abs(wanted) > 2e-38) & np.isfinite(wanted)))
    before = net.module(x)
    for after in (fold_affine(before), fold_affine(canonicalize(before))):
        (actual,) = plain.run(after, inputs)
        if normal:
            np.testing.assert_allclose(actual, wanted, rtol=1e-5)


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

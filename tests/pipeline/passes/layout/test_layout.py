"""Layouts: NHWC inside, the file's own outside, no transposes between, and never a different result."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from bitkiln.pipeline.ir.graph import bindings, op_name, shape_of
from bitkiln.pipeline.passes.canonicalize import canonicalize
from bitkiln.pipeline.passes.layout import layout

op, nn = relax.op, relax.op.nn
C = relax.const


def conv(net, x, outs, **attrs):
    return net.add(nn.conv2d(x, net.normal(outs, shape_of(x)[1], 3, 3, scale=0.3), padding=1, **attrs))


def layouts(module):
    calls = [value for _, value in bindings(module["main"])]
    return {str(call.attrs["data_layout"]) for call in calls if op_name(call) == "nn.conv2d"} | {
        str(call.attrs["layout"]) for call in calls if op_name(call).endswith("pool2d")
    }


def test_only_the_ends_are_transposed(network, same, operators):
    net = network((1, 3, 12, 10))
    x = net.add(nn.leakyrelu(conv(net, net.x, 8), 0.1))
    x = net.add(relax.op.add(net.add(relax.op.multiply(x, net.normal(1, 8, 1, 1))), net.normal(8, 1, 1)))
    y = net.add(relax.op.add(conv(net, x, 8), x))
    y = net.add(relax.op.concat([y, net.add(nn.max_pool2d(x, (3, 3), (1, 1), 1))], 1))
    y = net.add(nn.avg_pool2d(net.add(nn.softmax(y, 1)), (2, 2), (2, 2)))
    before = net.module(y)
    after = layout(before)
    assert layouts(after) == {"NHWC"}
    names = operators(after)
    assert names.count("permute_dims") == 2
    assert names[0] == names[-1] == "permute_dims"
    same(before, after, 1e-6)


def test_transposes_of_the_file_cancel(network, same, operators):
    net = network((1, 9, 8, 3))
    x = net.add(relax.op.permute_dims(net.x, [0, 3, 1, 2]))
    x = net.add(relax.op.permute_dims(conv(net, x, 6), [0, 2, 3, 1]))
    x = net.add(nn.relu(net.add(relax.op.add(x, net.normal(6)))))
    x = net.add(relax.op.permute_dims(x, [0, 3, 1, 2]))
    before = net.module(net.add(relax.op.permute_dims(conv(net, x, 5, strides=(2, 2)), [0, 2, 3, 1])))
    after = layout(before)
    assert "permute_dims" not in operators(after)
    same(before, after, 1e-6)


def test_pixels_in_rows_lie_so_already(network, same, operators):
    net = network((1, 6, 5, 3))
    image = net.add(relax.op.permute_dims(net.x, [0, 3, 1, 2]))
    rows = net.add(relax.op.reshape(conv(net, image, 4), (1, 4, 30)))
    x = net.add(relax.op.add(net.add(relax.op.permute_dims(rows, [0, 2, 1])), net.normal(1, 30, 4)))
    before = net.module(net.add(relax.op.matmul(x, net.normal(4, 7))))
    after = layout(canonicalize(before))
    assert "permute_dims" not in operators(after)
    same(before, after, 1e-6)


def test_flattened_image_permutes_the_dense_layer(network, same, operators):
    net = network((1, 3, 6, 5))
    x = net.add(relax.op.reshape(conv(net, net.x, 4), (1, 120)))
    x = net.add(nn.relu(net.add(relax.op.add(x, net.normal(1, 120)))))
    before = net.module(net.add(relax.op.matmul(x, net.normal(120, 7))))
    after = layout(before)
    assert operators(after).count("permute_dims") == 1
    same(before, after, 1e-5)


def test_unknown_operator_gets_the_layout_it_expects(network, same, operators):
    net = network((1, 3, 6, 5))
    x = net.add(relax.op.cumsum(conv(net, net.x, 4), 1))
    flat = net.add(relax.op.cumsum(net.add(relax.op.reshape(conv(net, x, 4), (1, 120))), 1))
    before = net.module(x, flat)
    after = layout(before)
    assert operators(after).count("cumsum") == 2

    def numpy_cumsum(call, x):
        return np.cumsum(x, axis=int(call.attrs["axis"]), dtype=np.float32)

    from bitkiln.pipeline import reference

    reference.OPERATORS["cumsum"] = numpy_cumsum
    try:
        same(before, after, 1e-5)
    finally:
        del reference.OPERATORS["cumsum"]


def test_reductions_pads_splits_and_slices(network, same):
    net = network((1, 3, 8, 6))
    x = conv(net, net.x, 8)
    x = net.add(nn.pad(x, [0, 0, 0, 0, 1, 2, 0, 3], "constant", -1.0))
    parts = net.add(relax.op.split(x, 2, 1))
    x = net.add(relax.op.add(net.add(relax.TupleGetItem(parts, 0)), net.add(relax.TupleGetItem(parts, 1))))
    kept = net.add(relax.op.mean(x, [2, 3], keepdims=True))
    dropped = net.add(relax.op.max(x, [2, 3]))
    across = net.add(relax.op.sum(x, [1]))
    x = net.add(relax.op.multiply(x, kept))
    before = net.module(x, kept, dropped, across)
    same(before, layout(before), 1e-5)


def test_grouped_and_resized(network, same, operators):
    net = network((1, 8, 6, 6))
    x = net.add(nn.conv2d(net.x, net.normal(8, 1, 3, 3), groups=8, padding=(0, 1, 2, 1), strides=(2, 1)))
    resize = relax.op.image.resize2d(
        x, (12, 12), layout="NCHW", method="nearest_neighbor", coordinate_transformation_mode="asymmetric",
        rounding_method="floor",
    )  # fmt: skip
    before = net.module(net.add(resize))
    after = layout(before)
    assert operators(after) == ["permute_dims", "nn.conv2d", "image.resize2d", "permute_dims"]
    same(before, after, 1e-6)


def random_operation(net, x, other):
    """One operation on ``x`` (and ``other``, of the same shape), of any kind of rule."""
    rng, shape = net.rng, shape_of(x)
    choices = [
        lambda: nn.relu(x),
        lambda: relax.op.add(x, other),
        lambda: relax.op.multiply(x, C(np.float32(0.5))),
        lambda: relax.op.concat([x, other], rng.integers(1, len(shape))),
    ]
    if len(shape) == 2:
        choices += [lambda: relax.op.matmul(x, net.normal(shape[1], 6, scale=0.2))]
        return choices[rng.integers(len(choices))]()
    channels = shape[1]
    choices += [
        lambda: nn.conv2d(x, net.normal(4, channels, 3, 3, scale=0.2), padding=1),
        lambda: nn.max_pool2d(x, (2, 2), (1, 1), (0, 0, 1, 1)),
        lambda: relax.op.add(x, net.normal(1, channels, 1, 1)),
        lambda: relax.op.multiply(x, net.normal(*shape[1:])),
        lambda: relax.op.permute_dims(x, [0, *(rng.permutation(3) + 1)]),
        lambda: relax.op.reshape(x, (1, int(np.prod(shape)))),
        lambda: relax.op.mean(x, [int(rng.integers(1, 4))], keepdims=True),
        lambda: nn.prelu(x, net.normal(channels), 1),
        lambda: nn.softmax(x, int(rng.integers(1, 4))),
        lambda: relax.op.strided_slice(x, [1], [0], [max(1, channels // 2)]),
        lambda: relax.op.reshape(x, (1, *rng.permutation(shape[1:]))),
    ]
    return choices[rng.integers(len(choices))]()


def random_network(net, steps):
    """Random images and rows, joined at random."""
    tensors = [net.x]
    for _ in range(steps):
        x = tensors[net.rng.integers(len(tensors))]
        alike = [other for other in tensors if shape_of(other) == shape_of(x)]
        value = net.add(random_operation(net, x, alike[net.rng.integers(len(alike))]))
        if np.prod(shape_of(value)) < 20000:
            tensors.append(value)
    return net.module(*tensors[-3:])


@pytest.mark.parametrize("seed", range(25))
def test_random_networks_stay_the_same(network, same, seed):
    before = random_network(network((1, 3, 5, 4), seed), 14)
    same(before, layout(canonicalize(before)), 1e-4, seeds=(0,))


def test_axes_of_one_come_and_go_without_transposes(network, same, operators):
    """A row of pixels is convolved as an image of one line."""
    net = network((1, 4, 9))
    x = net.x
    for _ in range(2):
        image = net.add(op.reshape(x, (1, 4, 1, 9)))
        lines = net.add(nn.conv2d(image, net.normal(4, 4, 1, 3), padding=(0, 1, 0, 1)))
        x = net.add(op.multiply(net.add(op.reshape(lines, (1, 4, 9))), net.normal(1, 4, 1)))
    before = net.module(x)
    after = layout(canonicalize(before))
    assert operators(after).count("permute_dims") == 2
    same(before, after, 1e-6)


def test_gathered_rows_and_channels_stay_in_place(network, same, operators, const):
    net = network((1, 8, 6, 5))
    x = net.add(nn.conv2d(net.x, net.normal(4, 8, 3, 3), padding=1))
    for axis, indices in ((2, [1, 0, 5, 4]), (1, [3, 3, 0, 1])):
        x = net.add(op.take(x, const(np.array(indices, np.int32)), axis=axis))
    before = net.module(net.add(nn.conv2d(x, net.normal(4, 4, 1, 1))))
    after = layout(canonicalize(before))
    assert operators(after).count("permute_dims") == 2
    same(before, after, 1e-6)

"""What becomes an operator of ours, and that it computes the same."""

from __future__ import annotations

import pytest
from tvm import relax

from bitkiln.pipeline.passes.canonicalize import canonicalize
from bitkiln.pipeline.passes.fold_affine import fold_affine
from bitkiln.pipeline.passes.fuse_epilogue import fuse_epilogue
from bitkiln.pipeline.passes.layout import layout
from bitkiln.pipeline.passes.to_operators import to_operators

op, nn = relax.op, relax.op.nn


def lowered(module):
    """``module`` up to fused epilogues."""
    for rewrite in (canonicalize, layout, fold_affine, to_operators, fuse_epilogue):
        module = rewrite(module)
    return module


def conv(net, x, channels, outs):
    """Its convolution says that images are NCHW."""
    return net.add(nn.conv2d(x, net.normal(outs, channels, 1, 1)))


@pytest.mark.parametrize(
    ("ins", "outs", "size", "attrs", "operator"),
    [
        (6, 4, (2, 2), {"strides": (2, 2)}, "conv2d_transpose"),
        (6, 4, (3, 3), {"strides": (2, 1), "padding": (1, 0, 1, 2), "output_padding": (1, 0)}, "conv2d_transpose"),
        (6, 2, (3, 2), {"strides": (2, 2), "groups": 3, "dilation": (2, 3)}, "conv2d_transpose"),
        (6, 4, (3, 3), {"padding": (1, 1, 1, 1)}, "conv2d"),
        (6, 2, (3, 3), {"padding": (0, 1, 2, 1), "groups": 2, "dilation": (2, 1)}, "conv2d"),
        (6, 4, (1, 1), {"padding": (1, 1, 1, 1)}, "conv2d_transpose"),
    ],
)
def test_transposed_convolution_with_its_batch_norm(network, same, operators, ins, outs, size, attrs, operator):
    net = network((1, 3, 5, 7))
    x = net.add(nn.conv2d_transpose(conv(net, net.x, 3, ins), net.normal(ins, outs, *size), **attrs))
    channels = outs * attrs.get("groups", 1)
    x = net.add(op.multiply(x, net.normal(1, channels, 1, 1)))
    x = net.add(nn.relu(net.add(op.add(x, net.normal(1, channels, 1, 1)))))
    before = net.module(conv(net, x, channels, 3))
    after = lowered(before)
    names = operators(after)
    assert [name for name in names if name != "permute_dims"] == [
        "bitkiln.conv2d",
        f"bitkiln.{operator}",
        "bitkiln.conv2d",
    ]
    same(before, after, 1e-5)


def test_computed_weights_of_a_transposed_convolution_stay(network, same, operators):
    net = network((1, 3, 2, 2))
    x = conv(net, net.x, 3, 4)
    weight = net.add(op.reshape(x, (4, 1, 2, 2)))
    before = net.module(net.add(nn.conv2d_transpose(x, weight, strides=(2, 2))))
    after = lowered(before)
    assert "nn.conv2d_transpose" in operators(after)
    same(before, after, 1e-5)


@pytest.mark.parametrize("method", ["nearest_neighbor", "linear"])
def test_resizing_takes_what_follows(network, same, operators, method):
    net = network((1, 3, 5, 7))
    x = net.add(op.image.resize2d(conv(net, net.x, 3, 4), (10, 14), layout="NCHW", method=method))
    x = net.add(nn.relu(net.add(op.add(x, net.normal(1, 4, 1, 1)))))
    before = net.module(conv(net, x, 4, 3))
    after = lowered(before)
    names = [name for name in operators(after) if name != "permute_dims"]
    assert names == ["bitkiln.conv2d", "bitkiln.resize2d", "bitkiln.conv2d"]
    same(before, after, 1e-5)

"""Shuffled channels: told from what files write, and read where they lie."""

from __future__ import annotations

from tvm import relax

from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.ops import workload_of
from bitkiln.pipeline.passes.canonicalize import canonicalize
from bitkiln.pipeline.passes.channel_views import channel_views
from bitkiln.pipeline.passes.layout import layout

op, nn = relax.op, relax.op.nn


def conv(net, x, ins, outs, size=1):
    return net.add(nn.conv2d(x, net.normal(outs, ins, size, size), padding=size // 2))


def shuffle(net, x, channels, groups=2, size=(5, 4)):
    x = net.add(op.reshape(x, (1, groups, channels // groups, *size)))
    x = net.add(op.permute_dims(x, [0, 2, 1, 3, 4]))
    return net.add(op.reshape(x, (1, channels, *size)))


def lowered(module):
    for rewrite in (canonicalize, layout, channel_views):
        module = rewrite(module)
    return module


def concats(module):
    return [workload_of(value) for _, value in bindings(module["main"]) if op_name(value) == "bitkiln.concat"]


def test_units_of_a_shufflenet_read_pieces(network, same, operators):
    """Two units: the second one's branch reads what three convolutions left, in four runs of channels at most."""
    net = network((1, 3, 5, 4))
    a, y = conv(net, net.x, 3, 8), conv(net, net.x, 3, 8, 3)
    for _ in range(2):
        x = shuffle(net, net.add(op.concat([a, y], 1)), 16)
        a = net.add(op.strided_slice(x, [1], [0], [8]))
        y = conv(net, net.add(op.strided_slice(x, [1], [8], [16])), 8, 8, 3)
    x = shuffle(net, net.add(op.concat([a, y], 1)), 16)
    before = net.module(conv(net, x, 16, 4))
    after = lowered(before)
    assert not {"take", "strided_slice", "concat"} & set(operators(after))
    assert [len(work.parts) for work in concats(after)] == [2, 3, 4]
    same(before, after, 1e-5)


def test_a_depthwise_convolution_and_its_steps_stay_in_the_order_of_what_it_reads(network, same, operators):
    net = network((1, 3, 5, 4))
    x = shuffle(net, net.add(op.concat([conv(net, net.x, 3, 8), conv(net, net.x, 3, 8)], 1)), 16)
    y = net.add(nn.conv2d(x, net.normal(16, 1, 3, 3), padding=1, groups=16))
    y = net.add(nn.relu(net.add(op.add(y, net.normal(1, 16, 1, 1)))))
    before = net.module(conv(net, y, 16, 4), conv(net, x, 16, 4))
    after = lowered(before)
    assert "take" not in operators(after)
    assert len(concats(after)) == 1
    same(before, after, 1e-5)


def test_other_readers_get_the_channels_in_order(network, same, operators):
    net = network((1, 3, 5, 4))
    x = shuffle(net, conv(net, net.x, 3, 16), 16, 4)
    y = net.add(nn.conv2d(x, net.normal(16, 1, 3, 3), padding=1, groups=16))
    before = net.module(net.add(nn.max_pool2d(y, (2, 2))), conv(net, x, 16, 4))
    after = lowered(before)
    assert operators(after).count("take") == 1
    same(before, after, 1e-5)


def test_a_transpose_of_more_than_channels_is_none(network, same, operators):
    net = network((1, 3, 4, 4))
    x = net.add(op.reshape(conv(net, net.x, 3, 4), (1, 4, 4, 2, 2)))
    x = net.add(op.reshape(net.add(op.permute_dims(x, [0, 2, 1, 3, 4])), (1, 4, 4, 4)))
    before = net.module(conv(net, x, 4, 4))
    after = lowered(before)
    assert "take" not in operators(after)
    same(before, after, 1e-5)


def test_joined_channels_without_a_shuffle_stay(network, same, operators):
    net = network((1, 3, 5, 4))
    x = net.add(op.concat([conv(net, net.x, 3, 4), conv(net, net.x, 3, 8)], 1))
    before = net.module(conv(net, x, 12, 4))
    after = lowered(before)
    assert operators(after).count("concat") == 1 and not concats(after)
    same(before, after, 1e-5)

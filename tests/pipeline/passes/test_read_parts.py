"""Concatenations that nobody makes: convolutions read the parts where they are."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.ops import workload_of
from bitkiln.pipeline.passes.read_parts import read_parts
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Pool

op = relax.op
BORDER = (1, 1, 1, 1)


@pytest.fixture
def net(network):
    return network((1, 6, 6, 8))


def conv(net, x, outs, kernel=1, padding=(0, 0, 0, 0), **attributes):
    weight = net.normal(outs, kernel, kernel, int(x.ty.shape[3]), scale=0.3)
    return net.add(ops.conv2d(x, weight, padding=padding, **attributes))


def joined(net, *parts):
    return net.add(ops.concat(parts, parts=tuple(int(part.ty.shape[3]) for part in parts)))


def parts_read(module):
    calls = [value for _, value in bindings(module["main"]) if op_name(value) == "bitkiln.conv2d"]
    return [workload_of(call).parts for call in calls]


def test_convolutions_take_the_parts(net, same, operators):
    one, two, three = conv(net, net.x, 16), conv(net, net.x, 16), conv(net, net.x, 4)
    equal, mixed = joined(net, one, two), joined(net, two, three, one)
    before = net.module(
        conv(net, equal, 8), conv(net, mixed, 4, 3, BORDER, epilogue=(Step("relu"),)), conv(net, equal, 8, 3)
    )
    after = read_parts(before)
    assert parts_read(after) == [(), (), (), (16, 16), (16, 4, 16), (16, 16)]
    assert "bitkiln.concat" not in operators(after)
    same(before, after)


def test_operands_stay_between_the_images(net, same, operators):
    steps = (Step("add", "channel"), Step("add", "tensor"))
    x = joined(net, conv(net, net.x, 16), conv(net, net.x, 16))
    weight, bias, residual = net.normal(8, 1, 1, 32), net.normal(8), conv(net, net.x, 8)
    before = net.module(net.add(ops.conv2d(x, weight, bias, residual, epilogue=steps)))
    after = read_parts(before)
    assert "bitkiln.concat" not in operators(after)
    same(before, after)


def test_pieces_of_images_are_parts(net, same, operators):
    one, two = conv(net, net.x, 16), conv(net, net.x, 16)
    pieces = net.add(ops.concat([one, two], parts=(8, 8), begins=(0, 8)))
    before = net.module(conv(net, pieces, 4))
    after = read_parts(before)
    assert parts_read(after)[-1] == (8, 8) and "bitkiln.concat" not in operators(after)
    same(before, after)


def test_what_treats_channels_alike_goes_part_by_part(net, same, operators):
    x = joined(net, conv(net, net.x, 16), conv(net, net.x, 16))
    steps = (Step("add", "channel"), Step("relu"))
    pooled = net.add(ops.pool2d(x, net.normal(32), pool=Pool((3, 3), (2, 2), BORDER), epilogue=steps))
    how = {"method": "nearest_neighbor", "coordinates": "asymmetric", "rounding": "floor"}
    larger = net.add(ops.resize2d(pooled, size=(6, 6), **how))
    before = net.module(conv(net, larger, 8), conv(net, x, 8))
    after = read_parts(before)
    assert "bitkiln.concat" not in operators(after)
    assert operators(after).count("bitkiln.pool2d") == operators(after).count("bitkiln.resize2d") == 2
    same(before, after)


@pytest.mark.parametrize("reason", ["input", "output", "reshaped output", "other reader", "unequal", "odd", "epilogue"])
def test_other_concatenations_stay(net, same, operators, reason):
    sizes = {"unequal": (16, 8), "odd": (6, 6)}.get(reason, (16, 16))
    parts, results = [conv(net, net.x, size) for size in sizes], []
    if reason == "input":
        parts = [net.x, conv(net, net.x, 8)]
    steps = (Step("relu"),) if reason == "epilogue" else ()
    x = net.add(ops.concat(parts, parts=tuple(int(part.ty.shape[3]) for part in parts), epilogue=steps))
    if reason == "output":
        results.append(parts[0])
    if reason == "reshaped output":
        results.append(net.add(op.reshape(parts[1], (1, 6 * 6 * 16))))
    if reason == "other reader":
        results.append(net.add(op.nn.softmax(x)))
    before = net.module(conv(net, x, 8), *results)
    after = read_parts(before)
    assert operators(after).count("bitkiln.concat") == 1 and not any(parts_read(after))
    same(before, after)


@pytest.mark.parametrize("sign", [1, -1])
def test_maxima_come_before_an_epilogue_that_rises(net, same, operators, sign):
    one, two = conv(net, net.x, 16), conv(net, net.x, 32)
    scale, shift = relax.const(sign * np.linspace(0.5, 2, 48, dtype="float32")), net.normal(48)
    x = net.add(
        ops.concat([one, two], scale, shift, parts=(16, 32), epilogue=(Step("mul", "channel"), Step("add", "channel")))
    )
    pooled = net.add(ops.pool2d(x, pool=Pool((2, 2), (2, 2)), epilogue=(Step("relu"),)))
    before = net.module(conv(net, pooled, 8))
    after = read_parts(before)
    # Parts of two sizes are joined for the convolution, which is less than before.
    assert operators(after).count("bitkiln.concat") == 1
    assert operators(after).count("bitkiln.pool2d") == (2 if sign > 0 else 1)
    same(before, after)


def test_slices_are_read_where_they_are(net, same, operators):
    x = conv(net, net.x, 32)
    first, second = (net.add(op.strided_slice(x, [3], [begin], [begin + 16])) for begin in (0, 16))
    filtered = conv(net, second, 32, 3, BORDER)
    both = joined(net, first, net.add(op.strided_slice(filtered, [3], [8], [24])))
    uneven = joined(net, second, conv(net, net.x, 8))
    before = net.module(conv(net, both, 4), conv(net, uneven, 4))
    after = read_parts(before)
    assert "strided_slice" not in operators(after)
    # Parts of images of two sizes are joined, without copies of the slices first.
    assert operators(after).count("bitkiln.concat") == 1
    assert parts_read(after)[1] == (16,)
    same(before, after)

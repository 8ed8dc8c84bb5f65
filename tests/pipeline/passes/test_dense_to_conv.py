"""Dense layers as convolutions of one pixel."""

from __future__ import annotations

from tvm import relax

from bitkiln.pipeline.ir.graph import bindings, shape_of
from bitkiln.pipeline.passes.dense_to_conv import dense_to_conv

nn = relax.op.nn


def test_layers_in_a_row_stay_on_the_image(network, same, operators):
    net = network((1, 12))
    x = net.add(nn.relu(net.add(relax.op.add(net.add(relax.op.matmul(net.x, net.normal(12, 8))), net.normal(8)))))
    x = net.add(relax.op.add(net.add(relax.op.matmul(x, net.normal(8, 5))), net.normal(1, 5)))
    before = net.module(net.add(nn.softmax(x, 1)))
    after = dense_to_conv(before)
    assert operators(after) == ["reshape", "nn.conv2d", "add", "nn.relu", "nn.conv2d", "add", "reshape", "nn.softmax"]
    same(before, after, 1e-6)


def test_names_go_to_the_image(network):
    net = network((1, 4))
    x = net.add(relax.op.matmul(net.x, net.normal(4, 3)), "product")
    after = dense_to_conv(net.module(net.add(relax.op.add(x, net.normal(3)), "sum")))
    shapes = {name: shape_of(value) for name, value in bindings(after["main"])}
    assert shapes["product"] == (1, 1, 1, 3)


def test_residual_rows(network, same, operators):
    net = network((1, 6))
    x = net.add(relax.op.matmul(net.x, net.normal(6, 6)))
    before = net.module(net.add(relax.op.multiply(net.add(relax.op.add(x, net.x)), x)))
    after = dense_to_conv(before)
    assert operators(after) == ["reshape", "nn.conv2d", "add", "multiply", "reshape"]
    same(before, after, 1e-6)


def test_several_rows_are_an_image_of_one_line(network, same, operators):
    net = network((1, 2, 3, 6))
    before = net.module(net.add(nn.relu(net.add(relax.op.matmul(net.x, net.normal(6, 4))))))
    after = dense_to_conv(before)
    assert operators(after) == ["reshape", "nn.conv2d", "nn.relu", "reshape"]
    assert shape_of(dict(bindings(after["main"]))["t0"]) == (1, 1, 6, 4)
    same(before, after, 1e-6)


def test_weights_that_are_computed_are_left_alone(network, operators):
    net = network((6, 6))
    before = net.module(net.add(relax.op.matmul(net.x, net.add(nn.relu(net.x)))))
    assert operators(dense_to_conv(before)) == ["nn.relu", "matmul"]

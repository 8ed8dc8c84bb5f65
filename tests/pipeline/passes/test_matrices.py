"""Products of activations, attention and functions of rows, as files spell them."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax
from tvm.relax.op import nn

from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.ops import has_workload, workload_of
from bitkiln.pipeline.passes.canonicalize import canonicalize
from bitkiln.pipeline.passes.dense_to_conv import dense_to_conv
from bitkiln.pipeline.passes.fuse_epilogue import fuse_epilogue
from bitkiln.pipeline.passes.join_products import join_products
from bitkiln.pipeline.passes.to_operators import to_operators
from bitkiln.schedules.workload import Attention, Matrices, Normalize, Product

op = relax.op
TOKENS, HEADS, WIDTH = 7, 3, 4
DIM = HEADS * WIDTH


def scalar(value):
    return relax.const(np.float32(value))


def lowered(module):
    for rewrite in (canonicalize, dense_to_conv, to_operators, fuse_epilogue, join_products):
        module = rewrite(module)
    return module


def workloads(module):
    return [workload_of(value) for _, value in bindings(module["main"]) if has_workload(value)]


def of_kind(module, kind):
    return [work for work in workloads(module) if isinstance(work, kind)]


def split_by_slices(net, qkv):
    parts = [net.add(op.strided_slice(qkv, [0], [part], [part + 1])) for part in range(3)]
    return [net.add(op.squeeze(part, [0])) for part in parts]


def split_by_indices(net, qkv):
    return [net.add(op.take(qkv, relax.const(part, "int64"), 0)) for part in range(3)]


def split_at_once(net, qkv):
    parts = net.add(op.split(qkv, 3, 0))
    return [net.add(op.squeeze(net.add(parts[part]), [0])) for part in range(3)]


def scaled_behind(net, query, key):
    scores = net.add(op.matmul(query, net.add(op.permute_dims(key, [0, 1, 3, 2]))))
    return net.add(op.multiply(scores, scalar(0.5)))


def scaled_before(net, query, key):
    key = net.add(op.multiply(net.add(op.permute_dims(key, [0, 1, 3, 2])), scalar(0.5)))
    return net.add(op.matmul(net.add(op.multiply(query, scalar(0.25))), key))


def scaled_by_quotient(net, query, key):
    scores = net.add(op.matmul(query, net.add(op.permute_dims(key, [0, 1, 3, 2]))))
    return net.add(op.divide(scores, scalar(3)))


def masked(net, query, key):
    return net.add(op.add(scaled_behind(net, query, key), net.normal(1, HEADS, TOKENS, TOKENS)))


@pytest.mark.parametrize("split", [split_by_slices, split_by_indices, split_at_once])
@pytest.mark.parametrize("score", [scaled_behind, scaled_before, scaled_by_quotient, masked])
def test_attention_of_heads_is_one_operator_on_the_tokens(network, same, split, score):
    net = network((1, TOKENS, DIM))
    qkv = net.add(op.matmul(net.x, net.normal(DIM, 3 * DIM)))
    qkv = net.add(op.permute_dims(net.add(op.reshape(qkv, (1, TOKENS, 3, HEADS, WIDTH))), [2, 0, 3, 1, 4]))
    query, key, value = split(net, qkv)
    shares = net.add(nn.softmax(score(net, query, key), -1))
    heads = net.add(op.permute_dims(net.add(op.matmul(shares, value)), [0, 2, 1, 3]))
    out = net.add(op.matmul(net.add(op.reshape(heads, (1, TOKENS, DIM))), net.normal(DIM, DIM)))
    before = net.module(out)
    after = lowered(before)
    same(before, after, 1e-5)
    (work,) = of_kind(after, Attention)
    assert (work.stack, work.rows, work.inner, work.columns, work.width) == ((HEADS,), TOKENS, WIDTH, TOKENS, WIDTH)
    assert work.third == Matrices((1, 1, TOKENS, 3 * DIM), 2 * DIM, (WIDTH,), 3 * DIM, 1)
    assert (work.result.stack, work.result.row, work.result.column) == ((WIDTH,), DIM, 1)
    rest = [op_name(value) for _, value in bindings(after["main"]) if not has_workload(value)]
    assert set(rest) == {"reshape"}


def test_scores_that_something_else_reads_stay(network, same):
    net = network((2, 5, 4))
    scores = net.add(op.matmul(net.x, net.add(op.permute_dims(net.x, [0, 2, 1]))))
    shares = net.add(nn.softmax(scores, -1))
    before = net.module(net.add(op.add(net.add(op.matmul(shares, net.x)), net.add(op.matmul(scores, net.x)))))
    after = lowered(before)
    same(before, after, 1e-5)
    assert len(of_kind(after, Product)) == 3


def test_one_matrix_for_a_stack(network, same):
    net = network((3, 2, 5, 4))
    second = net.add(op.mean(net.x, [0], True))
    before = net.module(net.add(op.matmul(net.x, net.add(op.permute_dims(second, [0, 1, 3, 2])))))
    after = lowered(before)
    same(before, after, 1e-5)
    (work,) = of_kind(after, Product)
    assert work.stack == (3, 2) and work.second.stack[0] == 0


def test_what_is_no_even_choice_is_read_as_it_is(network, same):
    net = network((1, 6, 4))
    moved = net.add(op.take(net.x, relax.const(np.int64([0, 1, 3, 4, 5, 2])), 1))
    before = net.module(net.add(op.matmul(moved, net.add(op.permute_dims(net.x, [0, 2, 1])))))
    after = lowered(before)
    same(before, after, 1e-5)
    (work,) = of_kind(after, Product)
    assert work.first == Matrices((1, 6, 4), 0, (), 4, 1)


@pytest.mark.parametrize("square", [lambda x: op.power(x, scalar(2)), lambda x: op.multiply(x, x), op.square])
def test_layer_normalisation_as_files_spell_it(network, same, square):
    net = network((1, 5, 8))
    centred = net.add(op.subtract(net.x, net.add(op.mean(net.x, [-1], True))))
    variance = net.add(op.mean(net.add(square(centred)), [-1], True))
    deviation = net.add(op.sqrt(net.add(op.add(variance, scalar(1e-3)))))
    scaled = net.add(op.multiply(net.add(op.divide(centred, deviation)), net.normal(8)))
    before = net.module(net.add(op.add(scaled, net.normal(8))))
    after = lowered(before)
    same(before, after, 1e-5)
    (work,) = workloads(after)
    assert isinstance(work, Normalize) and np.isclose(work.epsilon, 1e-3)


def test_softmax_of_another_axis_stays(network, same):
    net = network((1, 5, 8))
    before = net.module(net.add(nn.softmax(net.x, 1)))
    after = lowered(before)
    same(before, after, 1e-6)
    assert not workloads(after)


def gelu_by_erf(net, x):
    share = net.add(op.add(net.add(op.erf(net.add(op.divide(x, scalar(2**0.5))))), scalar(1)))
    return net.add(op.multiply(net.add(op.multiply(x, share)), scalar(0.5)))


def gelu_by_half(net, x):
    share = net.add(op.add(net.add(op.erf(net.add(op.multiply(x, scalar(0.5**0.5))))), scalar(1)))
    return net.add(op.multiply(net.add(op.multiply(x, scalar(0.5))), share))


def gelu_by_tanh(net, x):
    cube = net.add(op.multiply(net.add(op.power(x, scalar(3))), scalar(0.044715)))
    inner = net.add(op.multiply(net.add(op.add(x, cube)), scalar((2 / np.pi) ** 0.5)))
    share = net.add(op.add(net.add(op.tanh(inner)), scalar(1)))
    return net.add(op.multiply(net.add(op.multiply(x, scalar(0.5))), share))


@pytest.mark.parametrize("spell", [gelu_by_erf, gelu_by_half, gelu_by_tanh])
def test_gelu_as_files_spell_it_is_part_of_the_dense_layer(network, same, spell):
    net = network((1, 5, 8))
    dense = net.add(op.add(net.add(op.matmul(net.x, net.normal(8, 12))), net.normal(12)))
    before = net.module(spell(net, dense))
    after = lowered(before)
    same(before, after, 1e-5)
    (work,) = workloads(after)
    assert [step.op for step in work.epilogue] in (["add", "gelu"], ["add", "gelu_tanh"])

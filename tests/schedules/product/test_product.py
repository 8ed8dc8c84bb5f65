"""Products of two activations, and attention: against TVM's definition, and against numpy."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.reference.workloads import compute
from bitkiln.schedules import product
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Attention, Matrices, Product, from_json, to_json
from tests.schedules.kernels import bound, defined, example, on_host, same, without_set

BIAS, RELU, MASK, RESIDUAL = Step("add", "channel"), Step("relu"), Step("add", "element"), Step("add", "tensor")


def stacked(stack, rows, columns):
    """Matrices one after the other."""
    pitches = tuple(rows * columns * prod(stack[axis + 1 :]) for axis in range(len(stack)))
    return Matrices((*stack, rows, columns), 0, pitches, columns, 1)


def turned(stack, rows, columns):
    """The transposes of matrices one after the other."""
    plain = stacked(stack, columns, rows)
    return replace(plain, row=plain.column, column=plain.row)


def heads(count, rows, columns, parts=1, part=0):
    """Matrices side by side, as the heads in rows of tokens; of several ``parts`` of such rows one."""
    width = count * columns
    return Matrices((1, rows, parts * width), part * width, (columns,), parts * width, 1)


def of(stack, rows, inner, columns, **changed):
    first, second, result = stacked(stack, rows, inner), stacked(stack, inner, columns), stacked(stack, rows, columns)
    return replace(Product(stack, rows, inner, columns, first, second, result), **changed)


#: Sizes beside those of tiles; one row, one column, a sum of one.
PRODUCTS = [
    of((3,), 19, 16, 24),
    of((), 8, 8, 8),
    of((2,), 13, 7, 11, second=turned((2,), 7, 11), factor=0.25),
    of((2, 3), 5, 9, 10, first=turned((2, 3), 5, 9)),
    of((2,), 1, 12, 17),
    of((2,), 9, 5, 1),
    of((2,), 10, 1, 13),
    of((), 1, 1, 1),
    of((3,), 17, 20, 12, first=heads(3, 17, 20, 3, 1), second=heads(3, 20, 12), result=heads(3, 17, 12)),
    # One matrix for all of a stack.
    of((3,), 9, 8, 16, second=Matrices((8, 16), 0, (0,), 16, 1)),
    of((2, 3), 9, 8, 16, second=Matrices((3, 8, 16), 0, (0, 128), 16, 1)),
    of((3,), 21, 24, 20, epilogue=(BIAS, RELU)),
    of((3,), 21, 24, 18, epilogue=(MASK,)),
    of((2,), 12, 8, 16, epilogue=(RESIDUAL, Step("gelu"))),
    of((), 70, 33, 90),
]


def attention(count, rows, inner, columns, width, **changed):
    stack = (count,)
    tensors = stacked(stack, rows, inner), turned(stack, inner, columns), stacked(stack, columns, width)
    made = Attention(stack, rows, inner, columns, width, *tensors, stacked(stack, rows, width), factor=inner**-0.5)
    return replace(made, **changed)


ATTENTIONS = [
    attention(2, 19, 16, 19, 16),
    attention(2, 8, 8, 32, 8),
    attention(3, 13, 7, 29, 5, epilogue=(MASK,)),
    attention(1, 1, 4, 40, 9),
    attention(2, 9, 1, 1, 3),
    attention(
        3,
        17,
        12,
        17,
        12,
        first=heads(3, 17, 12, 3, 0),
        second=replace(heads(3, 17, 12, 3, 1), row=1, column=108),
        third=heads(3, 17, 12, 3, 2),
        result=heads(3, 17, 12),
    ),
]
WORKLOADS = [*PRODUCTS, *ATTENTIONS]
BOARDS = ("rasp3b", "rasp3b32")


@pytest.mark.parametrize("workload", WORKLOADS[1::3], ids=str)
def test_definition_and_loops_of_any_cpu(workload):
    args = example(workload)
    expected = compute(workload, args)
    assert same(defined(workload, args), expected)
    target = without_set()
    kernel = product.emit(workload, product.default(workload, target), target)
    assert same(on_host(kernel.func, bound(kernel, args), workload), expected)


@pytest.mark.parametrize("name", BOARDS)
def test_kernels_compute_the_definition(name, run_kernels):
    target, args = targets.load(name), [example(workload) for workload in WORKLOADS]
    points = [product.space(workload, target) for workload in WORKLOADS]
    for turn in (0, 1, 2) if name == "rasp3b" else (1,):
        kernels = [
            product.emit(
                workload,
                {knob: values[(turn * (index + 1)) % len(values)] for knob, values in point.items()},
                target,
            )
            for index, (workload, point) in enumerate(zip(WORKLOADS, points, strict=True))
        ]
        one, three = run_kernels(WORKLOADS, kernels, args, target, [1, 3])
        for workload, given, first, second in zip(WORKLOADS, args, one, three, strict=True):
            assert same(first, compute(workload, given)), workload.key()
            assert np.array_equal(first, second)


def test_masked_columns_have_no_share(run_kernel):
    workload, target = attention(1, 9, 4, 21, 6, epilogue=(MASK,)), targets.load("rasp3b")
    args = example(workload)
    args[3][:, :, 7:] = -np.inf
    args[3][0, 1, 7:] = np.finfo(np.float32).min
    args[2][0, 7:] = 1e30
    kernel = product.emit(workload, product.default(workload, target), target)
    result = run_kernel(workload, kernel, args, target, 1)
    assert same(result, compute(workload, args)) and np.abs(result).max() < 10


def test_values_of_any_usual_size(run_kernel):
    workload, target = attention(2, 9, 8, 21, 12), targets.load("rasp3b")
    kernel = product.emit(workload, product.default(workload, target), target)
    *others, values = example(workload)
    plain = run_kernel(workload, kernel, [*others, values], target, 1)
    for power in (-80, 80):
        factor = np.float32(2.0**power)
        result = run_kernel(workload, kernel, [*others, values * factor], target, 1)
        assert same(result / factor, plain)


def test_large_products_come_near_the_roof(kernel_cycles):
    workload, target = of((), 128, 128, 128), targets.load("rasp3b")
    kernel = product.emit(workload, product.default(workload, target), target)
    assert workload.macs / kernel_cycles(kernel, example(workload), target) > 2.7


def test_workload_is_a_value():
    assert [from_json(to_json(workload)) for workload in WORKLOADS] == WORKLOADS
    assert len({workload.key() for workload in WORKLOADS}) == len(WORKLOADS)

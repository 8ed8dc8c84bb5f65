"""MetaSchedule's programs as points of a space: derived again from a record, they compute what the recipe does."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import prod

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from bitkiln import targets
from bitkiln.schedules import generic
from bitkiln.schedules.generic.sketches import sketches, splits
from bitkiln.schedules.workload import Generic, to_json, tunable_from_json

RASP3B = targets.load("rasp3b")
op = relax.op

CASES: dict[str, tuple[Callable[..., relax.Expr], tuple[tuple[int, ...], ...]]] = {
    "products": (lambda x, y: op.matmul(x, y), ((4, 24, 16), (4, 16, 40))),
    "tall": (lambda x, y: op.matmul(x, y), ((784, 784), (784, 16))),
    "softmax": (lambda x: op.nn.softmax(x), ((12, 60),)),
    "mean": (lambda x: op.mean(x, [1, 2], keepdims=True), ((1, 7, 7, 96),)),
    "volume": (lambda x, y: op.nn.conv3d(x, y, padding=1), ((1, 3, 4, 6, 8), (8, 3, 3, 3, 3))),
}


def function_of(case: str) -> tirx.PrimFunc:
    """The function that TVM lowers a case to."""
    make, shapes = CASES[case]
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", params):
        builder.emit_func_output(builder.emit(make(*params)))
    module = relax.transform.LegalizeOps()(builder.get())
    (function,) = [each for each in module.functions.values() if isinstance(each, tirx.PrimFunc)]
    return function


def workload_of(case: str) -> Generic:
    found = generic.workload_of("function", function_of(case))
    assert found is not None
    return found


def results(workload: Generic, function: tirx.PrimFunc) -> np.ndarray:
    """What a function gives on this machine for fixed arguments."""
    source = np.random.default_rng(1)
    tensors = [tvm.runtime.tensor(source.uniform(0.5, 1.5, shape).astype(dtype)) for shape, dtype in workload.shapes]
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    tvm.compile(module, target=tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"}))["main"](*tensors)
    return tensors[-1].numpy()


@pytest.mark.parametrize("case", CASES)
def test_every_sketch_computes_what_the_function_does(case: str) -> None:
    workload = workload_of(case)
    expected = results(workload, generic.reference(workload))
    space = generic.space(workload, RASP3B)
    source = random.Random(1)
    for name in space[generic.SKETCH]:
        point = {knob: source.choice(values) for knob, values in space.items()} | {generic.SKETCH: name}
        kernel = generic.emit(workload, point, RASP3B)
        np.testing.assert_allclose(results(workload, kernel.func), expected, rtol=1e-5)


def test_a_point_is_found_again_in_the_program_that_it_decides() -> None:
    for sketch in sketches(workload_of("products").function, RASP3B):
        point = {name: values[len(values) // 2] for name, values in sketch.knobs.items()}
        assert sketch.values(sketch.schedule(point, RASP3B).trace.simplified(remove_postproc=True)) == point


def test_tiles_are_all_ways_to_split_a_loop() -> None:
    assert splits(4, 2) == [(1, 4), (2, 2), (4, 1)]
    assert all(prod(split) == 360 for split in splits(360, 4))
    assert len(splits(2**40, 2)) == 41, "long loops do not take long"
    assert len(set(splits(360, 4))) == len(splits(360, 4)) == 20 * 10 * 4


def test_the_key_names_the_function_and_its_shapes_and_stays() -> None:
    workload = workload_of("products")
    assert tunable_from_json(to_json(workload)) == workload
    assert workload_of("products").key() == workload.key()
    assert workload.key().startswith("tir function 4x24x16,4x16x40 to 4x24x40 ")
    assert workload.macs == 4 * 24 * 16 * 40
    assert workload_of("volume").key() != workload.key()


def test_functions_of_several_results_are_no_task() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 6), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(op.split(x, 2, 1)))
    module = relax.transform.LegalizeOps()(builder.get())
    (function,) = [each for each in module.functions.values() if isinstance(each, tirx.PrimFunc)]
    assert generic.workload_of("split", function) is None


def test_untuned_products_are_tiled_and_all_else_is_by_the_recipe() -> None:
    products, softmax = workload_of("tall"), workload_of("softmax")
    assert generic.untuned(products, RASP3B)[generic.SKETCH] != generic.RECIPE
    assert generic.untuned(softmax, RASP3B) == {generic.SKETCH: generic.RECIPE}
    for workload in (products, softmax):
        space, point = generic.space(workload, RASP3B), generic.default(workload, RASP3B)
        assert point.keys() == space.keys() and all(point[name] in values for name, values in space.items())

"""Execution plans: what is a step, what is a view, and that no two live tensors share bytes."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import numpy as np
import pytest
import tvm
from tvm import relax

from bitkiln.pipeline.compile.plan import (
    ALIGNMENT,
    COPY,
    ExecutionPlan,
    PlannedCall,
    Storage,
    View,
    activation_bytes,
    constant_view,
    make_plan,
    new_view,
    place_by_lifetime,
    read_network,
)
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.model import Model


def plan_of(module: tvm.IRModule) -> ExecutionPlan:
    network = read_network(module)
    return make_plan(network.calls, network.inputs, network.outputs)


def built(shape: tuple[int, ...], build) -> tvm.IRModule:
    """A lowered module: ``build(builder, x)`` gives the result."""
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(build(builder, x))
        builder.emit_func_output(result)
    return relax.transform.LegalizeOps()(builder.get())


def test_steps_are_named_after_their_variables_and_reshapes_are_views(toy: Model) -> None:
    plan = plan_of(toy.module)
    assert [(step.name, step.kind) for step in plan.steps] == [("lv", "relu"), ("lv1", "add"), ("lv3", "softmax")]
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    assert by_name["lv2"].offset == by_name["lv1"].offset and by_name["lv2"].place == by_name["lv1"].place
    assert by_name["lv2"].shape == (1, 48)


def test_outputs_are_written_in_place(toy: Model) -> None:
    plan = plan_of(toy.module)
    scores, flat = (plan.tensors[index] for index in plan.outputs)
    assert scores.place == flat.place == "boundary"
    assert plan.steps[1].arguments[-1] != plan.outputs[1], "the output is a reshaped view"
    assert plan.tensors[plan.steps[1].arguments[-1]].offset == flat.offset


def test_a_kernel_with_several_outputs_gives_one_step() -> None:
    plan = plan_of(built((2, 8), lambda b, x: b.emit(relax.op.split(b.emit(relax.op.nn.relu(x)), 2, axis=1))))
    split = plan.steps[1]
    assert (split.kind, split.outputs, len(split.arguments)) == ("split", 2, 3)
    assert [plan.tensors[index].name for index in split.arguments[1:]] == ["lv1.0", "lv1.1"]


def test_what_no_kernel_writes_is_copied_to_the_output() -> None:
    def build(b: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
        relu = b.emit(relax.op.nn.relu(x))
        return relax.Tuple([relu, relu, b.emit(relax.op.reshape(x, (16,))), relax.const(np.ones(3, "float32"))])

    plan = plan_of(built((2, 8), build))
    assert [step.kernel for step in plan.steps] == ["relu", COPY, COPY, COPY]
    assert len(set(plan.outputs)) == 4
    assert len({plan.tensors[index].offset for index in (*plan.inputs, *plan.outputs)}) == 5


def test_an_operator_that_lowering_left_behind_is_named() -> None:
    x = relax.Var("x", relax.TensorType((2,), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.nn.relu(x))
        builder.emit_func_output(result)
    with pytest.raises(BitkilnError, match=r"gv: lowering left relax\.nn\.relu"):
        read_network(builder.get())


def test_equal_constants_are_kept_once() -> None:
    weights = np.arange(10, dtype="float32")
    x, y, z = (new_view(name, (10,), "float32", boundary=name == "x") for name in "xyz")
    calls = [
        PlannedCall("y", "add", "k", (x, constant_view("a", weights)), (y,)),
        PlannedCall("z", "add", "k", (y, constant_view("b", weights.copy())), (z,)),
    ]
    plan = make_plan(calls, [x], [z])
    assert len(plan.constants) == ALIGNMENT and plan.constants[:40] == weights.tobytes()


@pytest.mark.parametrize("seed", range(20))
def test_live_storages_never_overlap(seed: int) -> None:
    source = random.Random(seed)
    lifetimes = []
    for _ in range(source.randint(1, 40)):
        first = source.randint(0, 30)
        lifetimes.append((Storage(source.randint(0, 5000)), first, first + source.randint(0, 8)))
    offsets, total = place_by_lifetime(lifetimes)
    for (a, a_first, a_last), (b, b_first, b_last) in combinations(lifetimes, 2):
        if a_first <= b_last and b_first <= a_last:
            a_at, b_at = offsets[id(a)], offsets[id(b)]
            assert a_at + a.nbytes <= b_at or b_at + b.nbytes <= a_at
    assert all(offset % ALIGNMENT == 0 for offset in offsets.values())
    assert all(offsets[id(storage)] + storage.nbytes <= total for storage, _, _ in lifetimes)


def test_memory_is_shared_between_steps() -> None:
    chain = [new_view(f"t{index}", (1000,), "float32", boundary=index == 0) for index in range(12)]
    calls = [PlannedCall(b.name, "k", "k", (a,), (b,)) for a, b in pairwise(chain)]
    assert make_plan(calls, [chain[0]], [chain[-1]]).arena_bytes == 2 * 4032


def test_a_plan_is_the_same_every_time_and_changes_nothing(toy: Model) -> None:
    network = read_network(toy.module)
    first = make_plan(network.calls, network.inputs, network.outputs)
    assert activation_bytes(network) == first.arena_bytes
    assert make_plan(network.calls, network.inputs, network.outputs) == first == plan_of(toy.module)


def test_a_view_of_an_unwritten_result_is_never_in_the_arena_of_its_reader() -> None:
    x = new_view("x", (16,), "float32", boundary=True)
    y = new_view("y", (16,), "float32")
    again = View("again", (4, 4), "float32", y.storage)
    z = new_view("z", (16,), "float32")
    plan = make_plan([PlannedCall("y", "k", "k", (x,), (y,)), PlannedCall("z", "k", "k", (again,), (z,))], [x], [z])
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    assert tensors["again"].offset == tensors["y"].offset and tensors["again"].place == "arena"


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_constants_keep_their_dimensions(shape: tuple[int, ...]) -> None:
    """A scalar stays one: kernels check the number of dimensions of what they are given."""
    view = constant_view("c", np.ones(shape, np.float32).T)
    assert view.shape == shape[::-1] and view.storage.constant.flags.c_contiguous

"""Signs move to what makes their floats, where somebody else needs the floats; the network computes what it did."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax
from tvm.relax import TupleGetItem

from bitkiln import targets
from bitkiln.pipeline import ops, reference
from bitkiln.pipeline.boards.emulated import on_emulator
from bitkiln.pipeline.bundle import open_bundle
from bitkiln.pipeline.compile import compile_lowered
from bitkiln.pipeline.ir.graph import bindings
from bitkiln.pipeline.model import Model, TensorSpec
from bitkiln.pipeline.passes.pipeline import lower
from bitkiln.pipeline.passes.signs_beside import signs_beside
from bitkiln.pipeline.run import trace_on
from bitkiln.pipeline.verify import verify_bundle
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Pool, Signs

BOARD = targets.load("rasp3b")
SAME = (1, 1, 1, 1)
MUL, ADD, PRELU = Step("mul", "channel"), Step("add", "channel"), Step("prelu", "channel")


def residual(net, *, before=(), sign_zero=1, operator="bconv2d"):
    """A layer whose floats are added to what comes of their signs; ``before`` are steps before the sign."""
    first = net.add(ops.binarize(net.x), "first_bits")
    weight = relax.const(ops.pack_bits(net.rng.choice([-1, 1], (16, 3, 3, 16))), "uint8")
    if operator == "bconv2d":
        call = ops.bconv2d(first, weight, net.normal(16), channels=16, padding=SAME, epilogue=(MUL,))
    else:
        call = ops.pool2d(net.x, pool=Pool((3, 3), (1, 1), SAME, "avg", False))
    floats = net.add(call, "floats")
    operands = [net.normal(16) for _ in before]
    bits = net.add(ops.binarize(floats, *operands, epilogue=before, sign_zero=sign_zero), "bits")
    last = net.add(ops.bconv2d(bits, weight, floats, channels=16, padding=SAME, epilogue=(Step("add", "tensor"),)))
    return net.module(last)


def first_layer(net, *, before=(), kernel=7, read=True):
    """Floats of an image, pooled, which are added to what comes of their signs if they are ``read``."""
    weight, around = net.normal(16, kernel, kernel, net.shape[3]), (kernel // 2,) * 4
    pool = Pool((3, 3), (2, 2), SAME)
    call = ops.conv2d(net.x, weight, strides=(2, 2), padding=around, pool=pool)
    floats = net.add(call, "floats")
    operands = [net.normal(16) for _ in before]
    bits = net.add(ops.binarize(floats, *operands, epilogue=before), "bits")
    weight, rest = relax.const(ops.pack_bits(net.rng.choice([-1, 1], (16, 3, 3, 16))), "uint8"), [floats] * read
    epilogue = (Step("add", "tensor"),) * read
    return net.module(net.add(ops.bconv2d(bits, weight, *rest, channels=16, padding=SAME, epilogue=epilogue)))


def workloads(module):
    return [ops.workload_of(value) for _, value in bindings(module["main"]) if ops.has_workload(value)]


@pytest.mark.parametrize("operator", ["bconv2d", "pool2d"])
@pytest.mark.parametrize("before", [(), (MUL, ADD)])
def test_signs_are_a_further_result(network, same, operators, operator, before):
    net = network((1, 6, 5, 16))
    module = residual(net, before=before, sign_zero=-1, operator=operator)
    after = signs_beside(module, BOARD)
    assert operators(after).count("bitkiln.binarize") == (operator == "bconv2d")
    assert [work.signs for work in workloads(after) if getattr(work, "signs", ())] == [(Signs(before, -1),)]
    names = {name for name, value in bindings(after["main"]) if isinstance(value, TupleGetItem)}
    assert names == {"floats", "bits"}
    same(module, after)


@pytest.mark.parametrize("before", [(), (MUL, ADD)])
def test_floats_that_only_signs_are_made_of_are_not_written(network, same, operators, before):
    net = network((1, 6, 5, 16))
    bits = net.add(ops.binarize(net.x))
    weight = relax.const(ops.pack_bits(net.rng.choice([-1, 1], (16, 3, 3, 16))), "uint8")
    steps = (MUL, Step("add", "tensor"))
    call = ops.bconv2d(bits, weight, net.normal(16), net.x, channels=16, padding=SAME, epilogue=steps)
    operands = [net.normal(16) for _ in before]
    module = net.module(net.add(ops.binarize(net.add(call), *operands, epilogue=before, sign_zero=-1)))
    after = signs_beside(module, BOARD)
    assert operators(after) == ["bitkiln.binarize", "bitkiln.bconv2d"]
    (work,) = [work for work in workloads(after) if work.tag == "conv2d"]
    assert (work.out, work.sign_zero, work.epilogue, work.signs) == ("bits", -1, (*steps, *before), ())
    same(module, after)


def test_several_signs_of_one_result(network, same, operators):
    net = network((1, 6, 5, 16))
    weight = relax.const(ops.pack_bits(net.rng.choice([-1, 1], (8, 1, 1, 16))), "uint8")
    pooled = net.add(ops.pool2d(net.x, pool=Pool((2, 2), (1, 1))), "pooled")
    layers = []
    for zero in (1, -1):
        bits = net.add(ops.binarize(pooled, net.normal(16), epilogue=(MUL,), sign_zero=zero))
        layers.append(net.add(ops.bconv2d(bits, weight, channels=16)))
    module = net.module(pooled, *layers)
    after = signs_beside(module, BOARD)
    assert "bitkiln.binarize" not in operators(after)
    same(module, after)


def test_several_signs_of_what_has_none_beside_it(network, same, operators):
    net = network((1, 6, 5, 16))
    steps = [(), (MUL,), (MUL, ADD)]
    bits = [net.add(ops.binarize(net.x, *(net.normal(16) for _ in each), epilogue=each)) for each in steps]
    module = net.module(*bits)
    after = signs_beside(module, BOARD)
    assert operators(after) == ["bitkiln.binarize"]
    same(module, after)


@pytest.mark.parametrize(("kernel", "read"), [(3, True), (7, True), (7, False)])
def test_a_first_layer_gives_signs_too(network, same, operators, kernel, read):
    module = first_layer(network((1, 48, 48, 3)), before=(MUL, ADD), kernel=kernel, read=read)
    after = signs_beside(module, BOARD)
    assert operators(after) == ["bitkiln.conv2d", "bitkiln.bconv2d"]
    assert [work.signs for work in workloads(after)] == [(Signs((MUL, ADD), 1),), ()]
    same(module, after)


def test_kernels_that_cannot_pack_signs_are_not_asked_to(network, operators):
    module = first_layer(network((1, 24, 24, 16)), before=(ADD,))
    assert operators(signs_beside(module, BOARD)) == operators(module)


@pytest.mark.parametrize("why", ["bends", "image"])
def test_others_stay_a_pass_of_their_own(network, operators, why):
    net = network((1, 6, 5, 16))
    module = residual(net, before=(PRELU,)) if why == "bends" else net.module(net.add(ops.binarize(net.x)), net.x)
    assert operators(signs_beside(module, BOARD)) == operators(module)


@pytest.mark.parametrize(("target", "read"), [("rasp3b", True), ("rasp3b", False), ("rasp3b32", True)])
def test_a_board_gives_floats_of_a_first_layer_and_their_signs(network, no_records, tmp_path, target, read):
    module = first_layer(network((1, 64, 72, 3)), before=(ADD,), read=read)
    specs = (TensorSpec("x", (1, 64, 72, 3)),), (TensorSpec("y", (1, 16, 18, 16)),)
    model = Model("stem", module, *specs, "0" * 64)
    compile_lowered(
        model, lower(model, targets.load(target)).module, targets.load(target), no_records, tmp_path / "made"
    )
    bundle = open_bundle(tmp_path / "made")
    (results,) = [step["results"] for step in bundle.manifest["steps"] if "results" in step]
    assert results[1] == "bits" and (results[0] == "floats" or not read)
    assert verify_bundle(tmp_path / "made", model).passed
    x = {"x": np.random.default_rng(1).normal(size=(1, 64, 72, 3)).astype("float32")}
    expected = reference.evaluate(module, x)
    (operand,) = [call.args[1] for _, call in bindings(module["main"]) if ops.workload_of(call).tag == "binarize"]
    for threads in (1, 4):
        trace = trace_on("sim", bundle, x, threads).trace
        np.testing.assert_allclose(trace[results[0]], expected["floats"], rtol=0, atol=1e-4)
        signs = np.packbits(trace[results[0]] + operand.value.numpy() >= 0, axis=3, bitorder="little")
        np.testing.assert_array_equal(trace["bits"], signs)


@pytest.mark.parametrize("target", ["rasp3b", "rasp3b32"])
def test_a_board_gives_both_gives_both_results_by_their_names(network, no_records, tmp_path, target):
    net = network((1, 9, 9, 16))
    module = residual(net, before=(ADD,))
    specs = (TensorSpec("x", (1, 9, 9, 16)),), (TensorSpec("y", (1, 9, 9, 16)),)
    model = Model("residual", module, *specs, "0" * 64)
    lowered = lower(model, targets.load(target))
    compile_lowered(model, lowered.module, targets.load(target), no_records, tmp_path / "made")
    bundle = open_bundle(tmp_path / "made")
    assert [step["results"] for step in bundle.manifest["steps"] if "results" in step] == [["floats", "bits"]]
    assert verify_bundle(tmp_path / "made", model).passed
    x = {"x": np.random.default_rng(1).normal(size=(1, 9, 9, 16)).astype("float32")}
    expected = reference.evaluate(module, x)
    for threads in (1, 4):
        trace = trace_on("sim", bundle, x, threads).trace
        np.testing.assert_array_equal(trace["bits"], expected["bits"])
        np.testing.assert_allclose(trace["floats"], expected["floats"], rtol=1e-6)
        answer = on_emulator(bundle.folder, bundle.target, x, threads)
        np.testing.assert_allclose(answer.outputs["y"], reference.run(module, x)[0], rtol=1e-6)

"""Whole networks, from import to the straight line of kernels, run as TVM compiles their reference functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.ir import Call
from tvm.relax import TupleGetItem

from bitkiln import targets
from bitkiln.pipeline import ops, reference
from bitkiln.pipeline.errors import UnsupportedLayer
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.ir.graph import bindings, op_name, shape_of
from bitkiln.pipeline.model import Model, TensorSpec
from bitkiln.pipeline.ops import WORKLOAD_ATTR
from bitkiln.pipeline.passes import pipeline
from bitkiln.pipeline.passes.pipeline import finish, lower, survey

op, nn = relax.op, relax.op.nn


def model_of(module):
    params = module["main"].params
    specs = tuple(TensorSpec(param.name, shape_of(param)) for param in params)
    return Model("test", module, specs, (), "0" * 64)


def lowered(module):
    return lower(model_of(module), targets.load("rasp3b"))


def run(module, inputs):
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    result = machine["main"](*map(tvm.runtime.tensor, inputs.values()))
    return [value.numpy() for value in ([result] if hasattr(result, "numpy") else result)]


def check(module, tolerance=1e-5):
    """Lowered functions and graph compute what the module says; the names of the two agree."""
    found = lowered(module)
    rng = np.random.default_rng(0)
    inputs = {p.name: rng.standard_normal(shape_of(p)).astype("float32") for p in module["main"].params}
    wanted = reference.run(module, inputs)
    traced = reference.evaluate(found.graph, inputs)
    for graph_value, actual, expected in zip(
        reference.run(found.graph, inputs), run(found.module, inputs), wanted, strict=True
    ):
        limit = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(graph_value, expected, rtol=0, atol=limit)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)
    for name, value in bindings(found.module["main"]):
        assert op_name(value) in ("call_tir", "reshape", "")
        if name in traced:
            assert shape_of(value) == traced[name].shape
    relax.analysis.well_formed(found.module)
    return found


def image(net, x, outs, **attrs):
    call = nn.conv2d(x, net.normal(outs, shape_of(x)[1], 3, 3, scale=0.3), padding=1, **attrs)
    return net.add(op.add(net.add(call), net.normal(1, outs, 1, 1)))


def binary(net, x, outs):
    return net.add(nn.conv2d(net.add(op.sign(x)), net.signs(outs, shape_of(x)[1], 3, 3), padding=1))


def norm(net, x):
    channels = shape_of(x)[1]
    return net.add(op.add(net.add(op.multiply(x, net.normal(1, channels, 1, 1))), net.normal(1, channels, 1, 1)))


def kernels(found):
    """Workload keys of the steps, in order; the function's name where there is none."""
    keys = []
    for _, value in bindings(found.module["main"]):
        if op_name(value) == "call_tir":
            func = found.module[value.args[0]]
            keys.append(value.args[0].name_hint if WORKLOAD_ATTR not in func.attrs else func.attrs[WORKLOAD_ATTR])
    return keys


def test_float_network(network):
    net = network((1, 3, 16, 16))
    x = net.add(nn.max_pool2d(net.add(nn.relu(image(net, net.x, 8))), (2, 2), (2, 2)))
    x = net.add(nn.relu(net.add(op.add(image(net, image(net, x, 8), 8), x))))
    x = net.add(op.concat([x, image(net, x, 4)], 1))
    x = net.add(op.reshape(net.add(op.mean(x, [2, 3], keepdims=True)), (1, 12)))
    x = net.add(op.add(net.add(op.matmul(x, net.normal(12, 5))), net.normal(5)))
    found = check(net.module(net.add(nn.softmax(x, 1))))
    names = kernels(found)
    assert all(name.startswith("{") for name in names), "an operator of ours computes all of it"


def test_binary_trunk_never_writes_a_float(network):
    net = network((1, 3, 16, 16), seed=4)
    x = norm(net, net.add(nn.relu(image(net, net.x, 16))))
    for outs in (24, 16):
        x = net.add(nn.max_pool2d(net.add(nn.leakyrelu(binary(net, x, outs), 0.1)), (3, 3), (2, 2), (1, 1)))
        x = norm(net, x)
    found = check(net.module(binary(net, x, 8)))
    assert [verdict.binary for verdict in found.verdicts] == [False, True, True, True]
    assert not found.notes
    float_tensors = [
        name for name, value in bindings(found.module["main"]) if str(getattr(value.ty, "dtype", "")) == "float32"
    ]
    assert len(float_tensors) == 2  # The result in both layouts: the first layer reads the image as it comes.


def test_tensors_named_like_those_that_fusing_makes(network):
    """FuseOps calls its results lv, lv1, ...: a tensor of that name must not be taken for one of them."""
    net = network((1, 4, 6, 6))
    first = net.add(op.exp(net.add(op.abs(net.x))))
    later = net.add(nn.max_pool2d(first, (3, 3), (1, 1), (1, 1)), "lv")
    found = check(net.module(net.add(op.concat([later, first], 1))))
    assert "lv" in {name for name, _ in bindings(found.module["main"])}


def test_names_are_those_of_the_graph(network):
    net = network((1, 3, 8, 8))
    x = net.add(op.add(net.add(nn.conv2d(net.x, net.normal(8, 3, 3, 3)), "conv"), net.normal(8, 1, 1)), "bias")
    x = net.add(nn.relu(x), "relu")
    y = net.add(op.exp(net.add(op.abs(x), "abs")), "exp")
    found = check(net.module(net.add(op.add(y, x), "sum")))
    names = [name for name, _ in bindings(found.module["main"])]
    assert names[:2] == ["x.nhwc", "relu"]
    assert not {"abs", "exp"} & set(names)
    assert found.phases["legalize"] is found.module


def test_same_operation_on_other_constants_keeps_its_own_name(network):
    net = network((1, 6))
    shared = net.add(op.cos(net.x), "shared")
    first = net.add(op.power(shared, relax.const(2.0)), "first")
    second = net.add(op.power(shared, relax.const(4.0)), "second")
    found = check(net.module(net.add(nn.softmax(second, 1)), net.add(nn.softmax(first, 1))))
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 6)).astype("float32")}
    values = reference.evaluate(found.graph, inputs)
    for actual, name in zip(run(found.module, inputs), reference.output_names(found.module), strict=True):
        np.testing.assert_allclose(actual, values[name], rtol=1e-5)


def test_parts_of_a_split_have_names(network):
    net = network((1, 4, 6, 6))
    parts = net.add(op.split(net.add(op.cos(net.x), "wave"), 2, 1), "parts")
    first, second = (net.add(relax.TupleGetItem(parts, i), name) for i, name in enumerate(("low", "high")))
    shift = net.add(op.exp(first), "shift")
    product = net.add(op.multiply(net.add(op.mean(second, [2, 3], keepdims=True), "mean"), shift), "product")
    found = check(net.module(product, net.add(nn.softmax(second, 1), "soft"), shift))
    names = [name for name, _ in bindings(found.module["main"])]
    assert len(set(names)) == len(names)


def test_several_outputs_and_native_operators(network):
    net = network((1, 6, 6, 20))
    bits = net.add(ops.binarize(net.x, sign_zero=-1))
    weight = relax.const(ops.pack_bits(net.rng.choice([-1, 1], (9, 3, 3, 20))), "uint8")
    x = net.add(ops.bconv2d(bits, weight, channels=20, padding=(1, 1, 1, 1)))
    y = net.add(ops.prelu(x, net.normal(6, 6, 9)))
    check(net.module(x, y, net.add(op.reshape(y, (1, 324)))))


def test_batch_of_more_than_one(network):
    net = network((2, 3, 8, 8))
    x = net.add(nn.relu(image(net, net.x, 8)))
    check(net.module(net.add(nn.max_pool2d(x, (2, 2), (2, 2)))))


def test_operator_without_a_kernel_is_named(network):
    net = network((1, 6))
    module = net.module(net.add(op.unique(net.x, sorted=True, return_index=False, axis=None), "odd"))
    with pytest.raises(UnsupportedLayer, match=r"out0: the shape that unique gives depends on the input's values"):
        lowered(module)
    net = network((1, 6))
    with pytest.raises(UnsupportedLayer, match=r"out0: operator cumsum has no kernel"):
        lowered(net.module(net.add(op.cumsum(net.x, 1))))


@pytest.mark.parametrize("name", ["mini_bnn.formatC.ell", "mini_leaky.formatC.ell"])
def test_ell_networks(shared, name):
    from bitkiln.pipeline.importers import load_model

    check(load_model(shared / "models" / "ell" / name).module)


def test_trained_network(shared):
    from bitkiln.pipeline.importers import load_model

    module = load_model(shared / "models" / "onnx" / "cifar10_resnet18_w1a1.onnx.xz").module
    found = lowered(module)
    data = np.random.default_rng(0).standard_normal((1, 3, 28, 28)).astype("float32") * 60
    (wanted,), (actual,) = (reference.run(net, {"data": data}) for net in (module, found.phases["fold_threshold"]))
    np.testing.assert_allclose(actual, wanted, atol=1e-4)
    assert sum(verdict.binary for verdict in found.verdicts) == 20
    graph_names = {name for name, _ in bindings(found.graph["main"])}
    # A kernel of several results gives a tuple, whose parts have their names.
    tensors = [(name, value) for name, value in bindings(found.module["main"]) if not name.endswith(".both")]
    assert {name for name, _ in tensors} <= graph_names
    assert all(isinstance(value, Call | TupleGetItem) for _, value in tensors)


def random_layer(net, x, others):
    """A layer as networks have them, on an NCHW image."""
    rng, channels = net.rng, shape_of(x)[1]
    alike = [other for other in others if shape_of(other) == shape_of(x)]
    layers = [
        lambda: image(net, x, int(rng.integers(1, 20)), strides=int(rng.integers(1, 3))),
        lambda: binary(net, x, int(rng.integers(1, 20))),
        lambda: norm(net, binary(net, x, int(rng.integers(1, 20)))),
        lambda: norm(net, x),
        lambda: net.add(nn.relu(x)),
        lambda: net.add(nn.leakyrelu(x, 0.2)),
        lambda: net.add(nn.prelu(x, net.normal(channels), 1)),
        lambda: net.add(op.tanh(x)),
        lambda: net.add(nn.max_pool2d(x, (3, 3), (1, 1), (1, 1))),
        lambda: net.add(nn.max_pool2d(x, (2, 2), (2, 2), ceil_mode=True)),
        lambda: net.add(nn.avg_pool2d(x, (2, 2), (1, 1))),
        lambda: net.add(op.add(x, alike[rng.integers(len(alike))])),
        lambda: net.add(op.concat([x, alike[rng.integers(len(alike))]], 1)),
        lambda: net.add(op.multiply(x, net.add(op.mean(x, [2, 3], keepdims=True)))),
    ]
    return layers[rng.integers(len(layers))]()


@pytest.mark.parametrize("seed", range(30))
def test_fusion_is_exact_on_random_networks(network, seed):
    """Fusing and folding move no rounding: bits and floats come out equal, not merely close."""
    net = network((1, 3, 13, 11), seed)
    tensors = [image(net, net.x, 8)]
    for _ in range(14):
        x = tensors[-1] if net.rng.random() < 0.7 else tensors[net.rng.integers(len(tensors))]
        tensors.append(random_layer(net, x, tensors) if min(shape_of(x)[2:]) > 2 else net.add(nn.relu(x)))
    row = net.add(op.reshape(tensors[-1], (1, int(np.prod(shape_of(tensors[-1]))))))
    logits = net.add(op.matmul(row, net.normal(shape_of(row)[1], 5)))
    found = lowered(net.module(logits, tensors[len(tensors) // 2]))
    relax.analysis.well_formed(found.module)
    names = [name for name, _ in bindings(found.module["main"])]
    assert len(set(names)) == len(names)
    x = {"x": np.random.default_rng(seed).standard_normal((1, 3, 13, 11)).astype("float32")}
    for before, after in (("fold_affine", "fuse_epilogue"), ("absorb_image", "fold_threshold")):
        for wanted, actual in zip(
            reference.run(found.phases[before], x), reference.run(found.phases[after], x), strict=True
        ):
            np.testing.assert_array_equal(actual, wanted)


def test_every_pass_has_the_name_of_its_file():
    folder = Path(pipeline.__file__).parent
    for each in pipeline.PASSES:
        assert (folder / f"{each.name}.py").is_file() or (folder / each.name / "__init__.py").is_file(), each.name


def test_a_survey_finished_for_a_target_is_what_lowering_gives():
    model, target = load_model("card-binary"), targets.load("rasp3b")
    whole, finished = lower(model, target), finish(survey(model.module), target)
    assert list(finished.phases) == list(whole.phases) == ["imported", *(each.name for each in pipeline.PASSES)]
    assert finished.verdicts == whole.verdicts
    tvm.ir.assert_structural_equal(finished.module, whole.module)

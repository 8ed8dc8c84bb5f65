"""Kernels without an operator of their own: scheduled, and computing what they did before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from bitkiln.schedules import generic

op = relax.op

CASES: dict[str, tuple[Callable[..., relax.Expr], tuple[tuple[int, ...], ...]]] = {
    "softmax": (lambda x: op.nn.softmax(x), ((1, 1000),)),
    "transpose": (lambda x: op.permute_dims(x, [0, 3, 1, 2]), ((1, 28, 28, 64),)),
    "transpose of odd channels": (lambda x: op.permute_dims(x, [0, 3, 1, 2]), ((1, 20, 19, 255),)),
    "transpose of a prime": (lambda x: op.permute_dims(x, [0, 3, 1, 2]), ((1, 9, 8, 37),)),
    "mean": (lambda x: op.mean(x, [1, 2], keepdims=True), ((1, 7, 7, 512),)),
    "activations": (lambda x: op.nn.relu(op.add(op.sigmoid(op.multiply(x, x)), x)), ((1, 28, 28, 30),)),
    "concat": (lambda x, y: op.concat([x, y], 3), ((1, 28, 28, 32), (1, 28, 28, 60))),
    "resize": (lambda x: op.image.resize2d(x, (56, 56), layout="NHWC"), ((1, 28, 28, 16),)),
    "split": (lambda x: op.split(x, 2, 3), ((1, 28, 28, 34),)),
    "layer norm": (
        lambda x: op.nn.layer_norm(
            x, relax.const(np.ones(64, "float32")), relax.const(np.zeros(64, "float32")), axes=[-1]
        ),
        ((1, 28, 28, 64),),
    ),
    "matmul": (lambda x, y: op.matmul(x, y), ((1, 512), (512, 1000))),
    "scalar": (lambda x: op.sum(x), ((3, 5),)),
    "odd": (lambda x: op.tanh(x), ((7,),)),
    "pool": (
        lambda x: op.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1), layout="NHWC"),
        ((1, 56, 56, 24),),
    ),
}


def lowered(name: str) -> list[tirx.PrimFunc]:
    build, shapes = CASES[name]
    inputs = [relax.Var(f"x{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)]
    builder = relax.BlockBuilder()
    with builder.function("main", inputs):
        with builder.dataflow():
            result = builder.emit_output(builder.normalize(build(*inputs)))
        builder.emit_func_output(result)
    module = relax.transform.LegalizeOps()(builder.get())
    module = relax.transform.AnnotateTIROpPattern()(module)
    module = relax.transform.FuseTIR()(relax.transform.FuseOps()(module))
    return [func for func in module.functions.values() if isinstance(func, tirx.PrimFunc)]


def computed(func: tirx.PrimFunc) -> list[np.ndarray]:
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    executable = tvm.compile(module, target=tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"}))
    source = np.random.default_rng(0)
    tensors = [
        tvm.runtime.tensor(source.uniform(-1, 1, [int(extent) for extent in param.shape]).astype(param.dtype))
        for param in func.params
    ]
    executable["main"](*tensors)
    return [tensor.numpy() for tensor in tensors]


@pytest.mark.parametrize("name", CASES)
def test_a_schedule_changes_no_result(name: str) -> None:
    for func in lowered(name):
        for before, after in zip(computed(func), computed(generic.schedule(func)), strict=True):
            np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "mean", "concat", "resize", "layer norm", "matmul", "pool"])
def test_vectors_are_used_where_they_fit(name: str) -> None:
    assert all("T.vectorized" in generic.schedule(func).script() for func in lowered(name))


def test_transposes_of_images_turn_some_rows_at_a_time() -> None:
    """160 KiB of rows: 4 of 40, of 40 pixels with 255 channels."""
    CASES["large"] = (lambda x: op.permute_dims(x, [0, 3, 1, 2]), ((1, 40, 40, 255),))
    (func,) = lowered("large")
    del CASES["large"]
    assert "T.parallel(10)" in generic.schedule(func).script()


def test_threads_are_used_where_there_is_work() -> None:
    parallel = {name: "T.parallel" in generic.schedule(lowered(name)[0]).script() for name in CASES}
    assert parallel["transpose"] and parallel["matmul"] and parallel["pool"]
    assert not (parallel["softmax"] or parallel["odd"] or parallel["scalar"])


def test_fused_functions_become_one_loop_nest() -> None:
    (func,) = lowered("activations")
    assert func.script().count("T.sblock(") > 2 and generic.schedule(func).script().count("T.sblock(") == 2


def test_names_and_attributes_are_kept() -> None:
    (func,) = lowered("softmax")
    assert "global_symbol" not in generic.schedule(func).attrs
    named = generic.schedule(func.with_attr("global_symbol", "mine"))
    assert named.attrs["global_symbol"] == "mine" and bool(named.attrs["tirx.noalias"])

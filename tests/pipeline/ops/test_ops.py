"""The registered operators: types, workloads, legalization, and the packing of bits."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from bitkiln.pipeline import ops
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Binarize, Conv2d, Pool, Pool2d, Signs, from_json, result_shape, result_specs


def var(name, shape, dtype="float32"):
    return relax.Var(name, relax.TensorType(shape, dtype))


def typed(call):
    return relax.BlockBuilder().normalize(call)


def bits(shape):
    return var("b", shape, "uint8")


POOL = Pool((3, 3), (2, 2), (1, 1, 1, 1))
CALLS = {
    "binarize": (
        ops.binarize(var("x", (1, 5, 6, 20)), sign_zero=-1),
        Binarize(5, 6, 20, sign_zero=-1),
    ),
    "binarize with epilogue": (
        ops.binarize(
            var("x", (1, 5, 6, 20)),
            var("m", (20,)),
            var("a", (5, 6, 20)),
            epilogue=(Step("mul", "channel"), Step("add", "element")),
        ),
        Binarize(5, 6, 20, (Step("mul", "channel"), Step("add", "element"))),
    ),
    "conv2d": (
        ops.conv2d(
            var("x", (1, 9, 8, 12)),
            var("w", (16, 3, 2, 6)),
            var("r", (1, 5, 4, 16)),
            strides=(2, 2),
            padding=(1, 0, 2, 1),
            groups=2,
            epilogue=(Step("add", "tensor"), Step("leaky", "", (0.1,))),
        ),
        Conv2d(
            9,
            8,
            12,
            16,
            (3, 2),
            (2, 2),
            (1, 0, 2, 1),
            groups=2,
            epilogue=(Step("add", "tensor"), Step("leaky", "", (0.1,))),
        ),
    ),
    "conv2d to bits": (
        ops.conv2d(var("x", (1, 9, 9, 3)), var("w", (20, 3, 3, 3)), pool=POOL, out="bits", sign_zero=-1),
        Conv2d(9, 9, 3, 20, (3, 3), pool=POOL, out="bits", sign_zero=-1),
    ),
    "bconv2d": (
        ops.bconv2d(bits((1, 9, 9, 3)), bits((16, 3, 3, 3)), channels=20, padding=(1, 1, 1, 1), pad_value=-1),
        Conv2d(9, 9, 20, 16, (3, 3), padding=(1, 1, 1, 1), binary=True, pad_value=-1),
    ),
    "bconv2d by thresholds": (
        ops.bconv2d(
            bits((1, 9, 9, 2)),
            bits((20, 3, 3, 2)),
            var("t", (7, 7, 20), "int32"),
            channels=16,
            out="bits",
            threshold="element",
        ),
        Conv2d(9, 9, 16, 20, (3, 3), binary=True, out="bits", threshold="element"),
    ),
    "bdense": (
        ops.bdense(bits((1, 1, 1, 98)), bits((10, 1, 1, 98)), channels=784),
        Conv2d(1, 1, 784, 10, (1, 1), binary=True),
    ),
    "pool2d": (
        ops.pool2d(var("x", (1, 9, 9, 20)), pool=POOL, out="bits"),
        Pool2d(9, 9, 20, POOL, out="bits"),
    ),
    "pool2d and signs": (
        ops.pool2d(
            var("x", (1, 9, 9, 20)),
            var("b", (20,)),
            pool=POOL,
            signs=(Signs((Step("add", "channel"),), -1), Signs()),
        ),
        Pool2d(9, 9, 20, POOL, signs=(Signs((Step("add", "channel"),), -1), Signs())),
    ),
    "bmaxpool2d": (
        ops.bmaxpool2d(bits((1, 9, 9, 3)), bits((3,)), channels=20, pool=POOL),
        Pool2d(9, 9, 20, POOL, bits=True, invert=True, out="bits"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_call_states_its_workload_and_type(name):
    call, workload = CALLS[name]
    call = typed(call)
    assert ops.workload_of(call) == workload
    types = list(call.ty.fields) if len(result_specs(workload)) > 1 else [call.ty]
    assert [(tuple(map(int, ty.shape)), str(ty.dtype)) for ty in types] == list(result_specs(workload))


def test_wrong_operands_are_refused():
    with pytest.raises(Exception, match="takes"):
        typed(ops.conv2d(var("x", (1, 9, 9, 3)), var("w", (20, 3, 3, 4))))
    with pytest.raises(Exception, match="takes"):
        typed(ops.bconv2d(bits((1, 9, 9, 3)), bits((16, 3, 3, 3)), channels=30))
    with pytest.raises(Exception, match="broadcast"):
        typed(ops.prelu(var("x", (1, 9, 9, 3)), var("s", (4,))))


@pytest.mark.parametrize("name", CALLS)
def test_legalization_and_json_keep_the_workload(name):
    call, workload = CALLS[name]
    params = list(call.args)
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(call))
        builder.emit_func_output(result)
    module = tvm.ir.load_json(tvm.ir.save_json(builder.finalize()))
    legal = relax.transform.LegalizeOps()(module)
    functions = [func for func in legal.functions.values() if isinstance(func, tvm.tirx.PrimFunc)]
    assert [from_json(str(func.attrs[ops.WORKLOAD_ATTR])) for func in functions] == [workload]
    relax.analysis.well_formed(legal)


def test_plain_calls_have_no_workload():
    call = relax.op.nn.relu(var("x", (1, 2, 2, 3)))
    assert not ops.has_workload(call)
    with pytest.raises(ValueError, match="workload"):
        ops.workload_of(call)


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 64, 100])
def test_bits_are_packed_least_significant_first(channels):
    signs = np.random.default_rng(channels).choice([-1, 1], (2, 3, channels)).astype(np.int8)
    packed = ops.pack_bits(signs)
    assert packed.shape == result_shape((2, 3, channels), "bits")[0][1:]
    for channel in range(channels):
        bit = packed[..., channel // 8] >> (channel % 8) & 1
        np.testing.assert_array_equal(bit, signs[..., channel] > 0)
    np.testing.assert_array_equal(ops.unpack_bits(packed, channels), signs)
    assert channels % 8 == 0 or not np.any(packed[..., -1] >> channels % 8)

"""Operators that have no definition here, run as TVM defines them, on this machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import op_name
from bitkiln.pipeline.reference.values import Value


def run_operator(call: Call, args: Sequence[np.ndarray]) -> Value:
    """An operator that has no definition here, by TVM's own; NotImplementedError where it has none either."""
    tensors = [arg for arg in args if isinstance(arg, np.ndarray)]
    params = [relax.Var(f"x{i}", relax.TensorType(arg.shape, str(arg.dtype))) for i, arg in enumerate(tensors)]
    free = iter(params)
    operands = [next(free) if isinstance(arg, np.ndarray) else arg for arg in args]
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(Call(call.op, operands, call.attrs, call.ty_args)))
        builder.emit_func_output(result)
    try:
        machine = relax.VirtualMachine(tvm.compile(builder.finalize(), target="llvm"), tvm.cpu())
        result = machine["main"](*map(_tensor, tensors))
        return result.numpy() if isinstance(result, tvm.runtime.Tensor) else tuple(item.numpy() for item in result)
    except (ValueError, TypeError, AttributeError, tvm.error.InternalError):  # no kernel, or no tensor as its result
        raise NotImplementedError(op_name(call)) from None


def run_prim_func(func: tvm.tirx.PrimFunc, args: Sequence[np.ndarray], call: Call) -> np.ndarray:
    """Run a PrimFunc that an importer put into the graph; it has no other definition than its TIR."""
    library = tvm.compile(func.with_attr("global_symbol", "main"), target="llvm")
    out = call.ty_args[0]
    result = tvm.runtime.empty([int(size) for size in out.shape.values], str(out.dtype))
    library["main"](*map(_tensor, args), result)
    return result.numpy()


def _tensor(array: np.ndarray) -> tvm.runtime.Tensor:
    """A copy for TVM; tvm.runtime.tensor would make a vector of a scalar."""
    return tvm.runtime.empty(array.shape, str(array.dtype)).copyfrom(np.array(array, order="C"))

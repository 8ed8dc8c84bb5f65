"""Tables of 256 entries: what a step of a quantised network makes of each number of 8 bits."""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.kernel import Argument, Kernel, Knobs
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.microkernels.a53.lookup import PIECE, LookUp
from bitkiln.schedules.workload import Lookup
from bitkiln.targets import Target

#: Numbers that a thread takes at a time.
_RUN = 8192


def reference(workload: Lookup) -> tirx.PrimFunc:
    """The plain definition: arguments as ``workload.shapes`` lists them, the output last."""
    data, table = (
        te.placeholder(*spec, name=name) for spec, name in zip(workload.shapes, ("data", "table"), strict=False)
    )
    found = te.compute(workload.shape, lambda *at: table[data(*at).astype("int32") + 128], name="found")
    return te.create_prim_func([data, table, found])


def space(workload: Lookup, target: Target) -> dict[str, list[int | str]]:
    """Nothing to choose."""
    return {}


def default(workload: Lookup, target: Target, threads: int = 1) -> dict[str, int | str]:
    """Nothing to choose."""
    return {}


def emit(workload: Lookup, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """Runs of numbers in parallel; what is no whole piece of the micro-kernel is looked up one by one."""
    arguments = tuple(Argument((i,), *spec) for i, spec in enumerate(workload.shapes[:-1]))
    size = math.prod(workload.shape)
    micro = LookUp() if kernel_set(target).whole and size >= PIECE else None
    with IRBuilder() as builder, T.prim_func():
        T.func_name("lookup")
        T.func_attr({"tirx.noalias": True})
        data, table = loops.parameters(arguments)
        out = loops.flat(T.arg("out", T.buffer(workload.shape, "int8")), size, "int8")
        source, entries = loops.flat(data, size, "int8"), loops.flat(table, 256, "int8")
        whole = size // PIECE * PIECE if micro else 0
        if micro:
            _by_pieces(micro, out, source, entries, whole)
        with T.serial(size - whole) as i:
            T.buffer_store(out, entries[source[whole + i].astype("int32") + 128], [whole + i])
    return Kernel(builder.get(), arguments, (micro,) if micro else (), "sixteen at a time" if micro else "plain")


def _by_pieces(micro: LookUp, out: Any, source: Any, table: Any, size: int) -> None:
    runs = -(-size // _RUN)
    with T.parallel(runs) as run:
        first = run * _RUN
        count = tirx.min(size - first, _RUN) // PIECE
        T.evaluate(
            T.call_extern(
                "int32",
                micro.symbol,
                T.address_of(out[first]),
                T.address_of(source[first]),
                T.address_of(table[0]),
                T.Cast("int64", count),
            )
        )

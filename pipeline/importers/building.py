"""Building the one function of a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import relax


def build_main(
    builder: relax.BlockBuilder, params: Sequence[relax.Var], emit: Callable[[], Sequence[relax.Var]]
) -> tvm.IRModule:
    """A module with the function ``main`` of ``params``; ``emit`` binds its body with ``builder`` and returns its outputs."""
    with builder.function("main", list(params)):
        try:
            with builder.dataflow():
                outputs = emit()
        except BaseException:
            # TVM's builder prints warnings of its own when it is dropped with an open block.
            builder._end_block()
            raise
        builder.emit_func_output(outputs[0] if len(outputs) == 1 else relax.Tuple(list(outputs)))
    passes = [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()]
    return tvm.transform.Sequential(passes)(builder.get())

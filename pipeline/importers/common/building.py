"""Building the one function of a module, and what importers of graphs share in doing so."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
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


def scalar(value: float) -> relax.Expr:
    """A float32 constant of no dimensions."""
    return relax.const(value, "float32")


def per_channel(values: np.ndarray, rank: int = 4) -> relax.Expr:
    """A constant of one number for each channel of a tensor [N, C, ...] of that rank: float32 [1, C, 1, ...]."""
    shape = [1] * rank
    shape[min(1, rank - 1)] = values.size
    return relax.const(values.astype(np.float32).reshape(shape))


class VariableNames:
    """Unique names of variables, made of tensors' names."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        #: What was asked for, by the name that was given.
        self.wanted: dict[str, str] = {}

    def unique(self, name: str) -> str:
        """A name nobody has yet."""
        plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "tensor"
        plain = f"t{plain}" if plain[0].isdigit() else plain
        unique, count = plain, 1
        while unique in self._taken:
            count += 1
            unique = f"{plain}_{count}"
        self._taken.add(unique)
        self.wanted[unique] = name
        return unique

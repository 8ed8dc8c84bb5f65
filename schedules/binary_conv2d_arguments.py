"""The arguments of an emitted function as the IR builder declares them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from bitkiln.schedules.kernel import Argument, Constant


def declare(arguments: Sequence[Argument | Constant]) -> list[Any]:
    """A buffer parameter for each of ``arguments``, in order."""
    buffers = []
    for i, argument in enumerate(arguments):
        if isinstance(argument, Constant):
            shape, dtype = argument.array.shape, str(argument.array.dtype)
        else:
            shape, dtype = argument.shape, argument.dtype
        buffers.append(T.arg(f"a{i}", T.buffer(shape, dtype)))
    return buffers

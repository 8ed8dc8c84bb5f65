"""No option of an operator is ignored: each is read by its converter, says again what tensors say, or has its default.

The fields of an options table are those of the schema; one that a file sets, and that no converter read, is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import flatbuffers
import numpy as np
import tflite

from bitkiln.pipeline.importers.tflite.file import Operator

#: Options that repeat what the operator's tensors say (counts, types, the shape of a depthwise filter), and those that matter
#: for types we do not compute with, or for how kernels quantise floats as they go.
_IMPLIED = frozenset(
    {
        *("AsymmetricQuantizeInputs", "DepthMultiplier", "InDataType", "NewShape", "Num", "NumSplits", "OutDataType"),
        *("OutType", "OutputType", "PotScaleInt16", "QuantizedBiasType", "ValuesCount"),
    }
)


def unread(operator: Operator, read: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Name and value of each option that nothing has read, that means something, and that has not its default."""
    if operator.options is None:
        return
    for name in fields(operator.options_name):
        if name in read or name in _IMPLIED:
            continue
        value = operator.options(name)
        if not np.array_equal(value, _default(operator.options_name, name)):
            yield name, value


@cache
def fields(table: str) -> tuple[str, ...]:
    """The names of a table's fields, in the schema's CamelCase: the package has a function that writes each."""
    start = f"{table}Add"
    return tuple(name.removeprefix(start) for name in dir(tflite) if name.startswith(start))


@cache
def _default(table: str, name: str) -> Any:
    build = flatbuffers.Builder(64)
    getattr(tflite, f"{table}Start")(build)
    build.Finish(getattr(tflite, f"{table}End")(build))
    empty = getattr(tflite, table).GetRootAs(build.Output(), 0)
    if hasattr(empty, f"{name}AsNumpy"):
        return []
    return getattr(empty, name)()

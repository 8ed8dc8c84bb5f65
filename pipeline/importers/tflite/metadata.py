"""What TensorFlow Lite's metadata says of the first input: its mean and deviation.

The metadata is a flatbuffer of its own (schema "M001" of tflite-support) in one of the model's buffers. Nobody asked for it, so
what is damaged is passed over. Its tables are read by the numbers of their fields, which such a schema never changes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from flatbuffers import number_types
from flatbuffers.table import Table

_IDENTIFIER = b"M001"

#: Numbers of the fields that lead to the normalisation: ModelMetadata.subgraph_metadata,
#: SubGraphMetadata.input_tensor_metadata, TensorMetadata.process_units, ProcessUnit.options_type and .options,
#: NormalizationOptions.mean and .std.
_SUBGRAPHS, _INPUTS, _UNITS, _KIND, _OPTIONS, _MEAN, _STD = 3, 2, 4, 0, 1, 0, 1

#: ProcessUnitOptions.NormalizationOptions.
_NORMALIZATION = 1

_MOST = 64


@dataclass(frozen=True)
class Normalization:
    """A pixel value v of 0..255 becomes (v - mean) / std: one of each, or one a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalization(content: bytes) -> Normalization | None:
    """That of the first input, from the metadata's bytes."""
    try:
        if content[4:8] != _IDENTIFIER:
            return None
        root = Table(content, struct.unpack_from("<I", content)[0])
        for subgraph in _tables(root, _SUBGRAPHS)[:1]:
            for tensor in _tables(subgraph, _INPUTS)[:1]:
                for unit in _tables(tensor, _UNITS):
                    found = _of_unit(unit)
                    if found is not None:
                        return found
    except (struct.error, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        pass
    return None


def _of_unit(unit: Table) -> Normalization | None:
    kind, options = _field(unit, _KIND), _field(unit, _OPTIONS)
    if not kind or not options or unit.Get(number_types.Uint8Flags, unit.Pos + kind) != _NORMALIZATION:
        return None
    table = Table(unit.Bytes, unit.Indirect(options + unit.Pos))
    mean, std = _floats(table, _MEAN), _floats(table, _STD)
    usable = mean and std and np.isfinite([*mean, *std]).all() and min(std) > 0
    return Normalization(mean, std) if usable else None


def _field(table: Table, number: int) -> int:
    """Where a field lies in its table; 0 where it is absent."""
    return int(table.Offset(4 + 2 * number))


def _tables(table: Table, number: int) -> list[Table]:
    at = _field(table, number)
    if not at:
        return []
    start, length = table.Vector(at), table.VectorLen(at)
    if not 0 <= length <= _MOST:
        return []
    return [Table(table.Bytes, table.Indirect(start + 4 * index)) for index in range(length)]


def _floats(table: Table, number: int) -> tuple[float, ...]:
    at = _field(table, number)
    if not at or not 0 < table.VectorLen(at) <= _MOST:
        return ()
    start = table.Vector(at)
    return tuple(table.Get(number_types.Float32Flags, start + 4 * each) for each in range(table.VectorLen(at)))

"""Writes a TensorFlow Lite file: one subgraph of float tensors, with the schema package alone, no TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import flatbuffers
import numpy as np
import tflite

SCHEMA_VERSION = 3
TENSOR_TYPES = {"float32": tflite.TensorType.FLOAT32, "int32": tflite.TensorType.INT32}


@dataclass
class TfliteFile:
    """Tensors and operators in the order they are added; tensors are named by their index."""

    tensors: list[tuple[tuple[int, ...], str, np.ndarray | None]] = field(default_factory=list)
    operators: list[tuple[int, list[int], int, str, dict]] = field(default_factory=list)

    def tensor(self, shape: Sequence[int]) -> int:
        """A float activation."""
        self.tensors.append((tuple(shape), "float32", None))
        return len(self.tensors) - 1

    def constant(self, values: np.ndarray) -> int:
        """A float32 or int32 constant."""
        self.tensors.append((values.shape, str(values.dtype), np.ascontiguousarray(values)))
        return len(self.tensors) - 1

    def operator(
        self, name: str, inputs: Sequence[int], shape: Sequence[int], table: str = "", **options: float
    ) -> int:
        """Append builtin operator ``name`` (e.g. "CONV_2D") with a result of ``shape``; returns the result.

        ``options`` are the fields of the schema's ``table``, e.g. "Conv2DOptions", in the schema's CamelCase.
        """
        result = self.tensor(shape)
        self.operators.append((getattr(tflite.BuiltinOperator, name), list(inputs), result, table, options))
        return result

    def write(self, source: int, result: int) -> bytes:
        """The file's content, for a network from tensor ``source`` to tensor ``result``."""
        build = flatbuffers.Builder(1 << 20)
        # Buffer 0 is the empty one, which activations name.
        data = [None, *(values for _, _, values in self.tensors if values is not None)]
        buffers = _tables(build, [_buffer(build, values) for values in data])
        codes = sorted({operator[0] for operator in self.operators})
        code_tables = _tables(build, [_table(build, "OperatorCode", **_operator_code(code)) for code in codes])
        numbers = iter(range(1, len(data)))
        tensors = [
            _tensor(build, shape, dtype, next(numbers) if values is not None else 0)
            for shape, dtype, values in self.tensors
        ]
        operators = [_operator(build, codes.index(operator[0]), *operator[1:]) for operator in self.operators]
        subgraph = _table(
            build,
            "SubGraph",
            Tensors=_tables(build, tensors),
            Inputs=build.CreateNumpyVector(np.array([source], np.int32)),
            Outputs=build.CreateNumpyVector(np.array([result], np.int32)),
            Operators=_tables(build, operators),
        )
        model = _table(
            build,
            "Model",
            Version=SCHEMA_VERSION,
            OperatorCodes=code_tables,
            Subgraphs=_tables(build, [subgraph]),
            Buffers=buffers,
        )
        build.Finish(model, b"TFL3")
        return bytes(build.Output())


def _table(build: flatbuffers.Builder, name: str, **fields: float) -> int:
    """A table of the schema; the package has one function per field."""
    start: Callable = getattr(tflite, f"{name}Start")
    start(build)
    for key, value in fields.items():
        getattr(tflite, f"{name}Add{key}")(build, value)
    return getattr(tflite, f"{name}End")(build)


def _tables(build: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    build.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        build.PrependUOffsetTRelative(offset)
    return build.EndVector()


def _buffer(build: flatbuffers.Builder, values: np.ndarray | None) -> int:
    if values is None:
        return _table(build, "Buffer")
    # Kernels load weights 16 bytes at a time, and the schema asks for that alignment.
    build.StartVector(1, values.nbytes, 16)
    build.head -= values.nbytes
    build.Bytes[build.head : build.head + values.nbytes] = values.tobytes()
    return _table(build, "Buffer", Data=build.EndVector())


def _operator_code(code: int) -> dict[str, int]:
    # Codes beyond a byte stand in the newer field; the old one then holds a placeholder.
    return {"DeprecatedBuiltinCode": min(code, 127), "BuiltinCode": code, "Version": 1}


def _tensor(build: flatbuffers.Builder, shape: tuple[int, ...], dtype: str, buffer: int) -> int:
    dimensions = build.CreateNumpyVector(np.array(shape, np.int32))
    return _table(build, "Tensor", Shape=dimensions, Type=TENSOR_TYPES[dtype], Buffer=buffer)


def _operator(
    build: flatbuffers.Builder, code: int, inputs: list[int], result: int, table: str, options: dict[str, float]
) -> int:
    fields = {
        "OpcodeIndex": code,
        "Inputs": build.CreateNumpyVector(np.array(inputs, np.int32)),
        "Outputs": build.CreateNumpyVector(np.array([result], np.int32)),
    }
    if table:
        fields["BuiltinOptions"] = _table(build, table, **options)
        fields["BuiltinOptionsType"] = getattr(tflite.BuiltinOptions, table)
    return _table(build, "Operator", **fields)

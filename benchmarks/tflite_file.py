"""Writes a TensorFlow Lite file of one subgraph, with the schema package alone, no TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
import tflite

SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Tensor:
    shape: tuple[int, ...]
    dtype: str
    values: np.ndarray | None = None
    name: str = ""
    #: The shape with -1 for open sizes, where there are any.
    signature: tuple[int, ...] = ()
    scale: float | tuple[float, ...] = 0.0
    zero: int = 0
    axis: int = 0


@dataclass(frozen=True)
class Operator:
    """``code`` is a builtin operator's number, or the name of a custom one with its ``options`` as bytes."""

    code: int | str
    inputs: tuple[int, ...]
    results: tuple[int, ...]
    table: str
    options: dict[str, Any] | bytes


@dataclass
class TfliteFile:
    """Tensors and operators in the order they are added; tensors are named by their index."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)

    def tensor(self, shape: Sequence[int], dtype: str = "float32", **details: Any) -> int:
        """An activation; ``details`` are a name, a shape signature or a quantisation scale."""
        self.tensors.append(Tensor(tuple(shape), dtype, **details))
        return len(self.tensors) - 1

    def constant(self, values: np.ndarray, **details: Any) -> int:
        """A constant of any numeric type."""
        self.tensors.append(Tensor(values.shape, str(values.dtype), np.ascontiguousarray(values), **details))
        return len(self.tensors) - 1

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        table: str = "",
        dtype: str = "float32",
        into: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> int:
        """Append builtin operator ``name`` (e.g. "CONV_2D") with a result of ``shape``; returns the result.

        ``options`` are the fields of the schema's ``table``, e.g. "Conv2DOptions", in the schema's CamelCase; ``into`` are
        details of the result, as those of ``tensor``.
        """
        return self.operator_of_many(name, inputs, [shape], table, dtype, into, **options)[0]

    def operator_of_many(
        self,
        name: str,
        inputs: Sequence[int],
        shapes: Sequence[Sequence[int]],
        table: str = "",
        dtype: str = "float32",
        into: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[int]:
        """As ``operator``, with a result of each of ``shapes``."""
        results = [self.tensor(shape, dtype, **(into or {})) for shape in shapes]
        code = getattr(tflite.BuiltinOperator, name)
        self.operators.append(Operator(code, tuple(inputs), tuple(results), table, options))
        return results

    def custom(
        self, code: str, inputs: Sequence[int], shape: Sequence[int], dtype: str = "float32", options: bytes = b""
    ) -> int:
        """Append the custom operator ``code``; an input that is left out is -1."""
        result = self.tensor(shape, dtype)
        self.operators.append(Operator(code, tuple(inputs), (result,), "", options))
        return result

    def write(self, source: int | Sequence[int], result: int | Sequence[int]) -> bytes:
        """The file's content, for a network from the tensors ``source`` to the tensors ``result``."""
        build = flatbuffers.Builder(1 << 20)
        # Buffer 0 is the empty one, which activations name.
        data = [None, *(tensor.values for tensor in self.tensors if tensor.values is not None)]
        buffers = _tables(build, [_buffer(build, values) for values in data])
        codes = list(dict.fromkeys(operator.code for operator in self.operators))
        code_tables = _tables(build, [_operator_code(build, code) for code in codes])
        numbers = iter(range(1, len(data)))
        tensors = [_tensor(build, tensor, next(numbers) if tensor.values is not None else 0) for tensor in self.tensors]
        operators = [_operator(build, codes.index(operator.code), operator) for operator in self.operators]
        subgraph = _table(
            build,
            "SubGraph",
            Tensors=_tables(build, tensors),
            Inputs=_numbers(build, [source] if isinstance(source, int) else source),
            Outputs=_numbers(build, [result] if isinstance(result, int) else result),
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


def _numbers(build: flatbuffers.Builder, values: Sequence[int], dtype: type = np.int32) -> int:
    return build.CreateNumpyVector(np.array(values, dtype))


def _table(build: flatbuffers.Builder, name: str, **fields: Any) -> int:
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


def _operator_code(build: flatbuffers.Builder, code: int | str) -> int:
    if isinstance(code, str):
        custom = tflite.BuiltinOperator.CUSTOM
        text = build.CreateString(code)
        return _table(
            build, "OperatorCode", DeprecatedBuiltinCode=custom, BuiltinCode=custom, CustomCode=text, Version=1
        )
    # Codes beyond a byte stand in the newer field; the old one then holds a placeholder.
    return _table(build, "OperatorCode", DeprecatedBuiltinCode=min(code, 127), BuiltinCode=code, Version=1)


def _tensor(build: flatbuffers.Builder, tensor: Tensor, buffer: int) -> int:
    fields = {"Shape": _numbers(build, tensor.shape), "Type": getattr(tflite.TensorType, tensor.dtype.upper())}
    if tensor.signature:
        fields["ShapeSignature"] = _numbers(build, tensor.signature)
    if tensor.name:
        fields["Name"] = build.CreateString(tensor.name)
    if tensor.scale:
        scales = np.atleast_1d(np.array(tensor.scale, np.float32))
        scale = build.CreateNumpyVector(scales)
        zeros = _numbers(build, [tensor.zero] * scales.size, np.int64)
        fields["Quantization"] = _table(
            build, "QuantizationParameters", Scale=scale, ZeroPoint=zeros, QuantizedDimension=tensor.axis
        )
    return _table(build, "Tensor", **fields, Buffer=buffer)


def _operator(build: flatbuffers.Builder, code: int, operator: Operator) -> int:
    fields = {
        "OpcodeIndex": code,
        "Inputs": _numbers(build, operator.inputs),
        "Outputs": _numbers(build, operator.results),
    }
    if isinstance(operator.options, bytes):
        if operator.options:
            fields["CustomOptions"] = build.CreateByteVector(operator.options)
    elif operator.table:
        options = {
            key: _numbers(build, value) if isinstance(value, (list, tuple)) else value
            for key, value in operator.options.items()
        }
        fields["BuiltinOptions"] = _table(build, operator.table, **options)
        fields["BuiltinOptionsType"] = getattr(tflite.BuiltinOptions, operator.table)
    return _table(build, "Operator", **fields)

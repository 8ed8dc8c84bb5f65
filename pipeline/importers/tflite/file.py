"""TensorFlow Lite files as plain values, read through the schema's accessors without trusting a byte.

The accessors follow whatever offsets a file holds. So every vector's length is counted against the size of the file before it
is walked (a few bytes could otherwise claim billions of elements, or be the vector of thousands of tables), all that the
accessors raise becomes one ModelError, and tensors are given memory only once their shape and their bytes agree.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import flatbuffers.table
import numpy as np
import tflite

from bitkiln.pipeline.errors import ModelError, UnsupportedLayer
from bitkiln.pipeline.importers.common.archive import check_file
from bitkiln.pipeline.importers.tflite.sparse import Level, densified

_IDENTIFIER = b"TFL3"
_VERSION = 3

#: What accessors and decoders raise on bytes that make no sense.
DAMAGE = (struct.error, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)

#: Elements that all vectors together may have, for each byte of the file. Writers may share vectors, hence more than one.
_ELEMENTS_PER_BYTE = 4

#: Bytes of weights for each byte of the file; tensors may share buffers.
_WEIGHTS_PER_BYTE = 16

#: The most dimensions of a tensor, and elements of one (256 MiB of float32).
MAX_RANK = 8
MAX_ELEMENTS = 1 << 26

#: SparseIndexVector -> the table that holds the numbers.
_INDEX_VECTORS = {1: tflite.Int32Vector, 2: tflite.Uint16Vector, 3: tflite.Uint8Vector}

_MAX_CUSTOM_OPTIONS = 1 << 16

#: The name of the metadata that describes tensors.
_METADATA = "TFLITE_METADATA"


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


_TYPES = _names(tflite.TensorType)
_OPERATORS = _names(tflite.BuiltinOperator)
_OPTIONS = _names(tflite.BuiltinOptions)

#: Types whose values numpy can hold.
_PLAIN = frozenset(
    {"bool", "float16", "float32", "float64"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


@dataclass(frozen=True)
class Quantization:
    """How integers stand for reals: ``scale * (q - zero_point)``, one of each or one for each index along ``axis``."""

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph; ``data`` is its value where it is constant. Sizes that the file leaves open are None."""

    index: int
    name: str
    dtype: str
    shape: tuple[int | None, ...]
    data: np.ndarray | None = None
    quantization: Quantization | None = None

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"tensor {self.index} {self.name!r}"


@dataclass(frozen=True)
class Operator:
    """An operator: ``kind`` is the schema's name of a builtin one, or the code of a custom one. Inputs left out are -1.

    ``options`` gives a field of its options, by the schema's name; it is None where there are none.
    """

    index: int
    kind: str
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options_name: str = ""
    options: Callable[[str], Any] | None = None
    custom_options: bytes = b""


@dataclass
class File:
    """The first subgraph of a model; ``names`` are those its signature gives to inputs and outputs, by tensor.

    ``metadata`` is the flatbuffer that describes the model's tensors, where it has one.
    """

    path: Path
    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    names: dict[int, str] = field(default_factory=dict)
    metadata: bytes = b""

    def label(self, operator: Operator) -> str:
        """How messages name an operator, on one line whatever it is called."""
        kind = operator.kind if operator.kind.isidentifier() else repr(operator.kind)
        makes = f" making {self.tensors[operator.outputs[0]].name!r}" if operator.outputs else ""
        return f"operator {operator.index} ({kind}){makes}"


def read(path: Path) -> File:
    """The model in ``path``; ModelError with one line for whatever is wrong with it."""
    check_file(path)
    content = path.read_bytes()
    if content[4:8] != _IDENTIFIER:
        raise ModelError(f"{path}: is not a TensorFlow Lite file: its identifier is not {_IDENTIFIER.decode()}")
    return _Reader(path, content).read()


def _without_densify(file: File) -> File:
    """``file`` with the results of DENSIFY as constants: sparse constants are made dense as they are read."""
    kept = []
    for operator in file.operators:
        data = [file.tensors[index].data for index in operator.inputs if index >= 0]
        if operator.custom or operator.kind != "DENSIFY" or len(data) != 1 or len(operator.outputs) != 1:
            kept.append(operator)
            continue
        result = file.tensors[operator.outputs[0]]
        (values,) = data
        if (
            values is None
            or values.shape != result.shape
            or str(values.dtype) != result.dtype
            or result.data is not None
        ):
            raise UnsupportedLayer(
                f"{file.path}: {file.label(operator)}: its operand is no constant of its result's shape"
            )
        file.tensors[result.index] = replace(result, data=values)
    return replace(file, operators=kept)


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn what accessors raise on damaged bytes into one ModelError."""
    try:
        yield
    except ModelError:
        raise
    except DAMAGE:
        raise ModelError(f"{where}: is damaged; download the file again") from None


class _Reader:
    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = path, content
        self._elements_left = _ELEMENTS_PER_BYTE * len(content)
        self._weights_left = _WEIGHTS_PER_BYTE * len(content)

    def read(self) -> File:
        with readable(f"{self.path}"):
            model = tflite.Model.GetRootAsModel(self.content, 0)
            if model.Version() != _VERSION:
                raise ModelError(f"{self.path}: is of schema version {model.Version()}; only {_VERSION} is known")
            graphs = self.walk(model.SubgraphsLength(), model.Subgraphs)
            if not graphs:
                raise ModelError(f"{self.path}: has no subgraph")
            graph = graphs[0]
            file = File(self.path)
            buffers = self.walk(model.BuffersLength(), model.Buffers)
            for index, table in enumerate(self.walk(graph.TensorsLength(), graph.Tensors)):
                file.tensors.append(self.tensor(index, table, buffers))
            codes = [self.code(each) for each in self.walk(model.OperatorCodesLength(), model.OperatorCodes)]
            for index, table in enumerate(self.walk(graph.OperatorsLength(), graph.Operators)):
                file.operators.append(self.operator(index, table, codes, len(file.tensors)))
            file.inputs = self.indices(graph.InputsLength(), graph.InputsAsNumpy, len(file.tensors))
            file.outputs = self.indices(graph.OutputsLength(), graph.OutputsAsNumpy, len(file.tensors))
            file.names = self.signature(model, file)
            for entry in self.walk(model.MetadataLength(), model.Metadata):
                if self.text(entry.Name()) == _METADATA and 0 <= entry.Buffer() < len(buffers):
                    file.metadata = bytes(self.buffer(f"{self.path}: metadata", buffers[entry.Buffer()]))
        if not file.operators or not file.outputs:
            raise ModelError(f"{self.path}: has no {'outputs' if file.operators else 'operators'}")
        return _without_densify(file)

    def count(self, length: int) -> None:
        """Walk ``length`` elements of a vector, if the file can hold as many."""
        self._elements_left -= max(length, 0)
        if length < 0 or self._elements_left < 0:
            raise ModelError(f"{self.path}: is damaged: it claims more than its {len(self.content)} bytes can hold")

    def walk(self, length: int, element: Callable[[int], Any]) -> list[Any]:
        """The tables of a vector."""
        self.count(length)
        return [element(index) for index in range(length)]

    def vector(self, length: int, as_numpy: Callable[[], Any]) -> list[int]:
        """The numbers of a vector; none where the vector is absent."""
        self.count(length)
        return np.asarray(as_numpy()).tolist() if length else []

    def indices(self, length: int, as_numpy: Callable[[], Any], tensors: int, lowest: int = 0) -> tuple[int, ...]:
        """Numbers of tensors that are there."""
        found = tuple(self.vector(length, as_numpy))
        if any(not lowest <= index < tensors for index in found):
            raise ModelError(f"{self.path}: is damaged: it refers to a tensor that it does not have")
        return found

    def text(self, raw: bytes | None) -> str:
        """A string, whatever its bytes are."""
        self.count(len(raw or b""))
        return (raw or b"").decode("utf-8", "replace")

    def tensor(self, index: int, table: Any, buffers: list[Any]) -> Tensor:
        name = self.text(table.Name()) or f"tensor_{index}"
        where = f"{self.path}: tensor {index} {name!r}"
        shape = self.vector(table.ShapeLength(), table.ShapeAsNumpy)
        signature = self.vector(table.ShapeSignatureLength(), table.ShapeSignatureAsNumpy)
        if len(shape) > MAX_RANK or (shape and (min(shape) < -1 or abs(prod(shape)) > MAX_ELEMENTS)):
            raise ModelError(f"{where}: has the absurd shape {shape[:MAX_RANK]}")
        dtype = _TYPES.get(table.Type(), f"type {table.Type()}").lower()
        if table.IsVariable():
            raise UnsupportedLayer(f"{where}: is a variable")
        open_sizes = [
            -1 in pair for pair in zip(shape, signature if len(signature) == len(shape) else shape, strict=True)
        ]
        return Tensor(
            index,
            name,
            dtype,
            tuple(None if is_open else size for size, is_open in zip(shape, open_sizes, strict=True)),
            self.values(where, dtype, shape, table.Buffer(), buffers, table.Sparsity()),
            self.quantization(table.Quantization()),
        )

    def values(
        self, where: str, dtype: str, shape: list[int], number: int, buffers: list[Any], sparsity: Any
    ) -> np.ndarray | None:
        """The value of a constant tensor: its buffer, which must be exactly as long as its shape asks."""
        if not 0 <= number < len(buffers):
            raise ModelError(f"{where}: has no buffer {number}")
        content = self.buffer(where, buffers[number])
        if not len(content):
            return np.zeros(shape, dtype) if 0 in shape and dtype in _PLAIN else None
        if dtype not in _PLAIN:
            raise UnsupportedLayer(f"{where}: is a constant of the type {dtype}, which is not supported")
        if sparsity is not None:
            self._weights_left -= prod(shape) * np.dtype(dtype).itemsize
            if self._weights_left < 0:
                raise ModelError(f"{where}: has {len(content)} bytes of values for the absurd shape {shape}")
            return self.dense(where, np.frombuffer(content, np.dtype(dtype).newbyteorder("<")), shape, sparsity)
        self._weights_left -= len(content)
        wanted = prod(shape) * np.dtype(dtype).itemsize
        if len(content) != wanted or self._weights_left < 0:
            raise ModelError(f"{where}: has {len(content)} bytes, its shape {shape} needs {wanted}")
        return np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).reshape(shape)

    def dense(self, where: str, values: np.ndarray, shape: list[int], table: Any) -> np.ndarray:
        """The dense form of a sparse constant."""
        order = self.vector(table.TraversalOrderLength(), table.TraversalOrderAsNumpy)
        blocks = self.vector(table.BlockMapLength(), table.BlockMapAsNumpy)
        levels = []
        for each in self.walk(table.DimMetadataLength(), table.DimMetadata):
            if each.Format() == tflite.DimensionType.DENSE:
                levels.append(Level(int(each.DenseSize())))
                continue
            parts = []
            for kind, raw in (
                (each.ArraySegmentsType(), each.ArraySegments()),
                (each.ArrayIndicesType(), each.ArrayIndices()),
            ):
                if raw is None or kind not in _INDEX_VECTORS:
                    raise ModelError(f"{where}: is sparse without indices")
                vector = _INDEX_VECTORS[kind]()
                vector.Init(raw.Bytes, raw.Pos)
                parts.append(self.vector(vector.ValuesLength(), vector.ValuesAsNumpy))
            levels.append(Level(0, tuple(parts[0]), tuple(parts[1])))
        try:
            return densified(values, tuple(shape), tuple(order), tuple(blocks), levels)
        except ValueError as problem:
            raise ModelError(f"{where}: is sparse, and damaged: {problem}") from None

    def buffer(self, where: str, table: Any) -> memoryview:
        """A buffer's bytes. Those of large models stand behind the tables, at an offset of the file."""
        offset, size = table.Offset(), table.Size()
        if offset > 1:
            if offset + size > len(self.content):
                raise ModelError(f"{where}: its buffer reaches behind the end of the file")
            return memoryview(self.content)[offset : offset + size]
        return memoryview(table.DataAsNumpy()).cast("B") if table.DataLength() else memoryview(b"")

    def quantization(self, table: Any) -> Quantization | None:
        if table is None or not table.ScaleLength():
            return None
        scale = self.vector(table.ScaleLength(), table.ScaleAsNumpy)
        zero = self.vector(table.ZeroPointLength(), table.ZeroPointAsNumpy) or [0] * len(scale)
        return Quantization(np.array(scale, np.float32), np.array(zero, np.int64), table.QuantizedDimension())

    def code(self, table: Any) -> tuple[str, bool]:
        """Kind of an operator, and whether it is a custom one. Old files have the code in a field of one byte."""
        number = max(table.BuiltinCode(), table.DeprecatedBuiltinCode())
        if number == tflite.BuiltinOperator.CUSTOM:
            return self.text(table.CustomCode()), True
        return _OPERATORS.get(number, f"builtin_{number}"), False

    def operator(self, index: int, table: Any, codes: list[tuple[str, bool]], tensors: int) -> Operator:
        where = f"{self.path}: operator {index}"
        if not 0 <= table.OpcodeIndex() < len(codes):
            raise ModelError(f"{where}: is damaged: it has no operator code")
        kind, custom = codes[table.OpcodeIndex()]
        inputs = self.indices(table.InputsLength(), table.InputsAsNumpy, tensors, lowest=-1)
        outputs = self.indices(table.OutputsLength(), table.OutputsAsNumpy, tensors)
        options_name = _OPTIONS.get(table.BuiltinOptionsType(), "")
        raw = table.BuiltinOptions()
        options = None
        if raw is not None and hasattr(tflite, options_name):
            options = self.options(f"{where} ({kind})", options_name, raw)
        return Operator(index, kind, custom, inputs, outputs, options_name, options, self.custom_options(where, table))

    def options(self, where: str, name: str, raw: flatbuffers.table.Table) -> Callable[[str], Any]:
        """Reads fields of an options table: numbers, or lists of them."""
        table = getattr(tflite, name)()
        table.Init(raw.Bytes, raw.Pos)

        def get(key: str) -> Any:
            with readable(where):
                if hasattr(table, f"{key}AsNumpy"):
                    return self.vector(getattr(table, f"{key}Length")(), getattr(table, f"{key}AsNumpy"))
                return getattr(table, key)()

        return get

    def custom_options(self, where: str, table: Any) -> bytes:
        start, size = table.LargeCustomOptionsOffset(), table.LargeCustomOptionsSize()
        length = size if start > 1 else table.CustomOptionsLength()
        if length > _MAX_CUSTOM_OPTIONS:
            raise ModelError(f"{where}: has {length} bytes of custom options; at most {_MAX_CUSTOM_OPTIONS} are read")
        if start > 1:
            return self.content[start : start + size]
        self.count(length)
        return bytes(table.CustomOptionsAsNumpy()) if length else b""

    def signature(self, model: Any, file: File) -> dict[int, str]:
        """Names of inputs and outputs in the signature of the first subgraph."""
        names: dict[int, str] = {}
        for table in self.walk(model.SignatureDefsLength(), model.SignatureDefs):
            if table.SubgraphIndex() == 0 and not names:
                for entry in (
                    *self.walk(table.InputsLength(), table.Inputs),
                    *self.walk(table.OutputsLength(), table.Outputs),
                ):
                    names[entry.TensorIndex()] = self.text(entry.Name())
        known = {index: name for index, name in names.items() if name and index in (*file.inputs, *file.outputs)}
        return known if len(set(known.values())) == len(known) else {}

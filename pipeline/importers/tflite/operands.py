"""The tensors of a TensorFlow Lite graph under conversion, and what the converter of one operator sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst

from bitkiln.pipeline import ops, reference
from bitkiln.pipeline.errors import ModelError, UnsupportedLayer
from bitkiln.pipeline.importers.common.building import VariableNames, scalar
from bitkiln.pipeline.importers.tflite.file import MAX_ELEMENTS, File, Operator, Tensor
from bitkiln.pipeline.ir.graph import shape_of, variables
from bitkiln.pipeline.ops import words

#: In the words of Larq's files a set bit stands for -1.
SET_BIT = -1

#: Types that tensors of the networks we run have. Integers only where they are shapes, indices or words of bits.
_KNOWN_DTYPES = frozenset({"float32", "int32", "int64", "bool"})

#: Types of quantised networks.
_QUANTIZED_DTYPES = frozenset({"int4", "int8", "uint8", "int16", "uint16"})

#: Operators whose operands may be infinite.
_TAKES_INFINITY = frozenset(
    {"GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "MAXIMUM", "MINIMUM", "SELECT", "SELECT_V2"}
)

#: Elements that constants computed while importing may have together: so many, and so many times the file's own constants,
#: whose weights a converter may leave to be computed by several operators (clip, |w|, sign, scale, transpose).
_ROOM, _ROOM_PER_ELEMENT = 1 << 24, 8


@dataclass(frozen=True)
class Bits:
    """A tensor of words, as bits: ``expr`` is uint8 [1, H, W, ceil(channels/8)].

    ``shape`` is that of the values the bits are the signs of, in the file's own dimensions. ``source``, where it is known,
    is the float tensor of that shape whose signs they are, a zero's being +1.
    """

    expr: relax.Expr
    shape: tuple[int, ...]
    source: relax.Expr | None = None

    @property
    def channels(self) -> int:
        """Bits of one pixel."""
        return self.shape[-1]

    @property
    def words_shape(self) -> tuple[int, ...]:
        """Shape of the tensor of words."""
        return (*self.shape[:-1], words.words_for(self.channels))


def image_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """``shape`` [..., C] as that of an image [1, H, W, C] with the same elements in the same order."""
    if len(shape) == 4 and shape[0] == 1:
        return (1, shape[1], shape[2], shape[3])
    return (1, prod(shape[:-1]), 1, shape[-1])


class Tensors:
    """What each tensor of the file has become: an array in ``constants``, or an expression or bits in ``values``."""

    def __init__(self, file: File) -> None:
        self.file = file
        #: Channels of the words that come from outside, where an operator that reads them says how many they are.
        self.channels: dict[int, int] = {}
        self.constants = {t.index: t.data for t in file.tensors if t.data is not None}
        self.values: dict[int, relax.Expr | Bits] = {}
        self.builder = relax.BlockBuilder()
        self.names = VariableNames()
        self.variable = self.names.unique
        #: Quantised tensors, whose values are whole numbers, as the reals they stand for.
        self.reals: dict[int, relax.Expr] = {}
        self.warnings: list[str] = []
        #: Options that converters have read, by the operator's index.
        self.options_read: dict[int, set[str]] = {}
        self._quantized = frozenset(t.index for t in file.tensors if t.dtype in ("int8", "uint8") and t.quantization)
        self._converted: dict[tuple[int, int], relax.Expr] = {}
        self._bound_outputs: set[int] = set()
        self._room = _ROOM + _ROOM_PER_ELEMENT * sum(array.size for array in self.constants.values())

    def expression(self, index: int) -> relax.Expr:
        """A tensor as a Relax expression; bits as words."""
        value = self.values.get(index)
        if value is None:
            return relax.const(self.constants[index].astype(self.constants[index].dtype.newbyteorder("=")))
        if not isinstance(value, Bits):
            return value
        if (index, 0) not in self._converted:
            made = words.to_words(value.expr, channels=value.channels, set_bit=SET_BIT)
            made = self.emit(made, f"{self.name(index)}_words")
            if shape_of(made) != value.words_shape:
                made = self.emit(relax.op.reshape(made, value.words_shape), f"{self.name(index)}_shaped")
            self._converted[index, 0] = made
        return self._converted[index, 0]

    def bits(self, index: int, channels: int) -> Bits:
        """A tensor of words as bits of ``channels``; ValueError where it has not as many."""
        value = self.values.get(index)
        if isinstance(value, Bits):
            if value.channels != channels:
                raise ValueError(f"reads {channels} channels of a tensor of {value.channels}")
            return value
        expr = self.expression(index)
        shape = shape_of(expr)
        if str(expr.ty.dtype) != "int32" or shape[-1:] != (words.words_for(channels),):
            raise ValueError(f"reads {channels} channels of {expr.ty.dtype} {list(shape)}, which holds no bits of them")
        if (index, channels) not in self._converted:
            image = image_shape(shape)
            if image != shape:
                expr = self.emit(relax.op.reshape(expr, image), f"{self.name(index)}_image")
            made = words.from_words(expr, channels=channels, set_bit=SET_BIT)
            self._converted[index, channels] = self.emit(made, f"{self.name(index)}_bits")
        return Bits(self._converted[index, channels], (*shape[:-1], channels))

    def channels_of(self, index: int) -> int:
        """How many channels a tensor of words has; as many as fit where nothing says."""
        value = self.values.get(index)
        if isinstance(value, Bits):
            return value.channels
        return self.channels.get(index, words.BITS_PER_WORD * shape_of(self.expression(index))[-1])

    def name(self, index: int) -> str:
        """What variables of a tensor are called: names of fused operators are lists, of which the first will do."""
        return self.file.tensors[index].name.partition(";")[0].removesuffix(":0")

    def emit(self, expr: relax.Expr, name: str, *, output: bool = False) -> relax.Expr:
        """Bind an operation to a variable; what depends on constants alone is computed at once."""
        expr = self.builder.normalize(expr)
        if isinstance(expr, relax.Var | GenericConst | relax.ShapeExpr):
            return expr
        self._check_shape(expr)
        if isinstance(expr, Call) and not list(variables(expr)):
            return self._fold(expr)
        bind = self.builder.emit_output if output else self.builder.emit
        return bind(expr, name_hint=self.variable(name))

    def bind(self, index: int, result: relax.Expr | Bits) -> None:
        """Let ``result`` be the value of a tensor."""
        if not isinstance(result, Bits):
            is_output = index in self.file.outputs and index not in self._quantized
            result = self.emit(result, self.name(index), output=is_output)
            if is_output and isinstance(result, relax.Var) and not isinstance(result, relax.DataflowVar):
                self._bound_outputs.add(index)
        if isinstance(result, GenericConst):
            self.constants[index] = result.value.numpy()
        else:
            self.values[index] = result

    def warn(self, text: str) -> None:
        """Tell the user once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def output(self, index: int) -> relax.Var:
        """The variable of an output; inputs and bits get one of its own."""
        if index not in self.values:
            name = self.file.tensors[index].name
            raise UnsupportedLayer(f"{self.file.path}: output {name!r} does not depend on the input")
        expr = self.expression(index)
        if index in self._bound_outputs:
            return expr
        return self.builder.emit_output(expr, name_hint=self.variable(self.name(index)))

    @staticmethod
    def _check_shape(expr: relax.Expr) -> None:
        if not isinstance(getattr(expr.ty, "shape", None), relax.ShapeExpr):
            raise ValueError("the shape of its result depends on the input's values")
        shape = shape_of(expr)
        if any(size < 1 for size in shape):
            raise ValueError(f"gives an empty tensor of shape {list(shape)}")
        if prod(shape) > MAX_ELEMENTS:
            raise ValueError(f"gives a tensor of the absurd shape {list(shape)}")

    def _fold(self, expr: Call) -> relax.Expr:
        self._room -= prod(shape_of(expr))
        if self._room < 0:
            raise ValueError("computes constants of an absurd size")
        array = reference.evaluate_call(tvm.IRModule(), expr, {})
        return relax.const(np.ascontiguousarray(array), str(expr.ty.dtype))


class Operands:
    """What a converter sees of its operator: operands as expressions or arrays, options, and how to name steps."""

    def __init__(self, tensors: Tensors, operator: Operator) -> None:
        self.tensors = tensors
        self.operator = operator

    def __len__(self) -> int:
        return len(self.operator.inputs)

    def has(self, position: int) -> bool:
        """Is the optional operand there?"""
        return position < len(self.operator.inputs) and self.operator.inputs[position] >= 0

    def tensor(self, position: int) -> Tensor:
        """An operand as the file declares it."""
        if not self.has(position):
            raise self.error(f"has no operand {position}")
        return self.tensors.file.tensors[self.operator.inputs[position]]

    def result(self, position: int = 0) -> Tensor:
        """A result as the file declares it."""
        return self.tensors.file.tensors[self.operator.outputs[position]]

    def value(self, position: int) -> relax.Expr:
        """An operand as an expression; constants that are no numbers are refused."""
        array = self.tensors.constants.get(self.tensor(position).index, np.zeros(()))
        infinite = array.dtype.kind == "f" and not np.isfinite(array).all()
        if infinite and (np.isnan(array).any() or self.operator.kind not in _TAKES_INFINITY):
            raise self.error(f"non-finite weight in {self.tensor(position).label}")
        return self.tensors.expression(self.tensor(position).index)

    def bits(self, position: int, channels: int) -> Bits:
        """An operand that holds the bits of ``channels``."""
        return self.tensors.bits(self.tensor(position).index, channels)

    def is_bits(self, position: int) -> bool:
        """Is the operand a tensor of words?"""
        index = self.tensor(position).index
        return isinstance(self.tensors.values.get(index), Bits) or self.tensor(position).dtype == "int32"

    def shape(self, position: int = 0) -> tuple[int, ...]:
        """Static shape of an operand."""
        return shape_of(self.value(position))

    def image(self, position: int = 0) -> tuple[int, int, int, int]:
        """Static shape of an operand that must be [N, H, W, C]."""
        shape = self.shape(position)
        if len(shape) != 4:
            raise self.unsupported(f"its input {list(shape)} is no image")
        return shape

    def is_constant(self, position: int) -> bool:
        """Is the operand a constant?"""
        return self.tensor(position).index in self.tensors.constants

    def array(self, position: int, what: str) -> np.ndarray:
        """An operand that must be constant; ``what`` names it in the error."""
        if not self.is_constant(position):
            raise self.unsupported(f"its {what} is not constant")
        return self.tensors.constants[self.tensor(position).index]

    def numbers(self, position: int, what: str) -> list[int]:
        """An operand that must be a constant list of whole numbers."""
        array = self.array(position, what)
        if array.dtype.kind not in "iu" or array.size > 64:
            raise self.error(f"its {what} is no short list of whole numbers")
        return [int(number) for number in array.reshape(-1)]

    def weight(self, position: int, what: str, rank: int | None = None) -> np.ndarray:
        """A constant operand whose values must be finite float32."""
        array = self.array(position, what)
        if array.dtype != np.float32:
            raise self.unsupported(
                f"its {what} ({self.tensor(position).label}) is {array.dtype}; quantised networks are not supported, "
                "convert the model without quantisation"
            )
        if rank is not None and array.ndim != rank:
            raise self.error(f"its {what} has {array.ndim} dimensions, needs {rank}")
        if not np.isfinite(array).all():
            raise self.error(f"non-finite weight in {self.tensor(position).label}")
        return np.ascontiguousarray(array, "float32")

    def option(self, table: str, name: str, default: Any = None) -> Any:
        """A field of the options, which must be of the schema's ``table``; ``default`` is for operators without options."""
        operator = self.operator
        self.tensors.options_read.setdefault(operator.index, set()).add(name)
        if operator.options is None:
            if default is None:
                raise self.error("has no options")
            return default
        if operator.options_name != table:
            raise self.error(f"has options of another operator ({operator.options_name})")
        return operator.options(name)

    def step(self, expr: relax.Expr, suffix: str) -> relax.Expr:
        """Bind an intermediate result of the operator as ``<result>_<suffix>``."""
        return self.tensors.emit(expr, f"{self.tensors.name(self.operator.outputs[0])}_{suffix}")

    def check_types(self, exempt: Sequence[int] = ()) -> None:
        """Refuse tensors of types we do not compute with, by name; ``exempt`` are positions of operands that may be any."""
        operator, file = self.operator, self.tensors.file
        looked_at = [index for at, index in enumerate(operator.inputs) if index >= 0 and at not in exempt]
        for index in (*looked_at, *operator.outputs):
            tensor = file.tensors[index]
            if tensor.dtype in _QUANTIZED_DTYPES:
                raise self.unsupported(
                    f"{tensor.label} is {tensor.dtype}; quantised networks are not supported, convert the model without "
                    "quantisation"
                )
            if tensor.dtype not in _KNOWN_DTYPES:
                raise self.unsupported(
                    f"{tensor.label} is {tensor.dtype}, which is not supported; convert it as float32"
                )

    def unsupported(self, reason: str) -> UnsupportedLayer:
        """The error to raise for what we cannot run, naming the operator."""
        return UnsupportedLayer(f"{self.tensors.file.path}: {self.tensors.file.label(self.operator)}: {reason}")

    def error(self, reason: str) -> ModelError:
        """The error to raise for what makes no sense, naming the operator."""
        return ModelError(f"{self.tensors.file.path}: {self.tensors.file.label(self.operator)}: {reason}")


def sign_of(node: Operands, source: relax.Expr) -> relax.Expr:
    """+1 where ``source`` is at least zero, else -1."""
    return relax.op.where(node.step(relax.op.greater_equal(source, scalar(0)), "positive"), scalar(1), scalar(-1))


def bits_of(node: Operands, source: relax.Expr, name: str = "bits") -> Bits:
    """The signs of a float tensor as bits, a zero's being +1."""
    shape = shape_of(source)
    image = source if image_shape(shape) == shape else node.step(relax.op.reshape(source, image_shape(shape)), "image")
    return Bits(node.step(ops.binarize(image, sign_zero=1), name), shape, source)

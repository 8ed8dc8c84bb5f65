"""The tensors of an ONNX graph under conversion, and what the converter of one node sees of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, _get_convert_map, onnx_input

from bitkiln.pipeline.errors import ModelError, UnsupportedLayer
from bitkiln.pipeline.importers.common.building import VariableNames
from bitkiln.pipeline.importers.onnx.graph import OnnxGraph, node_label


class Tensors:
    """What each tensor of the graph has become: an array in ``constants``, or a Relax expression in ``values``."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.path = graph.path
        self.opset = graph.opset
        self.constants: dict[str, np.ndarray] = dict(graph.constants)
        self.values: dict[str, relax.Expr] = {}
        self.frontend = ONNXGraphImporter({}, None)
        self.frontend.opset = graph.opset
        self.builder: relax.BlockBuilder = self.frontend.bb
        self.names = VariableNames()
        self.variable = self.names.unique
        self._outputs = frozenset(graph.outputs.values())
        #: Tensors of integers whose value is a float32 that holds the same whole numbers, and their type in the file.
        self.whole: dict[str, str] = {}
        self._bound_outputs: set[str] = set()
        self._cast: dict[str, relax.Expr] = {}
        self._count = 0

    def expression(self, name: str) -> relax.Expr:
        """The Relax expression of a tensor, of the file's type; constants become Relax constants."""
        if name in self.whole:
            if name not in self._cast:
                cast = relax.op.astype(self.values[name], self.whole[name])
                hint = self.variable(f"{name}_{self.whole[name]}")
                self._cast[name] = self.builder.emit(cast, name_hint=hint)
            return self._cast[name]
        if name in self.values:
            return self.values[name]
        array = self.constants[name]
        return relax.const(array, str(array.dtype))  # without its type, a single number would get another

    def floats(self, name: str) -> relax.Expr:
        """A tensor of numbers as float32."""
        if name in self.whole:
            return self.values[name]
        if name in self.constants:
            return relax.const(self.constants[name].astype(np.float32))
        value = self.values[name]
        if str(value.ty.dtype) == "float32":
            return value
        return self.builder.emit(relax.op.astype(value, "float32"), name_hint=self.variable(f"{name}_floats"))

    def alias(self, name: str, other: str) -> None:
        """Let ``other`` be the same tensor as ``name``."""
        if name in self.whole:
            self.whole[other] = self.whole[name]
        if name in self.constants:
            self.constants[other] = self.constants[name]
        else:
            self.values[other] = self.values[name]

    def fresh(self, name: str) -> str:
        """A name like ``name`` that no tensor of the graph has."""
        self._count += 1
        return f"{name}_{self._count}"

    def types(self, names: Iterable[str]) -> list[onnx.TypeProto]:
        """Element types and shapes of tensors; an empty one for an operand that is left out."""
        return [self._type(name) if name else onnx.TypeProto() for name in names]

    def _type(self, name: str) -> onnx.TypeProto:
        array = self.constants.get(name)
        if array is not None:
            return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        kind = np.dtype(self.whole.get(name, str(self.values[name].ty.dtype)))
        shape = static_shape(self.values[name])
        return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(kind), shape)

    def output(self, name: str) -> relax.Var:
        """The variable of an output tensor; an input or a constant gets one of its own."""
        expr = self.expression(name)
        if name in self._bound_outputs:
            return expr
        return self.builder.emit_output(expr, name_hint=self.variable(name))

    def named(self, name: str, expr: relax.Expr) -> relax.Expr:
        """Bind ``expr`` as the variable of tensor ``name``; what has a name already keeps it."""
        if isinstance(expr, relax.Var | relax.ShapeExpr | tvm.ir.GenericConst):
            return expr
        if name in self._outputs and name not in self.whole:
            self._bound_outputs.add(name)
            return self.builder.emit_output(expr, name_hint=self.variable(name))
        return self.builder.emit(expr, name_hint=self.variable(name))


class Operands:
    """What a converter sees of its node: operands as expressions or arrays, attributes, and how to name steps."""

    def __init__(self, tensors: Tensors, node: onnx.NodeProto, opset: int | None = None) -> None:
        self._tensors = tensors
        self.node = node
        self.opset = tensors.opset if opset is None else opset
        #: Does the node only move or choose elements, of integers held in floats?
        self.moves = node.op_type in MOVERS and node.input[0] in tensors.whole
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    def __len__(self) -> int:
        return len(self.node.input)

    def has(self, index: int) -> bool:
        """Is the optional operand there?"""
        return index < len(self.node.input) and self.node.input[index] != ""

    def value(self, index: int) -> relax.Expr:
        """An operand as an expression."""
        name = self.node.input[index]
        if self.moves and (index == 0 or self.node.op_type == "Concat"):
            return self._tensors.floats(name)
        return self._tensors.expression(name)

    def floats(self, index: int) -> relax.Expr:
        """An operand of numbers as float32."""
        return self._tensors.floats(self.node.input[index])

    def holds_whole(self, index: int) -> bool:
        """Is the operand of integers that float32 holds?"""
        return self.node.input[index] in self._tensors.whole

    def file_dtype(self, index: int) -> str:
        """The element type that the file gives an operand."""
        name = self.node.input[index]
        if name in self._tensors.constants:
            return str(self._tensors.constants[name].dtype)
        return self._tensors.whole.get(name, str(self._tensors.values[name].ty.dtype))

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Static shape of an operand."""
        shape = static_shape(self.value(index))
        if shape is None:
            raise self.unsupported("its input's shape is not static")
        return shape

    def dtype(self, index: int) -> str:
        """Element type of an operand."""
        return str(self.value(index).ty.dtype)

    def text(self, name: str, default: str) -> str:
        """An attribute that is a text."""
        value = self.attributes.get(name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def is_constant(self, index: int) -> bool:
        """Is the operand a constant?"""
        return self.node.input[index] in self._tensors.constants

    def array(self, index: int, what: str) -> np.ndarray:
        """An operand that must be constant; ``what`` names it in the error."""
        if not self.is_constant(index):
            raise self.unsupported(f"its {what} is not constant")
        return self._tensors.constants[self.node.input[index]]

    def weight(self, index: int, what: str) -> np.ndarray:
        """A constant operand whose values must be finite float32."""
        array = self.array(index, what)
        if array.dtype != np.float32:
            raise self.unsupported(f"its {what} is {array.dtype}; export the model in float32")
        if not np.isfinite(array).all():
            raise ModelError(f"{self._tensors.path}: non-finite weight in {self.node.input[index]}")
        return array

    def step(self, expr: relax.Expr, suffix: str) -> relax.Var:
        """Bind an intermediate result of the node as ``<output>_<suffix>``."""
        name = self._tensors.variable(f"{self.node.output[0]}_{suffix}")
        return self._tensors.builder.emit(expr, name_hint=name)

    def unsupported(self, reason: str) -> UnsupportedLayer:
        """The error to raise, naming the node."""
        return UnsupportedLayer(f"{self._tensors.path}: {node_label(self.node)}: {reason}")

    def by_frontend(self) -> relax.Expr:
        """The node as TVM's frontend converts it."""
        if self.node.op_type not in _get_convert_map():
            raise self.unsupported("operators of this type are not supported")
        inputs = onnx_input()
        inputs += [self.value(index) if name else None for index, name in enumerate(self.node.input)]
        if self.node.op_type in _OF_SEQUENCES and not isinstance(inputs[0].ty, relax.TupleType):
            raise self.unsupported("takes a sequence, and is given none")  # the frontend would walk it without end
        # The frontend takes an empty list for a missing attribute and then complains.
        present = [a for a in self.node.attribute if self.attributes[a.name] not in ([], "", b"")]
        attributes = self._tensors.frontend._parse_attr(present)
        attributes["tvm_custom"] = {"name": self.node.name, "num_outputs": len(self.node.output)}
        frontend = self._tensors.frontend
        return frontend._convert_operator(self.node.op_type, inputs, attributes, self.opset)


#: Operators that move or choose elements and compute none, which are as good for floats that hold integers.
MOVERS = frozenset(
    {
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Reshape", "Slice", "SpaceToDepth"),
        *("Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)


@dataclass(frozen=True)
class Whole:
    """A converter's result: integers of type ``dtype``, each held by a float32 of ``expr``, exactly."""

    expr: relax.Expr
    dtype: str


#: Operators whose first operand is a sequence of tensors.
_OF_SEQUENCES = frozenset(
    {"ConcatFromSequence", "SequenceAt", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap"}
)


def static_shape(expr: relax.Expr) -> tuple[int, ...] | None:
    """The shape of a tensor expression; None where it depends on data, or there is none."""
    shape = getattr(expr.ty, "shape", None)
    if not isinstance(shape, relax.ShapeExpr):
        return None
    sizes = [int(size.value) for size in shape.values if hasattr(size, "value")]
    return tuple(sizes) if len(sizes) == len(shape.values) else None


def width_of(expr: relax.Expr) -> int:
    """The last extent of a tensor whose shape is known."""
    return int(expr.ty.shape.values[-1])

"""Cleaned ONNX nodes as Relax, one after the other.

What depends on constants and static shapes alone is evaluated here with ONNX's own reference implementation, so that the
shape arithmetic of exporters vanishes. Layers the passes look for have converters of their own, which give the normal
form described in ``onnx``; everything else goes through TVM's ONNX frontend.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
import tvm
from onnx.reference import ReferenceEvaluator
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, _get_convert_map, onnx_input

from bitkiln.pipeline.errors import ModelError, UnsupportedLayer
from bitkiln.pipeline.importers.building import build_main
from bitkiln.pipeline.importers.onnx_graph import BIPOLAR, Graph, node_label
from bitkiln.pipeline.importers.onnx_windows import Windows
from bitkiln.pipeline.model import TensorSpec

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def convert(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tvm.IRModule, tuple[TensorSpec, ...]]:
    """The graph as a module with one function ``main``, and the specs of its outputs."""
    converter = _Converter(graph)
    params = {
        name: relax.Var(converter.variable(name), relax.TensorType(shape, "float32")) for name, shape in shapes.items()
    }
    converter.values.update(params)
    outputs: list[relax.Var] = []

    def emit() -> list[relax.Var]:
        for node in graph.nodes:
            converter.add(node)
        outputs.extend(converter.output(name) for name in graph.outputs.values())
        return outputs

    module = build_main(converter.builder, list(params.values()), emit)
    specs = []
    for name, var in zip(graph.outputs, outputs, strict=True):
        shape = _static_shape(var)
        if shape is None:
            raise UnsupportedLayer(f"{graph.path}: the shape of output {name!r} depends on the input's values")
        specs.append(TensorSpec(name, shape, str(var.ty.dtype), "NCHW" if len(shape) == 4 else ""))
    return module, tuple(specs)


class _Converter:
    """Holds what each tensor has become: an array in ``constants``, or a Relax expression in ``values``."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.constants: dict[str, np.ndarray] = dict(graph.constants)
        self.values: dict[str, relax.Expr] = {}
        self.frontend = ONNXGraphImporter({}, None)
        self.frontend.opset = graph.opset
        self.builder: relax.BlockBuilder = self.frontend.bb
        self._names: set[str] = set()
        self._outputs = frozenset(graph.outputs.values())
        self._bound_outputs: set[str] = set()

    def variable(self, name: str) -> str:
        """A unique variable name made of a tensor's name."""
        plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "tensor"
        plain = f"t{plain}" if plain[0].isdigit() else plain
        unique, count = plain, 1
        while unique in self._names:
            count += 1
            unique = f"{plain}_{count}"
        self._names.add(unique)
        return unique

    def expression(self, name: str) -> relax.Expr:
        """The Relax expression of a tensor; constants become Relax constants."""
        if name in self.values:
            return self.values[name]
        return relax.const(self.constants[name])

    def output(self, name: str) -> relax.Var:
        """The variable of an output tensor; an input or a constant gets one of its own."""
        expr = self.expression(name)
        if name in self._bound_outputs:
            return expr
        return self.builder.emit_output(expr, name_hint=self.variable(name))

    def add(self, node: onnx.NodeProto) -> None:
        """Fold or convert one node."""
        if self._fold(node):
            return
        convert_node = _CONVERTERS.get(node.op_type, _by_frontend)
        try:
            result = convert_node(Operands(self, node))
        except ModelError:
            raise
        except Exception as error:  # the frontend raises whatever it meets
            reason = str(error).strip().splitlines()
            raise UnsupportedLayer(
                f"{self.graph.path}: {node_label(node)} cannot be converted: {(reason or [type(error).__name__])[0][:160]}"
            ) from error
        self._bind(node, result)

    def _bind(self, node: onnx.NodeProto, result: relax.Expr) -> None:
        """Give a node's results their names."""
        result = self.builder.normalize(result)
        outputs = [name for name in node.output if name]
        if not isinstance(result.ty, relax.TupleType):
            self.values[outputs[0]] = self._named(outputs[0], result)
            return
        if not isinstance(result, relax.Tuple):
            result = self.builder.emit(result, name_hint=self.variable(f"{outputs[0]}_all"))
        for index, name in enumerate(node.output):
            if name:
                item = result[index] if isinstance(result, relax.Tuple) else relax.TupleGetItem(result, index)
                self.values[name] = self._named(name, item)

    def _named(self, name: str, expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, relax.Var | relax.ShapeExpr | tvm.ir.GenericConst):
            return expr
        if name in self._outputs:
            self._bound_outputs.add(name)
            return self.builder.emit_output(expr, name_hint=self.variable(name))
        return self.builder.emit(expr, name_hint=self.variable(name))

    def _fold(self, node: onnx.NodeProto) -> bool:
        """Evaluate a node that depends on constants alone, or asks for a static shape."""
        if node.op_type in ("Shape", "Size") and node.input[0] in self.values:
            return self._fold_shape(node)
        inputs = {name: self.constants[name] for name in node.input if name in self.constants}
        nested = any(attribute.HasField("g") for attribute in node.attribute)
        if len(inputs) != len({*node.input} - {""}) or nested or node.op_type in _RANDOM:
            return False
        if node.op_type == BIPOLAR:
            x, scale = (self.constants[name] for name in node.input[:2])
            results = [(np.where(x >= 0, np.float32(1), np.float32(-1)) * scale).astype(x.dtype)]
        else:
            try:
                results = _evaluate(node, inputs, self.graph.opset)
            except Exception:  # the reference implementation lacks it: the converters below may know it
                return False
        self.constants.update(zip(node.output, map(np.asarray, results), strict=False))
        return True

    def _fold_shape(self, node: onnx.NodeProto) -> bool:
        shape = _static_shape(self.values[node.input[0]])
        if shape is None:
            return False
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        sizes = np.array(shape, np.int64)
        array = sizes[bounds.get("start", 0) : bounds.get("end")] if node.op_type == "Shape" else sizes.prod()
        self.constants[node.output[0]] = np.asarray(array, np.int64)
        return True


class Operands:
    """What a converter sees of its node: operands as expressions or arrays, attributes, and how to name steps."""

    def __init__(self, converter: _Converter, node: onnx.NodeProto) -> None:
        self._converter = converter
        self.node = node
        self.opset = converter.graph.opset
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    def __len__(self) -> int:
        return len(self.node.input)

    def has(self, index: int) -> bool:
        """Is the optional operand there?"""
        return index < len(self.node.input) and self.node.input[index] != ""

    def value(self, index: int) -> relax.Expr:
        """An operand as an expression."""
        return self._converter.expression(self.node.input[index])

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Static shape of an operand."""
        shape = _static_shape(self.value(index))
        if shape is None:
            raise self.unsupported("its input's shape is not static")
        return shape

    def is_constant(self, index: int) -> bool:
        """Is the operand a constant?"""
        return self.node.input[index] in self._converter.constants

    def array(self, index: int, what: str) -> np.ndarray:
        """An operand that must be constant; ``what`` names it in the error."""
        if not self.is_constant(index):
            raise self.unsupported(f"its {what} is not constant")
        return self._converter.constants[self.node.input[index]]

    def weight(self, index: int, what: str) -> np.ndarray:
        """A constant operand whose values must be finite float32."""
        array = self.array(index, what)
        if not np.isfinite(array).all():
            raise ModelError(f"{self._converter.graph.path}: non-finite weight in {self.node.input[index]}")
        return array

    def step(self, expr: relax.Expr, suffix: str) -> relax.Var:
        """Bind an intermediate result of the node as ``<output>_<suffix>``."""
        name = self._converter.variable(f"{self.node.output[0]}_{suffix}")
        return self._converter.builder.emit(expr, name_hint=name)

    def unsupported(self, reason: str) -> UnsupportedLayer:
        """The error to raise, naming the node."""
        return UnsupportedLayer(f"{self._converter.graph.path}: {node_label(self.node)}: {reason}")

    def by_frontend(self) -> relax.Expr:
        """The node as TVM's frontend converts it."""
        if self.node.op_type not in _get_convert_map():
            raise self.unsupported("operators of this type are not supported")
        inputs = onnx_input()
        inputs += [self._converter.expression(name) if name else None for name in self.node.input]
        # The frontend takes an empty list for a missing attribute and then complains.
        present = [a for a in self.node.attribute if self.attributes[a.name] not in ([], "", b"")]
        attributes = self._converter.frontend._parse_attr(present)
        attributes["tvm_custom"] = {"name": self.node.name, "num_outputs": len(self.node.output)}
        frontend = self._converter.frontend
        return frontend._convert_operator(self.node.op_type, inputs, attributes, self.opset)


def _by_frontend(node: Operands) -> relax.Expr:
    return node.by_frontend()


def _convolution(node: Operands) -> relax.Expr:
    shape = node.shape()
    weight = node.weight(1, "weight")
    if len(shape) != 4:
        return node.by_frontend()
    groups = node.attributes.get("group", 1)
    if weight.ndim != 4 or shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise node.unsupported(f"weight {weight.shape} does not fit its input {shape} in {groups} groups")
    windows = Windows.of(node.attributes, shape[2:], weight.shape[2:])
    result = relax.op.nn.conv2d(
        node.value(0),
        relax.const(weight),
        strides=windows.strides,
        padding=windows.padding,
        dilation=windows.dilations,
        groups=groups,
    )
    if not node.has(2):
        return result
    return relax.op.add(node.step(result, "conv"), _per_channel(node.weight(2, "bias"), 4))


def _batch_normalization(node: Operands) -> relax.Expr:
    """y = (x - mean) / sqrt(var + epsilon) * gamma + beta, in double precision until the two constants are made."""
    if node.attributes.get("training_mode", 0):
        raise node.unsupported("is in training mode; export the model for inference")
    names = ("scale", "bias", "mean", "variance")
    gamma, beta, mean, variance = (node.weight(i + 1, what).astype(np.float64) for i, what in enumerate(names))
    with np.errstate(invalid="ignore", divide="ignore"):
        multiplier = gamma / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    if not np.isfinite(multiplier).all():
        raise node.unsupported("its variance is negative")
    rank = len(node.shape())
    scaled = node.step(relax.op.multiply(node.value(0), _per_channel(multiplier, rank)), "scaled")
    return relax.op.add(scaled, _per_channel(beta - mean * multiplier, rank))


def _per_channel(values: np.ndarray, rank: int) -> relax.Expr:
    """float32 [1, C, 1, ...] of the given rank."""
    shape = [1] * rank
    shape[min(1, rank - 1)] = values.size
    return relax.const(values.astype(np.float32).reshape(shape))


def _bipolar(node: Operands) -> relax.Expr:
    scale = node.weight(1, "scale")
    x = node.value(0)
    sign = relax.op.where(relax.op.greater_equal(x, _scalar(0)), _scalar(1), _scalar(-1))
    return sign if (scale == 1).all() else relax.op.multiply(node.step(sign, "sign"), relax.const(scale))


def _scalar(value: float) -> relax.Expr:
    return relax.const(value, "float32")


def _pad(node: Operands) -> relax.Expr:
    mode = node.attributes.get("mode", b"constant").decode()
    if mode != "constant":
        return node.by_frontend()
    pads = node.array(1, "pads").tolist() if "pads" not in node.attributes else list(node.attributes["pads"])
    value = float(node.array(2, "pad value").item()) if node.has(2) else float(node.attributes.get("value", 0))
    rank = len(node.shape())
    axes = node.array(3, "axes").tolist() if node.has(3) else list(range(rank))
    widths = [0] * (2 * rank)
    for index, axis in enumerate(axes):
        widths[2 * (axis % rank)], widths[2 * (axis % rank) + 1] = pads[index], pads[len(axes) + index]
    if min(widths) < 0:
        raise node.unsupported("negative pads are not supported")
    return relax.op.nn.pad(node.value(0), widths, "constant", value) if any(widths) else node.value(0)


def _clip(node: Operands) -> relax.Expr:
    limits = np.finfo(np.float32)
    bounds = []
    for index, name, default in ((1, "min", limits.min), (2, "max", limits.max)):
        given = node.array(index, name).item() if node.has(index) else node.attributes.get(name, default)
        bounds.append(float(np.clip(given, limits.min, limits.max)))
    return relax.op.clip(node.value(0), *bounds)


def _prelu(node: Operands) -> relax.Expr:
    x, rank = node.value(0), len(node.shape())
    slope = node.weight(1, "slope")
    spread = slope.reshape((1,) * (rank - slope.ndim) + slope.shape)
    if spread.size == 1:
        return relax.op.nn.leakyrelu(x, float(spread.item()))
    if rank > 1 and spread.size == spread.shape[1]:
        return relax.op.nn.prelu(x, relax.const(spread.ravel()), axis=1)
    scaled = node.step(relax.op.multiply(x, relax.const(spread)), "scaled")
    return relax.op.where(node.step(relax.op.less(x, _scalar(0)), "negative"), scaled, x)


def _pooling(node: Operands) -> relax.Expr:
    shape = node.shape()
    if len(shape) != 4:
        return node.by_frontend()
    if len([name for name in node.node.output if name]) > 1:
        raise node.unsupported("its indices are not supported")
    largest = node.node.op_type == "MaxPool"
    windows = Windows.of(node.attributes, shape[2:], tuple(node.attributes["kernel_shape"]))
    counted = bool(node.attributes.get("count_include_pad", 0))
    if windows.overruns and counted and not largest:
        raise node.unsupported("ceil_mode with count_include_pad is not supported")
    operator = relax.op.nn.max_pool2d if largest else relax.op.nn.avg_pool2d
    return operator(
        node.value(0),
        windows.kernel,
        windows.strides,
        windows.padding,
        windows.dilations,
        count_include_pad=counted and not largest,
    )


def _dense(node: Operands) -> relax.Expr:
    """Gemm with a constant right side; alpha, beta and the transposition go into the constants."""
    if not node.is_constant(1) or (node.has(2) and not node.is_constant(2)):
        return node.by_frontend()
    weight = node.weight(1, "weight")
    weight = (weight.T if node.attributes.get("transB", 0) else weight) * np.float32(node.attributes.get("alpha", 1))
    x = node.value(0)
    if node.attributes.get("transA", 0):
        x = node.step(relax.op.permute_dims(x), "transposed")
    product = relax.op.matmul(x, relax.const(np.ascontiguousarray(weight)))
    if not node.has(2):
        return product
    bias = node.weight(2, "bias") * np.float32(node.attributes.get("beta", 1))
    return relax.op.add(node.step(product, "matmul"), relax.const(bias.reshape((1,) * (2 - bias.ndim) + bias.shape)))


def _flatten(node: Operands) -> relax.Expr:
    shape, axis = node.shape(), node.attributes.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return relax.op.reshape(node.value(0), (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))))


def _reshape(node: Operands) -> relax.Expr:
    """The target is constant after folding; 0 keeps an extent, -1 takes what is left."""
    shape = node.shape()
    target = [int(size) for size in node.array(1, "shape")]
    if not node.attributes.get("allowzero", 0):
        target = [shape[index] if size == 0 else size for index, size in enumerate(target)]
    if -1 in target:
        rest = int(np.prod([size for size in target if size != -1]))
        target[target.index(-1)] = int(np.prod(shape)) // max(rest, 1)
    if np.prod(target) != np.prod(shape):
        raise node.unsupported(f"makes {target} of {list(shape)}")
    return node.value(0) if tuple(target) == shape else relax.op.reshape(node.value(0), target)


def _where(node: Operands) -> relax.Expr:
    return relax.op.where(node.value(0), node.value(1), node.value(2))


def _softmax(node: Operands) -> relax.Expr:
    """Before opset 13 all axes from ``axis`` on are one."""
    shape = node.shape()
    axis = node.attributes.get("axis", -1 if node.opset >= 13 else 1)
    axis = axis + len(shape) if axis < 0 else axis
    if node.opset >= 13 or math.prod(shape[axis:]) == shape[axis]:
        return relax.op.nn.softmax(node.value(0), axis)
    flat = node.step(relax.op.reshape(node.value(0), (math.prod(shape[:axis]), math.prod(shape[axis:]))), "flat")
    return relax.op.reshape(node.step(relax.op.nn.softmax(flat, 1), "all"), shape)


def _hard_sigmoid(node: Operands) -> relax.Expr:
    """HardSigmoid, and HardSwish, which is x times one."""
    swish = node.node.op_type == "HardSwish"
    alpha = 1 / 6 if swish else node.attributes.get("alpha", 0.2)
    scaled = node.step(relax.op.multiply(node.value(0), _scalar(alpha)), "scaled")
    shifted = node.step(relax.op.add(scaled, _scalar(node.attributes.get("beta", 0.5))), "shifted")
    gate = relax.op.clip(shifted, 0.0, 1.0)
    return relax.op.multiply(node.value(0), node.step(gate, "gate")) if swish else gate


def _variadic(node: Operands) -> relax.Expr:
    """Sum, Max or Min of any number of tensors, two at a time."""
    operator = {"Sum": relax.op.add, "Max": relax.op.maximum, "Min": relax.op.minimum}[node.node.op_type]
    result = node.value(0)
    for index in range(1, len(node)):
        result = operator(result, node.value(index))
        if index < len(node) - 1:
            result = node.step(result, str(index))
    return result


def _resize(node: Operands) -> relax.Expr:
    """Resize of any opset, and Upsample, for images; sizes or scales are constant."""
    shape = node.shape()
    old = node.opset < 11
    scales, sizes = (1, None) if old else (2, 3)
    if sizes is not None and node.has(sizes):
        target = [int(size) for size in node.array(sizes, "sizes")]
    elif "scales" in node.attributes:
        target = [int(size * scale) for size, scale in zip(shape, node.attributes["scales"], strict=True)]
    else:
        target = [int(size * scale) for size, scale in zip(shape, node.array(scales, "scales"), strict=True)]
    attributes = node.attributes
    text = {name: attributes.get(name, default).decode() for name, default in _RESIZE_DEFAULTS.items()}
    if len(shape) != 4 or tuple(target[:2]) != shape[:2] or text["mode"] not in _RESIZE_METHODS:
        raise node.unsupported(f"resizes {list(shape)} to {target} by {text['mode']}")
    if attributes.get("axes") or attributes.get("antialias") or text["keep_aspect_ratio_policy"] != "stretch":
        raise node.unsupported("axes, antialias and keep_aspect_ratio_policy are not supported")
    return relax.op.image.resize2d(
        node.value(0),
        tuple(target[2:]),
        layout="NCHW",
        method=_RESIZE_METHODS[text["mode"]],
        coordinate_transformation_mode="asymmetric" if old else text["coordinate_transformation_mode"],
        rounding_method="floor" if old else text["nearest_mode"],
        cubic_alpha=attributes.get("cubic_coeff_a", -0.75),
        cubic_exclude=attributes.get("exclude_outside", 0),
        extrapolation_value=attributes.get("extrapolation_value", 0.0),
    )


_RESIZE_METHODS = {"nearest": "nearest_neighbor", "linear": "linear", "cubic": "cubic"}
_RESIZE_DEFAULTS = {
    "mode": b"nearest",
    "coordinate_transformation_mode": b"half_pixel",
    "nearest_mode": b"round_prefer_floor",
    "keep_aspect_ratio_policy": b"stretch",
}


_CONVERTERS: dict[str, Callable[[Operands], relax.Expr]] = {
    "AveragePool": _pooling,
    "BatchNormalization": _batch_normalization,
    BIPOLAR: _bipolar,
    "Clip": _clip,
    "Conv": _convolution,
    "Flatten": _flatten,
    "Gemm": _dense,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_sigmoid,
    "Max": _variadic,
    "MaxPool": _pooling,
    "Min": _variadic,
    "PRelu": _prelu,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Softmax": _softmax,
    "Sum": _variadic,
    "Upsample": _resize,
    "Where": _where,
}


def _evaluate(node: onnx.NodeProto, inputs: Mapping[str, np.ndarray], opset: int) -> Iterable[np.ndarray]:
    """Run one node of the default domain by ONNX's reference implementation."""
    unknown = onnx.TypeProto()
    values = [onnx.helper.make_value_info(name, unknown) for name in inputs]
    outputs = [onnx.helper.make_value_info(name, unknown) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "fold", values, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model).run(None, dict(inputs))


def _static_shape(expr: relax.Expr) -> tuple[int, ...] | None:
    shape = getattr(expr.ty, "shape", None)
    if not isinstance(shape, relax.ShapeExpr):
        return None
    sizes = [getattr(size, "value", None) for size in shape.values]
    return None if None in sizes else tuple(int(size) for size in sizes)

"""ELL archives (``.ell``, ``.ell.zip``) as Relax.

The module is NHWC throughout: weights OHWI, per-channel constants [1, 1, 1, C]. Binary convolutions are our own operators from
the start, with sign(0) = -1 and ELL's true zero padding. Every layer's result is a variable ``<kind>_<n>``, n counting the
network's layers from 0 in execution order, whichever generation the archive is of; a layer of several steps adds
``<kind>_<n>_<step>`` for those before its last.

ELL networks take their image as blue, green, red, scaled so that the short side fits, cut to the centre; what they
subtract (114 in the binarised gallery network) is a layer of the network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from bitkiln.pipeline.errors import ModelError, UnsupportedLayer
from bitkiln.pipeline.importers.common.archive import digest
from bitkiln.pipeline.importers.common.building import build_main
from bitkiln.pipeline.importers.common.options import ImportOptions
from bitkiln.pipeline.importers.ell.archive import EllGraph, Node, layout_of, read_graph, shape_of, shown
from bitkiln.pipeline.importers.ell.layers import Layer, Tensor, constant, import_layer
from bitkiln.pipeline.model import Model, Preprocessing, TensorSpec

#: Short names of the layers, for variables.
_NAMES = {
    "ActivationLayer": "activation",
    "BatchNormalizationLayer": "bn",
    "BiasLayer": "bias",
    "BinaryConvolutionalLayer": "bconv",
    "BinaryOperationNode": "combine",
    "ConstantNode": "constant",
    "ConvolutionalLayer": "conv",
    "FullyConnectedLayer": "dense",
    "InputLayer": "input_scale",
    "PoolingLayer": "pool",
    "ReinterpretLayoutNode": "reshape",
    "ReorderDataNode": "reorder",
    "ScalingLayer": "scale",
    "SoftmaxLayer": "softmax",
    "SpliceNode": "splice",
}

#: Node kinds that move data and are not counted as layers.
_UNCOUNTED = ("InputLayer", "ReorderDataNode", "ReinterpretLayoutNode", "ConstantNode")

_OPERATIONS = {
    "add": relax.op.add,
    "subtract": relax.op.subtract,
    "multiply": relax.op.multiply,
    "coordinatewiseMultiply": relax.op.multiply,
}


def load(path: Path, options: ImportOptions) -> Model:
    """Import the archive at ``path``; ``options.leaky_factor`` replaces the slope of its leaky ReLUs."""
    graph = read_graph(path)
    given = dict(options.shapes)
    shape = (1, *graph.input_shape)
    if given.pop("input", shape) != shape or given:
        raise ModelError(f"{path}: its one input 'input' has the fixed shape {shape}; leave --shape out")
    module, outputs = _module(graph, options)
    height, width, channels = graph.input_shape
    images = channels == 3
    return Model(
        name=path.name.removesuffix(".zip").removesuffix(".ell"),
        module=module,
        inputs=(TensorSpec("input", shape, "float32", "NHWC"),),
        outputs=outputs,
        source_digest=digest(path),
        origins=dict.fromkeys(("resize", "channel_order", "range"), "as ELL prepares images"),
        preprocessing=Preprocessing(height, width, "BGR", resize="short-side", resize_to=max(height, width))
        if images
        else None,
    )


def _module(graph: EllGraph, options: ImportOptions) -> tuple[tvm.IRModule, tuple[TensorSpec, ...]]:
    builder = relax.BlockBuilder()
    data = relax.Var("input", relax.TensorType((1, *graph.input_shape), "float32"))
    values = {graph.input_id: Tensor(data, graph.input_shape)}

    def emit() -> list[relax.Var]:
        count = 0
        for node in graph.nodes:
            bind = builder.emit_output if node.id in graph.output_ids else builder.emit
            name = f"{_NAMES[node.kind]}_{count}"
            values[node.id] = _import_node(_namer(builder, bind, name), node, values, options)
            count += node.kind not in _UNCOUNTED
        return [_output(builder, values[node_id].expr) for node_id in graph.output_ids]

    module = build_main(builder, [data], emit)
    results = [values[node_id] for node_id in graph.output_ids]
    names = ["output"] if len(results) == 1 else [f"output_{index}" for index in range(len(results))]
    specs = (TensorSpec(name, (1, *value.size), "float32", "NHWC") for name, value in zip(names, results, strict=True))
    return module, tuple(specs)


def _output(builder: relax.BlockBuilder, expr: relax.Expr) -> relax.Var:
    """The variable of a result; layers bind theirs as one, a network that hands on its input does not."""
    bound = isinstance(expr, relax.Var) and not isinstance(expr, relax.DataflowVar)
    return expr if bound else builder.emit_output(expr, name_hint="output")


def _namer(builder: relax.BlockBuilder, bind: Callable[..., relax.Var], name: str) -> Callable[..., relax.Var]:
    """``emit(expr, step="")`` of a layer called ``name``; its last step, the one without a name, is bound by ``bind``."""

    def emit(expr: relax.Expr, step: str = "") -> relax.Var:
        return builder.emit(expr, name_hint=f"{name}_{step}") if step else bind(expr, name_hint=name)

    return emit


def _import_node(
    emit: Callable[..., relax.Var], node: Node, values: Mapping[str, Tensor], options: ImportOptions
) -> Tensor:
    sources = [values[source] for source in node.inputs]
    if node.kind in _TENSOR_NODES:
        for name, source in zip(_INPUT_LAYOUTS.get(node.kind, ()), sources, strict=False):
            check_layout(node, node.fields, name, source)
        return _TENSOR_NODES[node.kind](node, sources, emit)
    check_layout(node, node.beside, "inputLayout", sources[0])
    result = import_layer(Layer(node, sources[0], emit, options.leaky_factor))
    check_layout(node, node.beside, "outputLayout", result)
    _check_input_shape(node, sources[0])
    return result


def _check_input_shape(node: Node, source: Tensor) -> None:
    """What the node says of its input's shape, which counts the border or not, is so."""
    stated = node.beside.get("inputShape")
    rows, columns, channels = source.size
    border = 2 * source.padding
    if stated is not None and shape_of(node.where, stated) not in (
        source.size,
        (rows + border, columns + border, channels),
    ):
        raise ModelError(f"{node.where}: inputShape is {shown(stated)}, its input is {source.size}")


def _reorder(node: Node, sources: list[Tensor], emit: Callable[..., relax.Var]) -> Tensor:
    """A change of memory layout: of the values, only the border around them changes."""
    source = _only(node, sources)
    size, padding = layout_of(node.where, node.fields, "outputLayout")
    if size != source.size:
        raise ModelError(f"{node.where}: makes {size} of a tensor of {source.size}")
    return Tensor(source.expr, size, padding, _fill(node, "paddingValue"))


def _fill(node: Node, name: str) -> float | None:
    """What a node writes into the border around its result."""
    value = node.fields.get(name, 0)
    if type(value) not in (int, float) or not np.isfinite(value):
        raise ModelError(f"{node.where}: {name} is {shown(value)}")
    return float(value)


def _reinterpret(node: Node, sources: list[Tensor], emit: Callable[..., relax.Var]) -> Tensor:
    source = _only(node, sources)
    size, padding = layout_of(node.where, node.fields, "outputLayout")
    if source.padding or padding or np.prod(size) != np.prod(source.size):
        raise UnsupportedLayer(f"{node.where}: reinterprets {source.size} as {size} with padding; not supported")
    return Tensor(emit(relax.op.reshape(source.expr, (1, *size))), size)


def _combine(node: Node, sources: list[Tensor], emit: Callable[..., relax.Var]) -> Tensor:
    operation = str(node.fields.get("operation", "add"))
    if operation not in _OPERATIONS:
        raise UnsupportedLayer(f"{node.where}: operation {shown(operation)} is not supported")
    if len(sources) != 2 or sources[0].size != sources[1].size:
        raise ModelError(
            f"{node.where}: its inputs are {[source.size for source in sources]}; two equal ones are needed"
        )
    size, padding = (
        layout_of(node.where, node.fields, "outputLayout") if "outputLayout" in node.fields else (sources[0].size, 0)
    )
    if size != sources[0].size:
        raise ModelError(f"{node.where}: makes {size} of tensors of {sources[0].size}")
    result = emit(_OPERATIONS[operation](sources[0].expr, sources[1].expr))
    return Tensor(result, size, padding, _fill(node, "padding"))


def _constant(node: Node, sources: list[Tensor], emit: Callable[..., relax.Var]) -> Tensor:
    size = (
        layout_of(node.where, node.fields, "layout")[0]
        if "layout" in node.fields
        else shape_of(node.where, node.fields.get("shape"))
    )
    try:
        array = np.array(node.fields.get("values", []), np.float32)
    except (ValueError, TypeError):
        raise ModelError(f"{node.where}: values are no numbers") from None
    if array.size != np.prod(size):
        raise ModelError(f"{node.where}: has {array.size} values, its shape {size} needs {np.prod(size)}")
    if not np.isfinite(array).all():
        raise ModelError(f"{node.where}: non-finite weight in values")
    return Tensor(constant(array.reshape(1, *size)), size)


def _splice(node: Node, sources: list[Tensor], emit: Callable[..., relax.Var]) -> Tensor:
    """Tensors one behind the other in memory: rows are appended, or channels where each is a single pixel."""
    if any(source.padding for source in sources) or not sources:
        raise UnsupportedLayer(f"{node.where}: splices padded tensors; not supported")
    pixels = all(source.size[:2] == (1, 1) for source in sources)
    if not pixels and len({source.size[1:] for source in sources}) != 1:
        raise UnsupportedLayer(f"{node.where}: splices tensors of different width or channels; not supported")
    axis = 2 if pixels else 0
    total = sum(source.size[axis] for source in sources)
    height, width, channels = sources[0].size
    size = (height, width, total) if pixels else (total, width, channels)
    return Tensor(emit(relax.op.concat([source.expr for source in sources], axis + 1)), size)


def _only(node: Node, sources: list[Tensor]) -> Tensor:
    if len(sources) != 1:
        raise ModelError(f"{node.where}: has {len(sources)} inputs, needs one")
    return sources[0]


def check_layout(node: Node, table: Mapping[str, Any], name: str, tensor: Tensor) -> None:
    """ModelError where ``table`` states a memory layout that is not the one ``tensor`` has."""
    if name in table and layout_of(node.where, table, name) != (tensor.size, tensor.padding):
        size, padding = layout_of(node.where, table, name)
        raise ModelError(
            f"{node.where}: {name} is of {size} with a border of {padding}, the tensor is {tensor.size} with {tensor.padding}"
        )


#: Where nodes that are no layers repeat the layouts of their inputs.
_INPUT_LAYOUTS = {"ReorderDataNode": ("inputLayout",), "BinaryOperationNode": ("inputLayout1", "inputLayout2")}

_TENSOR_NODES = {
    "BinaryOperationNode": _combine,
    "ConstantNode": _constant,
    "ReinterpretLayoutNode": _reinterpret,
    "ReorderDataNode": _reorder,
    "SpliceNode": _splice,
}

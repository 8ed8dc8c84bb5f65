"""Cleaned ONNX nodes as Relax, one after the other.

What depends on constants and static shapes alone is evaluated (``fold``), so that a condition becomes one of its branches.
Layers the passes look for have converters of their own (``layers``); operators that have none are written out as ONNX defines
them (``expansion``), or go through TVM's frontend where ``attributes`` says what of them it honours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import tvm
from onnx import numpy_helper
from tvm import relax

from bitkiln.pipeline.errors import ModelError, UnsupportedLayer
from bitkiln.pipeline.importers.common.building import build_main
from bitkiln.pipeline.importers.common.limits import check_result
from bitkiln.pipeline.importers.onnx.attributes import ENTRIES, problems
from bitkiln.pipeline.importers.onnx.expansion import definition, written_out
from bitkiln.pipeline.importers.onnx.fold import Folder
from bitkiln.pipeline.importers.onnx.graph import OnnxGraph, node_label
from bitkiln.pipeline.importers.onnx.layers import CONVERTERS
from bitkiln.pipeline.importers.onnx.names import names_in_file
from bitkiln.pipeline.importers.onnx.operands import Operands, Tensors, Whole, static_shape
from bitkiln.pipeline.ir.graph import with_file_names
from bitkiln.pipeline.model import TensorSpec
from bitkiln.pipeline.support.tvm_messages import reason_of


def convert(graph: OnnxGraph, inputs: Sequence[TensorSpec]) -> tuple[tvm.IRModule, tuple[TensorSpec, ...]]:
    """The graph as a module with one function ``main`` of ``inputs``, and the specs of its outputs."""
    tensors = Tensors(graph)
    folder = Folder(str(graph.path), graph.constants.values())
    params = {
        spec.name: relax.Var(tensors.variable(spec.name), relax.TensorType(spec.shape, spec.dtype)) for spec in inputs
    }
    tensors.values.update(params)
    outputs: list[relax.Var] = []

    def emit() -> list[relax.Var]:
        for node in graph.nodes:
            _add(tensors, folder, node, graph.opset)
        outputs.extend(tensors.output(name) for name in graph.outputs.values())
        return outputs

    module = build_main(tensors.builder, list(params.values()), emit)
    module["main"] = with_file_names(module["main"], names_in_file(module, tensors.names.wanted, graph.nodes))
    specs = []
    for name, var in zip(graph.outputs, outputs, strict=True):
        shape = static_shape(var)
        if shape is None:
            raise UnsupportedLayer(f"{graph.path}: the shape of output {name!r} depends on the input's values")
        specs.append(TensorSpec(name, shape, str(var.ty.dtype), "NCHW" if len(shape) == 4 else ""))
    return module, tuple(specs)


#: How deep operators may be defined by others, and conditions stand in conditions.
_MAX_DEPTH = 20


def _add(tensors: Tensors, folder: Folder, node: onnx.NodeProto, opset: int, depth: int = 0) -> None:
    """Fold, write out or convert one node."""
    if _fold(tensors, folder, node, opset):
        return
    where = f"{tensors.path}: {node_label(node)}"
    if depth > _MAX_DEPTH:
        raise UnsupportedLayer(f"{where}: is nested more than {_MAX_DEPTH} deep")
    if node.op_type == "Identity":
        tensors.alias(node.input[0], node.output[0])
        return
    if node.op_type == "If":
        _take_branch(tensors, folder, node, opset, depth)
        return
    lacking = next(problems(node, opset), None) if node.op_type in ENTRIES else ""
    if lacking is not None:
        function = definition(node, opset, tensors.types(node.input))
        if function is None:
            raise UnsupportedLayer(f"{where}: {lacking or 'operators of this type are not supported'}")
        version = next((each.version for each in function.opset_import if not each.domain), opset)
        for inner in written_out(node, function, tensors.fresh):
            _add(tensors, folder, inner, version, depth + 1)
        return
    converter = CONVERTERS.get(node.op_type, Operands.by_frontend)
    try:
        operands = Operands(tensors, node, opset)
        made = converter(operands)
        if isinstance(made, Whole):
            tensors.whole[node.output[0]] = made.dtype
            made = made.expr
        elif operands.moves:
            tensors.whole.update((name, operands.file_dtype(0)) for name in node.output if name)
        result = tensors.builder.normalize(made)
        shape = static_shape(result)
        if shape is not None:
            check_result(f"{tensors.path}: {node_label(node)}", shape, str(result.ty.dtype))
        _bind(tensors, node, result)
    except ModelError:
        raise
    except Exception as error:  # the frontend and TVM's type inference raise whatever they meet
        raise UnsupportedLayer(f"{tensors.path}: {node_label(node)} cannot be converted: {reason_of(error)}") from error


def _take_branch(tensors: Tensors, folder: Folder, node: onnx.NodeProto, opset: int, depth: int) -> None:
    """The nodes of the branch that a constant condition chooses."""
    where = f"{tensors.path}: {node_label(node)}"
    if node.input[0] not in tensors.constants:
        raise UnsupportedLayer(
            f"{where}: its condition depends on the input's values; --value NAME=NUMBER fixes an input"
        )
    branches = {attribute.name: attribute.g for attribute in node.attribute}
    chosen = branches["then_branch" if bool(np.all(tensors.constants[node.input[0]])) else "else_branch"]
    if len(chosen.output) != len(node.output):
        raise ModelError(f"{where}: its branch makes {len(chosen.output)} results instead of {len(node.output)}")
    for tensor in chosen.initializer:
        tensors.constants[tensor.name] = numpy_helper.to_array(tensor)
    for inner in chosen.node:
        _add(tensors, folder, inner, opset, depth + 1)
    for inside, outside in zip(chosen.output, node.output, strict=True):
        if outside:
            tensors.alias(inside.name, outside)


def _bind(tensors: Tensors, node: onnx.NodeProto, result: relax.Expr) -> None:
    """Give a node's results their names."""
    outputs = [name for name in node.output if name]
    if not isinstance(result.ty, relax.TupleType):
        tensors.values[outputs[0]] = tensors.named(outputs[0], result)
        return
    if not isinstance(result, relax.Tuple):
        result = tensors.builder.emit(result, name_hint=tensors.variable(f"{outputs[0]}_all"))
    for index, name in enumerate(node.output):
        if name and (isinstance(result, relax.Tuple) or index < len(result.ty.fields)):
            item = result[index] if isinstance(result, relax.Tuple) else relax.TupleGetItem(result, index)
            tensors.values[name] = tensors.named(name, item)


def _fold(tensors: Tensors, folder: Folder, node: onnx.NodeProto, opset: int) -> bool:
    """Evaluate a node that depends on constants alone, or asks for a static shape."""
    if node.op_type in ("Shape", "Size") and node.input and node.input[0] in tensors.values:
        return _fold_shape(tensors, node)
    inputs = {name: tensors.constants[name] for name in node.input if name in tensors.constants}
    nested = any(attribute.HasField("g") for attribute in node.attribute)
    if len(inputs) != len({*node.input} - {""}) or nested:
        return False
    results = folder.results(node, node_label(node), inputs, opset)
    if results is None:
        return False
    outputs = [name for name in node.output if name]
    tensors.constants.update(zip(outputs, map(np.asarray, results), strict=True))
    return True


def _fold_shape(tensors: Tensors, node: onnx.NodeProto) -> bool:
    shape = static_shape(tensors.values[node.input[0]])
    if shape is None:
        return False
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    sizes = np.array(shape, np.int64)
    array = sizes[bounds.get("start", 0) : bounds.get("end")] if node.op_type == "Shape" else sizes.prod()
    tensors.constants[node.output[0]] = np.asarray(array, np.int64)
    return True

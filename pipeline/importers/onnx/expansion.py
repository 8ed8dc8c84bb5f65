"""Operators that ONNX defines by others, written out in those: Celu, Attention, RMSNormalization, losses and more.

ONNX's schemas hold the definitions as functions, some of which depend on a node's attributes and on which operands it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
from onnx import defs, helper

#: No definition of ONNX has more operators; one of a damaged file might.
_MOST_NODES = 500


def definition(node: onnx.NodeProto, opset: int, types: Sequence[onnx.TypeProto]) -> onnx.FunctionProto | None:
    """The function that defines the node's operator, for operands of ``types``; None where ONNX has none."""
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return None
    function = onnx.FunctionProto()
    if schema.has_context_dependent_function:
        version = _newest(schema.context_dependent_function_opset_versions, opset)
        if version is None:
            return None
        texts = [each.SerializeToString() for each in types]
        function.ParseFromString(
            schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), texts)
        )
    elif schema.has_function:
        version = _newest(schema.function_opset_versions, opset)
        if version is None:
            return None
        function.ParseFromString(schema.get_function_with_opset_version(version))
    else:
        return None
    for name, attribute in schema.attributes.items():
        if attribute.default_value.type and name not in {each.name for each in function.attribute_proto}:
            function.attribute_proto.append(attribute.default_value)
            function.attribute_proto[-1].name = name
    return function if 0 < len(function.node) <= _MOST_NODES else None


def _newest(versions: Sequence[int], opset: int) -> int | None:
    return max((version for version in versions if version <= opset), default=None)


def written_out(
    node: onnx.NodeProto, function: onnx.FunctionProto, unique: Callable[[str], str]
) -> list[onnx.NodeProto]:
    """The nodes of ``function`` in place of ``node``; ``unique`` makes names for the tensors between them."""
    names = dict.fromkeys(function.input, "") | dict(zip(function.input, node.input, strict=False))
    names |= {inner: outer for inner, outer in zip(function.output, node.output, strict=False) if outer}
    given = {attribute.name: attribute for attribute in (*function.attribute_proto, *node.attribute)}
    return [_renamed(inner, names, given, unique, node) for inner in function.node]


def _renamed(
    node: onnx.NodeProto,
    names: dict[str, str],
    given: dict[str, onnx.AttributeProto],
    unique: Callable[[str], str],
    caller: onnx.NodeProto,
) -> onnx.NodeProto:
    """A node of the function with the caller's names and attributes."""
    inputs = [names.get(name, name) for name in node.input]
    for name in node.output:
        if name and name not in names:
            names[name] = unique(f"{(caller.output[0] or caller.name)}_{name}")
    made = helper.make_node(node.op_type, inputs, [names.get(name, "") for name in node.output], domain=node.domain)
    made.name = f"{caller.name or caller.output[0]}/{node.op_type}"
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            if attribute.ref_attr_name not in given:
                continue
            made.attribute.add().CopyFrom(given[attribute.ref_attr_name])
            made.attribute[-1].name = attribute.name
            continue
        made.attribute.add().CopyFrom(attribute)
        if attribute.HasField("g"):
            inner = [_renamed(each, names, given, unique, caller) for each in attribute.g.node]
            graph = made.attribute[-1].g
            del graph.node[:]
            graph.node.extend(inner)
            for output in graph.output:
                output.name = names.get(output.name, output.name)
    return made

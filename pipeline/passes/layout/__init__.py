"""Bring every image to NHWC, whatever layout the file used, without leaving transposes inside a network.

Each tensor is stored in some order of its axes, remembered beside it; a transpose in the file only changes what is
remembered. Convolutions and poolings ask for NHWC, elementwise operators take what their first input has, operators with
an axis follow it, and whatever we do not know gets its inputs back in the file's own order. A real transpose is made only
where the stored order is not the wanted one: at NCHW inputs, and at outputs that are images. A flattened image keeps the
stored order too, and the rows of the dense layer behind it are permuted instead.

TVM's own ConvertLayout stops at operators it has no rule for (leaky_relu among them) and leaves transposes around them.
"""

from __future__ import annotations

import tvm
from tvm import relax

from bitkiln.pipeline.ir.graph import Graph, bindings, op_name, result_of, shape_of, with_main
from bitkiln.pipeline.passes.layout.order import Converter
from bitkiln.pipeline.passes.layout.rules import RULES


def layout(module: tvm.IRModule) -> tvm.IRModule:
    """The same network with NHWC images; inputs and outputs keep the layout of the file."""
    function = module["main"]
    converter = Converter(Graph(function), RULES)
    for param in _nchw_params(function):
        converter.transpose_input(param)
    for name, value in bindings(function):
        converter.convert(name, value)
    result = result_of(function)
    fields = result.fields if isinstance(result, relax.Tuple) else [result]
    outputs = [converter.plain(field) for field in fields]
    graph = converter.graph
    return with_main(module, graph.finish(relax.Tuple(outputs) if isinstance(result, relax.Tuple) else outputs[0]))


def _nchw_params(function: relax.Function) -> list[relax.Var]:
    """The inputs that are NCHW images, as far as a convolutional network's own operators tell."""
    values = [value for _, value in bindings(function)]
    layouts = {str(value.attrs["data_layout"]) for value in values if op_name(value) == "nn.conv2d"}
    transposed = {value.args[0].name for value in values if op_name(value) == "permute_dims"}
    if layouts != {"NCHW"}:
        return []
    return [param for param in function.params if len(shape_of(param)) == 4 and param.name not in transposed]

"""The least time a network can take: its MACs at the peak rate of the cores, its weights from DRAM once."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

from bitkiln.pipeline.profile import LayerWork
from bitkiln.targets import Target


def bound_ms(model: onnx.ModelProto, target: Target, cores: int = 1) -> float:
    """The bound of a float ONNX form, its binary layers counted as binary (direct convolution, everything else free)."""
    return sum(layer.roof_cycles(target, cores) for layer in layers(model)) / (target.mhz * 1e3)


def layers(model: onnx.ModelProto) -> list[LayerWork]:
    """Every convolution and dense layer; one is binary if its weights are all +-1. Needs inferred shapes."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in values}
    return [
        _layer(node, numpy_helper.to_array(weights[node.input[1]]), shapes[node.input[0]], shapes[node.output[0]])
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm")
    ]


def _layer(node: onnx.NodeProto, weight: np.ndarray, source: list[int], out: list[int]) -> LayerWork:
    binary = bool(np.all(np.abs(weight) == 1))
    # An output element takes one MAC for each weight of its channel; of a transposed convolution, an input element does.
    if node.op_type == "Gemm":
        macs = math.prod(out) * (weight.size // out[-1])
    else:
        macs = math.prod(out if node.op_type == "Conv" else source) * math.prod(weight.shape[1:])
    return LayerWork(node.name, node.op_type, macs, binary, weight.size // 8 if binary else weight.size * 4)

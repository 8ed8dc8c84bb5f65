"""Layers between DequantizeLinear and QuantizeLinear as ONNX's operators of whole numbers, as onnxruntime joins them too.

A file of this form (QDQ) has floats between its layers that stand for integers of 8 bits. A convolution or matrix product of
such data and weights, with its bias, ReLU or Clip, whose result is quantised again, is QLinearConv, QLinearMatMul or QGemm:
sums of whole numbers, one factor, one rounding. What the activation lets through is a limit of the rounded numbers, since
rounding keeps order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from bitkiln.pipeline.importers.onnx.graph import LIMITED, OnnxGraph, drop_dead_nodes

_BYTES = ("int8", "uint8")
#: How far a bias's scale may be from that of the sums: files round it to float32.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class _Reals:
    """What a quantiser reads or a dequantiser makes: integers with a scale and a zero point, by their names."""

    integers: str
    scale: str
    zero: str

    @property
    def names(self) -> list[str]:
        """As operands of an operator."""
        return [self.integers, self.scale, self.zero]


def join_layers(graph: OnnxGraph) -> OnnxGraph:
    """Make one node of each layer between quantisers, in a clean graph, in place."""
    joiner = _Joiner(graph)
    graph.nodes = [joiner.joined(node) or node for node in graph.nodes]
    drop_dead_nodes(graph)
    return graph


class _Joiner:
    def __init__(self, graph: OnnxGraph) -> None:
        self._graph = graph
        self._makers = {name: node for node in graph.nodes for name in node.output if name}
        self._uses = Counter(name for node in graph.nodes for name in node.input)
        self._uses.update(graph.outputs.values())

    def joined(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The layer whose result ``node`` quantises; None where there is none."""
        result = self._quantised(node) if node.op_type == "QuantizeLinear" else None
        inner = self._only_maker(node.input[0]) if result is not None else None
        if result is None or inner is None or not self._single(result):
            return None
        limits: tuple[float, float] | None = (-np.inf, np.inf)
        if inner.op_type in ("Relu", "Clip"):
            limits = self._bounds(inner)
            inner = self._only_maker(inner.input[0])
        if limits is None or inner is None or inner.op_type not in _LAYERS:
            return None
        return self._layer(inner, node.output[0], result, limits)

    def _layer(
        self, node: onnx.NodeProto, name: str, result: _Reals, limits: tuple[float, float]
    ) -> onnx.NodeProto | None:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        data, weight = self._data(node.input[0]), self._weight(node, attributes)
        if data is None or weight is None:
            return None
        bias = ""
        if len(node.input) > 2 and node.input[2]:
            found = self._bias(node.input[2], data, weight)
            if found is None:
                return None
            bias = found
        operands = [*data.names, *weight.names]
        match node.op_type:
            case "Conv":
                operands += [result.scale, result.zero, *([bias] if bias else [])]
            case "Gemm":
                if any(attributes.pop(each, 1.0) != 1.0 for each in ("alpha", "beta")) or attributes.get("transA", 0):
                    return None
                operands += [bias, result.scale, result.zero]
            case _:
                operands += [result.scale, result.zero]
        kind = _LAYERS[node.op_type]
        made = helper.make_node(f"{LIMITED}{kind}", operands, [name], node.name or node.output[0])
        made.attribute.extend(attribute for attribute in node.attribute if attribute.name in attributes)
        scale, zero = (self._graph.constants[each] for each in (result.scale, result.zero))
        lowest, highest = _limits(limits, float(scale.reshape(-1)[0]), zero)
        made.attribute.extend([helper.make_attribute("lowest", lowest), helper.make_attribute("highest", highest)])
        return made

    def _only_maker(self, name: str) -> onnx.NodeProto | None:
        """The node that makes ``name`` for one reader alone."""
        return self._makers.get(name) if self._uses[name] == 1 else None

    def _quantised(self, node: onnx.NodeProto) -> _Reals | None:
        """What a quantiser or dequantiser has as constants; None for other numbers of values, or of bits."""
        scale = self._graph.constants.get(node.input[1])
        zero = node.input[2] if len(node.input) > 2 else ""
        if not zero:
            stated = next((each.i for each in node.attribute if each.name == "output_dtype"), 0)
            if stated not in (0, onnx.TensorProto.UINT8) or node.op_type != "QuantizeLinear":
                return None
            zero = f"{node.output[0]}_zero"
            self._graph.constants[zero] = np.zeros((), np.uint8)
        known = self._graph.constants.get(zero)
        if scale is None or known is None or scale.dtype != np.float32 or str(known.dtype) not in _BYTES:
            return None
        return _Reals(node.input[0], node.input[1], zero) if np.all(scale > 0) else None

    def _data(self, name: str) -> _Reals | None:
        """Data of 8 bits, with one scale."""
        node = self._makers.get(name)
        found = self._quantised(node) if node is not None and node.op_type == "DequantizeLinear" else None
        return found if found is not None and self._single(found) else None

    def _weight(self, node: onnx.NodeProto, attributes: Mapping[str, object]) -> _Reals | None:
        """Constant weights of 8 bits, with one scale, or one for each output channel."""
        maker = self._makers.get(node.input[1])
        found = self._quantised(maker) if maker is not None and maker.op_type == "DequantizeLinear" else None
        array = self._graph.constants.get(found.integers) if found is not None else None
        if maker is None or found is None or array is None or str(array.dtype) not in _BYTES:
            return None
        if array.ndim != (4 if node.op_type == "Conv" else 2):
            return None
        axis = next((each.i for each in maker.attribute if each.name == "axis"), 1) % array.ndim
        own = 0 if node.op_type == "Conv" or attributes.get("transB", 0) else array.ndim - 1
        several = max(self._size(found.scale), self._size(found.zero)) > 1
        fits = {self._size(each) for each in (found.scale, found.zero)} <= {1, array.shape[own]}
        return found if fits and (axis == own or not several) else None

    def _bias(self, name: str, data: _Reals, weight: _Reals) -> str | None:
        """The name of a constant bias of 32 bits, on the scale of the sums."""
        node = self._makers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        constants = self._graph.constants
        array, scale = constants.get(node.input[0]), constants.get(node.input[1])
        zero = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        if array is None or scale is None or zero is None or array.dtype != np.int32 or np.any(zero):
            return None
        sums = constants[data.scale].reshape(-1).astype(np.float64) * constants[weight.scale].reshape(-1)
        if scale.size not in (1, array.size) or not np.allclose(scale.reshape(-1), sums, rtol=_TOLERANCE, atol=0):
            return None
        return node.input[0]

    def _bounds(self, node: onnx.NodeProto) -> tuple[float, float] | None:
        """What a Relu or a Clip lets through; None where it is not known."""
        if node.op_type == "Relu":
            return 0.0, np.inf
        given = {each.name: each.f for each in node.attribute}
        bounds = [given.get("min", -np.inf), given.get("max", np.inf)]
        for at, name in enumerate(node.input[1:3]):
            if name:
                array = self._graph.constants.get(name)
                if array is None or array.size != 1:
                    return None
                bounds[at] = float(array.reshape(-1)[0])
        return (bounds[0], bounds[1]) if bounds[0] <= bounds[1] else None

    def _single(self, found: _Reals) -> bool:
        """Whether it has one scale and one zero point."""
        return self._size(found.scale) == self._size(found.zero) == 1

    def _size(self, name: str) -> int:
        return int(self._graph.constants[name].size)


def _limits(bounds: tuple[float, float], scale: float, zero: np.ndarray) -> tuple[int, int]:
    """The integers between ``bounds`` of reals, quantised."""
    least, most = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
    low, high = (
        np.clip(np.round(np.float32(bound) / np.float32(scale)) + float(zero.reshape(-1)[0]), least, most)
        for bound in bounds
    )
    return int(low), int(high)


#: Operators that are joined, and what of.
_LAYERS = {"Conv": "QLinearConv", "Gemm": "QGemm", "MatMul": "QLinearMatMul"}

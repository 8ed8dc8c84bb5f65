"""Evaluating ONNX nodes whose operands are all constant, within bounds of memory.

ONNX's own reference implementation computes them, so that the shape arithmetic of exporters vanishes. A node of a few bytes
can ask for a tensor of any size, and a chain of them for one that doubles with every link: sizes are inferred before
anything is computed, and what all results take together is limited by what the file holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from bitkiln.pipeline.errors import UnsupportedLayer

#: Bytes that computed constants may take together: as many as a board has, and so many times the file's own constants.
_ROOM, _ROOM_PER_BYTE = 1 << 30, 8

#: Values of operands up to this many elements are looked at to infer a result's shape.
_SHAPE_LIKE = 1024

#: Operators whose results are never kept as constants: random ones, and those that take time or room beyond their result.
_NOT_FOLDED = frozenset(
    {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Conv", "ConvInteger", "ConvTranspose", "DeformConv", "QLinearConv", "Col2Im"),
        *("AveragePool", "LpPool", "MaxPool", "MaxRoiPool", "MaxUnpool", "RoiAlign", "GridSample", "AffineGrid"),
        *("GRU", "LSTM", "RNN", "NonMaxSuppression", "DFT", "STFT", "ImageDecoder", "TfIdfVectorizer"),
    }
)


#: The oldest opset of what quantisers are written out in, in files of any opset, and of what ONNX's evaluator has.
_SINCE = {"GreaterOrEqual": 12, "Round": 11, "DequantizeLinear": 19}


class Folder:
    """Computes constants of one model; ``where`` names the file in errors."""

    def __init__(self, where: str, constants: Iterable[np.ndarray]) -> None:
        self._where = where
        self._room = _ROOM + _ROOM_PER_BYTE * sum(array.nbytes for array in constants)

    def results(
        self, node: onnx.NodeProto, label: str, inputs: Mapping[str, np.ndarray], opset: int
    ) -> list[np.ndarray] | None:
        """The results of a node of the default domain; None where it is better left alone.

        Raises UnsupportedLayer where they do not fit into memory; ``label`` names the node.
        """
        sizes = None if node.op_type in _NOT_FOLDED else self._inferred_bytes(node, inputs, opset)
        if sizes is None:
            return None
        if sum(sizes) > self._room:
            raise UnsupportedLayer(
                f"{self._where}: {label}: computes a constant of {sum(sizes) / 1e6:.0f} MB, more than the file explains"
            )
        try:
            results = list(self._evaluate(node, inputs, opset))
        except Exception:  # the reference implementation lacks it: the converters may know it
            return None
        if not all(isinstance(result, np.ndarray | np.generic) and not result.dtype.hasobject for result in results):
            return None  # sequences, texts
        self._room -= sum(result.nbytes for result in results)
        return [np.asarray(result) for result in results]

    def _inferred_bytes(self, node: onnx.NodeProto, inputs: Mapping[str, np.ndarray], opset: int) -> list[int] | None:
        """Upper bounds of the results' sizes in bytes; None where ONNX cannot tell."""
        try:
            opset = _opset_for(node, opset)
            schema = defs.get_schema(node.op_type, opset, "")
            tensors = {name: _tensor(array) for name, array in inputs.items() if array.size <= _SHAPE_LIKE}
            types = {name: _type(array) for name, array in inputs.items()}
            imports = [helper.make_opsetid("", opset)]
            inferred = shape_inference.infer_node_outputs(schema, node, types, tensors, opset_imports=imports)
        except Exception:  # unknown operators, operands that do not fit, element types numpy lacks
            return None
        # Without a shape, results depend on values and have at most as many indices as their operands have elements.
        loose = 64 * sum(array.nbytes for array in inputs.values())
        return [_bytes(inferred.get(name), loose) for name in node.output if name]

    def _evaluate(self, node: onnx.NodeProto, inputs: Mapping[str, np.ndarray], opset: int) -> Iterable[np.ndarray]:
        unknown = onnx.TypeProto()
        values = [helper.make_value_info(name, unknown) for name in inputs]
        outputs = [helper.make_value_info(name, unknown) for name in node.output if name]
        graph = helper.make_graph([node], "fold", values, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _opset_for(node, opset))])
        with np.errstate(all="ignore"):  # overflows and the like give what ONNX defines
            return ReferenceEvaluator(model).run(None, dict(inputs))


def _opset_for(node: onnx.NodeProto, opset: int) -> int:
    return max(opset, _SINCE.get(node.op_type, 0))


def _tensor(array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array)


def _type(array: np.ndarray) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _bytes(inferred: onnx.TypeProto | None, loose: int) -> int:
    tensor = inferred.tensor_type if inferred is not None else onnx.TypeProto.Tensor()
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return loose
    return math.prod(max(dim.dim_value, 0) for dim in tensor.shape.dim) * _itemsize(tensor.elem_type)


def _itemsize(element_type: int) -> int:
    known = element_type in helper.get_all_tensor_dtypes()
    return helper.tensor_dtype_to_np_dtype(element_type).itemsize if known else 8

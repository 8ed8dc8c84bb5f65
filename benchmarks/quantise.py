"""Makes a float TensorFlow Lite file one of int8, as TensorFlow's converter does after training.

Weights of convolutions have a scale for each output channel, everything else one for the tensor; activations also a zero point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import tflite

from benchmarks.tflite_file import Operator, TfliteFile
from bitkiln.pipeline.errors import UnsupportedLayer

#: The least and the greatest value of a tensor.
Range = tuple[float, float]

#: Where the weights of an operator have their output channels; their bias is the operand after them, or the last.
CHANNELS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 0, "FULLY_CONNECTED": 0}
#: Operators whose results have their operands' scale: they move values.
MOVING = frozenset(
    {
        "MAX_POOL_2D",
        "AVERAGE_POOL_2D",
        "RESHAPE",
        "PAD",
        "CONCATENATION",
        "TRANSPOSE",
        "SPLIT",
        "RESIZE_NEAREST_NEIGHBOR",
    }
)
#: Operators whose results have a scale that the format lays down: 1/256 and -128.
UNIT = frozenset({"LOGISTIC", "SOFTMAX"})
#: What else has an int8 form.
OTHERS = frozenset({"ADD", "SUB", "MUL", "MEAN", "RELU", "RELU6", "LEAKY_RELU", "PRELU", "HARD_SWISH"})


def quantise(file: TfliteFile, ranges: Mapping[int, Range]) -> None:
    """Turn ``file``; ``ranges`` are of its activations, but for those that values are only moved to.

    Raises UnsupportedLayer for operators without an int8 form.
    """
    names = {value: name for name, value in vars(tflite.BuiltinOperator).items() if not name.startswith("_")}
    named = [(names[operator.code], operator) for operator in file.operators if isinstance(operator.code, int)]
    for name, _ in named:
        if name not in {*CHANNELS, *MOVING, *UNIT, *OTHERS}:
            raise UnsupportedLayer(f"{name} has no int8 form here")
    _activations(file, named, ranges)
    for name, operator in named:
        if name in CHANNELS:
            _weights(file, operator, CHANNELS[name])
    for index, tensor in enumerate(file.tensors):
        if tensor.dtype == "float32" and tensor.values is not None:
            scale, zero = _scale((float(tensor.values.min()), float(tensor.values.max())))
            values = np.clip(np.round(tensor.values / scale) + zero, -128, 127).astype(np.int8)
            file.tensors[index] = replace(tensor, dtype="int8", values=values, scale=scale, zero=zero)


def _activations(file: TfliteFile, named: Sequence[tuple[str, Operator]], ranges: Mapping[int, Range]) -> None:
    alike = list(range(len(file.tensors)))

    def first(tensor: int) -> int:
        while alike[tensor] != tensor:
            tensor = alike[tensor]
        return tensor

    for name, operator in named:
        if name in MOVING:
            tensors = [t for t in (*operator.inputs, *operator.results) if _is_activation(file, t)]
            for tensor in tensors[1:]:
                alike[first(tensor)] = first(tensors[0])
    united: dict[int, Range] = {}
    for tensor, (low, high) in ranges.items():
        known = united.get(first(tensor), (low, high))
        united[first(tensor)] = min(low, known[0]), max(high, known[1])
    unit = {result for name, operator in named if name in UNIT for result in operator.results}
    for index, known_tensor in enumerate(file.tensors):
        if not _is_activation(file, index):
            continue
        if index not in unit and first(index) not in united:
            raise UnsupportedLayer(f"the range of tensor {index} is not known")
        scale, zero = (1 / 256, -128) if index in unit else _scale(united[first(index)])
        file.tensors[index] = replace(known_tensor, dtype="int8", scale=scale, zero=zero)


def _is_activation(file: TfliteFile, tensor: int) -> bool:
    return file.tensors[tensor].values is None and file.tensors[tensor].dtype in ("float32", "int8")


def _scale(limits: Range) -> tuple[float, int]:
    """So that 0 is a value of its own, as paddings need it."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    scale = float(np.float32((high - low) / 255 or 1.0))
    return scale, round(-128 - low / scale)


def _weights(file: TfliteFile, operator: Operator, axis: int) -> None:
    source = next(tensor for tensor in operator.inputs if _is_activation(file, tensor))
    weight = operator.inputs[1]
    bias = operator.inputs[-1]
    tensor = file.tensors[weight]
    assert tensor.values is not None
    others = tuple(i for i in range(tensor.values.ndim) if i != axis)
    scales = np.maximum(np.abs(tensor.values).max(others, keepdims=True), 1e-12).astype(np.float32) / np.float32(127)
    values = np.round(tensor.values / scales).astype(np.int8)
    file.tensors[weight] = replace(tensor, dtype="int8", values=values, scale=tuple(scales.ravel().tolist()), axis=axis)
    scale_of_source = file.tensors[source].scale
    assert isinstance(scale_of_source, float)
    sums = scales.ravel() * np.float32(scale_of_source)
    plain = file.tensors[bias].values
    assert plain is not None
    rounded = np.round(plain / sums).astype(np.int32)
    file.tensors[bias] = replace(file.tensors[bias], dtype="int32", values=rounded, scale=tuple(sums.tolist()))

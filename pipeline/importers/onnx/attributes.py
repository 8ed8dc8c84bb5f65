"""What becomes of every attribute of every ONNX operator that is imported.

An attribute is *read* (its converter, or the part of TVM's frontend that converts it, does what it says or refuses the
value), or *void*: it must have one of the values listed, which leave the result as it is. Any other attribute is refused by
name, and so is an operator without an entry here that ONNX itself does not define by others (``expansion``).
TVM's frontend ignores what it does not know: an attribute of an operator it converts stands here only where tests of ours
hold its results against ONNX's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from bitkiln.pipeline.importers.onnx.graph import ASSIGNMENT, LIMITED, MULTI_THRESHOLD


@dataclass(frozen=True)
class Entry:
    """``read`` attributes are honoured, ``void`` ones have one of these values; ``results`` is how many results are made."""

    read: frozenset[str] = frozenset()
    void: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    results: int = 1


def _entry(read: str = "", results: int = 1, **void: tuple[Any, ...]) -> Entry:
    return Entry(frozenset(read.split()), void, results)


_ANY = 1 << 10

#: Attributes that change nothing for the types we compute with: those of float8, and those of training.
_CASTS = "to saturate round_mode"
_REDUCES = _entry("axes keepdims noop_with_empty_axes")
_WINDOWS = "auto_pad dilations kernel_shape pads strides"

#: Attributes that are 0 or 1, whatever their operator. Runtimes take other numbers differently.
_FLAGS = frozenset(
    {
        *("align_corners", "allowzero", "antialias", "ceil_mode", "count_include_pad", "detect_negative"),
        *("detect_positive", "exclude_outside", "exclusive", "fmod", "input_forget", "keepdims", "layout"),
        *("linear_before_reset", "noop_with_empty_axes", "reverse", "saturate", "select_last_index", "storage_order"),
        *("training_mode", "transA", "transB", "upper"),
    }
)

#: The operators that a converter, or TVM's frontend, takes as they are.
ENTRIES: dict[str, Entry] = {
    **dict.fromkeys(
        (
            *("Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitwiseAnd", "BitwiseNot"),
            *("BitwiseOr", "BitwiseXor", "Ceil", "Cos", "Cosh", "Div", "Equal", "Erf", "Exp", "Expand", "Floor"),
            *("GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSwish", "IsNaN", "Less"),
            *("LessOrEqual", "Log", "MatMul", "MatMulInteger", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "Not", "Or"),
            *("PRelu", "Pow", "QLinearMatMul", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sinh"),
            *("Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "Tile", "Where", "Xor"),
        ),
        _entry(),
    ),
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
            *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
        ),
        _REDUCES,
    ),
    ASSIGNMENT: _entry(),
    f"{LIMITED}QGemm": _entry("alpha highest lowest transA transB"),
    f"{LIMITED}QLinearConv": _entry(f"{_WINDOWS} group highest lowest"),
    f"{LIMITED}QLinearMatMul": _entry("highest lowest"),
    "ArgMax": _entry("axis keepdims select_last_index"),
    "ArgMin": _entry("axis keepdims select_last_index"),
    "AveragePool": _entry(f"{_WINDOWS} ceil_mode count_include_pad"),
    # The momentum of running statistics is that of training.
    "BatchNormalization": _entry("epsilon momentum", training_mode=(0,)),
    "BitShift": _entry("direction"),
    "Cast": _entry(_CASTS),
    "CastLike": _entry("saturate round_mode"),
    "Clip": _entry("max min"),
    "Concat": _entry("axis"),
    "Conv": _entry(f"{_WINDOWS} group"),
    "ConvInteger": _entry(f"{_WINDOWS} group"),
    "ConvTranspose": _entry(f"{_WINDOWS} group output_padding output_shape"),
    "CumSum": _entry("exclusive reverse"),
    "DepthToSpace": _entry("blocksize mode"),
    "DequantizeLinear": _entry("axis", block_size=(0,), output_dtype=(0, onnx.TensorProto.FLOAT)),
    # Nothing is dropped at inference; ``graph`` refuses Dropout in training.
    "Dropout": _entry("ratio seed", results=2),
    "Einsum": _entry("equation"),
    "Elu": _entry("alpha"),
    "EyeLike": _entry("dtype k"),
    "Flatten": _entry("axis"),
    "Gather": _entry("axis"),
    "GatherElements": _entry("axis"),
    "GatherND": _entry("batch_dims"),
    "Gelu": _entry("approximate"),
    "Gemm": _entry("alpha beta transA transB"),
    "GlobalLpPool": _entry("p"),
    "GridSample": _entry("align_corners mode padding_mode"),
    "GroupNormalization": _entry("epsilon num_groups", stash_type=(onnx.TensorProto.FLOAT,)),
    "GRU": _entry("direction hidden_size layout linear_before_reset activations", clip=(), results=2),
    "HardSigmoid": _entry("alpha beta"),
    "Hardmax": _entry("axis"),
    "If": _entry("else_branch then_branch", results=_ANY),
    "InstanceNormalization": _entry("epsilon"),
    "IsInf": _entry("detect_negative detect_positive"),
    "LRN": _entry("alpha beta bias size"),
    "LSTM": _entry("direction hidden_size layout activations", clip=(), input_forget=(0,), results=3),
    "LayerNormalization": _entry("axis epsilon", stash_type=(onnx.TensorProto.FLOAT,)),
    "LeakyRelu": _entry("alpha"),
    "LogSoftmax": _entry("axis"),
    "LpNormalization": _entry("axis p"),
    "LpPool": _entry(f"{_WINDOWS} ceil_mode p"),
    # The order of the indices, which are refused.
    "MaxPool": _entry(f"{_WINDOWS} ceil_mode storage_order"),
    "MaxRoiPool": _entry("pooled_shape spatial_scale"),
    "MeanVarianceNormalization": _entry("axes"),
    "Mod": _entry("fmod"),
    MULTI_THRESHOLD: _entry("data_layout out_bias out_dtype out_scale"),
    "OneHot": _entry("axis"),
    "Pad": _entry("mode pads value"),
    "QGemm": _entry("alpha transA transB"),
    "QLinearAdd": _entry(),
    "QLinearConcat": _entry("axis"),
    "QLinearGlobalAveragePool": _entry("channels_last"),
    "QLinearLeakyRelu": _entry("alpha"),
    "QLinearMul": _entry(),
    "QLinearSigmoid": _entry(),
    "QLinearSoftmax": _entry("axis opset"),
    "QLinearConv": _entry(f"{_WINDOWS} group"),
    "QuantizeLinear": _entry("axis output_dtype saturate", block_size=(0,), precision=(0, onnx.TensorProto.FLOAT)),
    "RNN": _entry("direction hidden_size layout activations", clip=(), results=2),
    "Reshape": _entry("allowzero"),
    "Resize": _entry(
        "antialias axes coordinate_transformation_mode cubic_coeff_a exclude_outside extrapolation_value "
        "keep_aspect_ratio_policy mode nearest_mode scales"
    ),
    "RoiAlign": _entry(
        "coordinate_transformation_mode output_height output_width sampling_ratio spatial_scale", mode=(b"avg",)
    ),
    "ScatterElements": _entry("axis reduction"),
    "ScatterND": _entry("reduction"),
    "Scatter": _entry("axis"),
    "Selu": _entry("alpha gamma"),
    "Shape": _entry("end start"),
    "Shrink": _entry("bias lambd"),
    "Size": _entry(),
    "Slice": _entry("axes ends starts steps"),
    "Softmax": _entry("axis"),
    "SpaceToDepth": _entry("blocksize mode"),
    "Split": _entry("axis num_outputs split", results=_ANY),
    "Squeeze": _entry("axes"),
    "Swish": _entry("alpha"),
    "ThresholdedRelu": _entry("alpha"),
    "Transpose": _entry("perm"),
    "Trilu": _entry("upper"),
    "Unsqueeze": _entry("axes"),
    "Upsample": _entry("mode scales"),
}


def problems(node: onnx.NodeProto, opset: int) -> Iterator[str]:
    """What of a node of an operator in ``ENTRIES`` is not done, a phrase each."""
    entry, defaults = ENTRIES[node.op_type], _defaults(node.op_type, opset)
    for attribute in node.attribute:
        name, value = attribute.name, onnx.helper.get_attribute_value(attribute)
        if name in _FLAGS and value not in (0, 1):
            yield f"its attribute {name}={_text(value)} is neither 0 nor 1"
        if name in entry.read:
            continue
        accepted = entry.void.get(name, ())
        default = defaults.get(name)
        if not any(_same(value, other) for other in (*accepted, *([default] if default is not None else []))):
            yield f"its attribute {name}={_text(value)} is not supported"
    made = sum(1 for name in node.output[entry.results :] if name)
    if made:
        yield f"its result {entry.results + 1} of {len(node.output)} is not supported"


def _defaults(kind: str, opset: int) -> dict[str, Any]:
    """The default of each attribute that has one."""
    try:
        schema = onnx.defs.get_schema(kind, opset, "")
    except onnx.defs.SchemaError:
        return {}
    return {
        name: onnx.helper.get_attribute_value(attribute.default_value)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.type
    }


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(np.array_equal(value, other))


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")[:40]
    return repr(value)[:40] if isinstance(value, int | float | list) else type(value).__name__

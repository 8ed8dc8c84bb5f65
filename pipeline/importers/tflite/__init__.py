"""TensorFlow Lite files (``.tflite``) as Relax: float networks, and binarised ones of Larq Compute Engine.

The module is NHWC throughout, as the file: weights OHWI, constants of a rank's full number of dimensions. The operators of
Larq Compute Engine are binary operators of ours from the start (``lce``); a tensor of its words is packed bits of ours
wherever only such operators see it, and is words again where anything else does, or where it leaves the network. Signs
that a converter left as float operators stay as the file spells them, for the passes to recognise.

Networks of int8 and uint8 compute with the whole numbers of the file (``quantized``). Only the first subgraph is a network;
others belong to control flow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import tvm
from tvm import relax

from bitkiln.pipeline.errors import ModelError, ShapeNeeded, UnsupportedLayer
from bitkiln.pipeline.importers.common.archive import digest
from bitkiln.pipeline.importers.common.building import build_main
from bitkiln.pipeline.importers.common.options import ImportOptions
from bitkiln.pipeline.importers.common.preprocessing import ASSUMED, in_integers, plain_image
from bitkiln.pipeline.importers.tflite import layers, lce, quantized, shapes
from bitkiln.pipeline.importers.tflite.detector import without_postprocessing
from bitkiln.pipeline.importers.tflite.file import MAX_ELEMENTS, File, Operator, read
from bitkiln.pipeline.importers.tflite.labels import embedded_labels
from bitkiln.pipeline.importers.tflite.metadata import normalization
from bitkiln.pipeline.importers.tflite.operands import Operands, Tensors
from bitkiln.pipeline.importers.tflite.options import unread
from bitkiln.pipeline.ir.graph import shape_of, with_file_names
from bitkiln.pipeline.model import Model, Preprocessing, TensorSpec
from bitkiln.pipeline.support.tvm_messages import reason_of

_BUILTIN = layers.CONVERTERS | shapes.CONVERTERS
_CUSTOM = lce.CONVERTERS | layers.CUSTOM

#: Builtin operators whose operands may be of any type while constant, and which check that themselves.
_ANY_CONSTANT = {"DEQUANTIZE": (0,)}


def load(path: Path, options: ImportOptions) -> Model:
    """Import the model at ``path``; ``options.shapes`` fixes open dimensions, by name of the input or its tensor."""
    file, head = without_postprocessing(read(path))
    operators = _live(file)
    shapes = _input_shapes(file, options.shapes)
    warnings: list[str] = []
    module, outputs = _module(file, operators, shapes, warnings, in_reals=head is not None)
    inputs = tuple(_spec(file, index, shape, file.tensors[index].dtype) for index, shape in shapes.items())
    preprocessing, origins = _preprocessing(file, inputs[0])
    return Model(
        name=path.name.removesuffix(".tflite"),
        module=module,
        inputs=inputs,
        outputs=outputs,
        source_digest=digest(path),
        preprocessing=preprocessing,
        labels=embedded_labels(path, head.classes if head else prod(outputs[0].shape)),
        head=head,
        origins=origins,
        warnings=tuple(warnings),
    )


def _live(file: File) -> list[Operator]:
    """The operators that outputs depend on, each of whose operands is there before it."""
    made = {tensor.index for tensor in file.tensors if tensor.data is not None} | {*file.inputs}
    for operator in file.operators:
        missing = [index for index in operator.inputs if index >= 0 and index not in made]
        if missing:
            raise ModelError(
                f"{file.path}: {file.label(operator)} uses {file.tensors[missing[0]].label}, which nothing before it makes"
            )
        again = [index for index in operator.outputs if index in made]
        if again or len({*operator.outputs}) != len(operator.outputs):
            raise ModelError(f"{file.path}: {file.label(operator)} makes a tensor that is there already")
        made.update(operator.outputs)
    lost = [index for index in file.outputs if index not in made]
    if lost:
        raise ModelError(f"{file.path}: output {file.tensors[lost[0]].name!r} is made by no operator")
    wanted, kept = {*file.outputs}, []
    for operator in reversed(file.operators):
        if wanted.intersection(operator.outputs):
            kept.append(operator)
            wanted.update(operator.inputs)
    return kept[::-1]


def _module(
    file: File,
    operators: Sequence[Operator],
    shapes: Mapping[int, tuple[int, ...]],
    warnings: list[str],
    in_reals: bool,
) -> tuple[tvm.IRModule, tuple[TensorSpec, ...]]:
    """The network; ``in_reals``: outputs that are quantised are what their integers stand for."""
    tensors = Tensors(file)
    tensors.channels = _channels_of_inputs(tensors, operators)
    for index, shape in shapes.items():
        name = tensors.variable(_name(file, index).removesuffix(":0"))
        tensors.values[index] = relax.Var(name, relax.TensorType(shape, _input_dtype(file, index, operators)))
    params = [tensors.values[index] for index in shapes]
    outputs: list[relax.Var] = []

    def emit() -> list[relax.Var]:
        for index, param in zip(shapes, params, strict=True):
            if quantized.is_quantized(file.tensors[index]):
                tensors.values[index] = quantized.entered(tensors, index, param)
        for operator in operators:
            _add(tensors, operator)
        for index in file.outputs:
            if quantized.is_quantized(file.tensors[index]) and index in tensors.values:
                leave, part = (quantized.meant, "reals") if in_reals else (quantized.left, "integers")
                value = leave(tensors, index, tensors.expression(index))
                tensors.values[index] = tensors.emit(value, f"{tensors.name(index)}_{part}")
        outputs.extend(tensors.output(index) for index in file.outputs)
        warnings.extend(tensors.warnings)
        return outputs

    module = build_main(tensors.builder, params, emit)
    module["main"] = with_file_names(module["main"], _distinct(tensors.names.wanted))
    specs = (
        _spec(file, index, shape_of(var), str(var.ty.dtype)) for index, var in zip(file.outputs, outputs, strict=True)
    )
    return module, tuple(specs)


def _distinct(names: Mapping[str, str]) -> dict[str, str]:
    """The names in the file that only one variable has."""
    counts = Counter(names.values())
    return {variable: name for variable, name in names.items() if counts[name] == 1 and name}


def _add(tensors: Tensors, operator: Operator) -> None:
    """Convert one operator and bind its results."""
    node = Operands(tensors, operator)
    converter = (_CUSTOM if operator.custom else _BUILTIN).get(operator.kind)
    if quantized.applies(tensors, operator):
        converter = partial(_as_quantized, converter)
    if converter is None:
        node.check_types()  # of a quantised network, the type says more than the operator
        raise node.unsupported(f"{'custom ' if operator.custom else ''}operators of this type are not supported")
    try:
        if not operator.custom and not isinstance(converter, partial):
            node.check_types(_ANY_CONSTANT.get(operator.kind, ()))
        result = converter(node)
        for name, value in unread(operator, tensors.options_read.get(operator.index, ())):
            raise node.unsupported(f"its option {name}={value} is not supported")
        results = result if isinstance(result, list) else [result]
        for index, each in zip(operator.outputs, results, strict=True):
            tensors.bind(index, each)
    except ModelError:
        raise
    except Exception as error:  # TVM's type inference raises whatever it meets
        raise node.unsupported(f"cannot be converted: {reason_of(error)}") from error


def _as_quantized(converter: quantized.Converter | None, node: Operands) -> list[relax.Expr]:
    """What an operator makes of quantised tensors; other tensors must be of the types of float networks."""
    indices = (*node.operator.inputs, *node.operator.outputs)
    tensors = node.tensors.file.tensors
    for index in indices:
        if index >= 0 and tensors[index].dtype not in ("int8", "uint8", "float32", "int32", "bool", "int64"):
            raise node.unsupported(
                f"{tensors[index].label} is {tensors[index].dtype}, which is not supported with integers of 8 bits"
            )
    return quantized.convert(node.tensors, node.operator, converter)


def _channels_of_inputs(tensors: Tensors, operators: Sequence[Operator]) -> dict[int, int]:
    """How many channels tensors of words have, as far as the operators that read them say."""
    channels: dict[int, int] = {}
    for operator in reversed(operators):
        if not operator.custom or not operator.inputs or not operator.outputs:
            continue
        source, result = operator.inputs[0], operator.outputs[0]
        if operator.kind == "LceBconv2d":
            channels.setdefault(source, lce.channels_in(Operands(tensors, operator)))
        elif operator.kind == "LceDequantize" and tensors.file.tensors[result].shape:
            channels.setdefault(source, tensors.file.tensors[result].shape[-1] or 0)
        elif operator.kind == "LceBMaxPool2d" and result in channels:
            channels.setdefault(source, channels[result])
    return {index: count for index, count in channels.items() if count > 0}


def _input_shapes(file: File, given: Mapping[str, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """A static shape for each input, by tensor. An open first size alone is the batch and becomes 1."""
    if not file.inputs:
        raise ModelError(f"{file.path}: has no inputs")
    names = {index: {file.tensors[index].name, file.names.get(index, "")} for index in file.inputs}
    for name in given:
        if not any(name in known for known in names.values()):
            shown = ", ".join(_name(file, index) for index in file.inputs)
            raise ModelError(f"{file.path}: --shape {name}: the model's inputs are {shown}")
    found = {index: [given[name] for name in known if name in given] for index, known in names.items()}
    return {index: _input_shape(file, index, next(iter(shapes), None)) for index, shapes in found.items()}


def _input_shape(file: File, index: int, given: tuple[int, ...] | None) -> tuple[int, ...]:
    declared, name = file.tensors[index].shape, _name(file, index)
    if given is None:
        if None in declared[1:]:
            example = _by([1, *(size or "?" for size in declared[1:])])
            raise ShapeNeeded(f"{file.path}: input {name!r} has a dynamic shape; give it with --shape {name}={example}")
        shape = tuple(size or 1 for size in declared)
    else:
        shape = tuple(int(size) for size in given)
        fits = len(shape) == len(declared) and all(a in (None, b) for a, b in zip(declared[1:], shape[1:], strict=True))
        if not fits or min(shape, default=1) < 1:
            wanted = _by(size or "?" for size in declared)
            raise ModelError(f"{file.path}: --shape {name}={_by(shape)} does not fit the model's {wanted}")
    if prod(shape) > MAX_ELEMENTS:
        raise ModelError(f"{file.path}: input {name!r} of {_by(shape)} is too large")
    if len(shape) > 1 and shape[0] != 1:
        raise ModelError(
            f"{file.path}: input {name!r} has a batch of {shape[0]}; give --shape {name}={_by((1, *shape[1:]))}"
        )
    return shape


def _by(shape: Iterable[object]) -> str:
    return ",".join(map(str, shape))


def _input_dtype(file: File, index: int, operators: Sequence[Operator]) -> str:
    """float32; or int32 where Larq's operators read it as words of bits."""
    tensor = file.tensors[index]
    words = any(operator.custom and operator.inputs[:1] == (index,) for operator in operators)
    known = tensor.dtype == "float32" or quantized.is_quantized(tensor)
    if not known and not (tensor.dtype == "int32" and words):
        raise UnsupportedLayer(
            f"{file.path}: input {tensor.name!r} is {tensor.dtype}; inputs of float32, of quantised int8 and uint8, and of "
            "int32 that hold the bits of binary operators are supported"
        )
    return tensor.dtype


def _name(file: File, index: int) -> str:
    """An input or output as its signature calls it, else as its tensor is called."""
    return file.names.get(index) or file.tensors[index].name


def _spec(file: File, index: int, shape: tuple[int, ...], dtype: str) -> TensorSpec:
    tensor = file.tensors[index]
    integers = quantized.is_quantized(tensor) and dtype != "float32"
    stands_for = (quantized.scale_of(tensor), quantized.zero_of(tensor)) if integers else None
    return TensorSpec(_name(file, index), shape, dtype, "NHWC" if len(shape) == 4 else "", stands_for)


def _preprocessing(file: File, spec: TensorSpec) -> tuple[Preprocessing | None, dict[str, str]]:
    """For images: the mean and deviation of the file's metadata where it has them, else plain pixels; and what says so."""
    image = plain_image(spec)
    found = normalization(file.metadata)
    if image is None or (spec.dtype != "float32" and spec.quantization is None):
        return None, {}
    channels = len(image.mean)
    if found is not None and len(found.mean) in (1, channels) and len(found.std) in (1, channels):
        mean, std = (each * (channels // len(each)) for each in (found.mean, found.std))
        image = replace(image, mean=mean, scale=tuple(1 / each for each in std))
        return in_integers(image, spec), {"range": "the file's metadata"}
    if spec.quantization is None:
        return image, {}
    # Pixels as the integers that the input holds, its darkest the least: so converters' own tools have them.
    darkest = 128.0 if spec.dtype == "int8" else 0.0
    return replace(image, mean=(darkest,) * channels), {"range": f"{ASSUMED}: pixels are the input's {spec.dtype}"}

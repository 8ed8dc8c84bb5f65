"""ONNX files (``.onnx``, ``.onnx.xz``) as Relax, opsets 7 and later.

The steps: read the file and its external data; clean the graph (``graph``); fold what is constant and convert the rest
node by node (``convert``). The module keeps the file's own layout, NCHW as a rule. Its normal form, on which the
passes rely:

- Every ONNX tensor that survives is a variable of its (sanitised) name; a node of several steps adds ``<name>_<step>``.
- No PrimFuncs for common layers: every binding of a CNN is a call of a ``relax.`` operator. Weights are constants.
- Convolution: ``relax.nn.conv2d`` (NCHW, OIHW) with explicit padding [top, left, bottom, right] and a constant weight, then
  ``relax.add`` of a constant [1, O, 1, 1] where it has a bias. Explicit ``Pad`` nodes stay ``relax.nn.pad``.
- Batch normalisation: ``relax.multiply`` by a constant [1, C, 1, 1], then ``relax.add`` of one.
- Signs stay as the file spells them: ``relax.sign``, comparisons, ``relax.where``. QONNX's quantisers are written out:
  ``BipolarQuant``, which takes 0 to +1, is ``relax.where(x >= 0, 1, -1)`` and, where its scale is not 1, a ``relax.multiply``.
- Quantised tensors are float32 that hold whole numbers: ``QuantizeLinear`` divides, rounds, adds and clips.
- PReLU: ``relax.nn.prelu`` with one slope per channel; other slopes ``relax.where(x < 0, x * slope, x)``.
- Clip: ``relax.clip``. Dense: ``relax.matmul(x, constant [K, N])``, then ``relax.add`` of a constant.
- Pooling without ``ceil_mode``: windows that overrun the input have explicit padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from bitkiln.pipeline.errors import ModelError, ShapeNeeded, UnsupportedLayer
from bitkiln.pipeline.importers.common.archive import MAX_BYTES, check_file, digest, read_xz
from bitkiln.pipeline.importers.common.limits import check_steps
from bitkiln.pipeline.importers.common.options import ImportOptions
from bitkiln.pipeline.importers.common.preprocessing import plain_image
from bitkiln.pipeline.importers.common.ranges import preset
from bitkiln.pipeline.importers.onnx.convert import convert
from bitkiln.pipeline.importers.onnx.functions import inline
from bitkiln.pipeline.importers.onnx.graph import DEFAULT_DOMAINS, OnnxGraph, clean, node_label
from bitkiln.pipeline.importers.onnx.masks import join_masks
from bitkiln.pipeline.importers.onnx.qdq import join_layers
from bitkiln.pipeline.importers.onnx.quantizers import expand
from bitkiln.pipeline.importers.onnx.widening import widen
from bitkiln.pipeline.model import Model, Preprocessing, TensorSpec
from bitkiln.pipeline.support.files import open_file

_OLDEST_OPSET = 7
#: Where in a file of external data a tensor may begin: no disk is larger.
MAX_OFFSET = 1 << 60

#: Nodes whose operands may be infinite.
_TAKES_INFINITY = frozenset({"Clip", "Max", "Min", "Pad", "Where"})


def load(path: Path, options: ImportOptions) -> Model:
    """Import the model at ``path``; ``options.shapes`` fixes dynamic dimensions, by input name."""
    proto = _read(path)
    warnings = widen(proto)
    fixed = _fix_inputs(path, proto.graph, options)
    opset = _opset(path, proto)
    graph = join_layers(join_masks(clean(expand(_graph(path, proto, opset)))))
    inputs = _inputs(path, proto.graph, {name: shape for name, shape in options.shapes.items() if name not in fixed})
    try:
        module, outputs = convert(graph, inputs)
    except ModelError as error:
        raise _of_another_batch(error, proto.graph, inputs) from None
    preprocessing, origins = _preprocessing(proto, graph, inputs[0])
    return Model(
        name=path.name.removesuffix(".xz").removesuffix(".onnx"),
        module=module,
        inputs=inputs,
        outputs=outputs,
        source_digest=digest(path),
        preprocessing=preprocessing,
        origins=origins,
        fixed=fixed,
        warnings=(*warnings, *_batch_warnings(proto.graph, inputs, outputs)),
    )


def _batch_warnings(
    graph: onnx.GraphProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Iterator[str]:
    """Of several images at once, and of outputs for which the file fixes a batch that the inputs no longer have."""
    declared = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
    for spec in inputs:
        images = spec.shape[0] if len(spec.shape) == 4 else 1
        if images > 1:
            shape = _by((1, *spec.shape[1:]))
            yield (
                f"input {spec.name!r} takes {images} images at once, for which convolutions run as general, slow kernels; "
                f"compile it for one with --shape {spec.name}={shape}"
            )
        fixed = declared[spec.name][0].dim_value if declared[spec.name] else 0
        for output in outputs:
            if fixed > 1 and spec.shape[0] != fixed and output.shape[:1] == (fixed,):
                yield (
                    f"output {output.name!r} still has {fixed} rows, as the file fixes: input {spec.name!r} has "
                    f"{spec.shape[0]} of the {fixed} it declares"
                )


def _of_another_batch(error: ModelError, graph: onnx.GraphProto, inputs: Sequence[TensorSpec]) -> ModelError:
    """``error``, with the batch that the file declares where --shape has given it another."""
    for value, spec in zip(_free(graph, inputs), inputs, strict=True):
        declared = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if declared and declared[0] > 1 and spec.shape[0] != declared[0]:
            hint = f"the file is made for {value.name}={_by(tuple(declared))}: leave --shape out, or export it for one"
            return type(error)(f"{error}; {hint}")
    return error


def _free(graph: onnx.GraphProto, inputs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    by_name = {value.name: value for value in graph.input}
    return [by_name[spec.name] for spec in inputs]


def _read(path: Path) -> onnx.ModelProto:
    """Parse the file, load its external data and inline its functions."""
    check_file(path)
    try:
        proto = onnx.load_model_from_string(read_xz(path) if path.name.endswith(".xz") else path.read_bytes())
    except DecodeError:
        raise ModelError(f"{path}: is not an ONNX model, or is truncated") from None
    if not proto.graph.node:
        raise ModelError(f"{path}: is not an ONNX model, or has no nodes")
    for tensor in _tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _load_external(path, tensor)
    proto = inline(path, proto)
    check_steps(path, len(proto.graph.node))
    return proto


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Weights, and the tensors in nodes' attributes."""
    attributes = [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
    return [*graph.initializer, *attributes]


def _load_external(path: Path, tensor: onnx.TensorProto) -> None:
    """Bring a tensor's bytes in from its file, which must lie in the model's folder and hold exactly what it should."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"{path}: external data of {tensor.name!r}"
    folder = path.parent.resolve()
    # A path ends at a zero byte, or the system refuses it.
    location = (folder / entries.get("location", "").partition("\0")[0]).resolve()
    if not entries.get("location") or "\0" in entries["location"] or folder not in location.parents:
        raise ModelError(f"{where}: {entries.get('location', '')!r} is not inside the model's folder; refused")
    if tensor.data_type not in onnx.helper.get_all_tensor_dtypes():
        raise ModelError(f"{where}: is of the unknown type {tensor.data_type}")
    size = math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    except ValueError:
        raise ModelError(f"{where}: offset or length is no number") from None
    if length != size or not 0 <= offset <= MAX_OFFSET or size > MAX_BYTES:
        raise ModelError(f"{where}: {length} bytes at {offset} given, its shape {list(tensor.dims)} needs {size}")
    try:
        with open_file(location) as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise ModelError(f"{where}: {location}: {error.strerror or error}") from None
    if len(content) != size:
        raise ModelError(f"{where}: {location.name} ends before byte {offset + size}")
    tensor.raw_data = content
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.DEFAULT


def _opset(path: Path, proto: onnx.ModelProto) -> int:
    versions = [entry.version for entry in proto.opset_import if entry.domain in DEFAULT_DOMAINS]
    if not versions or versions[0] < _OLDEST_OPSET:
        raise ModelError(
            f"{path}: is of opset {versions[0] if versions else 'unknown'}; export it again with opset {_OLDEST_OPSET} or later"
        )
    if versions[0] > onnx.defs.onnx_opset_version():
        raise ModelError(f"{path}: is of opset {versions[0]}; opsets up to {onnx.defs.onnx_opset_version()} are known")
    return versions[0]


def _graph(path: Path, proto: onnx.ModelProto, opset: int) -> OnnxGraph:
    """The graph with its constants as arrays, all of them finite."""
    constants = {}
    for tensor in proto.graph.initializer:
        try:
            constants[tensor.name] = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{path}: weight {tensor.name!r} does not fill its shape ({str(error)[:80]})") from None
    _check_names(path, proto.graph, constants)
    consumers: dict[str, set[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            consumers.setdefault(name, set()).add(node.op_type)
    for name, array in constants.items():
        _check_finite(path, name, array, consumers.get(name, set()))
    return OnnxGraph(
        path,
        opset,
        _sorted(path, proto.graph, constants),
        constants,
        {output.name: output.name for output in proto.graph.output},
    )


def _sorted(path: Path, graph: onnx.GraphProto, constants: Mapping[str, np.ndarray]) -> list[onnx.NodeProto]:
    """The nodes in an order in which each tensor is made before it is used; their own, if it is one.

    ONNX asks for such an order, but converters write others (onnxruntime's for float16 does).
    """
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    given = {"", *constants, *(value.name for value in graph.input)}
    order: list[int] = []
    state = [0] * len(graph.node)  # 1: on the way, 2: placed
    for root in range(len(graph.node)):
        pending = [root]
        while pending:
            index = pending[-1]
            before = [makers[name] for name in _reads(graph.node[index]) if name in makers and name not in given]
            waiting = [each for each in dict.fromkeys(before) if state[each] == 0]
            if state[index] == 0 and any(state[each] == 1 for each in before):
                raise ModelError(f"{path}: {node_label(graph.node[index])} depends on its own result")
            state[index] = max(state[index], 1)
            if waiting:
                pending.append(waiting[0])
                continue
            pending.pop()
            if state[index] == 1:
                state[index] = 2
                order.append(index)
    return [graph.node[index] for index in order]


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node and its subgraphs use."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.HasField("g") else ():
            yield from _reads(inner)


def _check_finite(path: Path, name: str, array: np.ndarray, consumers: set[str]) -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    if np.isnan(array).any() or not consumers <= _TAKES_INFINITY:
        raise ModelError(f"{path}: non-finite weight in {name}")


def _check_names(path: Path, graph: onnx.GraphProto, constants: Mapping[str, np.ndarray]) -> None:
    """Names are text, and every tensor is made once, by a node, a weight or an input."""
    texts = [text for node in graph.node for text in (node.name, node.op_type, node.domain, *node.input, *node.output)]
    texts += [value.name for value in (*graph.input, *graph.output, *graph.initializer)]
    if not all(isinstance(text, str) for text in texts):  # protobuf gives bytes where they are not UTF-8
        raise ModelError(f"{path}: a name in it is damaged; download the file again")
    made = {"", *constants, *(value.name for value in graph.input)}
    makes = made.union(*(node.output for node in graph.node))
    for node in graph.node:
        missing = [name for name in node.input if name not in makes]
        if missing:
            raise ModelError(f"{path}: {node_label(node)} uses {missing[0]!r}, which nothing makes")
        again = made.intersection(node.output) - {""}
        if again:
            raise ModelError(f"{path}: {node_label(node)} makes {min(again)!r}, which is there already")
        made.update(node.output)
    outputs = [output.name for output in graph.output]
    doubled = [name for name in outputs if outputs.count(name) > 1]
    if doubled:
        raise ModelError(f"{path}: has two outputs called {doubled[0]!r}")
    lost = [output.name for output in graph.output if not output.name or output.name not in made]
    if lost or not graph.output:
        raise ModelError(f"{path}: output {lost[0] if lost else ''!r} is made by no node")


#: Element types of inputs, as numpy calls them.
_INPUT_TYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.BOOL: "bool",
}


def _inputs(path: Path, proto: onnx.GraphProto, given: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    """Type and static shape of each input; old files list weights among the inputs.

    A dynamic first dimension alone is the batch and becomes 1; any other needs ``given``.
    """
    weights = {tensor.name for tensor in proto.initializer}
    values = [value for value in proto.input if value.name not in weights]
    names = [value.name for value in values]
    for name in given:
        if name not in names:
            raise ModelError(f"{path}: --shape {name}: the model's inputs are {', '.join(names)}")
    if not values:
        raise ModelError(f"{path}: has no inputs")
    specs = []
    for value in values:
        dtype = _input_dtype(path, value)
        shape = _input_shape(path, value, given.get(value.name))
        specs.append(TensorSpec(value.name, shape, dtype, _layout(shape)))
    return tuple(specs)


def _fix_inputs(path: Path, proto: onnx.GraphProto, options: ImportOptions) -> dict[str, np.ndarray]:
    """Turn inputs into constants of the values that the user gives; the constants by name."""
    fixed: dict[str, np.ndarray] = {}
    for name, number in options.values.items():
        value = next((each for each in proto.input if each.name == name), None)
        if value is None:
            raise ModelError(f"{path}: --value {name}: the model's inputs are {', '.join(v.name for v in proto.input)}")
        dtype = np.dtype(_input_dtype(path, value))
        constant = np.full(_input_shape(path, value, options.shapes.get(name)), number).astype(dtype)
        if not np.all(constant == number):
            raise ModelError(f"{path}: --value {name}={number:g} is no {dtype}")
        proto.input.remove(value)
        proto.initializer.append(numpy_helper.from_array(constant, name))
        fixed[name] = constant
    return fixed


def _input_dtype(path: Path, value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type.elem_type
    if kind in _INPUT_TYPES:
        return _INPUT_TYPES[kind]
    known = kind in onnx.TensorProto.DataType.values()
    name = onnx.TensorProto.DataType.Name(kind).lower() if known else "of an unknown type"
    raise UnsupportedLayer(
        f"{path}: input {value.name!r} is {name}; {', '.join(_INPUT_TYPES.values())} and float16 are supported"
    )


def _input_shape(path: Path, value: onnx.ValueInfoProto, given: tuple[int, ...] | None) -> tuple[int, ...]:
    tensor = value.type.tensor_type
    declared = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    known = tensor.HasField("shape")
    shape: tuple[int, ...]
    if given is None:
        if known and None not in declared[1:]:
            shape = tuple(dim or 1 for dim in declared)
        else:
            example = ",".join(str(dim or "?") for dim in [1, *declared[1:]]) if known else "1,3,224,224"
            raise ShapeNeeded(
                f"{path}: input {value.name!r} has a dynamic shape; give it with --shape {value.name}={example}"
            )
    else:
        shape = tuple(int(dim) for dim in given)
        fits = len(shape) == len(declared) and all(a in (None, b) for a, b in zip(declared[1:], shape[1:], strict=True))
        if (known and not fits) or not all(dim > 0 for dim in shape):
            wanted = ",".join(str(dim or "?") for dim in declared)
            raise ModelError(f"{path}: --shape {value.name}={_by(shape)} does not fit the model's {wanted}")
    return shape


def _by(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


def _layout(shape: tuple[int, ...]) -> str:
    """NHWC where only the last axis can be an image's channels, else NCHW; "" where it is no image."""
    if len(shape) != 4:
        return ""
    return "NHWC" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "NCHW"


def _preprocessing(
    proto: onnx.ModelProto, graph: OnnxGraph, spec: TensorSpec
) -> tuple[Preprocessing | None, dict[str, str]]:
    """For images: what the file's image metadata or its first quantiser say, else plain pixels; and what says so."""
    image = plain_image(spec)
    if image is None or spec.dtype not in ("float32", "uint8"):
        return None, {}
    origins, channels = {}, len(image.mean)
    notes = {entry.key: entry.value for entry in proto.metadata_props}
    if channels == 3 and notes.get("Image.BitmapPixelFormat", "")[:3] in ("Bgr", "Rgb"):
        image = replace(image, channel_order=notes["Image.BitmapPixelFormat"][:3].upper())
        origins["channel_order"] = "the file's metadata"
    if notes.get("Image.NominalPixelRange", "") in _RANGES:
        mean, scale = _RANGES[notes["Image.NominalPixelRange"]]
        image = replace(image, mean=(mean,) * channels, scale=(scale,) * channels)
        origins["range"] = "the file's metadata"
    elif (found := _quantized_range(graph, spec.name)) is not None:
        name, text = found
        chosen = preset("", name, channels, None)
        image = replace(image, mean=chosen.mean, scale=chosen.scale)
        origins["range"] = text
    return image, origins


def _quantized_range(graph: OnnxGraph, name: str) -> tuple[str, str] | None:
    """The preset that fits what the quantiser of the input can hold, and what to call it."""
    node = next((node for node in graph.nodes if node.op_type == "QuantizeLinear" and node.input[0] == name), None)
    names = node.input[1:] if node is not None else []
    operands = [graph.constants[each] for each in names if each in graph.constants and graph.constants[each].size == 1]
    if len(names) != 2 or len(operands) != 2:
        return None
    scale, zero = float(operands[0].reshape(-1)[0]), operands[1].reshape(-1)[0]
    if zero.dtype.kind not in "iu" or zero.dtype.itemsize != 1 or not 0 < scale < np.inf:
        return None
    limits = np.iinfo(zero.dtype)
    ends = [scale * (int(end) - int(zero)) for end in (limits.min, limits.max)]
    for preset_name, wanted in _QUANTIZED_ENDS.items():
        if all(abs(a - b) <= 0.02 * (wanted[1] - wanted[0]) for a, b in zip(ends, wanted, strict=True)):
            return preset_name, f"assumed from its quantiser, which holds {ends[0]:.3g} to {ends[1]:.3g}"
    return None


#: What a preset makes of the darkest and the brightest pixels of any channel.
_QUANTIZED_ENDS = {"0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0), "imagenet": (-2.118, 2.64)}


#: ONNX image metadata: nominal pixel range -> (mean, scale).
_RANGES = {"Normalized_0_1": (0.0, 1 / 255), "Normalized_1_1": (127.5, 1 / 127.5)}

"""darknet networks (``.cfg`` with its ``.weights``) as Relax; either file may be named, the other lies beside it.

The module keeps darknet's layout, NCHW, in the normal form that ``onnx`` describes. The convolution, pooling and so on of
darknet's layer n is the variable ``<kind>_<n>``; further steps of the layer add ``_<step>``.

Results: the predictions of each ``[yolo]``, ``[region]`` and ``[detection]`` layer as darknet has them in memory, boxes neither
decoded nor suppressed, and the last layer's, as [1, n] where it is one pixel. ``layers`` says where darknet's builds
differ, and which one is followed.

Images are RGB, or grey, 0..1. A classifier's are scaled by their short side and cut to the centre, as darknet validates. A
detector's are fitted in with bars of grey, as the original does, and AlexeyAB's fork with ``letter_box=1``; the fork stretches
them otherwise, which is followed where a cfg has keys of the fork's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers.common.archive import digest
from bitkiln.pipeline.importers.common.building import build_main
from bitkiln.pipeline.importers.common.options import ImportOptions
from bitkiln.pipeline.importers.common.preprocessing import plain_image
from bitkiln.pipeline.importers.darknet.cfg import Section, read_cfg
from bitkiln.pipeline.importers.darknet.detectors import Detection
from bitkiln.pipeline.importers.darknet.files import find_cfg, find_names, find_weights
from bitkiln.pipeline.importers.darknet.heads import detection_head
from bitkiln.pipeline.importers.darknet.keys import check_keys, has_keys_of_fork, ignored_keys, unknown_net_keys
from bitkiln.pipeline.importers.darknet.layer import Layer, Size, Tensors
from bitkiln.pipeline.importers.darknet.layers import LAYERS, BatchNorm
from bitkiln.pipeline.importers.darknet.weights import Weights
from bitkiln.pipeline.model import Model, Preprocessing, TensorSpec

_MAX_SIDE = 1 << 14
_MAX_CHANNELS = 1 << 16

#: Of all layers together: 1 GiB of floats.
_MAX_TOTAL_ELEMENTS = 1 << 28


def load(path: Path, options: ImportOptions) -> Model:
    """Import the network whose ``.cfg`` or ``.weights`` is ``path``; ``options.weights`` names weights that lie elsewhere.

    ``options.shapes`` may resize the input "input". Raises ModelError with one line that names the file, layer and line.
    """
    cfg = find_cfg(path, options)
    net, sections = read_cfg(cfg)
    source = _input_size(net, options)
    layers = _plan(sections, source)
    weights = Weights(find_weights(path, options))
    _check_length(cfg, weights, layers)
    module, outputs = _module(source, layers, weights)
    preprocessing, origins = _preprocessing(net, sections, source, layers)
    head = detection_head(source, _results(layers))
    return Model(
        name=cfg.name[: -len(cfg.suffix)],
        module=module,
        inputs=(TensorSpec("input", (1, *source), "float32", "NCHW"),),
        outputs=outputs,
        source_digest=_digest(cfg, weights.path),
        preprocessing=preprocessing,
        origins=origins,
        labels=find_names(cfg, head.classes if head else math.prod(outputs[0].shape)),
        head=head,
        warnings=(*unknown_net_keys(net), *ignored_keys(sections)),
    )


def _input_size(net: Section, options: ImportOptions) -> Size:
    size = Size(
        net.whole("channels", 0, 0, _MAX_CHANNELS),
        net.whole("height", 0, 0, _MAX_SIDE),
        net.whole("width", 0, 0, _MAX_SIDE),
    )
    if not size.elements:
        size = Size(net.whole("inputs", 0, 0, _MAX_CHANNELS), 1, 1)
    if not size.elements:
        raise net.error("says no width, height and channels")
    given = dict(options.shapes)
    shape = given.pop("input", (1, *size))
    if given or len(shape) != 4 or shape[:2] != (1, size.channels) or not all(1 <= side <= _MAX_SIDE for side in shape):
        raise net.error(f"has the one input 'input' of shape {','.join(map(str, (1, *size)))}; --shape may resize it")
    return Size(*shape[1:])


def _plan(sections: Sequence[Section], source: Size) -> list[Layer]:
    """The layers with the sizes of their results."""
    sizes, layers = [source], []
    for section in sections:
        kind = LAYERS.get(section.kind)
        if kind is None:
            raise section.unsupported(f"layers of kind {section.kind} are not supported")
        check_keys(section)
        layers.append(kind(section, tuple(sizes)))
        sizes.append(layers[-1].size)
    elements = sum(size.elements for size in sizes)
    if elements > _MAX_TOTAL_ELEMENTS:
        raise ModelError(f"{sections[0].path}: its layers make {elements} values, more than {_MAX_TOTAL_ELEMENTS}")
    return layers


def _check_length(cfg: Path, weights: Weights, layers: Sequence[Layer]) -> None:
    """Hold the file against what the layers need; batch norms lose their biases where it has none."""
    count = sum(sum(layer.parameters.values()) for layer in layers)
    normalizations = [layer for layer in layers if isinstance(layer, BatchNorm)]
    biases = sum(layer.parameters["biases"] for layer in normalizations)
    if weights.check(cfg, count, count - biases if biases else None):
        for layer in normalizations:
            del layer.parameters["biases"]


def _module(source: Size, layers: Sequence[Layer], weights: Weights) -> tuple[tvm.IRModule, tuple[TensorSpec, ...]]:
    builder = relax.BlockBuilder()
    data = relax.Var("input", relax.TensorType((1, *source), "float32"))
    results = _results(layers)
    specs: list[TensorSpec] = []

    def emit() -> list[relax.Var]:
        values, outputs = [data], []
        rows: dict[Any, Any] = {}
        for layer in layers:
            name = f"{layer.name}_{layer.index}"
            tensors = Tensors(values, weights.take(layer.parameters, name), _namer(builder, name), weights.header, rows)
            values.append(layer.emit(tensors))
        for name, layer in results.items():
            value = _result(builder, layer, values[layer.index + 1], rows)
            shape = tuple(int(extent) for extent in value.ty.shape.values)
            specs.append(TensorSpec(name, shape, "float32", "NCHW" if len(shape) == 4 else ""))
            outputs.append(builder.emit_output(value, name_hint=name))
        return outputs

    return build_main(builder, [data], emit), tuple(specs)


def _namer(builder: relax.BlockBuilder, name: str) -> Callable[[relax.Expr, str], relax.Var]:
    return lambda expr, part: builder.emit(expr, name_hint=f"{name}_{part}" if part else name)


def _results(layers: Sequence[Layer]) -> dict[str, Layer]:
    """The layers whose results are the network's, by their outputs' names: detectors, and the last that is more than a cost."""
    last = next((layer for layer in reversed(layers) if layer.section.kind != "cost"), layers[0])
    results = [layer for layer in layers if layer.is_output or layer is last]
    return {"output" if len(results) == 1 else f"{layer.name}_{layer.index}": layer for layer in results}


def _result(builder: relax.BlockBuilder, layer: Layer, value: relax.Var, rows: Mapping[str, relax.Var]) -> relax.Var:
    """The result of ``layer``: [1, n] where it is one pixel."""
    if layer.size[1:] != (1, 1):
        return value
    if value.name in rows:
        return rows[value.name]
    return builder.emit(relax.op.reshape(value, (1, layer.size.channels)), name_hint=f"{value.name}_row")


def _preprocessing(
    net: Section, sections: Sequence[Section], source: Size, layers: Sequence[Layer]
) -> tuple[Preprocessing | None, dict[str, str]]:
    image = plain_image(TensorSpec("input", (1, *source), "float32", "NCHW"))
    if image is None:
        return None, {}
    image = replace(image, scale=(1 / 255,) * source.channels)
    origins = {"channel_order": "as darknet reads them", "range": "as darknet reads them"}
    if not any(layer.is_output for layer in layers):
        origins["resize"] = "as darknet validates classifiers"
        return replace(image, resize="short-side", resize_to=max(source[1:])), origins
    if all(isinstance(layer, Detection) for layer in layers if layer.is_output):
        origins["resize"] = "as darknet's examples/yolo.c does"
        return replace(image, resize="stretch"), origins
    if net.text("letter_box"):
        boxed = bool(net.whole("letter_box", 0, 0, 1))
        origins["resize"] = f"letter_box={int(boxed)} in the cfg"
    else:
        boxed = not has_keys_of_fork([net, *sections])
        builds = "the original darknet does" if boxed else "AlexeyAB's fork, whose keys the cfg has, does"
        origins["resize"] = f"assumed, as {builds}"
    return replace(image, resize="letterbox" if boxed else "stretch"), origins


def _digest(cfg: Path, weights: Path) -> str:
    """SHA-256 of both files."""
    return hashlib.sha256((digest(cfg) + digest(weights)).encode()).hexdigest()

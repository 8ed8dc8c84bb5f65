"""darknet networks (``.cfg`` with its ``.weights``) as Relax; either file may be named, the other lies beside it.

The module keeps darknet's layout, NCHW, in the normal form that ``onnx`` describes. The convolution, pooling and so on of
darknet's layer n is the variable ``<kind>_<n>``; further steps of the layer add ``_<step>``.

Results: the predictions of each ``[yolo]``, ``[region]`` and ``[detection]`` layer as darknet has them in memory, boxes neither
decoded nor suppressed, and the last layer's, as [1, n] where it is one pixel. ``darknet_layers`` says where darknet's builds
differ, and which one is followed.

Images are RGB, 0..1. A classifier's are scaled by their short side and cut to the centre, as darknet validates; a detector's
are stretched, as AlexeyAB's fork does (the original keeps the aspect ratio and fills up with grey, which is not supported).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import tvm
from tvm import relax

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers.archive import check_file, digest
from bitkiln.pipeline.importers.building import build_main
from bitkiln.pipeline.importers.darknet_cfg import Section, read_cfg, shown
from bitkiln.pipeline.importers.darknet_layer import Layer, Size, Tensors
from bitkiln.pipeline.importers.darknet_layers import LAYERS, BatchNorm
from bitkiln.pipeline.importers.darknet_weights import Weights
from bitkiln.pipeline.importers.labels import read_labels
from bitkiln.pipeline.importers.options import ImportOptions
from bitkiln.pipeline.model import Model, Preprocessing, TensorSpec

_MAX_SIDE = 1 << 14
_MAX_CHANNELS = 1 << 16
_MAX_DATA_BYTES = 1 << 16

#: Of all layers together: 1 GiB of floats.
_MAX_TOTAL_ELEMENTS = 1 << 28

#: What darknet adds to a cfg's name when it saves weights while training.
_SAVED = ("_final", "_best", "_last")
_SAVED_STEM = re.compile(r"(.+)_(?:final|best|last|\d+)")

#: Keys that change what a layer computes in a way that is not supported, unless they are 0.
_REFUSED = (
    "antialiasing",
    "coordconv",
    "dontload",
    "dontloadscales",
    "maxpool_depth",
    "numload",
    "rotate",
    "share_index",
    "stretch",
    "stretch_sway",
    "sway",
)

#: Keys that matter for training, or for decoding boxes, alone.
_HARMLESS = frozenset(
    (
        "absolute",
        "anchors",
        "angle",
        "assisted_excitation",
        "beta_nms",
        "bflops",
        "bias_match",
        "burnin_update",
        "class_scale",
        "classfix",
        "cls_normalizer",
        "coord_scale",
        "counters_per_class",
        "delta_normalizer",
        "dets_for_show",
        "dets_for_track",
        "dontsave",
        "dot",
        "dropblock",
        "dropblock_size_abs",
        "dropblock_size_rel",
        "embedding_layer",
        "exposure",
        "flip",
        "focal_loss",
        "forced",
        "grad_centr",
        "ignore_thresh",
        "iou_loss",
        "iou_normalizer",
        "iou_thresh",
        "iou_thresh_kind",
        "jitter",
        "joint",
        "label_smooth_eps",
        "learning_rate",
        "log",
        "map",
        "mask_scale",
        "max",
        "max_delta",
        "nms_kind",
        "noloss",
        "noobj",
        "noobject_scale",
        "num",
        "obj_normalizer",
        "object_scale",
        "objectness_smooth",
        "onlyforward",
        "out_channels",
        "probability",
        "random",
        "ratio",
        "reorg",
        "rescore",
        "resize",
        "saturation",
        "scale",
        "shift",
        "show_details",
        "sim_thresh",
        "smooth",
        "softmax",
        "sqrt",
        "stopbackward",
        "thresh",
        "track_ciou_norm",
        "track_history_size",
        "train_only_bn",
        "truth",
        "truth_thresh",
        "type",
        "uc_normalizer",
    )
)


def load(path: Path, options: ImportOptions) -> Model:
    """Import the network whose ``.cfg`` or ``.weights`` is ``path``; ``options.weights`` names weights that lie elsewhere.

    ``options.shapes`` may resize the input "input". Raises ModelError with one line that names the file, layer and line.
    """
    cfg = _cfg(path, options)
    net, sections = read_cfg(cfg)
    source = _input_size(net, options)
    layers = _plan(sections, source)
    weights = Weights(_weights(path, options))
    _check_length(cfg, weights, layers)
    module, outputs = _module(source, layers, weights)
    return Model(
        name=cfg.name[: -len(cfg.suffix)],
        module=module,
        inputs=(TensorSpec("input", (1, *source), "float32", "NCHW"),),
        outputs=outputs,
        source_digest=_digest(cfg, weights.path),
        preprocessing=_preprocessing(source, layers),
        labels=_names(cfg, outputs),
        warnings=tuple(_warnings(sections)),
    )


def _cfg(path: Path, options: ImportOptions) -> Path:
    """The cfg: ``path``, or what lies beside the weights ``path``."""
    check_file(path)
    if not _is_weights(path):
        return path
    if options.weights is not None:
        raise ModelError(f"{path}: name the .cfg and give its weights with --weights, not two weights files")
    saved = _SAVED_STEM.fullmatch(path.stem)
    found = _beside(path, [path.stem, saved[1]] if saved else [path.stem], ".cfg")
    if found is None:
        raise ModelError(f"{path}: needs {path.stem}.cfg beside it; or name the .cfg and give --weights {path}")
    return found


def _weights(path: Path, options: ImportOptions) -> Path:
    """The weights: ``path``, those the user names, or what lies beside the cfg ``path``."""
    if _is_weights(path) or options.weights is not None:
        return options.weights or path
    found = _beside(path, [path.stem, *(path.stem + ending for ending in _SAVED)], ".weights")
    if found is None:
        raise ModelError(f"{path}: needs {path.stem}.weights beside it; say where it is with --weights FILE")
    return found


def _is_weights(path: Path) -> bool:
    return path.suffix.lower() == ".weights"


def _beside(path: Path, stems: Sequence[str], suffix: str) -> Path | None:
    """The file beside ``path`` with the first of ``stems`` that is there."""
    candidates = (path.with_name(stem + ending) for stem in stems for ending in (suffix, suffix.upper()))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _input_size(net: Section, options: ImportOptions) -> Size:
    size = Size(
        net.whole("channels", 0, 0, _MAX_CHANNELS),
        net.whole("height", 0, 0, _MAX_SIDE),
        net.whole("width", 0, 0, _MAX_SIDE),
    )
    if not size.count:
        size = Size(net.whole("inputs", 0, 0, _MAX_CHANNELS), 1, 1)
    if not size.count:
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
        for key in _REFUSED:
            if section.text(key) and (key == "share_index" or section.number(key, 0)):
                raise section.unsupported(f"{key}={shown(section.text(key))} is not supported", key)
        layers.append(kind(section, tuple(sizes)))
        sizes.append(layers[-1].size)
    elements = sum(size.count for size in sizes)
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
    names = ["output"] if len(results) == 1 else [f"{layer.name}_{layer.index}" for layer in results]
    specs: list[TensorSpec] = []

    def emit() -> list[relax.Var]:
        values, rows, outputs = [data], {}, []
        for layer in layers:
            name = f"{layer.name}_{layer.index}"
            tensors = Tensors(values, weights.take(layer.parameters, name), _namer(builder, name), weights.header, rows)
            values.append(layer.emit(tensors))
        for layer, name in zip(results, names, strict=True):
            value = _result(builder, layer, values[layer.index + 1], rows)
            shape = tuple(int(extent) for extent in value.ty.shape.values)
            specs.append(TensorSpec(name, shape, "float32", "NCHW" if len(shape) == 4 else ""))
            outputs.append(builder.emit_output(value, name_hint=name))
        return outputs

    return build_main(builder, [data], emit), tuple(specs)


def _namer(builder: relax.BlockBuilder, name: str) -> Callable[[relax.Expr, str], relax.Var]:
    return lambda expr, part: builder.emit(expr, name_hint=f"{name}_{part}" if part else name)


def _results(layers: Sequence[Layer]) -> list[Layer]:
    """The layers whose results are the network's: detectors, and the last that is more than a cost."""
    last = next((layer for layer in reversed(layers) if layer.section.kind != "cost"), layers[0])
    return [layer for layer in layers if layer.is_output or layer is last]


def _result(builder: relax.BlockBuilder, layer: Layer, value: relax.Var, rows: Mapping[str, relax.Var]) -> relax.Var:
    """The result of ``layer``: [1, n] where it is one pixel."""
    if layer.size[1:] != (1, 1):
        return value
    if value.name in rows:
        return rows[value.name]
    return builder.emit(relax.op.reshape(value, (1, layer.size.channels)), name_hint=f"{value.name}_row")


def _preprocessing(source: Size, layers: Sequence[Layer]) -> Preprocessing | None:
    if source.channels != 3:
        return None
    detects = any(layer.is_output for layer in layers)
    return Preprocessing(
        source.height,
        source.width,
        "RGB",
        scale=(1 / 255,) * 3,
        layout="NCHW",
        resize="stretch" if detects else "short-side",
        resize_to=0 if detects else max(source[1:]),
    )


def _names(cfg: Path, outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Class names from ``<stem>.names``, or from the file that ``<stem>.data`` calls ``names`` or ``labels``."""
    candidates = [cfg.with_suffix(".names")]
    data = cfg.with_suffix(".data")
    if data.is_file() and data.stat().st_size < _MAX_DATA_BYTES:
        for line in data.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = "".join(line.split()).partition("=")
            relative = Path(value)
            if key in ("names", "labels") and value and len(value) < 256:
                candidates.append(cfg.parent / relative.name)
                if not relative.is_absolute() and ".." not in relative.parts:
                    candidates += [cfg.parent / relative, cfg.parent.parent / relative]
    for candidate in candidates:
        if candidate.is_file():
            try:
                return read_labels(candidate, outputs)
            except ModelError:
                continue  # nobody asked for this file: it may be anything
    return ()


def _warnings(sections: Sequence[Section]) -> Iterator[str]:
    """Keys that nothing has read and that may have been meant to do something."""
    for section in sections:
        for key in section.options:
            if key not in section.read and key not in _HARMLESS:
                yield str(section.error(f"{shown(key)} is not known and was ignored", key))
        for key, line in section.repeated.items():
            if key in section.read:
                yield str(section.error(f"{key} is given again in line {line}; the first one counts", key))


def _digest(cfg: Path, weights: Path) -> str:
    """SHA-256 of both files."""
    return hashlib.sha256((digest(cfg) + digest(weights)).encode()).hexdigest()

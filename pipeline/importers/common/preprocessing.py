"""How images are prepared: what a format implies, what the user states, and a line that says which is which.

Every field has an origin, in ``Model.origins``: the option that states it, the place in the file that says it, or ``ASSUMED``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers.common.options import ImportOptions
from bitkiln.pipeline.importers.common.ranges import PRESETS, named, preset, stated
from bitkiln.pipeline.model import Model, Preprocessing, TensorSpec

ASSUMED = "assumed"

_ORDERS = ("RGB", "BGR", "GREY")
_RESIZES = ("stretch", "short-side", "letterbox")

#: Sides of the smallest image in grey: less is some other tensor.
_SMALLEST = 4

#: What a photo's short side is resized to, at most: as long as a photo's side may be (runner.py).
_LARGEST_SIDE = 32768


def plain_image(spec: TensorSpec) -> Preprocessing | None:
    """For one image in colour or grey, pixels of 0..255 stretched to its size; None for other tensors."""
    if len(spec.shape) != 4 or spec.shape[0] != 1 or spec.layout not in ("NHWC", "NCHW"):
        return None
    height, width, channels = spec.shape[1:] if spec.layout == "NHWC" else (*spec.shape[2:], spec.shape[1])
    if channels not in (1, 3) or (channels == 1 and min(height, width) < _SMALLEST):
        return None
    order = "RGB" if channels == 3 else "GREY"
    return Preprocessing(height, width, order, (0.0,) * channels, (1.0,) * channels, spec.layout)


def in_integers(how: Preprocessing, spec: TensorSpec) -> Preprocessing:
    """``how``, which makes reals of pixels, for an input of integers that stand for reals."""
    if spec.quantization is None:
        return how
    scale, zero = spec.quantization
    scales = tuple(each / scale for each in how.scale)
    means = tuple(mean - zero / each for mean, each in zip(how.mean, scales, strict=True))
    return replace(how, mean=means, scale=scales)


def _in_reals(how: Preprocessing, spec: TensorSpec) -> Preprocessing:
    """The inverse of ``in_integers``."""
    if spec.quantization is None:
        return how
    scale, zero = spec.quantization
    means = tuple(mean + zero / each for mean, each in zip(how.mean, how.scale, strict=True))
    return replace(how, mean=means, scale=tuple(each * scale for each in how.scale))


def with_options(model: Model, path: Path, options: ImportOptions) -> Model:
    """``model`` with the options' preprocessing; ModelError where they make no sense for it."""
    given: dict[str, Any] = {
        "normalize": options.normalize,
        "channel_order": options.channel_order,
        "mean": options.mean,
        "std": options.std,
        "scale": options.scale,
        "resize": options.resize,
        "resize_to": options.resize_to,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return model
    if model.preprocessing is None:
        raise ModelError(f"{path}: its input {model.inputs[0].shape} is no image; leave {_flags(given)} out")
    chosen, origins = model.preprocessing, dict(model.origins)
    if "channel_order" in given:
        given["channel_order"] = str(given["channel_order"]).upper().replace("GRAY", "GREY")
        chosen = replace(chosen, channel_order=given["channel_order"])
        origins["channel_order"] = "--channel-order"
    pixels = model.inputs[0]
    whole = pixels.dtype if pixels.dtype != "float32" and pixels.quantization is None else ""
    chosen = _with_range(chosen, str(path), given, origins, whole)
    chosen = _with_resize(chosen, path, options, origins)
    _check(path, chosen)
    if origins.get("range") != model.origins.get("range"):
        chosen = in_integers(chosen, model.inputs[0])
    return replace(model, preprocessing=chosen, origins=origins)


def _with_range(
    chosen: Preprocessing, where: str, given: Mapping[str, Any], origins: dict[str, str], whole: str
) -> Preprocessing:
    """``chosen`` with the means and scales that are ``given``; ``whole`` is the type of an input of plain integers."""
    numbers = {name: given.get(name) for name in ("mean", "std", "scale")}
    flags = _flags({name: value for name, value in numbers.items() if value is not None})
    if whole and ("normalize" in given or flags):
        raise ModelError(
            f"{where}: its input holds the pixels of 0..255 themselves, as {whole}; leave --normalize, --mean, --std and "
            "--scale out"
        )
    channels = len(chosen.mean)
    if "normalize" in given:
        if flags:
            raise ModelError(f"{where}: --normalize says what {flags} would; give one of them")
        if given["normalize"] not in PRESETS:
            raise ModelError(f"{where}: --normalize {given['normalize']} is none of {', '.join(PRESETS)}")
        found = preset(where, str(given["normalize"]), channels, _stated_order(chosen, given))
        flags = f"--normalize {given['normalize']}"
    elif flags:
        found = stated(where, **numbers, channels=channels)
        flags += " of pixels of 0..1" if found.unit else ""
        if origins.get("range", ASSUMED) != ASSUMED:  # what is not stated stays as the file says
            if numbers["mean"] is None:
                found = replace(found, mean=chosen.mean)
            if numbers["std"] is None and numbers["scale"] is None and found.scale == (1.0,) * channels:
                found = replace(found, scale=chosen.scale)
    else:
        return chosen
    origins["range"] = flags
    if found.order is not None:
        chosen = replace(chosen, channel_order=found.order)
        origins["channel_order"] = flags
    return replace(chosen, mean=found.mean, scale=found.scale)


def _with_resize(chosen: Preprocessing, path: Path, options: ImportOptions, origins: dict[str, str]) -> Preprocessing:
    """``chosen`` with what --resize and --resize-to say; the latter alone asks for a short side of that."""
    if options.resize is None and options.resize_to is None:
        return chosen
    origins["resize"] = "--resize" if options.resize is not None else "--resize-to"
    chosen = replace(chosen, resize=options.resize or "short-side")
    if chosen.resize != "short-side":
        if options.resize_to is not None:
            raise ModelError(f"{path}: --resize-to is the short side's, not of --resize {chosen.resize}; leave one out")
        return chosen
    if options.resize_to is not None:
        return replace(chosen, resize_to=options.resize_to)
    return chosen if chosen.resize_to else replace(chosen, resize_to=max(chosen.height, chosen.width))


def _stated_order(chosen: Preprocessing, given: Mapping[str, object]) -> str | None:
    """The order the preset's values have to be in; None leaves it to the preset."""
    if "channel_order" in given:
        return chosen.channel_order
    return "BGR" if chosen.channel_order == "BGR" and given["normalize"] != "caffe" else None


def _check(path: Path, chosen: Preprocessing) -> None:
    if chosen.channel_order not in _ORDERS:
        raise ModelError(f"{path}: channel order {chosen.channel_order!r} is none of {', '.join(_ORDERS)}")
    if (chosen.channel_order == "GREY") != (len(chosen.mean) == 1):
        channels = len(chosen.mean)
        raise ModelError(
            f"{path}: channel order {chosen.channel_order} does not fit an image of {channels} channel{'s' * (channels > 1)}"
        )
    if chosen.resize not in _RESIZES:
        raise ModelError(f"{path}: resize {chosen.resize!r} is none of {', '.join(_RESIZES)}")
    if chosen.resize == "short-side" and not max(chosen.height, chosen.width) <= chosen.resize_to <= _LARGEST_SIDE:
        raise ModelError(
            f"{path}: a short side of {chosen.resize_to}; at least the {chosen.height}x{chosen.width} crop and at most "
            f"{_LARGEST_SIDE} are possible"
        )


def _flags(given: Mapping[str, object]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in given)


def preparation(model: Model) -> list[str]:
    """Lines that say how a photo will be prepared, where each part comes from, and where the class names do."""
    lines, how, origins = [], model.preprocessing, model.origins
    if how is not None:
        size = f"{how.width}x{how.height}"
        shapes = {
            "stretch": f"stretched to {size}",
            "short-side": f"short side to {how.resize_to}, centre {size}",
            "letterbox": f"fitted into {size} with bars of {how.fill:g}",
        }
        reals = _in_reals(how, model.inputs[0])
        parts = {
            "resize": shapes[how.resize],
            "channel_order": how.channel_order,
            "range": named(reals.mean, reals.scale),
        }
        sources = [origins.get(name, ASSUMED) for name in parts]
        texts = [f"{text} ({source})" for text, source in zip(parts.values(), sources, strict=True)]
        if len(set(sources)) == 1:
            texts = [*list(parts.values())[:-1], texts[-1]]
        lines.append(f"photos: {', '.join(texts)}")
        assumed = [name for name in parts if origins.get(name, ASSUMED).startswith(ASSUMED)]
        if assumed:
            flags = {
                "resize": "--resize",
                "channel_order": "--channel-order",
                "range": "--normalize (or --mean, --std)",
            }
            known = [flags[name] for name in assumed if not (name == "channel_order" and how.channel_order == "GREY")]
            if known:
                lines.append(f"  the file does not say what is assumed; {', '.join(known)} as the network was trained")
    if model.labels:
        lines.append(f"labels: {len(model.labels)}, from {origins.get('labels', 'the file')}")
    return lines

"""Preprocessing that the user states: it replaces, field by field, what the file says or its format implies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers.common.options import ImportOptions
from bitkiln.pipeline.model import Model, Preprocessing

_ORDERS = ("RGB", "BGR")
_RESIZES = ("stretch", "short-side")


def with_options(model: Model, path: Path, options: ImportOptions) -> Model:
    """``model`` with the options' preprocessing; ModelError where they make no sense for it."""
    given = {
        "channel_order": options.channel_order,
        "mean": options.mean,
        "scale": options.scale,
        "resize": options.resize,
        "resize_to": options.resize_to,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return model
    if model.preprocessing is None:
        raise ModelError(f"{path}: its input {model.inputs[0].shape} is no image; leave {_flags(given)} out")
    channels = len(model.preprocessing.mean)
    for name in ("mean", "scale"):
        if name in given:
            given[name] = _per_channel(path, name, given[name], channels)
    preprocessing = replace(model.preprocessing, **given)
    if preprocessing.resize == "short-side" and not preprocessing.resize_to:
        preprocessing = replace(preprocessing, resize_to=max(preprocessing.height, preprocessing.width))
    _check(path, preprocessing)
    return replace(model, preprocessing=preprocessing)


def _per_channel(path: Path, name: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise ModelError(f"{path}: --{name} has {len(values)} values, the image {channels} channels")
    return tuple(float(value) for value in values) * (channels // len(values))


def _check(path: Path, chosen: Preprocessing) -> None:
    if chosen.channel_order not in _ORDERS:
        raise ModelError(f"{path}: channel order {chosen.channel_order!r} is none of {', '.join(_ORDERS)}")
    if chosen.resize not in _RESIZES:
        raise ModelError(f"{path}: resize {chosen.resize!r} is none of {', '.join(_RESIZES)}")
    if chosen.resize == "short-side" and chosen.resize_to < max(chosen.height, chosen.width):
        raise ModelError(
            f"{path}: a short side of {chosen.resize_to} is less than the {chosen.height}x{chosen.width} crop"
        )


def _flags(given: dict[str, object]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in given)

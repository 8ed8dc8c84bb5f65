"""What a user may add to a model file: shapes it leaves open, and what it does not say about its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ImportOptions:
    """Options of ``load_model``; None means "as the file says, or the format's custom".

    ``shapes``: input name -> shape, for dynamic dimensions. ``values``: input name -> the number that all its elements always
    are, which makes it a constant of an ONNX network. ``labels``: a text file, one class a line.
    ``normalize``: a name of ``ranges.PRESETS``. ``channel_order``: "RGB" or "BGR". ``mean``, ``std``: one value, or one per
    channel in the network's channel order, of pixels of 0..1 or of 0..255: ``ranges`` finds out which. ``scale``: instead of
    ``std``, what pixels of 0..255 are multiplied by. ``resize``: "stretch", "short-side" or "letterbox"; ``resize_to``: length
    of the short side before the centre crop. ``leaky_factor`` replaces the slope of ELL's leaky ReLUs. ``weights``: the weights
    of a darknet cfg, where they do not lie beside it. ``head``: what the outputs mean, as ``meaning.declared`` reads it.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    labels: Path | None = None
    channel_order: str | None = None
    normalize: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    resize: str | None = None
    resize_to: int | None = None
    leaky_factor: float | None = None
    weights: Path | None = None
    head: str | None = None

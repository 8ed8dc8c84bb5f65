"""What an importer makes of a model file."""

from __future__ import annotations

from dataclasses import dataclass, field

import tvm


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a network; ``layout`` is e.g. "NHWC", "NCHW" or "" where it has no meaning."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = ""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input: resize, crop, order channels, then ``(x - mean) * scale``.

    ``resize`` is "stretch" (to ``height`` x ``width``) or "short-side" (short side to ``resize_to``, then a centre crop).
    ``mean`` and ``scale`` have one value per channel, in the network's channel order; pixel values are 0..255.
    """

    height: int
    width: int
    channel_order: str = "RGB"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    scale: tuple[float, ...] = (1.0, 1.0, 1.0)
    layout: str = "NHWC"
    resize: str = "stretch"
    resize_to: int = 0


@dataclass(frozen=True)
class Model:
    """A network as the passes take it.

    ``module`` has one Relax function ``main``: inputs are its parameters, weights are constants, the result is a tensor
    or a tuple of tensors. ``source_digest`` is the SHA-256 of the file the network came from. ``warnings`` are what the user
    should know about that file, a line each.
    """

    name: str
    module: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    source_digest: str
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = ()

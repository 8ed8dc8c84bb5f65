"""What an importer makes of a model file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import tvm


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a network; ``layout`` is e.g. "NHWC", "NCHW" or "" where it has no meaning.

    ``quantization`` is (scale, zero point) of integers q that stand for ``scale * (q - zero point)``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = ""
    quantization: tuple[float, int] | None = None


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input: resize, crop or fill up, order channels, then ``(x - mean) * scale``.

    ``channel_order`` is "RGB", "BGR", or "GREY" for one channel (luma of ITU-R BT.601). ``mean`` and ``scale`` have one value
    per channel, in the network's channel order; pixel values are 0..255. Where the input is of a type of integers, the
    results are rounded to it and clipped. ``resize`` is one of

    - "stretch": to ``height`` x ``width``, whatever the aspect ratio;
    - "short-side": the short side to ``resize_to``, then a centre crop;
    - "letterbox": as large as fits with the aspect ratio kept, centred, the bars of the pixel value ``fill``.
    """

    height: int
    width: int
    channel_order: str = "RGB"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    scale: tuple[float, ...] = (1.0, 1.0, 1.0)
    layout: str = "NHWC"
    resize: str = "stretch"
    resize_to: int = 0
    fill: float = 127.5


@dataclass(frozen=True)
class Candidates:
    """Candidates for boxes in one output, or in two where ``scores`` names another output than ``boxes``.

    Each candidate has entries: four of the box (four times ``bins`` of "cell-sides"), one objectness where the head has it,
    and one score a class, in this order. Where they are apart, the output ``boxes`` has the first four and ``scores`` the rest.

    ``layout`` says where entries lie: "rows" [1, N, entries] and "columns" [1, entries, N]; of a grid with anchors "planes"
    [1, anchors * entries, H, W], "cells" [1, H, W, anchors * entries] and "anchor-cells" [1, anchors, H, W, entries];
    "kinds" [1, cells * (classes + anchors * 5)] has the scores of all cells' classes, which a cell's anchors share, then the
    objectness of all anchors of all cells, then their boxes.

    ``coding`` says what the four numbers are:

    - "centre": x and y of the centre, width, height;
    - "corners": left, top, right, bottom; "corners-yx": top, left, bottom, right;
    - "cell-exp": ``(x + column) * cell width``, likewise y, ``exp(w) * anchor width``, likewise h (YOLOv2 to v4, YOLOX);
    - "cell-square": x and y likewise, ``(2 w) ** 2 * anchor width``, likewise h (YOLOv5 before its decoding);
    - "cell-linear": x and y likewise, ``w * anchor width``, likewise h (YOLOv1);
    - "cell-sides": ``bins`` numbers for each of the distances left, top, right and bottom from the middle of the cell, whose
      softmax says how likely it is 0, 1, ... cells (YOLOv8 before its decoding; Li et al., Generalized Focal Loss, 2020);
    - "prior": shifts of the boxes in ``priors`` (centre x, centre y, width, height): ``x * variances[0] * width + centre``,
      ``exp(w * variances[1]) * width``; "prior-yx": the same with the order y, x, h, w in the tensor (``priors`` as before).

    ``units`` is "pixels" of the network's input or "unit" (0..1 of its width and height), also of ``anchors`` and ``priors``.
    ``activation`` "sigmoid" is what all entries of cells, or the objectness and scores of other candidates, still want.
    ``stretch`` widens x and y of a cell about its middle: ``x * stretch - (stretch - 1) / 2``.

    Of "rows" and "columns", ``count`` candidates from ``first`` on are meant (count 0: all); ``grid`` (rows, columns) is
    that of their cells. ``anchors`` are (width, height).
    """

    boxes: str
    scores: str
    layout: str
    coding: str
    units: str = "pixels"
    activation: str = "none"
    stretch: float = 1.0
    anchors: tuple[tuple[float, float], ...] = ()
    grid: tuple[int, int] = (0, 0)
    first: int = 0
    count: int = 0
    priors: tuple[tuple[float, float, float, float], ...] = ()
    variances: tuple[float, float] = (0.1, 0.2)
    bins: int = 1


@dataclass(frozen=True)
class Head:
    """What a network's outputs mean, where they are more than one row of class scores.

    ``task`` is "detect" or "segment"; ``kind`` names what was recognised or declared ("darknet-yolo", "yolov8", ...).

    To detect: the best class of each of the ``candidates`` counts, its score times the objectness where ``objectness`` is set;
    ``background`` is a class that means nothing (-1: none). Candidates of at least ``threshold`` are kept, and of those of one
    class that overlap by more than ``overlap`` (intersection over union) the best.

    To segment: ``output`` holds scores of classes in the layout ``layout`` ("NCHW", "NHWC"), or class numbers ("labels"); the
    best class counts. With one class a pixel belongs to it (1, else 0) where the score is above ``threshold``.
    """

    task: str
    kind: str
    classes: int
    candidates: tuple[Candidates, ...] = ()
    objectness: bool = False
    background: int = -1
    threshold: float = 0.25
    overlap: float = 0.45
    output: str = ""
    layout: str = ""


@dataclass(frozen=True)
class Model:
    """A network as the passes take it.

    ``module`` has one Relax function ``main``: inputs are its parameters, weights are constants, the result is a tensor
    or a tuple of tensors. ``source_digest`` is the SHA-256 of the file the network came from. ``head`` is what the outputs mean
    (None: scores of classes, or nobody knows). ``warnings`` are what the user should know about that file, a line each.
    ``origins`` says where the preprocessing ("resize", "channel_order", "range" for mean and scale) and the "labels" come
    from: an option, a place in the file, or an assumption. ``fixed`` are inputs of the file that the user made constants.
    """

    name: str
    module: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    source_digest: str
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = field(default=())
    head: Head | None = None
    warnings: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the first input, where it is an image."""
        if self.preprocessing:
            return self.preprocessing.height, self.preprocessing.width
        shape, layout = self.inputs[0].shape, self.inputs[0].layout
        if len(shape) != 4 or layout not in ("NHWC", "NCHW"):
            return None
        return (shape[1], shape[2]) if layout == "NHWC" else (shape[2], shape[3])

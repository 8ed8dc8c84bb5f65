"""darknet's layers of predictions, whose results are the network's: the numbers before any decoding of boxes."""

from __future__ import annotations

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.common.building import per_channel
from bitkiln.pipeline.importers.darknet.layer import MAX_WINDOW, Layer, Size, Tensors


class Detector(Layer):
    """A layer whose result is one of the network's, wherever it stands: raw predictions before any decoding of boxes."""

    @property
    def is_output(self) -> bool:
        """It is."""
        return True

    def gated(self, tensors: Tensors, gates: np.ndarray, part: str = "") -> relax.Var:
        """The source with a sigmoid on the channels where ``gates`` (bool [C]) is set."""
        x = tensors.source
        if not gates.any():
            return x
        sigmoid = tensors.emit(relax.op.sigmoid(x), "sigmoid")
        if gates.all():
            return sigmoid
        return tensors.emit(relax.op.where(relax.const(gates.reshape(1, -1, 1, 1), "bool"), sigmoid, x), part)


class Yolo(Detector):
    """``[yolo]``: for each anchor x, y, w, h, objectness and classes; a sigmoid on all but w and h.

    AlexeyAB's ``scale_x_y`` stretches x and y about their middle; with ``new_coords`` nothing has a sigmoid.
    """

    name = "yolo"

    def plan(self) -> None:
        """The size stays; it must be that of the anchors."""
        section = self.section
        classes = section.whole("classes", 20)
        anchors = len(section.wholes("mask", 0, 1 << 16)) or section.whole("num", 1, 1)
        self.entries, self.anchors = classes + 5, anchors
        if self.source.channels != anchors * self.entries:
            raise section.error(
                f"{anchors} anchors of {classes} classes need {anchors * self.entries} channels, "
                f"its input has {self.source.channels}"
            )
        self.stretch = section.number("scale_x_y", 1.0)
        self.new_coords = section.flag("new_coords")

    def emit(self, tensors: Tensors) -> relax.Var:
        """Sigmoids on some channels, and a product and a sum on others."""
        entry = np.arange(self.source.channels) % self.entries
        gates = np.zeros_like(entry, bool) if self.new_coords else (entry < 2) | (entry > 3)
        x = self.gated(tensors, gates)
        if self.stretch == 1:
            return x
        factor = np.where(entry < 2, self.stretch, 1)
        scaled = tensors.emit(relax.op.multiply(x, per_channel(factor)), "stretched")
        return tensors.emit(relax.op.add(scaled, per_channel(-0.5 * (factor - 1))), "centred")


class Region(Detector):
    """``[region]``: for each anchor x, y, further coordinates, objectness and classes.

    A sigmoid on x, y and objectness; softmax over the classes, or a sigmoid on each. With ``background`` the objectness is
    one more class.
    """

    name = "region"

    def plan(self) -> None:
        """The size stays; it must be that of the anchors."""
        section = self.section
        self.classes = section.whole("classes", 20, 1)
        self.coords = section.whole("coords", 4, 2)
        self.anchors = section.whole("num", 1, 1, 1 << 10)
        self.softmax, self.background = section.flag("softmax"), section.flag("background")
        needed = self.anchors * (self.classes + self.coords + 1)
        if self.source.channels != needed:
            raise section.error(
                f"{self.anchors} anchors of {self.classes} classes need {needed} channels, "
                f"its input has {self.source.channels}"
            )
        if section.text("tree"):
            raise section.unsupported("class hierarchies (tree=) are not supported", "tree")

    def emit(self, tensors: Tensors) -> relax.Var:
        """Sigmoids; the classes' softmax anchor by anchor."""
        entries = self.classes + self.coords + 1
        entry = np.arange(self.source.channels) % entries
        gates = (
            (entry < 2) | (entry == self.coords) & (not self.background) | (entry > self.coords) & (not self.softmax)
        )
        x = self.gated(tensors, gates, "gated" if self.softmax else "")
        if not self.softmax:
            return x
        first = self.coords + (not self.background)
        parts = []
        for anchor in range(self.anchors):
            start = anchor * entries
            box = relax.op.strided_slice(x, [1], [start], [start + first], assume_inbound=True)
            scores = relax.op.strided_slice(x, [1], [start + first], [start + entries], assume_inbound=True)
            scores = tensors.emit(scores, f"scores_{anchor}")
            parts.append(tensors.emit(box, f"box_{anchor}"))
            parts.append(tensors.emit(relax.op.nn.softmax(scores, 1), f"classes_{anchor}"))
        return tensors.emit(relax.op.concat(parts, 1), "")


class Detection(Detector):
    """``[detection]``: a row of class scores for each of side*side places, then objectness, then boxes."""

    name = "detection"

    def plan(self) -> None:
        """A row."""
        section = self.section
        self.classes = section.whole("classes", 1, 1)
        self.side = section.whole("side", 7, 1, MAX_WINDOW)
        self.places = self.side**2
        self.boxes, self.coords = section.whole("num", 1, 1), section.whole("coords", 1, 1)
        needed = self.places * ((1 + self.coords) * self.boxes + self.classes)
        if self.source.elements != needed:
            raise section.error(f"its places and boxes need {needed} inputs, it has {self.source.elements}")
        self.softmax = section.flag("softmax")
        self.size = Size(needed, 1, 1)

    def emit(self, tensors: Tensors) -> relax.Var:
        """The input, with a softmax over each place's scores where asked for."""
        row = tensors.row()
        if not self.softmax:
            return tensors.image(row, self.size) if self.size != self.source else tensors.source
        split = self.places * self.classes
        scores = tensors.emit(relax.op.strided_slice(row, [1], [0], [split], assume_inbound=True), "scores")
        scores = tensors.emit(relax.op.reshape(scores, (self.places, self.classes)), "places")
        scores = tensors.emit(relax.op.nn.softmax(scores, 1), "classes")
        scores = tensors.emit(relax.op.reshape(scores, (1, split)), "class_row")
        rest = relax.op.strided_slice(row, [1], [split], [self.size.elements], assume_inbound=True)
        result = tensors.emit(relax.op.concat([scores, tensors.emit(rest, "boxes")], 1), "")
        return tensors.image(result, self.size)

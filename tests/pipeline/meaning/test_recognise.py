"""Heads that are recognised by shapes, and those that are declared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.meaning.recognise import hint, with_head
from bitkiln.pipeline.model import Head, Model, Preprocessing, TensorSpec

#: Cells of 320 x 320 at strides 8, 16 and 32.
CELLS = 40 * 40 + 20 * 20 + 10 * 10


def network(*outputs: TensorSpec, size: int = 320) -> Model:
    """A network on RGB images; only its ends matter."""
    image = TensorSpec("x", (1, 3, size, size), layout="NCHW")
    return Model("net", tvm.IRModule(), (image,), outputs, "0" * 64, Preprocessing(size, size, layout="NCHW"))


def head_of(model: Model, words: str | None = None, name: str = "net.onnx") -> Head:
    head = with_head(model, Path(name), words).head
    assert head is not None
    return head


@pytest.mark.parametrize(
    ("shape", "kind", "classes", "layout"),
    [
        ((1, 84, CELLS), "yolov8", 80, "columns"),
        ((1, 5, CELLS), "yolov8", 1, "columns"),
        ((1, CELLS, 84), "yolov8", 80, "rows"),
        ((1, 3 * CELLS, 85), "yolov5", 80, "rows"),
        ((1, 3 * CELLS, 6), "yolov5", 1, "rows"),
    ],
)
def test_yolo_is_recognised(shape: tuple[int, ...], kind: str, classes: int, layout: str) -> None:
    for name, units in (("net.onnx", "pixels"), ("net.tflite", "unit")):
        head = head_of(network(TensorSpec("y", shape)), name=name)
        assert (head.task, head.kind, head.classes, head.objectness) == ("detect", kind, classes, kind == "yolov5")
        (part,) = head.candidates
        assert (part.boxes, part.scores, part.layout, part.coding, part.units) == ("y", "y", layout, "centre", units)


GRIDS = (40, 20, 10)


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ([(1, 144, CELLS)], "yolov8-raw"),
        ([(1, 144, side, side) for side in GRIDS], "yolov8-raw"),
        ([(1, count, side, side) for side in GRIDS for count in (64, 80)], "yolov8-raw"),
        ([(1, 255, side, side) for side in GRIDS], "yolov5-raw or yolov3-raw"),
        ([(1, 3, side, side, 85) for side in GRIDS], "yolov5-raw or yolov3-raw"),
        ([(1, 96, side, side) for side in GRIDS], "yolov8-raw, yolov5-raw or yolov3-raw"),
        ([(1, 896, 4), (1, 896, 2)], "ssd (with its priors), centre or corners"),
        ([(1, 1000)], None),
        ([(1, 64, side, side) for side in GRIDS], None),
        ([(1, 84, CELLS)], None),
    ],
)
def test_what_looks_like_a_detector_is_hinted_at(shapes: list[tuple[int, ...]], kind: str | None) -> None:
    outputs = [TensorSpec(f"y{at}", shape, layout="NCHW") for at, shape in enumerate(shapes)]
    text = hint(with_head(network(*outputs), Path("net.onnx"), None))
    assert text is None if kind is None else f"--head {kind} would" in (text or "")
    assert hint(with_head(network(*outputs), Path("net.onnx"), "none")) is None


def test_photos_for_recognised_yolo_are_prepared_as_its_authors_do() -> None:
    model = with_head(network(TensorSpec("y", (1, 84, CELLS))), Path("net.onnx"), None)
    how = model.preprocessing
    assert how == Preprocessing(320, 320, "RGB", scale=(1 / 255,) * 3, layout="NCHW", resize="letterbox", fill=114.0)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1000),
        (1, 84, 8400),
        (1, CELLS, 85),
        (1, 4, CELLS),
        (1, 255, 40, 40),
        (1, 3, 320, 320),
        (1, 19, 40, 40),
        (1, 320, 320),
    ],
)
def test_what_may_mean_anything_is_left_alone(shape: tuple[int, ...]) -> None:
    assert with_head(network(TensorSpec("y", shape)), Path("net.onnx"), None).head is None


@pytest.mark.parametrize(
    ("spec", "kind", "classes", "layout"),
    [
        (TensorSpec("y", (1, 21, 320, 320)), "scores", 21, "NCHW"),
        (TensorSpec("y", (1, 320, 320, 19)), "scores", 19, "NHWC"),
        (TensorSpec("y", (1, 320, 320), "int64"), "labels", 256, "labels"),
        (TensorSpec("y", (1, 1, 320, 320), "int32"), "labels", 256, "labels"),
    ],
)
def test_masks_are_recognised(spec: TensorSpec, kind: str, classes: int, layout: str) -> None:
    head = head_of(network(spec))
    assert (head.task, head.kind, head.classes, head.output, head.layout) == ("segment", kind, classes, "y", layout)


def test_a_head_may_be_declared_or_denied(tmp_path: Path) -> None:
    model = network(TensorSpec("y", (1, 84, CELLS)))
    assert with_head(model, Path("net.onnx"), "none").head is None
    head = head_of(model, "yolov8,threshold=0.4,overlap=0.7,units=unit")
    assert (head.threshold, head.overlap, head.candidates[0].units) == (0.4, 0.7, "unit")


def test_raw_grids_are_declared() -> None:
    outputs = [TensorSpec(f"y{s}", (1, 255, 320 // s, 320 // s), layout="NCHW") for s in (32, 8, 16)]
    head = head_of(network(*outputs), "yolov5-raw")
    assert head.classes == 80 and head.objectness
    assert [part.boxes for part in head.candidates] == ["y8", "y16", "y32"]
    first, *_, last = head.candidates
    assert first.anchors == ((10, 13), (16, 30), (33, 23)) and last.anchors == ((116, 90), (156, 198), (373, 326))
    assert (first.layout, first.coding, first.activation, first.stretch) == ("planes", "cell-square", "sigmoid", 2.0)
    five = [TensorSpec(f"y{s}", (1, 3, 320 // s, 320 // s, 7)) for s in (8, 16, 32)]
    head = head_of(network(*five), "yolov3-raw,anchors=" + "/".join(map(str, range(1, 19))))
    assert head.classes == 2 and head.candidates[1].anchors == ((7, 8), (9, 10), (11, 12))
    assert (head.candidates[0].layout, head.candidates[0].coding) == ("anchor-cells", "cell-exp")


def test_yolox_is_declared() -> None:
    head = head_of(network(TensorSpec("y", (1, CELLS, 85))), "yolox")
    assert [(part.first, part.count, part.grid) for part in head.candidates] == [
        (0, 1600, (40, 40)),
        (1600, 400, (20, 20)),
        (2000, 100, (10, 10)),
    ]
    assert head.candidates[2].anchors == ((32, 32),) and head.classes == 80


def test_ssd_is_declared(tmp_path: Path) -> None:
    priors = np.random.default_rng(0).random((30, 4)).astype("float32")
    np.save(tmp_path / "priors.npy", priors)
    model = network(TensorSpec("scores", (1, 30, 21)), TensorSpec("boxes", (1, 30, 4)))
    head = head_of(model, f"ssd-yx,priors={tmp_path / 'priors.npy'},background=0,activation=softmax,variances=0.2/0.4")
    (part,) = head.candidates
    assert (part.boxes, part.scores, part.coding, part.activation) == ("boxes", "scores", "prior-yx", "softmax")
    assert (head.classes, head.background, part.variances) == (21, 0, (0.2, 0.4))
    np.testing.assert_array_equal(np.float32(part.priors), priors)
    assert head_of(model, "corners").candidates[0].units == "unit"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("yolo99", "--head yolo99: none of none, yolov8"),
        ("yolov8,colour=red", "'colour=red' is not one of boxes"),
        ("yolov8,boxes", "'boxes' is not one of"),
        ("yolov8,boxes=z", "there is no output 'z'; there are y, s"),
        ("yolov8,threshold=2", "threshold=2 is not within 0..1"),
        ("yolov8,threshold=high", "threshold=high are no numbers"),
        ("yolov8,units=cm,boxes=y", "units 'cm' is none of"),
        ("yolov8,layout=rows,boxes=s", "-4 classes|0 classes|is not of the layout"),
        ("ssd,boxes=y,scores=s", "priors=FILE"),
        ("ssd,boxes=y,scores=s,priors=/nowhere.npy", "/nowhere.npy: no .npy file"),
        ("corners,boxes=y,scores=s", "is not of the layout"),
        ("ssd,boxes=y", "outputs could be scores: name one with scores="),
        ("segment", "outputs could be a mask|is not within|holds no"),
        ("yolov5-raw,anchors=1/2/3", "3 numbers are no widths and heights"),
    ],
)
def test_what_does_not_fit_is_refused(words: str, message: str) -> None:
    model = network(TensorSpec("y", (1, 84, CELLS)), TensorSpec("s", (1, 10, 4, 4)))
    with pytest.raises(ModelError, match=message) as caught:
        with_head(model, Path("net.onnx"), words)
    assert "\n" not in str(caught.value)


def test_integers_are_no_boxes() -> None:
    with pytest.raises(ModelError, match="output y is int8; float32 is wanted"):
        with_head(network(TensorSpec("y", (1, 84, CELLS), "int8")), Path("net.onnx"), "yolov8")


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_sides_before_decoding_are_declared(apart: bool, layout: str) -> None:
    """YOLOv8's grids with boxes and scores together or apart, with a further output of the scores' sum."""

    def grid(name: str, channels: int, stride: int) -> TensorSpec:
        side = 320 // stride
        return TensorSpec(
            name, (1, channels, side, side) if layout == "NCHW" else (1, side, side, channels), layout=layout
        )

    parts = {"b": 64, "s": 80, "sum": 1} if apart else {"y": 144}
    outputs = [grid(f"{name}{stride}", channels, stride) for stride in (8, 16, 32) for name, channels in parts.items()]
    head = head_of(network(*outputs), "yolov8-raw,activation=sigmoid")
    assert head.classes == 80 and not head.objectness and len(head.candidates) == 3
    for part, stride in zip(head.candidates, (8, 16, 32), strict=True):
        names = (f"b{stride}", f"s{stride}") if apart else (f"y{stride}", f"y{stride}")
        assert (part.boxes, part.scores) == names
        assert (part.layout, part.coding, part.bins) == ("planes" if layout == "NCHW" else "cells", "cell-sides", 16)


def test_sides_of_all_grids_in_one_output_are_declared() -> None:
    head = head_of(network(TensorSpec("y", (1, 144, CELLS))), "yolov8-raw,activation=sigmoid")
    assert [(part.grid, part.first) for part in head.candidates] == [((40, 40), 0), ((20, 20), 1600), ((10, 10), 2000)]
    with pytest.raises(ModelError, match="no outputs with 64 numbers"):
        head_of(network(TensorSpec("y", (1, 20, CELLS))), "yolov8-raw,activation=sigmoid")


@pytest.mark.parametrize("ends", [True, False])
def test_what_a_network_ends_with_is_seen(ends: bool) -> None:
    x = relax.Var("x", relax.TensorType((1, 144, 40, 40), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            boxes = builder.emit(relax.op.strided_slice(x, [1], [0], [64]))
            scores = builder.emit(relax.op.strided_slice(x, [1], [64], [144]))
            result = builder.emit(relax.op.sigmoid(scores)) if ends else scores
            pair = builder.emit_output(relax.Tuple([boxes, result]))
        builder.emit_func_output(pair)
    specs = [TensorSpec(name, (1, channels, 40, 40), layout="NCHW") for name, channels in (("b", 64), ("s", 80))]
    model = replace(network(*specs), module=builder.get())
    assert head_of(model, "yolov8-raw").candidates[0].activation == ("none" if ends else "sigmoid")

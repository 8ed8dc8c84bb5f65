"""Detectors that end with TFLite_Detection_PostProcess, held against LiteRT's own kernel where it is installed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from flatbuffers import flexbuffers

from benchmarks.tflite_file import TfliteFile
from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.reference import heads

CLASSES, COUNT = 3, 24

USUAL = {
    "max_detections": 10,
    "max_classes_per_detection": 1,
    "detections_per_class": 10,
    "use_regular_nms": True,
    "nms_score_threshold": 0.4,
    "nms_iou_threshold": 0.5,
    "num_classes": CLASSES,
    "y_scale": 10.0,
    "x_scale": 10.0,
    "h_scale": 5.0,
    "w_scale": 5.0,
}


def options(**fields: object) -> bytes:
    build = flexbuffers.Builder()
    with build.Map():
        for name, value in sorted(fields.items()):
            {bool: build.Bool, int: build.Int, float: build.Float}[type(value)](name, value)
    return bytes(build.Finish())


def detector(path: Path, anchors: np.ndarray | None = None, **fields: object) -> Path:
    """A network whose image [1, 8, 8, 3] is its boxes and, after a sigmoid, its scores; class 0 is the background."""
    file = TfliteFile()
    source = file.tensor((1, 8, 8, 3))
    rows = file.operator("RESHAPE", [source, file.constant(np.array([1, COUNT, 8], "int32"))], (1, COUNT, 8))
    axis = file.constant(np.array(2, "int32"))
    boxes, raw = file.operator_of_many(
        "SPLIT", [axis, rows], [(1, COUNT, 4), (1, COUNT, CLASSES + 1)], "SplitOptions", NumSplits=2
    )
    scores = file.operator("LOGISTIC", [raw], (1, COUNT, CLASSES + 1))
    anchors = file.constant(some_anchors() if anchors is None else anchors)
    operands = [boxes, scores, anchors]
    first = file.custom("TFLite_Detection_PostProcess", operands, (1, 10, 4), options=options(**(USUAL | fields)))
    rest = [file.tensor(shape) for shape in ((1, 10), (1, 10), (1,))]
    post = file.operators[-1]
    file.operators[-1] = type(post)(post.code, post.inputs, (first, *rest), post.table, post.options)
    path.write_bytes(file.write(source, [first, *rest]))
    return path


def some_anchors() -> np.ndarray:
    rng = np.random.default_rng(2)
    return np.concatenate([rng.random((COUNT, 2)), rng.random((COUNT, 2)) * 0.3 + 0.1], 1).astype("float32")


def test_the_operator_becomes_the_head(tmp_path: Path) -> None:
    model = load_model(detector(tmp_path / "ssd.tflite"))
    assert [(spec.name, spec.shape) for spec in model.outputs] == [("boxes", (1, COUNT, 4)), ("scores", (1, COUNT, 4))]
    head = model.head
    assert head is not None and (head.kind, head.classes, head.background) == ("tflite-ssd", CLASSES + 1, 0)
    assert (head.threshold, head.overlap, head.candidates[0].variances) == (0.4, 0.5, (0.1, 0.2))
    np.testing.assert_array_equal(np.float32(head.candidates[0].priors), some_anchors()[:, [1, 0, 3, 2]])
    assert load_model(detector(tmp_path / "all.tflite", nms_score_threshold=1e-8)).head.threshold == 0.25


def test_labels_may_leave_the_background_out(tmp_path: Path) -> None:
    path = detector(tmp_path / "ssd.tflite")
    (tmp_path / "ssd.labels.txt").write_text("cat\ndog\nbird\n")
    assert load_model(path).labels == ("background", "cat", "dog", "bird")


def test_boxes_are_those_of_tensorflow(tmp_path: Path) -> None:
    litert = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="needs ai-edge-litert, whose kernel is the measure"
    )
    # Its rule for suppression is another: nothing is suppressed here.
    path = detector(tmp_path / "ssd.tflite", use_regular_nms=False, nms_iou_threshold=1.0)
    x = np.random.default_rng(3).normal(0, 2, (1, 8, 8, 3)).astype("float32")
    engine = litert.Interpreter(model_path=str(path))
    engine.allocate_tensors()
    engine.set_tensor(engine.get_input_details()[0]["index"], x)
    engine.invoke()
    boxes, classes, scores, (count,) = (engine.get_tensor(row["index"])[0:1] for row in engine.get_output_details())
    count = int(count)
    model = load_model(path)
    values = reference.run(model.module, {model.module["main"].params[0].name: x})
    assert model.head is not None
    outputs = {spec.name: np.asarray(value) for spec, value in zip(model.outputs, values, strict=True)}
    found = heads.detect(asdict(model.head), outputs, (100, 200))[:count]
    assert len(found) == count > 2
    for box, wanted, number, score in zip(found, boxes[0], classes[0], scores[0], strict=False):
        assert box.number == number + 1  # the background is class 0
        assert box.score == pytest.approx(score, rel=1e-5)
        np.testing.assert_allclose(box.corners, wanted[[1, 0, 3, 2]] * [200, 100, 200, 100], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 9}, "tells 9 classes apart, its scores are for 4"),
        ({"y_scale": 5.0}, "scales x and y differently"),
        ({"y_scale": 0.0, "x_scale": 0.0}, "its option y_scale is 0.0"),
        ({"nms_iou_threshold": 7.0}, "its option nms_iou_threshold is 7.0"),
        ({"anchors": np.zeros((COUNT, 3), "float32")}, "its anchors are no constant"),
        ({"anchors": np.full((COUNT, 4), np.nan, "float32")}, "its anchors are no numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, fields: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(detector(tmp_path / "ssd.tflite", **fields))
    assert "TFLite_Detection_PostProcess" in str(caught.value) and "\n" not in str(caught.value)

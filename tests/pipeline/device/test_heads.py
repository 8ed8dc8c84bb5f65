"""heads.c against its definition in numpy: every layout and coding of candidates, suppression, masks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitkiln import targets
from bitkiln.pipeline.compile.link import DEVICE, link_library
from bitkiln.pipeline.compile.plan import make_plan, new_view
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.model import Candidates, Head, Preprocessing
from bitkiln.pipeline.reference import heads
from bitkiln.pipeline.reference.photos import Placement, place
from bitkiln.targets import Target
from bitkiln.targets.sim import build as simulator
from bitkiln.targets.sim.reports import Reports

SIZE = (96, 128)
PHOTO = Preprocessing(*SIZE, resize="letterbox")


@contextmanager
def outputs_of(
    host: Target, folder: Path, head: Head, outputs: dict[str, np.ndarray], how: Preprocessing | None = None
) -> Iterator[runner.Model]:
    """A model that has just given ``outputs``, which are its further inputs; its first input is the image, if any."""
    views = [new_view(name, values.shape, str(values.dtype), boundary=True) for name, values in outputs.items()]
    image = [new_view("image", (1, *SIZE, 3), "float32", boundary=True)] if how else []
    plan = replace(make_plan([], [*image, *views], views), preprocessing=how, head=head, image=SIZE)
    link_library({}, (), plan, host, folder / "model.so")
    with runner.Model(folder / "model.so", 1) as model:
        for name, values in outputs.items():
            model.set_input(name, values)
        model.run()
        yield model


def assert_same(boxes: list[runner.Box], expected: list[heads.Found]) -> None:
    """Equal boxes; those of scores that rounding may exchange in any order."""
    assert len(boxes) == len(expected) > 0
    got = [(box.number, box.score, box.left, box.top, box.right, box.bottom) for box in boxes]
    wanted = [(found.number, found.score, *found.corners) for found in expected]
    np.testing.assert_allclose(sorted(got, reverse=True), sorted(wanted, reverse=True), rtol=2e-4, atol=2e-3)
    assert [box.score for box in boxes] == sorted((box.score for box in boxes), reverse=True)


def logits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(-1.5, 2, shape).astype("float32")


ANCHORS = ((10.0, 13.0), (33.0, 23.0), (60.0, 40.0))
GRID = (6, 8)
ENTRIES = 4 + 1 + 5

#: Layout -> the shape of the tensor for three anchors on a grid of 6 x 8.
GRIDS = {
    "planes": (1, 3 * ENTRIES, *GRID),
    "cells": (1, *GRID, 3 * ENTRIES),
    "anchor-cells": (1, 3, *GRID, ENTRIES),
    "rows": (1, 3 * 48, ENTRIES),
    "columns": (1, ENTRIES, 3 * 48),
}


@pytest.mark.parametrize("layout", GRIDS)
@pytest.mark.parametrize("coding", ["cell-exp", "cell-square", "cell-linear"])
@pytest.mark.parametrize("objectness", [True, False])
def test_cells_with_anchors(host: Target, tmp_path: Path, layout: str, coding: str, objectness: bool) -> None:
    rng = np.random.default_rng(len(layout))
    part = Candidates("y", "y", layout, coding, activation="sigmoid", stretch=2.0, anchors=ANCHORS, grid=GRID)
    head = Head("detect", "test", 5 + (not objectness), (part,), objectness=objectness, threshold=0.3)
    outputs = {"y": logits(rng, *GRIDS[layout])}
    with outputs_of(host, tmp_path, head, outputs) as model:
        assert model.task == "detect"
        assert_same(model.boxes(most=1000), heads.detect(asdict(head), outputs, SIZE))
        assert_same(model.boxes(0.6, most=1000), heads.detect(asdict(head), outputs, SIZE, 0.6))


#: Layout -> the shape of a tensor of n entries for each cell of a grid of 6 x 8.
SIDES = {
    "planes": lambda n: (1, n, *GRID),
    "cells": lambda n: (1, *GRID, n),
    "rows": lambda n: (1, 48, n),
    "columns": lambda n: (1, n, 48),
}


@pytest.mark.parametrize("layout", SIDES)
@pytest.mark.parametrize("together", [True, False])
def test_sides_of_boxes_by_distributions(host: Target, tmp_path: Path, layout: str, together: bool) -> None:
    rng = np.random.default_rng(len(layout))
    bins, classes, shape = 8, 5, SIDES[layout]
    names = ("y", "y") if together else ("b", "s")
    part = Candidates(*names, layout, "cell-sides", activation="sigmoid", grid=GRID, bins=bins)
    head = Head("detect", "test", classes, (part,), threshold=0.3)
    sizes = {"y": 4 * bins + classes} if together else {"b": 4 * bins, "s": classes}
    outputs = {name: logits(rng, *shape(entries)) for name, entries in sizes.items()}
    with outputs_of(host, tmp_path, head, outputs) as model:
        assert_same(model.boxes(most=1000), heads.detect(asdict(head), outputs, SIZE))


def test_a_side_is_the_mean_of_its_distribution(host: Target, tmp_path: Path) -> None:
    """Cell (1, 2) of 16 pixels, its middle at 40, 24: sides of 1, 0.5, 2 and 3 cells."""
    values = np.full((1, 4 * 4 + 1, *GRID), -20, "float32")
    for entry in (1, 4, 5, 10, 15):  # left 1; top 0 or 1; right 2; bottom 3
        values[0, entry, 1, 2] = 20
    values[0, 16, 1, 2] = 3
    part = Candidates("y", "y", "planes", "cell-sides", activation="sigmoid", bins=4)
    with outputs_of(host, tmp_path, Head("detect", "test", 1, (part,)), {"y": values}) as model:
        (box,) = model.boxes()
        np.testing.assert_allclose(box[2:6], (24, 16, 72, 72), atol=1e-3)


@pytest.mark.parametrize("coding", ["cell-square", "cell-linear"])
def test_scores_objectness_and_boxes_one_kind_after_the_other(host: Target, tmp_path: Path, coding: str) -> None:
    """YOLOv1's row, against the loops of darknet's get_detection_detections."""
    rng = np.random.default_rng(5)
    side, boxes, classes, (height, width) = 3, 2, 4, SIZE
    places = side * side
    values = rng.random((1, places * (classes + boxes * 5))).astype("float32")
    anchor = 0.25 if coding == "cell-square" else 1.0
    part = Candidates("y", "y", "kinds", coding, "unit", anchors=((anchor, anchor),) * boxes, grid=(side, side))
    head = Head("detect", "test", classes, (part,), objectness=True, threshold=0.2, overlap=0.9)
    expected = []
    for cell in range(places):
        for each in range(boxes):
            x, y, w, h = values[0, places * (classes + boxes) + (cell * boxes + each) * 4 :][:4]
            scores = values[0, cell * classes :][:classes] * values[0, places * classes + cell * boxes + each]
            x, y = (x + cell % side) / side * width, (y + cell // side) / side * height
            w, h = (w * w * width, h * h * height) if coding == "cell-square" else (w * width, h * height)
            expected.append((scores.argmax(), scores.max(), x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    with outputs_of(host, tmp_path, head, {"y": values}) as model:
        found = model.boxes(most=1000)
        assert_same(found, heads.detect(asdict(head), {"y": values}, SIZE))
        best = max(expected, key=lambda box: box[1])
        np.testing.assert_allclose((found[0].number, *found[0][1:6]), best, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("coding", ["centre", "corners", "corners-yx"])
@pytest.mark.parametrize("units", ["pixels", "unit"])
def test_decoded_boxes(host: Target, tmp_path: Path, layout: str, coding: str, units: str) -> None:
    rng = np.random.default_rng(3)
    count, classes = 2500, 7
    rows = rng.random((count, 4 + classes)).astype("float32")
    rows[:, 4:] **= 6
    if coding != "centre":
        rows[:, 2:4] += rows[:, :2]
    if units == "pixels":
        rows[:, :4] *= 128
    values = rows[None] if layout == "rows" else np.ascontiguousarray(rows.T)[None]
    head = Head("detect", "test", classes, (Candidates("y", "y", layout, coding, units),), threshold=0.8)
    with outputs_of(host, tmp_path, head, {"y": values}) as model:
        assert_same(model.boxes(most=1000), heads.detect(asdict(head), {"y": values}, SIZE))


@pytest.mark.parametrize("coding", ["prior", "prior-yx"])
@pytest.mark.parametrize(("activation", "background"), [("softmax", 0), ("sigmoid", -1), ("softmax", 3)])
def test_shifts_of_priors(host: Target, tmp_path: Path, coding: str, activation: str, background: int) -> None:
    rng = np.random.default_rng(4)
    priors = tuple(map(tuple, np.round(rng.random((300, 4)), 3).tolist()))
    part = Candidates("b", "s", "rows", coding, "unit", activation, priors=priors, variances=(0.1, 0.2))
    head = Head("detect", "test", 4, (part,), background=background, threshold=0.5)
    outputs = {"b": logits(rng, 1, 300, 4), "s": 2 * logits(rng, 1, 300, 4)}
    with outputs_of(host, tmp_path, head, outputs) as model:
        assert_same(model.boxes(most=1000), heads.detect(asdict(head), outputs, SIZE))


def test_several_outputs_are_one_list(host: Target, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    parts = tuple(
        Candidates(f"y{s}", f"y{s}", "planes", "cell-exp", activation="sigmoid", anchors=((s * 2.0, s * 3.0),))
        for s in (8, 16)
    )
    head = Head("detect", "test", 3, parts, objectness=True, threshold=0.2)
    outputs = {f"y{s}": logits(rng, 1, 8, SIZE[0] // s, SIZE[1] // s) for s in (8, 16)}
    with outputs_of(host, tmp_path, head, outputs) as model:
        assert_same(model.boxes(most=1000), heads.detect(asdict(head), outputs, SIZE))


def test_boxes_lie_on_the_photo(host: Target, tmp_path: Path) -> None:
    values = np.array([[[64, 48, 32, 24, 0.9], [0, 48, 40, 40, 0.8]]], "float32")
    head = Head("detect", "test", 1, (Candidates("y", "y", "rows", "centre"),))
    with outputs_of(host, tmp_path, head, {"y": values}, PHOTO) as model:
        model.prepare(Image.new("RGB", (640, 240)))
        model.run()
        boxes = model.boxes()
        placement = place((640, 240), asdict(PHOTO))
        assert placement.size == (128, 48)
        assert_same(
            boxes, [heads.on_photo(found, placement) for found in heads.detect(asdict(head), {"y": values}, SIZE)]
        )
        assert boxes[0][2:6] == (240, 60, 400, 180) and boxes[1].left == 0


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_many_good_candidates_keep_the_best(host: Target, tmp_path: Path, layout: str) -> None:
    rng = np.random.default_rng(8)
    rows = rng.random((8400, 6)).astype("float32")
    rows[:, :2] *= 5000
    values = rows[None] if layout == "rows" else np.ascontiguousarray(rows.T)[None]
    head = Head("detect", "test", 2, (Candidates("y", "y", layout, "centre"),), threshold=0.0)
    with outputs_of(host, tmp_path, head, {"y": values}) as model:
        assert_same(model.boxes(most=5000), heads.detect(asdict(head), {"y": values}, SIZE))
        assert len(model.boxes(most=10)) == 10
        with (
            outputs_of(host, tmp_path, head, {"y": values}) as model,
            pytest.raises(runner.RunnerError, match="from 1"),
        ):
            model.boxes(most=0)


def test_what_is_no_number_is_never_found(host: Target, tmp_path: Path) -> None:
    nan, inf = np.nan, np.inf
    rows = [
        [1, 1, 1, 1, nan, 0.9],
        [1, 1, nan, 1, 0.9, 0.9],
        [inf, 1, 1, 1, 0.9, 0],
        [9, 9, 2, 2, nan, nan],
        [5, 5, 2, 2, 0.1, 0],
    ]
    head = Head("detect", "test", 2, (Candidates("y", "y", "rows", "centre"),))
    with outputs_of(host, tmp_path, head, {"y": np.array([rows], "float32")}) as model:
        assert [(box.number, round(box.score, 3)) for box in model.boxes()] == [(1, 0.9)]
        with pytest.raises(runner.RunnerError, match="nan"):
            model.boxes(nan)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "labels"])
@pytest.mark.parametrize("classes", [1, 21])
@pytest.mark.parametrize("how", [None, PHOTO, replace(PHOTO, resize="short-side", resize_to=200)])
def test_masks(host: Target, tmp_path: Path, layout: str, classes: int, how: Preprocessing | None) -> None:
    rng = np.random.default_rng(9)
    scores = rng.random((1, classes, 24, 32)).astype("float32")
    last = np.ascontiguousarray(scores.transpose(0, 2, 3, 1))
    values = {"NCHW": scores, "NHWC": last, "labels": scores.argmax(1)}[layout]
    head = Head("segment", "test", classes, threshold=0.5, output="y", layout=layout)
    with outputs_of(host, tmp_path, head, {"y": values}, how) as model:
        assert model.task == "segment"
        size = (300, 200) if how else (SIZE[1], SIZE[0])
        if how:
            model.prepare(Image.new("RGB", size))
            model.run()
        placement = place(size, asdict(how)) if how else Placement(size, size, (0, 0))
        labels = heads.segment(asdict(head), {"y": values})
        expected = heads.mask_on_photo(labels, {"height": SIZE[0], "width": SIZE[1]}, placement, runner.OUTSIDE)
        mask = model.mask(*size)
        # A pixel on the border of two cells belongs to either.
        assert mask.shape == expected.shape and np.mean(mask != expected) < 0.002


def test_what_a_network_does_not_give_is_said(host: Target, tmp_path: Path) -> None:
    head = Head("segment", "test", 2, output="y", layout="NCHW")
    with outputs_of(host, tmp_path, head, {"y": np.zeros((1, 2, 3, 4), "float32")}) as model:
        with pytest.raises(runner.RunnerError, match="knows nothing of boxes"):
            model.boxes()
        with pytest.raises(runner.RunnerError, match="says nothing of images"):
            model.prepare(np.zeros((4, 4), "uint8"))


TIMED = r"""
#include <bitkiln.h>
#include <stdio.h>
#include <sys/prctl.h>
int main(int argc, char **argv)
{
    static bk_box boxes[300];
    bk_model *model = bk_open(argv[1], 1);
    bk_tensor_info info;
    if (!model || bk_input_info(model, 0, &info)) return 1;
    FILE *file = fopen(argv[2], "rb");
    if (!file || fread(bk_input_data(model, 0), 1, info.nbytes, file) != info.nbytes) return 2;
    for (int i = 0; i < 2; i++) {
        if (bk_run(model)) return 3;
        prctl(0x41353301, 0, 0, 0, 0);
        int count = bk_detect(model, -1, -1, boxes, 300);
        prctl(0x41353302, i, 0, 0, 0);
        if (count <= 0) return 4;
        if (i) printf("%d\n", count);
    }
    return argc != 3;
}
"""


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("threshold", [0.25, 0.0])
def test_boxes_of_80_classes_are_found_in_milliseconds(tmp_path: Path, layout: str, threshold: float) -> None:
    """8,400 candidates on the simulated Cortex-A53, 1200 MHz, one core: 300 good ones around 30 things, or all of them."""
    target = targets.load("rasp3b")
    rng = np.random.default_rng(10)
    rows = np.concatenate([rng.random((8400, 4)) * 500, rng.random((8400, 80)) ** 2 * 0.2], 1).astype("float32")
    for thing in range(30):
        around = rng.choice(8400, 10, replace=False)
        place = np.array([*(rng.random(2) * 600), 80, 60])
        rows[around, :4] = place + rng.normal(0, 4, (10, 4))
        rows[around, 4 + thing] = 0.5 + rng.random(10) / 2
    values = rows[None] if layout == "rows" else np.ascontiguousarray(rows.T)[None]
    x = new_view("y", values.shape, "float32", boundary=True)
    head = Head("detect", "test", 80, (Candidates("y", "y", layout, "centre"),), threshold=threshold)
    link_library({}, (), replace(make_plan([], [x], [x]), head=head, image=(640, 640)), target, tmp_path / "model.so")
    (tmp_path / "y.raw").write_bytes(values.tobytes())
    (tmp_path / "timed.c").write_text(TIMED)
    command = [target.cc["compiler"], f"-I{DEVICE}", "timed.c", DEVICE / "bitkiln.c", "-ldl", "-o", "timed"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    program = [str(tmp_path / "timed"), str(tmp_path / "model.so"), str(tmp_path / "y.raw")]
    options = ["roi=1", f"out={tmp_path / 'reports'}"]
    params, sysroot = {"cpu": target.cpu, "dram": target.dram}, Path("/usr/aarch64-linux-gnu")
    try:
        command, _ = simulator.qemu_command(params, program, sysroot=sysroot, options=options)
    except simulator.SimUnavailable as missing:
        pytest.skip(str(missing))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = heads.detect(asdict(head), {"y": values}, (640, 640))
    assert int(done.stdout) == min(len(found), 300)
    milliseconds = Reports(tmp_path / "reports").new()[-1]["cycles"] / 1.2e6
    print(f"{milliseconds:.2f} ms")
    assert milliseconds <= 5


Y = Candidates("y", "y", "rows", "centre")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (replace(Y, boxes="z", scores="z"), "asks for an output 'z'; there are y"),
        (replace(Y, layout="diagonal"), "layout 'diagonal' is none of"),
        (replace(Y, coding="polar"), "coding 'polar' is none of"),
        (replace(Y, units="cm"), "units 'cm' is none of"),
        (replace(Y, activation="relu"), "activation 'relu' is none of"),
        (replace(Y, layout="columns"), "is not of the layout 'columns'"),
        (replace(Y, first=9, count=5), "is not of the layout"),
        (replace(Y, coding="prior"), "10 boxes are shifts of 0 priors"),
        (replace(Y, coding="cell-exp"), "needs anchors"),
        (replace(Y, coding="cell-sides"), "1 bins do not fit"),
        (replace(Y, bins=16), "16 bins do not fit"),
        (
            replace(Y, layout="kinds", coding="cell-linear", anchors=((1, 1),), grid=(2, 3)),
            "is not of the layout 'kinds'",
        ),
        (replace(Y, coding="cell-exp", anchors=((1, 1),), grid=(3, 3)), "is not of the layout"),
    ],
)
def test_heads_that_do_not_fit_are_refused(host: Target, tmp_path: Path, part: Candidates, message: str) -> None:
    head = Head("detect", "test", 2, (part,))
    with (
        pytest.raises(ModelError, match=message),
        outputs_of(host, tmp_path, head, {"y": np.zeros((1, 10, 6), "float32")}),
    ):
        pass

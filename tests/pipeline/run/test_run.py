"""Running bundles on simulated and emulated boards."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from PIL import Image
from rich.console import Console
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline import run
from bitkiln.pipeline.boards import emulated
from bitkiln.pipeline.boards.emulated import Answer
from bitkiln.pipeline.boards.farm import simulated_farm
from bitkiln.pipeline.boards.userland import userland
from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.compile import compile_lowered
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.errors import BoardError, BundleError, InputError
from bitkiln.pipeline.model import Candidates, Head, Model, Preprocessing, TensorSpec
from tests.pipeline.conftest import NoRecords


@pytest.fixture
def tensor(toy_input: np.ndarray, tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", toy_input)
    return tmp_path / "x.npy"


def printed(**options) -> tuple[Answer, str]:
    """The answer, and what was printed."""
    file = io.StringIO()
    answer = run.run(console=Console(file=file, width=160), **options)
    return answer, file.getvalue()


def test_the_simulated_board_answers_in_simulated_time(
    toy_bundle: Bundle, tensor: Path, toy_input: np.ndarray, toy_answer, tmp_path: Path
) -> None:
    answer, text = printed(bundle=toy_bundle.folder, tensor=tensor, output=tmp_path / "y.npz", steps=True)
    scores, flat = toy_answer(toy_input)
    np.testing.assert_allclose(answer.outputs["scores"], scores, rtol=1e-5)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["flat"], flat)
    assert "simulated Cortex-A53" in answer.measured_by and answer.measured_by in text
    assert [step.name for step in answer.steps] == ["lv", "lv1", "lv3"] and "(softmax)" in text
    # A few hundred elements: microseconds on the board, and no emulator's time.
    assert 0 < answer.seconds < 1e-3


def test_several_threads_run_on_as_many_simulated_cores(toy_bundle: Bundle, tensor: Path) -> None:
    answer, text = printed(bundle=toy_bundle.folder, tensor=tensor, threads=2)
    best = int(answer.outputs["scores"].argmax())
    assert answer.threads == 2 and answer.measured_by.startswith("simulated Cortex-A53, 2 cores, ")
    assert answer.measured_by in text
    assert text.splitlines()[0].endswith(f"thing {best}") and len(text.splitlines()) == 6


def test_images_go_through_the_bundles_preprocessing(toy_bundle: Bundle, toy_answer, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    how = toy_bundle.manifest["preprocessing"]
    x = (pixels.astype("float32") - np.float32(how["mean"])) * np.float32(how["scale"])
    answer, text = printed(bundle=toy_bundle.folder, image=tmp_path / "photo.png", as_json=True)
    expected = toy_answer(x[None])[0]
    np.testing.assert_allclose(answer.outputs["scores"], expected, rtol=1e-5)
    report = json.loads(text)
    assert report["top"][0]["label"] == f"thing {expected.argmax()}" and len(report["top"]) == 5
    assert report["steps"][0].keys() == {"name", "kind", "layer", "ms"}


def test_a_trace_has_the_outputs_of_all_steps(toy_bundle: Bundle, toy_input: np.ndarray, toy_answer) -> None:
    traced = run.trace(toy_bundle.folder, {"x": toy_input})
    scores, flat = toy_answer(toy_input)
    assert list(traced) == ["lv", "lv1", "lv3"]
    np.testing.assert_array_equal(traced["lv"], np.maximum(toy_input, 0))
    np.testing.assert_array_equal(traced["lv1"].reshape(1, 48), flat)
    np.testing.assert_allclose(traced["lv3"], scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((1, 3, 4, 4), "float32"), "input x has shape 1x4x4x3, not 1x3x4x4"),
        (np.zeros((1, 4, 4, 3), "float64"), "input x is float32, not float64"),
    ],
)
def test_wrong_tensors_are_refused(toy_bundle: Bundle, tmp_path: Path, values: np.ndarray, message: str) -> None:
    np.save(tmp_path / "bad.npy", values)
    with pytest.raises(InputError, match=message):
        run.run(toy_bundle.folder, tensor=tmp_path / "bad.npy")


def test_wrong_files_are_refused(toy_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_text("meow")
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    for options, message in (
        ({"image": tmp_path / "cat.jpg"}, r"cat\.jpg: not an image"),
        ({"tensor": tmp_path / "cat.jpg"}, r"not a \.npy file"),
        ({"tensor": tmp_path / "absent.npy"}, "No such file"),
        ({"tensor": tmp_path / "two.npz"}, "no tensor 'x'; it has a, b"),
        ({}, "give either an image"),
    ):
        with pytest.raises(InputError, match=message):
            run.run(toy_bundle.folder, **options)


def test_an_altered_bundle_is_refused(toy_bundle: Bundle, tensor: Path) -> None:
    (toy_bundle.folder / "runner.py").write_text("print('hello')")
    with pytest.raises(BundleError, match=r"runner\.py: altered"):
        run.run(toy_bundle.folder, tensor=tensor)


def test_a_failure_on_the_board_is_one_line(toy_bundle: Bundle, toy_input: np.ndarray) -> None:
    (toy_bundle.folder / "model.so").write_bytes(b"nothing")
    with pytest.raises(BoardError, match=r"on the emulated board: .*altered since") as caught:
        emulated.on_emulator(toy_bundle.folder, toy_bundle.target, {"x": toy_input})
    assert "\n" not in str(caught.value)


def test_outputs_that_cannot_be_written_are_one_line(toy_bundle: Bundle, tensor: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"y\.npz: No such file or directory"):
        run.run(toy_bundle.folder, tensor=tensor, output=tmp_path / "absent" / "y.npz")


def test_a_board_of_a_tracker_answers(toy_bundle: Bundle, toy_input: np.ndarray, toy_answer, secret) -> None:
    with simulated_farm(toy_bundle.target, count=1, secret=secret) as (tracker, key):
        answer = run.answer_on(f"{tracker}/{key}", toy_bundle, {"x": toy_input})
    np.testing.assert_allclose(answer.outputs["scores"], toy_answer(toy_input)[0], rtol=1e-5)
    assert "simulated Cortex-A53" in answer.measured_by and len(answer.steps) == 3


@pytest.mark.parametrize("board", ["127.0.0.1:1/rasp3b", "nowhere/rasp3b"])
def test_a_tracker_that_is_not_there_is_one_line(toy_bundle: Bundle, tensor: Path, board: str) -> None:
    with pytest.raises(BoardError) as caught:
        run.run(toy_bundle.folder, tensor=tensor, board=board)
    assert board.split("/")[0] in str(caught.value) and "\n" not in str(caught.value)


# --- What the outputs mean --------------------------------------------------------------------------------------------


def compiled_with(head: Head, module: tvm.IRModule, shape: tuple[int, ...], folder: Path) -> Path:
    """A bundle of a network on images of 8 x 8 whose output is called "y"."""
    x, y = TensorSpec("x", (1, 8, 8, 3), layout="NHWC"), TensorSpec("y", shape)
    names = ("cat", "dog")
    model = Model("seen", module, (x,), (y,), "0" * 64, Preprocessing(8, 8, scale=(1 / 255,) * 3), names, head)
    return compile_lowered(model, module, targets.load("rasp3b"), NoRecords(), folder / "seen")


def as_module(build: Callable[[relax.BlockBuilder, relax.Var], relax.Expr]) -> tvm.IRModule:
    """A network on an image x[1, 8, 8, 3]."""
    x = relax.Var("x", relax.TensorType((1, 8, 8, 3), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(build(builder, x))
        builder.emit_func_output(result)
    return relax.transform.LegalizeOps()(builder.get())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A dark picture, 40 x 80, whose upper half is red."""
    pixels = np.zeros((80, 40, 3), "uint8")
    pixels[:40, :, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_boxes_are_printed_and_drawn(photo: Path, tmp_path: Path) -> None:
    def build(builder: relax.BlockBuilder, x: relax.Var) -> relax.Var:
        """One box whose scores are the red and the blue of a pixel above, its place a constant."""
        pixel = builder.emit(relax.op.strided_slice(x, [1, 2, 3], [1, 1, 0], [2, 2, 3], [1, 1, 2], assume_inbound=True))
        scores = builder.emit(relax.op.reshape(pixel, (1, 1, 2)))
        place = relax.const(np.array([[[4, 2, 4, 2]]], "float32"))
        return relax.op.concat([place, scores], 2)

    head = Head("detect", "test", 2, (Candidates("y", "y", "rows", "centre"),))
    bundle = compiled_with(head, as_module(build), (1, 1, 6), tmp_path)
    _, text = printed(bundle=bundle, image=photo, drawing=tmp_path / "drawn.png", as_json=True)
    (box,) = json.loads(text)["boxes"]
    assert (box["label"], box["left"], box["top"], box["right"], box["bottom"]) == ("cat", 10, 10, 30, 30)
    assert box["score"] == pytest.approx(1)
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    assert drawn.shape == (80, 40, 3) and tuple(drawn[29, 20]) == runner.COLOURS[0]
    _, text = printed(bundle=bundle, image=photo, threshold=1.0)
    assert "nothing found" in text or "cat: 10, 10 to 30, 30" in text
    # On the board itself: of the network's input, as no photo is known.
    np.save(tmp_path / "x.npy", np.ones((1, 8, 8, 3), "float32"))
    system = userland(targets.load("rasp3b"))
    command = system.command(["python3", str(bundle / "runner.py"), "--input", str(tmp_path / "x.npy"), "--json"])
    done = subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (box,) = json.loads(done.stdout)["boxes"]
    assert (box["left"], box["top"], box["right"], box["bottom"]) == (2, 1, 6, 3)


def test_masks_are_summed_up_and_drawn(photo: Path, tmp_path: Path) -> None:
    def build(builder: relax.BlockBuilder, x: relax.Var) -> relax.Var:
        """Class 1 where it is red: scores 0.5 and red."""
        red = builder.emit(relax.op.strided_slice(x, [3], [0], [1], assume_inbound=True))
        return relax.op.concat([relax.const(np.full((1, 8, 8, 1), 0.5, "float32")), red], 3)

    head = Head("segment", "test", 2, output="y", layout="NHWC")
    bundle = compiled_with(head, as_module(build), (1, 8, 8, 2), tmp_path)
    _, text = printed(bundle=bundle, image=photo, drawing=tmp_path / "drawn.png")
    assert [line.split() for line in text.splitlines()[:2]] == [["50.00", "%", "cat"], ["50.00", "%", "dog"]]
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    assert (drawn[60, 20] == 0).all() and tuple(drawn[20, 20]) != (255, 0, 0)


def test_there_is_nothing_to_draw_on_or_to_draw(toy_bundle: Bundle, tensor: Path, photo: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --image"):
        printed(bundle=toy_bundle.folder, tensor=tensor, drawing=tmp_path / "drawn.png")
    with pytest.raises(InputError, match="nothing to draw"):
        printed(bundle=toy_bundle.folder, image=photo, drawing=tmp_path / "drawn.png")
    assert not (tmp_path / "drawn.png").exists()

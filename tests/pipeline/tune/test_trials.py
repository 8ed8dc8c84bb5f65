"""What becomes of a trial, whatever the board does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.boards.board import KernelFailed, Measurement, Output
from bitkiln.pipeline.boards.tracker import NoBoard
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.tune import trials
from bitkiln.pipeline.tune.builder import Artifact, Builder, BuildFailed
from bitkiln.pipeline.tune.data import arguments, disagreement
from bitkiln.pipeline.tune.tasks import Task
from bitkiln.pipeline.tune.trials import BoardLost, Trials
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Binarize, Conv2d, Pool, Pool2d

TASK = Task(Conv2d(4, 4, 3, 5, (3, 3), padding=(1, 1, 1, 1)), targets.load("rasp3b"), occurrences=1)
SIZE = 4 * 4 * 5
RIGHT = np.arange(SIZE, dtype="float32")


class FakeBuilder:
    """Builds nothing."""

    def close(self) -> None:
        """Nothing was begun."""

    def build(self, workload, knobs, target, threads=1) -> Artifact:
        if knobs.get("tile") == "broken":
            raise BuildFailed("no registers left")
        return Artifact(Path("/nonexistent"))


class FakeBoard:
    """Answers what the test says, call by call."""

    def __init__(self, *answers: Callable[[], Measurement]) -> None:
        self.answers = list(answers)
        self.requests = []

    def measure(self, library, request, inputs, known) -> Measurement:
        self.requests.append(request)
        return self.answers.pop(0)()

    def hang_up(self) -> None:
        pass


def gives(values: np.ndarray = RIGHT, cycles: float = 1000.0) -> Callable[[], Measurement]:
    data = values.astype("float32").tobytes()
    output = Output("out", (1, 4, 4, 5), "float32", hashlib.sha256(data).hexdigest(), data)
    return lambda: Measurement("cycles", cycles, "simulated", "simulated, v1", 1200, outputs=(output,))


def fails(error: Exception) -> Callable[[], Measurement]:
    def raise_it() -> Measurement:
        raise error

    return raise_it


def candidate(*answers: Callable[[], Measurement], knobs: dict | None = None):
    """The record of a candidate after the default took 2000 cycles; and the board."""
    board = FakeBoard(gives(cycles=2000), *answers)
    runs = Trials(FakeBuilder(), board, 1)
    expected, default = runs.reference(TASK)
    assert default.default
    return runs.candidate(TASK, knobs or {"tile": "x"}, expected, default), board


def test_a_good_candidate_is_recorded_with_what_measured_it():
    record, board = candidate(gives(cycles=900))
    assert (record.ok, record.value, record.unit, record.measured_by) == (True, 900, "cycles", "simulated, v1")
    assert not record.default
    assert board.requests[1].limit_cycles == 6000, "given up at three times the best"


def test_rounding_is_forgiven_and_wrong_results_are_not():
    assert candidate(gives(RIGHT * (1 + 1e-5)))[0].ok
    wrong = RIGHT.copy()
    wrong[3] += 5
    record, _ = candidate(gives(wrong))
    assert record.status == "wrong"
    assert not record.ok
    assert "differ from the default's" in record.message


@pytest.mark.parametrize("status", ["crashed", "timeout", "stopped", "error"])
def test_a_kernel_that_fails_is_a_record(status):
    record, _ = candidate(fails(KernelFailed(status, "it died")))
    assert (record.status, record.message, record.value) == (status, "it died", None)


def test_a_candidate_that_does_not_compile_is_a_record():
    record, board = candidate(knobs={"tile": "broken"})
    assert (record.status, record.message) == ("build", "no registers left")
    assert len(board.requests) == 1


def test_a_lost_board_gets_a_second_chance():
    assert candidate(fails(BoardError("gone")), gives())[0].ok
    assert candidate(fails(BoardError("gone")), fails(BoardError("gone")))[0].status == "lost"


def test_a_tracker_that_returns_is_waited_for(monkeypatch):
    monkeypatch.setattr(trials.time, "sleep", lambda seconds: None)
    assert candidate(fails(NoBoard("no tracker")), fails(NoBoard("no tracker")), gives())[0].ok
    monkeypatch.setattr(trials, "PATIENCE", -1.0)
    with pytest.raises(BoardLost, match="run again to go on"):
        candidate(fails(NoBoard("no tracker")))


def test_abandoned_trials_start_nothing_new():
    board = FakeBoard(gives(cycles=2000))
    runs = Trials(FakeBuilder(), board, 1)
    expected, default = runs.reference(TASK)
    runs.abandon()
    with pytest.raises(BoardLost):
        runs.candidate(TASK, {"tile": "x"}, expected, default)
    assert len(board.requests) == 1


def test_a_default_that_fails_is_an_error():
    with pytest.raises(BoardError, match="the untuned default fails"):
        Trials(FakeBuilder(), FakeBoard(fails(KernelFailed("crashed", "SIGSEGV"))), 1).reference(TASK)


WORKLOADS = [
    Conv2d(6, 5, 12, 7, (3, 3), epilogue=(Step("mul", "channel"), Step("add", "tensor"), Step("prelu", "element"))),
    Conv2d(6, 5, 12, 8, (3, 2), groups=4),
    Conv2d(6, 5, 12, 7, (1, 1), binary=True, out="bits", threshold="element"),
    Conv2d(6, 5, 12, 7, (1, 1), binary=True, out="bits", threshold="channel"),
    Binarize(4, 4, 11, (Step("add", "channel"),)),
    Pool2d(4, 4, 11, Pool((2, 2), (2, 2)), bits=True, invert=True),
    Pool2d(4, 4, 11, Pool((2, 2), (2, 2)), epilogue=(Step("add", "channel"),)),
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.key())
def test_arguments_have_the_workload_s_shapes(workload):
    found = [(array.shape, str(array.dtype)) for array in arguments(workload, 1)]
    assert found == list(workload.shapes[:-1])
    again = arguments(workload, 1)
    assert all(np.array_equal(a, b) for a, b in zip(arguments(workload, 1), again, strict=True))


def test_tails_of_bits_are_clear():
    data, weight, _ = arguments(WORKLOADS[2], 1)
    assert not (data[..., -1] & 0xF0).any()
    assert not (weight[..., -1] & 0xF0).any()
    assert data[..., -1].any()


def test_sums_are_exact_in_any_order():
    data, weight = arguments(Conv2d(1, 1, 4096, 1, (1, 1)), 1)
    products = (data.ravel() * weight.ravel()).astype("float32")
    forward = np.add.accumulate(products)[-1]
    backward = np.add.accumulate(products[::-1])[-1]
    assert forward == backward == products.astype("float64").sum()


def test_bits_of_binary_layers_must_be_equal():
    binary, signs = WORKLOADS[2], Conv2d(8, 8, 12, 64, (1, 1), out="bits")
    one_off = bytes([1]) + bytes(999)
    assert "1 of 8000 result bits" in disagreement(binary, bytes(1000), one_off)
    assert disagreement(signs, bytes(1000), one_off) == ""
    assert disagreement(signs, bytes(1000), b"\xff" * 1000)
    assert disagreement(binary, bytes(3), bytes(4))


def test_nan_is_wrong():
    values = np.ones(4, "float32")
    assert disagreement(TASK.workload, values.tobytes(), np.full(4, np.nan, "float32").tobytes())


def test_the_builder_builds_and_says_why_not():
    builder = Builder(workers=1)
    try:
        task = Task(Conv2d(8, 8, 8, 8, (3, 3)), targets.load("rasp3b"))
        artifact = builder.build(task.workload, task.default, task.target)
        assert artifact.library.read_bytes().startswith(b"\x7fELF")
        assert len(artifact.inputs()["arg0"]) == 4 * 8 * 8 * 8
        artifact.discard()
        assert not artifact.folder.exists()
        with pytest.raises(BuildFailed):
            builder.build(task.workload, {"no": "such knobs"}, task.target)
    finally:
        builder.close()

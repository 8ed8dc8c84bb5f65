"""Tuning goes on whatever happens, and keeps what it found."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline.compile.kernels import choose_kernels
from bitkiln.pipeline.compile.plan import read_network
from bitkiln.pipeline.errors import RecordError
from bitkiln.pipeline.passes.pipeline import lower
from bitkiln.pipeline.records import Log, Record, Records, append, log_file, log_files
from bitkiln.pipeline.tune import Budget, TaskState, Tuning, tune_tasks
from bitkiln.pipeline.tune.space import Space
from bitkiln.pipeline.tune.tasks import Task, extract_tasks
from bitkiln.pipeline.tune.trials import BoardLost, Expected
from bitkiln.schedules.workload import Conv2d, Generic
from tests.pipeline.inspect.networks import model_of, weight
from tests.schedules.generic.test_sketches import workload_of

RASP3B = targets.load("rasp3b")
SMALL = Path(__file__).parent / "tune_small.py"
SIMULATED = "simulated, v1"
KNOBS = {"a": list(range(6)), "b": list(range(6)), "c": [0, 1]}


def a_task(size: int, occurrences: int = 1) -> Task:
    """A task with a made-up space; a larger ``size`` is more work."""
    task = Task(Conv2d(size, size, 8, 8, (3, 3)), RASP3B, occurrences)
    task.space = Space(KNOBS)
    task.default = {"a": 3, "b": 3, "c": 0}
    return task


class FakeTrials:
    """Boards whose answer is a formula: the best point is a=0, b=5, c=1; a=1 crashes, b=0 is slower than the default."""

    def __init__(self) -> None:
        self.measured: list[tuple] = []
        self.fail: Exception | None = None

    def abandon(self) -> None:
        """Nothing is in flight."""

    def reference(self, task: Task) -> tuple[tuple[Expected, ...], Record]:
        return (Expected("", b""),), self._record(task, task.default, default=True)

    def candidate(self, task, knobs, expected, best) -> Record:
        if self.fail:
            raise self.fail
        if knobs["a"] == 1:
            return Record(
                task.key,
                "rasp3b",
                dict(knobs),
                "crashed",
                kind="simulated",
                measured_by=SIMULATED,
                threads=task.threads,
            )
        return self._record(task, knobs)

    def _record(self, task, knobs, default=False) -> Record:
        self.measured.append((task.key, *knobs.values()))
        cycles = task.workload.macs * (2 + knobs["a"] + (5 - knobs["b"]) + (1 - knobs["c"]))
        fields = {"value": cycles, "clock_mhz": 1200, "kind": "simulated", "measured_by": SIMULATED}
        return Record(task.key, "rasp3b", dict(knobs), default=default, threads=task.threads, **fields)


def run(tasks, folder: Path, trials: int, fake: FakeTrials | None = None, **budget) -> list[TaskState]:
    tuning = Tuning(tasks, fake or FakeTrials(), folder, 2)
    return tuning.run(Budget(trials, **budget), SIMULATED, 2, Console(quiet=True))


def lines(folder: Path) -> list[Record]:
    return [record for path in log_files([folder]) for record in Log.read(path).records]


def test_every_trial_is_recorded_and_the_default_first(tmp_path):
    (state,) = run([a_task(8)], tmp_path, 20)
    records = lines(tmp_path)
    assert len(records) == 20
    assert records[0].default
    assert state.best.seconds == min(record.seconds for record in records)
    assert Records([tmp_path]).best(state.key, RASP3B).knobs == state.best.knobs
    assert sum(not record.ok for record in records) == state.failures


def test_nothing_slower_than_the_default_is_chosen(tmp_path):
    task = a_task(8)
    task.default = {"a": 0, "b": 5, "c": 1}
    (state,) = run([task], tmp_path, 12)
    assert state.best.default
    assert Records([tmp_path]).best(state.key, RASP3B).default


def test_a_second_run_measures_nothing_twice(tmp_path):
    fake = FakeTrials()
    run([a_task(8)], tmp_path, 15, fake)
    (state,) = run([a_task(8)], tmp_path, 15, fake)
    candidates = [tuple(record.knobs.items()) for record in lines(tmp_path)]
    assert len(candidates) == len(set(candidates)) == 30
    assert state.trials == 30


def test_it_stops_when_nothing_improves(tmp_path):
    task = a_task(8)
    task.default = {"a": 0, "b": 5, "c": 1}
    run([task], tmp_path, 1000)
    assert len(lines(tmp_path)) < task.space.size


def test_a_space_is_exhausted_once(tmp_path):
    task = a_task(8)
    task.space = Space({"a": [3, 0], "b": [3], "c": [0, 1]})
    run([task], tmp_path, 1000)
    assert len(lines(tmp_path)) == 4


def test_it_stops_at_the_minutes(tmp_path, capsys):
    tuning = Tuning([a_task(8)], FakeTrials(), tmp_path, 2)
    tuning.run(Budget(1000, minutes=1e-9), SIMULATED, 2, Console(width=250))
    assert len(lines(tmp_path)) == 1
    said = capsys.readouterr().out
    assert "before the search began" in said and "no faster kernels" in said


def test_a_budget_too_small_for_all_defaults_goes_to_the_costliest(tmp_path):
    run([a_task(8), a_task(32), a_task(16)], tmp_path, 2)
    assert [record.workload.split()[1] for record in lines(tmp_path)] == ["32x32x8", "16x16x8"]


def test_costly_tasks_get_more_trials(tmp_path):
    states = run([a_task(8), a_task(64, occurrences=3)], tmp_path, 30)
    assert states[1].trials > 2 * states[0].trials


def test_records_of_another_clock_are_tried_first_but_not_believed(tmp_path):
    task = a_task(8)
    known = {"a": 0, "b": 5, "c": 1}
    old = Record(task.key, "rasp3b", known, value=1, clock_mhz=1200, kind="simulated", measured_by="simulated, v0")
    append(log_file(tmp_path, task.key, "rasp3b"), old)
    (state,) = run([task], tmp_path, 2)
    assert [record.knobs for record in lines(tmp_path)[1:]] == [task.default, known]
    assert state.best.measured_by == SIMULATED


def test_a_lost_board_ends_the_run_and_keeps_the_trials(tmp_path):
    fake = FakeTrials()
    fake.fail = BoardLost("no tracker")
    with pytest.raises(BoardLost):
        run([a_task(8), a_task(12)], tmp_path, 20, fake)
    assert len(lines(tmp_path)) == 2
    fake.fail = None
    run([a_task(8), a_task(12)], tmp_path, 20, fake)
    assert len(lines(tmp_path)) == 22


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "bitkiln-test", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("may not mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_run_in_one_line_and_the_next_goes_on(small_disk, tmp_path):
    with pytest.raises(RecordError, match="No space left"):
        run([a_task(8)], small_disk, 1000)
    kept = lines(small_disk)
    assert kept
    assert not Log.read(log_files([small_disk])[0]).bad_lines
    roomy = tmp_path / "roomy"
    for record in kept:
        append(log_file(roomy, record.workload, record.target), record)
    run([a_task(8)], roomy, 5)
    assert len(lines(roomy)) == len(kept) + 5


def test_plain_lines_tell_what_goes_on(tmp_path, capsys):
    Tuning([a_task(8)], FakeTrials(), tmp_path, 2).run(Budget(3), SIMULATED, 2, Console(width=250))
    text = capsys.readouterr().out
    assert "tuning 1 task on 2 boards (simulated, v1), at most 3 trials" in text
    assert "trial 1/3, task 1/1 conv2d 8x8x8" in text
    assert "default; best" in text
    assert "MAC/cycle" in text
    assert "left" in text
    assert "tuned layers: " in text and "(simulated, v1)" in text.splitlines()[-1]


def test_a_terminal_gets_a_live_table(tmp_path, capsys):
    console = Console(width=150, force_terminal=True)
    Tuning([a_task(8)], FakeTrials(), tmp_path, 2).run(Budget(3), SIMULATED, 2, console)
    text = capsys.readouterr().out
    assert "default ms" in text
    assert "trial 3/3" in text


def test_tasks_of_a_network_are_distinct_workloads(toy):
    assert extract_tasks([toy, toy], RASP3B) == []


# --- With boards -----------------------------------------------------------------------------------------------------------


def start(logs: Path, trials: int, *boards: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SMALL), str(logs), str(trials), *boards]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_records(logs: Path, count: int, process: subprocess.Popen[str], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while sum(len(Log.read(path).records) for path in log_files([logs])) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no records"
        time.sleep(0.05)


def kill_process(parent: subprocess.Popen[str], word: str) -> None:
    """Kill the child of ``parent`` that has ``word`` in its command line."""
    (child,) = [child for child in psutil.Process(parent.pid).children() if word in " ".join(child.cmdline())]
    child.kill()


def test_it_outlives_its_board_and_its_tracker_and_resumes_after_its_own_death(tmp_path):
    process = start(tmp_path, 100)
    try:
        wait_for_records(tmp_path, 2, process)
        kill_process(process, "board_server")
        wait_for_records(tmp_path, 4, process)
        kill_process(process, "boards.tracker")
        wait_for_records(tmp_path, 6, process)
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.communicate(timeout=10)
    psutil.wait_procs(children, 10)
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    before = lines(tmp_path)
    assert not [record for record in before if record.status in ("lost", "error")], "trials outlive board and tracker"

    process = start(tmp_path, 3)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"{len(before)} trials known from earlier runs" in output
    after = lines(tmp_path)
    assert len(after) == len(before) + 3
    assert len({tuple(record.knobs.items()) for record in after}) == len(after)


def test_over_a_tracker_and_interrupted_it_keeps_what_it_has(farm, tmp_path):
    address, key = farm
    process = start(tmp_path, 100, str(address), key)
    wait_for_records(tmp_path, 2, process)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "on 2 boards" in output
    assert "tuned layers" in output, "the summary of what was done"
    assert len(lines(tmp_path)) >= 2


def hears(process: subprocess.Popen[str], number: int) -> bool:
    """Whether the process has a handler for the signal."""
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(int(caught, 16) >> (number - 1) & 1)


STAGES = {
    "imports": lambda process, logs: hears(process, signal.SIGTERM),
    "boards": lambda process, logs: psutil.Process(process.pid).children(),
    "trials": lambda process, logs: len(lines(logs)) > 1,
}


@pytest.mark.parametrize(
    ("stage", "number"), [*((stage, signal.SIGTERM) for stage in STAGES), ("trials", signal.SIGINT)]
)
def test_interrupted_at_any_stage_it_leaves_nothing(tmp_path, monkeypatch, stage, number):
    scratch, logs = tmp_path / "tmp", tmp_path / "logs"
    scratch.mkdir()
    logs.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    process = start(logs, 100)
    deadline = time.monotonic() + 90
    while not STAGES[stage](process, logs):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - began < 8, "a second, and what a busy machine adds"
    assert process.returncode == 128 + number
    assert "Traceback" not in output
    assert "internal error" not in output
    assert not psutil.wait_procs(children, 5)[1]
    assert list(scratch.iterdir()) == []


def test_each_number_of_threads_is_a_task_of_its_own(tmp_path):
    """They share no records, and each has the best of its own."""
    tasks = [replace(a_task(8), threads=count) for count in (1, 4)]
    for task in tasks:
        task.space, task.default = Space(KNOBS), {"a": 3, "b": 3, "c": 0}
    states = run(tasks, tmp_path, 20)
    assert [state.threads for state in states] == [1, 4]
    assert {record.threads for record in lines(tmp_path)} == {1, 4}
    again = Tuning(tasks, FakeTrials(), tmp_path, 2)
    again.run(Budget(1), SIMULATED, 2, Console(quiet=True))
    assert sum(state.trials for state in again.states) == 21


def test_a_function_without_an_operator_is_tuned_and_its_record_serves(farm, tmp_path):
    """A convolution of volumes: what is measured is what MetaSchedule derives, and what compiling derives again."""
    model = model_of(lambda _emit, x: relax.op.nn.conv3d(x, weight(8, 3, 3, 3, 3), padding=1), (1, 3, 4, 6, 8))
    (task,) = extract_tasks([model], RASP3B)
    assert isinstance(task.workload, Generic)
    address, key = farm
    (state,) = tune_tasks([task], RASP3B, tmp_path, Budget(6), str(address), key)
    assert {record.status for record in lines(tmp_path)} <= {"ok", "stopped"}
    assert len(lines(tmp_path)) == 6
    best = Records([tmp_path]).best(task.key, RASP3B, 1)
    assert best is not None and best.value == state.best.value
    module = lower(model, RASP3B).module
    chosen = choose_kernels(module, read_network(module), RASP3B, Records([tmp_path]))
    ((source, knobs),) = [(kernel.source, dict(kernel.knobs)) for kernel in chosen.values() if kernel.knobs]
    assert (source, knobs) == ("tuned", dict(best.knobs))


def test_general_kernels_that_take_little_get_no_trials(tmp_path):
    """Of two alike, one is run 100 times as often."""

    class Alike(FakeTrials):
        def candidate(self, task, knobs, expected, best) -> Record:
            return self._record(task, knobs)

        def _record(self, task, knobs, default=False) -> Record:
            fields = {"value": 1e6, "clock_mhz": 1200, "kind": "simulated", "measured_by": SIMULATED}
            return Record(task.key, "rasp3b", dict(knobs), default=default, **fields)

    tasks = [Task(workload_of("products"), RASP3B, 1), Task(workload_of("tall"), RASP3B, 100)]
    small, large = run(tasks, tmp_path, 12, Alike())
    assert small.trials == 1
    assert large.trials == 11

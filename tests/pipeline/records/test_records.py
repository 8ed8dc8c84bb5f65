"""Tuning logs survive torn lines, full disks and each other."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from bitkiln import targets
from bitkiln.pipeline import records
from bitkiln.pipeline.errors import RecordError
from bitkiln.pipeline.records import Log, Record, Records, append, log_file
from bitkiln.targets.sim import MODEL_VERSION

WORKLOAD = "conv2d 8x8x4 o4 k3x3"


def record(value: float | None = 1000, **changes) -> Record:
    """A simulated trial of WORKLOAD."""
    fields = {"knobs": {"tile": "4x16"}, "clock_mhz": 1200, "kind": "simulated", "measured_by": "simulated, v1"}
    return Record(WORKLOAD, changes.pop("target", "rasp3b"), **{**fields, "value": value, **changes})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The log that WORKLOAD's records go to."""
    return log_file(tmp_path, WORKLOAD, "rasp3b")


def best(folder: Path, target: str = "rasp3b") -> Record | None:
    return Records([folder]).best(WORKLOAD, targets.load(target))


def test_what_was_appended_is_read(log, tmp_path):
    first, second = record(2000), record(1000, knobs={"tile": "8x8", "block": 2})
    append(log, first)
    append(log, second)
    assert Log.read(log).records == [first, second]
    assert best(tmp_path) == second
    assert best(tmp_path).seconds == pytest.approx(1000 / 1.2e9)


@pytest.mark.parametrize(
    "garbage", [b'{"workload": "conv', b"\xff\xfe\x00", b"[1, 2]", b'{"a": 1}', b"", b'{"workload": 3}']
)
def test_a_line_that_is_no_record_costs_only_itself(log, tmp_path, garbage, capsys):
    append(log, record(2000))
    with log.open("ab") as file:
        file.write(garbage + b"\n")
    append(log, record(1000))
    assert best(tmp_path).value == 1000
    assert len(Log.read(log).bad_lines) == 1
    warning = capsys.readouterr().err
    assert f"{log}: skipped a line that is no record (line 2" in warning


def test_a_torn_last_line_is_closed_before_the_next_record(log):
    append(log, record(2000))
    whole = log.read_bytes()
    log.write_bytes(whole + whole[: len(whole) // 2])
    append(log, record(1000))
    read = Log.read(log)
    assert [row.value for row in read.records] == [2000, 1000]
    assert [line for line, _ in read.bad_lines] == [2]


@pytest.mark.parametrize(
    "value", ["NaN", "-1", "0", "true", '"fast"', "null", "5e-324", "1e999", "1" + "0" * 400, "[1]"]
)
def test_a_value_that_is_no_time_is_no_record(value):
    line = json.dumps(record().as_json()).replace('"value": 1000', f'"value": {value}')
    with pytest.raises(records.NotARecord):
        records.parse(line.encode())


ABSURD = {
    "deep": b"[" * 200_000,
    "deep object": b'{"a":' * 200_000,
    "deep health": {"health": {"a": {"b": 1}}},
    "negative clock": {"clock_mhz": -1200},
    "no clock": {"clock_mhz": None},
    "huge clock": {"clock_mhz": 10**400},
    "unit": {"unit": "furlongs"},
    "kind": {"kind": "rumour"},
    "status": {"status": "splendid"},
    "float knobs": {"knobs": {"tile": 1.0}},
    "bool knobs": {"knobs": {"tile": True}},
    "list knobs": {"knobs": {"tile": [1]}},
    "huge knobs": {"knobs": {"tile": 10**400}},
    "many knobs": {"knobs": {f"k{i}": 1 for i in range(1000)}},
    "escape": {"measured_by": "\x1b[2J\x1b]0;gone\x07"},
    "two lines": {"message": "one\ntwo"},
    "direction": {"measured_by": "\u202egnissecorp"},
    "time": {"time": "tomorrow"},
    "schedule": {"schedule": [1]},
    "path": {"workload": "../../../tmp/x y"},
    "no workload": {"workload": ""},
    "target": {"target": "../x"},
    "threads": {"threads": 0},
    "long": {"message": "x" * 100_000},
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_lines_are_no_records(name):
    change = ABSURD[name]
    line = change if isinstance(change, bytes) else json.dumps({**record().as_json(), **change}).encode()
    with pytest.raises(records.NotARecord) as caught:
        records.parse(line)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_mutated_lines_cost_nothing_but_themselves(log):
    """Whatever a dying card makes of a log, reading it ends in records and reasons."""
    source = random.Random(1)
    good = json.dumps(record().as_json()).encode()
    log.parent.mkdir(parents=True)
    with log.open("wb") as file:
        for _ in range(20_000):
            line = bytearray(good)
            for _ in range(source.randint(1, 4)):
                at = source.randrange(len(line))
                line[at : at + source.choice((0, 1, 1, 3))] = source.randbytes(source.choice((0, 1, 1, 2)))
            file.write(bytes(line).replace(b"\n", b"") + b"\n")
    read = Log.read(log)
    assert len(read.records) + len(read.bad_lines) == 20_000
    for found in read.records:
        assert found.describe().isprintable()
        assert records.parse(json.dumps(found.as_json()).encode()) == found


def test_what_could_not_be_read_is_not_written(log):
    append(log, record())
    for wrong in (record(float("nan")), record(-5), record(1000, measured_by="\x1b"), record(1000, unit="parsecs")):
        with pytest.raises((records.NotARecord, ValueError)):
            append(log, wrong)
    assert Log.read(log).records == [record(time=Log.read(log).records[0].time)]
    assert not Log.read(log).bad_lines


def test_records_of_other_versions_are_kept_but_not_used(log, tmp_path):
    append(log, record(10, schedule=0))
    append(log, record(20, tvm="0.1"))
    assert best(tmp_path) is None
    assert len(Log.read(log).records) == 2


def test_the_target_s_own_records_go_before_its_relatives(tmp_path):
    append(log_file(tmp_path, WORKLOAD, "rasp3b"), record(1000))
    assert best(tmp_path, "dragonboard410c").value == 1000
    append(log_file(tmp_path, WORKLOAD, "dragonboard410c"), record(3000, target="dragonboard410c"))
    assert best(tmp_path, "dragonboard410c").value == 3000
    assert best(tmp_path, "rasp3b").value == 1000


def test_what_a_board_measured_goes_before_what_a_model_did(log, tmp_path):
    append(log, record(1000))
    append(log, record(1, kind="emulated", unit="seconds", measured_by="qemu"))
    assert best(tmp_path).kind == "simulated"
    append(log, record(0.5, kind="board", unit="seconds", measured_by="Raspberry Pi 3, Cortex-A53"))
    assert best(tmp_path).kind == "board"


def test_figures_of_different_models_are_not_compared(log, tmp_path):
    append(log, record(1000, time="2026-01-01T00:00:00Z"))
    append(log, record(2000, measured_by="simulated, v2", time="2026-02-01T00:00:00Z"))
    append(log, record(1500, measured_by="simulated, v2", time="2026-02-01T00:00:01Z"))
    assert best(tmp_path).value == 1500


def test_records_of_another_timing_model_serve_until_there_are_others(log, tmp_path):
    today = f"simulated Cortex-A53, 1 core, model {MODEL_VERSION}, 1200 MHz"
    append(log, record(1000, measured_by="simulated Cortex-A53, model v1, 1200 MHz", time="2026-03-01T00:00:00Z"))
    assert best(tmp_path).superseded
    append(log, record(2000, measured_by=today, time="2026-02-01T00:00:00Z"))
    assert not best(tmp_path).superseded and best(tmp_path).value == 2000
    assert records.check([tmp_path])["logs"][0]["superseded"] == 1


def test_failed_trials_are_never_the_best(log, tmp_path):
    append(log, record(None, status="crashed", message="SIGSEGV"))
    assert best(tmp_path) is None
    append(log, record(1000))
    assert best(tmp_path).value == 1000


def test_many_may_append_at_once(log):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: append(log, record(1000 + i)), range(200)))
    read = Log.read(log)
    assert sorted(row.value for row in read.records) == list(range(1000, 1200))
    assert not read.bad_lines


def test_a_killed_writer_leaves_whole_records(log):
    code = "from bitkiln.pipeline.records import *; from pathlib import Path; import sys\n"
    code += "while True: append(Path(sys.argv[1]), Record('w', 't', {}, value=1.0)); print(flush=True)"
    process = subprocess.Popen([sys.executable, "-c", code, str(log)], stdout=subprocess.PIPE)
    for _ in range(20):
        process.stdout.readline()
    process.kill()
    process.communicate(timeout=10)
    assert len(Log.read(log).records) >= 20
    assert not Log.read(log).bad_lines


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "bitkiln-test", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("may not mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_leaves_no_half_line(small_disk):
    log = log_file(small_disk, WORKLOAD, "rasp3b")
    append(log, record())
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError):
        while True:
            ballast.write(bytes(1024))
    written = 1
    with pytest.raises(RecordError, match=f"{log}: .*No space left") as caught:
        while True:
            append(log, record())
            written += 1
    assert "\n" not in str(caught.value)
    assert len(Log.read(log).records) == written
    assert log.read_bytes().endswith(b"\n")
    (small_disk / "ballast").unlink()
    append(log, record())
    assert len(Log.read(log).records) == written + 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "rasp3b").write_text("a file in the way")
    with pytest.raises(RecordError, match="--logs"):
        append(log_file(tmp_path, WORKLOAD, "rasp3b"), record())


def test_merge_keeps_each_record_once(tmp_path):
    mine, yours, ours = (tmp_path / name for name in ("mine.jsonl", "yours.jsonl", "ours.jsonl"))
    common, extra = record(1000), record(500)
    append(mine, common)
    append(yours, common)
    append(yours, extra)
    merged = records.merge([mine, yours], ours)
    assert (merged["records"], merged["logs"], merged["duplicates"]) == (2, 2, 1)
    assert Log.read(ours).records == [common, extra]


def test_check_names_bad_lines(log, tmp_path, capsys):
    append(log, record())
    assert records.check([tmp_path])["ok"]
    with log.open("a") as file:
        file.write("nonsense\n")
    found = records.check([tmp_path])
    assert not found["ok"]
    records.print_check(found, Console(width=200))
    assert f"{log}:2: torn or not JSON" in capsys.readouterr().out


def test_missing_logs_are_named(tmp_path):
    with pytest.raises(RecordError, match="nowhere"):
        Records.open(tmp_path / "nowhere")
    with pytest.raises(RecordError, match="no logs"):
        records.check([tmp_path])


def test_records_describe_themselves():
    assert "1,000 cycles, 0.001 ms (simulated, v1); tile=4x16" in record().describe()
    assert "crashed SIGSEGV" in record(None, status="crashed", message="SIGSEGV").describe()
    assert record().as_json()["knobs"] == {"tile": "4x16"}

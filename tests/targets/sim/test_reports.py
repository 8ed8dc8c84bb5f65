"""Reading the file that the model appends its reports to."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitkiln.targets.sim import Reports


def test_each_report_is_returned_once(tmp_path: Path) -> None:
    path = tmp_path / "reports"
    reports = Reports(path)
    assert reports.new() == []
    path.write_text('{"region": 1}\n{"region": 2}\n')
    assert [report["region"] for report in reports.new()] == [1, 2]
    assert reports.new() == []


def test_a_line_being_written_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "reports"
    path.write_text('{"region": 1}\n{"regi')
    reports = Reports(path)
    assert [report["region"] for report in reports.new()] == [1]
    with path.open("a") as file:
        file.write('on": 2}\n')
    assert [report["region"] for report in reports.new()] == [2]


def test_waiting_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "reports"
    path.write_text('{"region": 1}\n')
    with pytest.raises(TimeoutError, match="1 of 2 reports"):
        Reports(path).wait(2, timeout=0.05)

"""Temporary folders go, however their process ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bitkiln.targets import scratch
from bitkiln.targets.scratch import PREFIX, discard, scratch_beside, scratch_folder, sweep


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_a_folder_goes_with_its_context(folder):
    with scratch_folder() as name:
        assert Path(name).parent == folder
        (Path(name) / "file").touch()
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next(folder):
    code = "import os, sys; from bitkiln.targets.scratch import scratch_folder, scratch_beside\n"
    code += "from pathlib import Path; kept = scratch_folder(), scratch_beside(Path(sys.argv[1]), '.bitkiln-')\n"
    code += "os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(folder)], timeout=30)
    assert len(list(folder.iterdir())) == 2
    with scratch_folder() as mine:
        assert [path for path in folder.iterdir() if path.name[0] != "."] == [Path(mine)]
        beside = scratch_beside(folder, ".bitkiln-")
        assert set(folder.iterdir()) == {Path(mine), beside}
        discard(beside)
    assert list(folder.iterdir()) == []


def test_what_lives_and_what_is_not_ours_stays(folder):
    start = scratch._start_of(os.getppid())
    names = [
        f"{PREFIX}{os.getppid()}-{start}-{scratch._machine()}-a",
        f"{PREFIX}{2**22 + 1}-0-deadbeef-another-machine",
        f"{PREFIX}holiday-pictures",
        f"{PREFIX}",
    ]
    for name in names:
        (folder / name).mkdir()
    recycled = folder / f"{PREFIX}{os.getppid()}-1-{scratch._machine()}-a-number-used-again"
    recycled.mkdir()
    sweep(folder, PREFIX)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_a_link_is_not_followed(folder, tmp_path_factory):
    precious = tmp_path_factory.mktemp("precious")
    (precious / "file").touch()
    (folder / f"{PREFIX}{2**22 + 1}-0-{scratch._machine()}-x").symlink_to(precious)
    sweep(folder, PREFIX)
    assert (precious / "file").exists()
    assert list(folder.iterdir()) == []


def test_all_of_it_goes_at_once(folder):
    kept = [scratch_folder(), scratch_folder()]
    scratch.remove_all()
    assert list(folder.iterdir()) == []
    for each in kept:
        each.cleanup()

"""A folder takes another's place: readers and crashes find one of the two."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bitkiln.pipeline.device import replace_folder as module
from bitkiln.pipeline.device.replace_folder import kept_name, recover, replace_folder


def a_folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "text").write_text(text)
    return path


@pytest.fixture(params=["exchanged", "renamed twice"])
def way(request, monkeypatch) -> str:
    """How folders are replaced: as Linux can, and as any system can."""
    if request.param == "renamed twice":
        monkeypatch.setattr(module, "exchange", lambda one, other: False)
    return request.param


def test_the_new_folder_stands_where_the_old_one_stood(tmp_path, way):
    old, new = a_folder(tmp_path / "here", "old"), a_folder(tmp_path / "new", "new")
    replace_folder(new, old)
    assert (tmp_path / "here/text").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_readers_always_find_one(tmp_path):
    here = a_folder(tmp_path / "here", "0")
    over = threading.Event()

    def write(name: str) -> None:
        for number in range(50):
            replace_folder(a_folder(tmp_path / f"{name}{number}", "x"), here)

    writers = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for writer in writers:
        writer.start()
    threading.Thread(target=lambda: [writer.join() for writer in writers] and over.set()).start()
    while not over.is_set():
        assert (tmp_path / "here").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_what_a_crash_between_two_renames_left_is_put_back(tmp_path):
    here = tmp_path / "here"
    a_folder(kept_name(here), "old")
    recover(here)
    assert (here / "text").read_text() == "old"
    recover(here)
    a_folder(kept_name(here), "older")
    replace_folder(a_folder(tmp_path / "new", "new"), here)
    assert (here / "text").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_boards_run_it_as_a_program(tmp_path):
    ast.parse(Path(module.__file__).read_text(), feature_version=(3, 7))
    old, new = a_folder(tmp_path / "here", "old"), a_folder(tmp_path / "new", "new")
    source = Path(module.__file__).read_bytes()
    subprocess.run([sys.executable, "-I", "-S", "-", str(new), str(old)], input=source, check=True, timeout=30)
    assert (tmp_path / "here/text").read_text() == "new"
    done = subprocess.run(
        [sys.executable, "-", str(tmp_path / "no"), str(old)], input=source, capture_output=True, timeout=30
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1

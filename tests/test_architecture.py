"""The imports, held against the picture of rooms in docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text()
#: The floor of each room, counted from the top.
FLOORS = {
    room: floor
    for floor, line in enumerate(re.search(r"```rooms\n(.*?)```", PAGE, re.S)[1].splitlines())
    for room in line.split()
}
#: The room of each file or folder that the table names.
PLACES = {
    place: room
    for room, places in re.findall(r"^\| (\w+) \| (`.*?) \|", PAGE, re.M)
    for place in re.findall("`(.*?)`", places)
}
#: The folders that are packages of `bitkiln`, and the package itself.
FOLDERS = ("pipeline", "schedules", "targets", "tuning_logs")
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
FILES += [Path("bitkiln/__init__.py"), Path("bitkiln/__main__.py")]


def room_of(path: Path) -> str | None:
    """The room of a file: that of the longest place that holds it."""
    holding = [place for place in PLACES if path == Path(place) or Path(place) in path.parents]
    return PLACES[max(holding, key=len)] if holding else None


def file_of(module: str) -> Path | None:
    """The file of ``bitkiln.<...>``; None where the name is no module of ours."""
    parts = module.split(".")[1:]
    path = Path(*parts) if parts else Path("bitkiln")
    candidates = [path / "__init__.py"] + ([path.with_suffix(".py")] if parts else [])
    return next((each for each in candidates if (ROOT / each).is_file()), None)


def imports_of(path: Path) -> list[tuple[int, Path]]:
    """Line and file of each import of ours, wherever it stands in a file."""
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bitkiln":
            for alias in node.names:
                target = file_of(f"{node.module}.{alias.name}") or file_of(node.module)
                assert target, f"{path}:{node.lineno} imports {node.module}, which is no file"
                found.append((node.lineno, target))
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "bitkiln"]
            found += [(node.lineno, target) for name in names if (target := file_of(name))]
    return found


def test_picture_and_table_have_the_same_rooms_and_no_more_than_a_head_can_hold():
    assert set(FLOORS) == set(PLACES.values())
    assert len(FLOORS) <= 23
    assert not [place for place in PLACES if not (ROOT / place).exists()]


def test_each_file_has_a_room():
    without = {path for path in FILES if room_of(path) is None}
    assert without == {Path("pipeline/__init__.py")}
    assert not imports_of(Path("pipeline/__init__.py"))


def test_imports_lead_to_rooms_below():
    upwards = [
        f"{path}:{line} imports {target}: {room_of(target)} is not below {room_of(path)}"
        for path in FILES
        for line, target in imports_of(path)
        if room_of(target) != room_of(path) and FLOORS[room_of(target)] <= FLOORS[room_of(path)]
    ]
    assert not upwards


def test_folders_are_imported_as_packages_of_bitkiln_alone():
    """Under their own names they would be second copies of the same modules."""
    source = "\n".join(f"import {folder}" for folder in FOLDERS)
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--output-format",
        "concise",
        "--stdin-filename",
        "pipeline/x.py",
        "-",
    ]
    found = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT, timeout=60).stdout
    assert [line.split(":")[1] for line in found.splitlines() if "TID251" in line] == ["1", "2", "3", "4"]

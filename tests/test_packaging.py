"""What is installed is what the repository has, whether the checkout has the links of bitkiln/ or not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKS = ("pipeline", "schedules", "targets", "tuning_logs")


def copy_of_checkout(folder: Path, links: bool) -> Path:
    """The files that git tracks, as ``git clone`` gives them; without ``links`` as with core.symlinks=false."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, timeout=60)
    if listed.returncode != 0:
        pytest.skip("needs a git checkout")
    for name in os.fsdecode(listed.stdout).split("\0")[:-1]:
        source, target = ROOT / name, folder / name
        if not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if not source.is_symlink():
            shutil.copyfile(source, target)
        elif links:
            target.symlink_to(source.readlink())
        else:
            target.write_text(str(source.readlink()))
    return folder


def built(folder: Path, out: Path) -> tuple[set[str], set[str]]:
    """The files of the wheel and of the sdist that ``folder`` builds."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as packed:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        return names, {member.name.partition("/")[2] for member in packed if member.isfile()}


def test_wheel_and_sdist_have_every_file_with_and_without_links(tmp_path: Path):
    plain = copy_of_checkout(tmp_path / "plain", links=False)
    wheel, sdist = built(copy_of_checkout(tmp_path / "linked", links=True), tmp_path / "out-linked")
    assert built(plain, tmp_path / "out-plain") == (wheel, sdist)
    files = {str(path.relative_to(plain)) for path in plain.rglob("*") if path.is_file()}
    shipped = {name for name in files if name.split("/")[0] in LINKS}
    ours = {f"bitkiln/{name}" for name in ("__init__.py", "__main__.py", "py.typed")}
    assert {f"bitkiln/{name}" for name in shipped} | ours == wheel
    assert shipped | {name for name in files if name.split("/")[0] in ("tests", "scripts", "docs", "examples")} <= sdist


def test_a_checkout_without_links_runs(tmp_path: Path):
    folder = copy_of_checkout(tmp_path, links=False)
    shown = subprocess.run(
        [sys.executable, "-m", "bitkiln", "--help"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert "compile" in shown.stdout, shown.stderr

"""What is installed is what the repository has: a package that pyproject.toml forgets is missing from the wheel alone."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_every_package_is_installed():
    folders = settings()["package-dir"]
    found = {
        ".".join([name, *module.parent.relative_to(ROOT / folder).parts])
        for name, folder in folders.items()
        for module in (ROOT / folder).rglob("*.py")
    }
    assert found == set(settings()["packages"])

"""One running system for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bitkiln.pipeline.boards import remote
from tests.vm import system


@pytest.fixture(scope="session")
def image() -> system.Image:
    try:
        return system.image()
    except system.NoMachine as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def machine(image: system.Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[system.Machine]:
    with system.running(image, tmp_path_factory.mktemp("vm")) as running:
        yield running


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulated system takes its time where others use the processors."""
    monkeypatch.setattr(remote, "PATIENCE", 600.0)


@pytest.fixture
def board(machine: system.Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[system.Machine]:
    """The system with ssh told how to get there, and pi's home as it was."""
    monkeypatch.setenv("BITKILN_SSH", machine.environment["BITKILN_SSH"])
    yield machine
    machine.ssh("rm -rf bitkiln net .bitkiln-* .cache; printf '' > .bashrc")


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")

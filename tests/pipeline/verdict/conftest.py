"""A small classifier of images, built once."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bitkiln import targets
from bitkiln.pipeline import schema
from bitkiln.pipeline.model import Model, Preprocessing
from bitkiln.pipeline.verdict.build import Wanted, build
from tests.pipeline.verify.fakes import small_model

UNTUNED = Wanted(targets.load("rasp3b"), trials=None)


@pytest.fixture(scope="session")
def classifier() -> Model:
    """8 x 8 pixels to ten classes, partly on bits."""
    how = Preprocessing(8, 8, mean=(128.0,) * 3, scale=(1 / 64,) * 3)
    return replace(small_model(), preprocessing=how, labels=tuple(f"thing {index}" for index in range(10)))


@pytest.fixture(scope="session")
def built(classifier: Model, tmp_path_factory: pytest.TempPathFactory) -> schema.Build:
    """Its build; not to be altered."""
    folder = tmp_path_factory.mktemp("built") / "small"
    return build(classifier, None, folder, UNTUNED, Console(file=io.StringIO()))


@pytest.fixture(scope="session")
def bundle(built: schema.Build) -> Path:
    """Its bundle; not to be altered."""
    return Path(built["bundle"])

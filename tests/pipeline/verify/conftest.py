"""The small network and the boards that compute it, as fixtures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.passes.pipeline import Lowered, lower
from bitkiln.pipeline.verify.examination import compare_steps
from bitkiln.pipeline.verify.samples import make_inputs
from bitkiln.pipeline.verify.steps import named_steps
from tests.pipeline.verify.fakes import PLAIN, FakeBoard, listed, run_steps, small_model


@pytest.fixture(scope="session")
def model() -> Model:
    """The network."""
    return small_model()


@pytest.fixture(scope="session")
def lowered(model: Model) -> Lowered:
    """The network, lowered."""
    return lower(model, targets.load("rasp3b"))


@pytest.fixture
def trace(model: Model, lowered: Lowered) -> dict[str, np.ndarray]:
    """What a faithful board would give: every step's result."""
    return run_steps(lowered, make_inputs(model))


@pytest.fixture
def rows(lowered: Lowered) -> Callable:
    """Compare a trace: rows by name."""
    steps = named_steps(lowered, listed(lowered))
    return lambda trace: {row.name: row for row in compare_steps(lowered, steps, trace)}


@pytest.fixture
def board(tmp_path: Path) -> Callable[..., FakeBoard]:
    """Make a fake board: ``board(case)``."""
    return lambda case=PLAIN, **changed: FakeBoard(replace(small_model(case), **changed), tmp_path)

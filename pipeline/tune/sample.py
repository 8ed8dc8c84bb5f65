"""One kernel of every day, to measure on a board that was just set up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bitkiln.pipeline.tune.builder import Artifact, Builder
from bitkiln.schedules.registry import operator_for
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target


@contextmanager
def sample_kernel(target: Target) -> Iterator[Artifact]:
    """A 3x3 convolution of 28x28 pixels, 32 to 32 channels, by its untuned default; gone with the context."""
    workload = Conv2d(28, 28, 32, 32, (3, 3), padding=(1, 1, 1, 1))
    builder = Builder(workers=1)
    try:
        yield builder.build(workload, operator_for(workload).default(workload, target), target)
    finally:
        builder.close()

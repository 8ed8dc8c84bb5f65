"""One kernel of every day, to measure on a board that was just set up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bitkiln.pipeline.tune.builder import Artifact, Builder
from bitkiln.pipeline.tune.tasks import Task
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target


def sample_task(target: Target) -> Task:
    """A 3x3 convolution of 28x28 pixels, 32 to 32 channels."""
    return Task(Conv2d(28, 28, 32, 32, (3, 3), padding=(1, 1, 1, 1)), target)


@contextmanager
def sample_kernel(target: Target) -> Iterator[Artifact]:
    """The sample's untuned default; gone with the context."""
    task = sample_task(target)
    builder = Builder(workers=1)
    try:
        yield builder.build(task.workload, task.default, target)
    finally:
        builder.close()

"""Numbers of threads that a command is asked for."""

from __future__ import annotations

from collections.abc import Iterable

from bitkiln.pipeline.errors import InputError
from bitkiln.targets import Target


def counts_for(target: Target, threads: Iterable[int] | None) -> tuple[int, ...]:
    """The different ``threads`` in order, all cores of ``target`` where none is given.

    Raises InputError for more threads than cores: two that share a core wait for each other.
    """
    counts = tuple(sorted(set(threads or (target.cores,))))
    if counts[-1] > target.cores:
        raise InputError(
            f"{counts[-1]} threads: {target.name} has {target.cores} cores; give --threads 1 to {target.cores}"
        )
    return counts

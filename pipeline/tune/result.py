"""What a tuning run found, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitkiln.pipeline import schema
from bitkiln.pipeline.records import Record
from bitkiln.pipeline.tune.progress import total_seconds
from bitkiln.targets import Target

if TYPE_CHECKING:
    from bitkiln.pipeline.tune import TaskState


def as_json(states: Sequence[TaskState], models: Sequence[str], target: Target, logs: Path) -> schema.Tune:
    """The tasks of ``models`` with their defaults and the best found."""
    threads = sorted({state.threads for state in states})
    most = [state for state in states if state.threads == threads[-1]]
    before, after = (1e3 * total_seconds(most, tuned) for tuned in (False, True))
    known = [state.best for state in most if state.best]
    return {
        "schema": "bitkiln.tune/1",
        "models": list(models),
        "target": target.name,
        "logs": str(logs),
        "threads": threads,
        "default_ms": before,
        "best_ms": after,
        "gain": before / after if after else None,
        "measured_by": known[0].measured_by if known else "",
        "tasks": [_task(state) for state in states],
    }


def _task(state: TaskState) -> schema.Task:
    default, best = _ms(state.default), _ms(state.best)
    return {
        "workload": state.key,
        "threads": state.threads,
        "occurrences": state.occurrences,
        "default_ms": default,
        "best_ms": best,
        "gain": default / best if default and best else None,
        "trials": state.trials,
        "failures": state.failures,
        "knobs": dict(state.best.knobs) if state.best else {},
    }


def _ms(record: Record | None) -> float | None:
    return None if record is None else 1e3 * record.seconds

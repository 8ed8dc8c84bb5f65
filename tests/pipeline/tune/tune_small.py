"""Tunes one small workload from a process of its own, for tests that kill it: tune_small.py LOGS TRIALS [TRACKER KEY]."""

import sys
from pathlib import Path

from rich.console import Console

from bitkiln import targets
from bitkiln.pipeline import tune
from bitkiln.pipeline.tune.tasks import Task
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Conv2d

WORKLOAD = Conv2d(8, 8, 16, 16, (3, 3), padding=(1, 1, 1, 1), epilogue=(Step("add", "channel"), Step("relu")))


def main(logs: str, trials: str, tracker: str | None = None, key: str | None = None) -> None:
    """As ``tune``, for a network that has but this layer."""
    target = targets.load("rasp3b")
    tune.extract_tasks = lambda models, target: [Task(WORKLOAD, target, occurrences=1)]
    boards = None if tracker else 1
    budget = tune.Budget(trials=int(trials))
    tune.tune([], target, Path(logs), budget, tracker, key, boards, Console(width=200))


if __name__ == "__main__":
    main(*sys.argv[1:])

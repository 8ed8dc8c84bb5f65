"""Tunes one small workload from a process of its own, for tests that kill it: tune_small.py LOGS TRIALS [TRACKER KEY]."""

from pathlib import Path

import click

from bitkiln.pipeline.cli.invoke import invoke


@click.command()
@click.argument("logs", type=click.Path(path_type=Path))
@click.argument("trials", type=int)
@click.argument("tracker", required=False)
@click.argument("key", required=False)
def main(logs: Path, trials: int, tracker: str | None, key: str | None) -> None:
    """As ``tune``, for a network that has but this layer."""
    # As the command line does it: what takes long comes after the beginning.
    from rich.console import Console

    from bitkiln import targets
    from bitkiln.pipeline import tune
    from bitkiln.pipeline.tune.tasks import Task
    from bitkiln.schedules.steps import Step
    from bitkiln.schedules.workload import Conv2d

    epilogue = (Step("add", "channel"), Step("relu"))
    workload = Conv2d(8, 8, 16, 16, (3, 3), padding=(1, 1, 1, 1), epilogue=epilogue)
    tune.extract_tasks = lambda models, target, threads: [Task(workload, target, 1, threads=count) for count in threads]
    boards = None if tracker else 1
    budget = tune.Budget(trials=trials)
    tune.tune([], targets.load("rasp3b"), logs, budget, tracker, key, boards, Console(width=200))


if __name__ == "__main__":
    invoke(main)

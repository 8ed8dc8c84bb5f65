"""From a model to a verdict in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bitkiln import targets
from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import (
    JSON_OPTION,
    MODEL_OPTIONS,
    TARGET_OPTION,
    ModelName,
    console,
    load_model,
    print_json,
)


@click.command()
@click.argument("model", type=ModelName())
@TARGET_OPTION
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The build's folder; build/NAME-TARGET unless given."
)
@click.option("--tune/--no-tune", "tuned", default=True, help="Search faster kernels first, or leave that out.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True, help="Of tuning."
)
@click.option("--trials", type=click.IntRange(min=1), default=400, show_default=True, help="Measurements in all.")
@MODEL_OPTIONS
@JSON_OPTION
def build(
    model: str,
    target: targets.Target,
    output: Path | None,
    tuned: bool,
    minutes: float,
    trials: int,
    as_json: bool,
    **settings: Any,
) -> None:
    """Check, tune, compile, verify and profile MODEL, and say in ten lines what came of it.

    Interrupted, it goes on where it stopped when run again. Exit status 1: the bundle disagrees with the model.

    \b
    Example: bitkiln build model.onnx --labels labels.txt --mean 127.5 --scale 0.00784
    """
    from bitkiln.pipeline.verdict.printing import lines

    screen = console(err=as_json)
    loaded = load_model(model, settings)
    made = api.build(
        loaded, output, target, trials=trials if tuned else None, minutes=minutes, source=Path(model), console=screen
    )
    if as_json:
        print_json(made)
    else:
        click.echo()
        for line in lines(made):
            click.echo(line)
    if not made["passed"]:
        raise SystemExit(1)

"""Searches the fastest kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bitkiln import targets
from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import (
    BOARD_OPTIONS,
    JSON_OPTION,
    MODEL_OPTIONS,
    SETTINGS,
    TARGET_OPTION,
    ModelName,
    ThreadCounts,
    console,
    load_model,
    print_json,
)


@click.command(context_settings=SETTINGS)
@click.argument("models", nargs=-1, type=ModelName(), metavar="[MODEL]...")
@TARGET_OPTION
@BOARD_OPTIONS
@click.option("--trials", type=click.IntRange(min=1), default=400, show_default=True, help="Measurements in all.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after this many minutes.")
@click.option(
    "--logs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("tuning_logs"),
    show_default=True,
    help="Folder the tuning records are appended to; a later run resumes from them.",
)
@click.option(
    "--threads",
    type=ThreadCounts(),
    metavar="N[,N]",
    help="Numbers of threads to tune for; the board's cores unless given.",
)
@click.option("--boards", type=click.IntRange(min=1), help="Simulated boards to start; one for each core unless given.")
@MODEL_OPTIONS
@JSON_OPTION
def tune(models: tuple[str, ...], target: targets.Target, logs: Path, as_json: bool, **settings: Any) -> None:
    """Search the fastest kernels for MODEL on boards; without MODEL, for the two built-in networks.

    Ctrl-C keeps every finished trial. Run it again to go on.

    \b
    Example: tune model.onnx --target rasp3b --tracker pi-lab:9190 --key rasp3b
    """
    networks = [load_model(model, settings) for model in models or api.BUILTIN]
    chosen = {name: settings[name] for name in ("trials", "minutes", "tracker", "key", "boards", "threads")}
    states = api.tune(*networks, target=target, logs=logs, console=console(err=as_json), **chosen)
    if as_json:
        from bitkiln.pipeline.tune.result import as_json as described

        print_json(described(states, [network.name for network in networks], target, logs))

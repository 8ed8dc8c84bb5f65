"""Turns a network into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bitkiln import targets
from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import LOGS_OPTION, MODEL_OPTIONS, TARGET_OPTION, console, load_model


@click.command()
@click.argument("model")
@TARGET_OPTION
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle's folder.")
@LOGS_OPTION
@MODEL_OPTIONS
def compile(model: str, target: targets.Target, output: Path, logs: Path | None, **settings: Any) -> None:
    """Turn MODEL into a bundle: a folder that runs on the board with Python alone.

    \b
    Example: bitkiln compile model.onnx --target rasp3b -o bundle
    """
    api.compile(load_model(model, settings), output, target, logs, console=console())

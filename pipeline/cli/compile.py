"""Turns a network into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bitkiln import targets
from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import (
    JSON_OPTION,
    LOGS_OPTION,
    MODEL_OPTIONS,
    TARGET_OPTION,
    ModelName,
    ThreadCounts,
    console,
    load_model,
    print_json,
)


@click.command()
@click.argument("model", type=ModelName())
@TARGET_OPTION
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle's folder.")
@LOGS_OPTION
@click.option(
    "--threads",
    type=ThreadCounts(),
    metavar="N[,N]",
    help="Threads that kernels are chosen for, the board's cores unless given; 1,4: a plan for one and one for several.",
)
@click.option(
    "--bf16-weights",
    "bf16",
    is_flag=True,
    help="Round weights that caches do not hold to bfloat16: half the bytes from memory. verify says what it changes.",
)
@MODEL_OPTIONS
@JSON_OPTION
def compile(
    model: str,
    target: targets.Target,
    output: Path,
    logs: Path | None,
    threads: tuple[int, ...] | None,
    bf16: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Turn MODEL into a bundle: a folder that runs on the board with Python alone.

    \b
    Example: bitkiln compile model.onnx --target rasp3b -o bundle
    """
    made = api.compile(load_model(model, settings), output, target, logs, console(err=as_json), threads, bf16)
    if as_json:
        from bitkiln.pipeline.compile.manifest import as_json as described

        print_json(described(made))

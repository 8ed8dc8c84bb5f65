"""Holds a bundle against its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import (
    JSON_OPTION,
    MODEL_OPTION_NAMES,
    MODEL_OPTIONS,
    ModelName,
    console,
    load_model,
    print_json,
)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("model", type=ModelName())
@click.option("--image", type=click.Path(path_type=Path), help="Verify on this photo instead of random numbers.")
@click.option("--input", "tensor", type=click.Path(path_type=Path), help="Verify on this tensor, .npy or .npz.")
@click.option(
    "--expected",
    type=click.Path(path_type=Path),
    help="What another engine gave for the input, .npy or .npz: outputs by name, or one called y.",
)
@click.option("--board", default="sim", show_default=True, help="sim, an ssh HOST, or TRACKER_HOST:PORT/KEY.")
@click.option("--threads", type=click.IntRange(1, 4), default=1, show_default=True, help="Threads on the board.")
@click.option("--all", "every", is_flag=True, help="Show all steps, not only those that differ.")
@MODEL_OPTIONS
@JSON_OPTION
def verify(bundle: Path, model: str, as_json: bool, every: bool, board: str, threads: int, **settings: Any) -> None:
    """Hold BUNDLE against MODEL: every layer on identical inputs, then the outputs; and say why they differ.

    Exit status 0: they agree. 1: they do not. 2: the bundle, the model or an input cannot be used.

    \b
    Example: bitkiln verify bundle model.onnx
    Example: bitkiln verify bundle model.tflite --input x.npy --expected y.npy
    """
    from bitkiln.pipeline.verify.printing import print_report
    from bitkiln.pipeline.verify.samples import read_samples

    opened, loaded = api.open_bundle(bundle), load_model(model, settings)
    samples = read_samples(opened, loaded, *(settings[name] for name in ("image", "tensor", "expected")))
    stated = [name for name in MODEL_OPTION_NAMES if settings[name]]
    report = api.verify(bundle, loaded, samples, board, threads, Path(model), stated)
    if as_json:
        print_json(report.as_json())
    else:
        print_report(report, console(), every)
    if not report.passed:
        raise SystemExit(1)

"""Runs a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import JSON_OPTION, console


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image", type=click.Path(path_type=Path), help="A photo; the bundle knows how to prepare it.")
@click.option("--input", "tensor", type=click.Path(path_type=Path), help="A raw input tensor, .npy.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to write the outputs, .npz.")
@click.option("--board", default="sim", show_default=True, help="sim, an ssh HOST, or TRACKER_HOST:PORT/KEY.")
@click.option("--threads", type=click.IntRange(1, 4), default=1, show_default=True, help="Threads on the board.")
@click.option("--steps", is_flag=True, help="Show the time of each step.")
@click.option("--draw", "drawing", type=click.Path(path_type=Path), help="Write the image with what was found in it.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Least score of a box, instead of the bundle's.")
@JSON_OPTION
def run(bundle: Path, **settings: Any) -> None:
    """Run BUNDLE as the board would, on a photo or a raw tensor.

    \b
    Example: bitkiln run bundle --image cat.jpg
    """
    api.run(bundle, console=console(), **settings)

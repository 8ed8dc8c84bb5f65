"""Copies a bundle to a board."""

from __future__ import annotations

from pathlib import Path

import click

from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import JSON_OPTION, console, print_json


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("destination", metavar="USER@HOST[:DIR]")
@click.option("--port", type=int, help="The board's ssh port.")
@JSON_OPTION
def deploy(bundle: Path, destination: str, port: int | None, as_json: bool) -> None:
    """Copy BUNDLE to a board over ssh, verify it there and run its check.

    \b
    Example: bitkiln deploy bundle pi@raspberrypi:models/net
    """
    made = api.deploy(bundle, destination, port, console=console(err=as_json))
    if as_json:
        print_json(made.as_json())

"""Counts right answers."""

from __future__ import annotations

from pathlib import Path

import click

from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import JSON_OPTION, console, print_json


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), required=True, help="A folder with a folder for each class.")
@click.option("--list", "listing", type=click.Path(path_type=Path), help="Lines of a path below --images and a class.")
@click.option("--board", default="sim", show_default=True, help="sim, an ssh HOST, or TRACKER_HOST:PORT/KEY.")
@click.option(
    "--jobs", type=click.IntRange(1, 64), help="Boards to ask at once; as many as this machine has processors."
)
@click.option("--limit", type=click.IntRange(min=1), help="Take that many photos at most, spread over all.")
@click.option("--results", type=click.Path(path_type=Path), help="File of all answers; beside the bundle unless given.")
@JSON_OPTION
def evaluate(
    bundle: Path,
    images: Path,
    listing: Path | None,
    board: str,
    jobs: int | None,
    limit: int | None,
    results: Path | None,
    as_json: bool,
) -> None:
    """Count how often BUNDLE names the right class of photos, first and among the first five.

    Interrupted, it goes on where it stopped when run again.

    \b
    Example: bitkiln evaluate bundle --images imagenet/val --limit 1000
    """
    from bitkiln.pipeline.verdict.evaluate import lines

    found = api.evaluate(bundle, images, listing, board, jobs, results, limit, console(err=True))
    if as_json:
        print_json(found)
    else:
        for line in lines(found):
            click.echo(line)

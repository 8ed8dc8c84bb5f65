"""Counts right answers, or how precisely boxes are found."""

from __future__ import annotations

from pathlib import Path

import click

from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import JSON_OPTION, console, print_json


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    required=True,
    help="The photos: a folder for each class, or see --list.",
)
@click.option(
    "--list",
    "listing",
    type=click.Path(path_type=Path),
    help="Lines of a path and a class, or of boxes; or a COCO file.",
)
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
    """Count how often BUNDLE names the right class of photos, first and among the first five, or how precisely it finds boxes.

    For a detector --list is a COCO file, or has lines of a path, a class, left, top, right and bottom in pixels.
    Interrupted, it goes on where it stopped when run again.

    \b
    Example: bitkiln evaluate bundle --images imagenet/val --limit 1000
    Example: bitkiln evaluate detector --images val2017 --list instances_val2017.json
    """
    from bitkiln.pipeline.verdict.evaluate import lines

    found = api.evaluate(bundle, images, listing, board, jobs, results, limit, console(err=True))
    if as_json:
        print_json(found)
    else:
        for line in lines(found):
            click.echo(line)

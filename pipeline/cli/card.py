"""Cards of models, and galleries of cards."""

from __future__ import annotations

from pathlib import Path

import click

from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import JSON_OPTION, print_json


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for card.md, card.html and card.json.")
@click.option("--download", default="", metavar="URL", help="Where the model can be had.")
@click.option("--note", "notes", multiple=True, help="A line of notes, for instance who trained it; may be repeated.")
@JSON_OPTION
def card(bundles: tuple[Path, ...], output: Path | None, download: str, notes: tuple[str, ...], as_json: bool) -> None:
    """Make the card of a model: accuracy, speed on each board, size, input, architecture, labels.

    BUNDLE is a bundle's or a build's folder; several are builds of one model for several boards. What build measured and
    evaluate counted is taken from beside it. Without -o the card is printed as Markdown.

    \b
    Example: bitkiln card build/net-rasp3b build/net-dragonboard410c -o cards/net
    """
    from bitkiln.pipeline.verdict import card as stage

    made = api.card(*bundles, download=download, notes=notes)
    written = stage.write(made, output) if output else []
    if as_json:
        print_json(made)
    elif output:
        click.echo(f"{', '.join(map(str, written))}")
    else:
        click.echo(stage.markdown(made), nl=False)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The page; DIR/index.html unless given.")
@click.option("--title", default="Networks", show_default=True, help="What stands on top of it.")
@JSON_OPTION
def gallery(folder: Path, output: Path | None, title: str, as_json: bool) -> None:
    """Make one page of all cards below DIR: accuracy against time, and a table to sort and filter.

    \b
    Example: bitkiln gallery cards
    """
    made = api.gallery(folder, output, title)
    if as_json:
        print_json(made)
    else:
        click.echo(made["page"])

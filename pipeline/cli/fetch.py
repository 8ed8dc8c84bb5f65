"""Downloads for simulated boards, and takes them to a machine without a network."""

from __future__ import annotations

from pathlib import Path

import click

from bitkiln.pipeline import schema
from bitkiln.pipeline.cli.options import JSON_OPTION, print_json


@click.command()
@click.option(
    "--to", "destination", type=click.Path(path_type=Path), help="Write archives of all of it into this folder."
)
@click.option(
    "--from", "source", type=click.Path(path_type=Path), help="Take it from such a folder; nothing is downloaded."
)
@JSON_OPTION
def fetch(destination: Path | None, source: Path | None, as_json: bool) -> None:
    """Download all that simulated boards need (an emulator and the boards' systems) into the cache.

    Without this it happens on first use. The Python packages are pip's: `pip download` takes those along.

    \b
    Example: bitkiln fetch --to usb-stick
    Example: bitkiln fetch --from usb-stick
    """
    from bitkiln.pipeline import fetch as stage

    if destination and source:
        raise click.UsageError("--to and --from exclude each other")
    done = []
    for line in stage.pack(destination) if destination else stage.unpack(source) if source else stage.fetch():
        click.echo(line, err=as_json)
        done.append(line)
    if as_json:
        print_json(schema.Fetch(schema="bitkiln.fetch/1", done=done))

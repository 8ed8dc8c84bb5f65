"""Downloads for simulated boards, and takes them to a machine without a network."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--to", "destination", type=click.Path(path_type=Path), help="Write archives of all of it into this folder."
)
@click.option(
    "--from", "source", type=click.Path(path_type=Path), help="Take it from such a folder; nothing is downloaded."
)
def fetch(destination: Path | None, source: Path | None) -> None:
    """Download all that simulated boards need (an emulator and the boards' systems) into the cache.

    Without this it happens on first use. The Python packages are pip's: `pip download` takes those along.

    \b
    Example: bitkiln fetch --to usb-stick
    Example: bitkiln fetch --from usb-stick
    """
    from bitkiln.pipeline import fetch as stage

    if destination and source:
        raise click.UsageError("--to and --from exclude each other")
    for line in stage.pack(destination) if destination else stage.unpack(source) if source else stage.fetch():
        click.echo(line)

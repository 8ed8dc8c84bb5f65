"""Signs a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from bitkiln.pipeline import api


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Your private ssh key; unless given, the one in ~/.ssh.",
)
def sign(bundle: Path, key: Path | None) -> None:
    """Sign BUNDLE with your own ssh key, for boards that trust it (bitkiln boards setup --signer).

    \b
    Example: bitkiln sign bundle --key ~/.ssh/id_ed25519
    """
    click.echo(f"{api.sign(bundle, key)}: written")

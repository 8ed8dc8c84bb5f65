"""Signs a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from bitkiln.pipeline import api, schema
from bitkiln.pipeline.cli.options import JSON_OPTION, print_json


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Your private ssh key; unless given, the one in ~/.ssh.",
)
@JSON_OPTION
def sign(bundle: Path, key: Path | None, as_json: bool) -> None:
    """Sign BUNDLE with your own ssh key, for boards that trust it (bitkiln boards setup --signer).

    \b
    Example: bitkiln sign bundle --key ~/.ssh/id_ed25519
    """
    signature = str(api.sign(bundle, key))
    if as_json:
        print_json(schema.Sign(schema="bitkiln.sign/1", bundle=str(bundle), signature=signature))
    else:
        click.echo(f"{signature}: written")

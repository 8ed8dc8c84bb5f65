"""Shows where a bundle's time goes."""

from __future__ import annotations

from pathlib import Path

import click

from bitkiln import targets
from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import JSON_OPTION, console, print_json


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--layer", metavar="NAME", help="Show this layer's hottest blocks, instruction by instruction.")
@click.option("--cold", is_flag=True, help="Start with empty caches.")
@click.option("--threads", type=click.IntRange(1, 4), default=1, show_default=True, help="Threads on the board.")
@click.option("--board", default="sim", show_default=True, help="sim, USER@HOST over ssh, or TRACKER_HOST:PORT/KEY.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with a bar chart and a roofline plot.")
@JSON_OPTION
def profile(
    bundle: Path, html: Path | None, layer: str | None, as_json: bool, cold: bool, board: str, threads: int
) -> None:
    """Show where BUNDLE's time goes, layer by layer.

    \b
    Example: bitkiln profile bundle --html profile.html
    """
    from bitkiln.pipeline import profile as stage
    from bitkiln.pipeline.profile import page as profile_page
    from bitkiln.pipeline.support.files import atomic_write

    result = api.profile(bundle, board, cold, layer, threads)
    if html:
        with atomic_write(html) as temporary:
            temporary.write_text(profile_page.render(result, targets.load(result.target)), encoding="utf-8")
    if as_json:
        print_json(result.as_json())
    elif layer:
        stage.print_blocks(result, console())
    else:
        stage.print_table(result, console())

"""Shows what a network consists of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bitkiln import targets
from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import (
    JSON_OPTION,
    MODEL_OPTIONS,
    TARGET_OPTION,
    ModelName,
    console,
    load_model,
    print_json,
)


@click.command()
@click.argument("model", type=ModelName())
@TARGET_OPTION
@click.option("--all-targets", is_flag=True, help="Give the bound for every kind of board, that of --target first.")
@click.option("--summary", is_flag=True, help="Totals, bounds, warnings and notes without the table of layers.")
@click.option("--convs", is_flag=True, help="Only convolutions and dense layers, and what there is a warning about.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with the network's graph and all of this.")
@MODEL_OPTIONS
@JSON_OPTION
def inspect(
    model: str,
    target: targets.Target,
    all_targets: bool,
    summary: bool,
    convs: bool,
    html: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Show each layer of MODEL, its MACs and weights, and for each convolution whether it is binary, or why not.

    --json prints a list with an object for each layer; with --summary one object without the layers.

    \b
    Example: bitkiln inspect model.onnx --shape data=1,3,224,224 --html model.html
    """
    from bitkiln.pipeline.inspect import page, table
    from bitkiln.pipeline.support.files import atomic_write

    others = [targets.load(name) for name in targets.known() if name != target.name] if all_targets else []
    boards = [target, *others]
    found = api.inspect(load_model(model, settings), boards)
    if html:
        with atomic_write(html) as temporary:
            temporary.write_text(page.render(found), encoding="utf-8")
    if as_json:
        print_json(found.as_json() if summary else found.layers())
        return
    screen = console()
    if not summary:
        table.print_table(found.rows, screen, boards[0], convs)
    table.print_summary(found, screen)

"""Holds variants of a network against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bitkiln import targets
from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import JSON_OPTION, MODEL_OPTIONS, TARGET_OPTION, console, load_model, print_json


@click.command()
@click.argument("items", nargs=-1, required=True, metavar="A B...")
@TARGET_OPTION
@click.option(
    "--measure/--no-measure", default=True, help="Measure bundles on the simulated board, or show bounds alone."
)
@click.option("--html", type=click.Path(path_type=Path), help="Write a page.")
@MODEL_OPTIONS
@JSON_OPTION
def compare(
    items: tuple[str, ...], target: targets.Target, measure: bool, html: Path | None, as_json: bool, **settings: Any
) -> None:
    """Show models, bundles and profiles side by side, layer by layer: on bits or not, time, bound, size.

    An item is a model, a bundle's folder, a build's folder, or a file that `bitkiln profile --json` printed. --target is the
    board of models that are not compiled.

    \b
    Example: bitkiln compare float.onnx binary.onnx
    Example: bitkiln compare build/a-rasp3b build/b-rasp3b --html a-b.html
    """
    from bitkiln.pipeline.support.files import atomic_write
    from bitkiln.pipeline.verdict.compare import print_comparison
    from bitkiln.pipeline.verdict.compare_page import render

    found = api.compare(*items, target=target, measure=measure, load=lambda name: load_model(name, settings))
    if html:
        with atomic_write(html) as temporary:
            temporary.write_text(render(found), encoding="utf-8")
    if as_json:
        print_json(found)
    else:
        print_comparison(found, console())

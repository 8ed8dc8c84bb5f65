"""Tuning records: checked, merged and queried."""

from __future__ import annotations

from pathlib import Path

import click

from bitkiln import targets
from bitkiln.pipeline import api
from bitkiln.pipeline.cli.options import JSON_OPTION, LOGS_OPTION, TARGET_OPTION, console, print_json


@click.group()
def logs() -> None:
    """Check, merge and query tuning records.

    \b
    Example: bitkiln logs check tuning_logs
    """


@logs.command("check")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
def logs_check(paths: tuple[Path, ...]) -> None:
    """Count the records of each log and name the lines that are not records.

    \b
    Example: bitkiln logs check tuning_logs
    """
    from bitkiln.pipeline import records as stage

    if not stage.check(paths, console()):
        raise SystemExit(1)


@logs.command("merge")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The merged log.")
def logs_merge(sources: tuple[Path, ...], output: Path) -> None:
    """Merge logs into one, each record once.

    \b
    Example: bitkiln logs merge mine.jsonl yours.jsonl -o ours.jsonl
    """
    from bitkiln.pipeline import records as stage

    click.echo(stage.merge(sources, output))


@logs.command("best")
@TARGET_OPTION
@LOGS_OPTION
@JSON_OPTION
def logs_best(target: targets.Target, logs: Path | None, as_json: bool) -> None:
    """Show the best record of each workload.

    \b
    Example: bitkiln logs best --target rasp3b
    """
    rows = api.records(logs).best_of_each(target)
    if as_json:
        print_json([row.as_json() for row in rows])
    elif not rows:
        click.echo(f"no records for {target.name}; bitkiln tune makes some", err=True)
    else:
        for row in rows:
            click.echo(row.describe())

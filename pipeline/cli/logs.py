"""Tuning records: checked, merged and queried."""

from __future__ import annotations

from pathlib import Path

import click

from bitkiln import targets
from bitkiln.pipeline import api, schema
from bitkiln.pipeline.cli.options import JSON_OPTION, LOGS_OPTION, MOST_THREADS, TARGET_OPTION, console, print_json


@click.group()
def logs() -> None:
    """Check, merge and query tuning records.

    \b
    Example: bitkiln logs check tuning_logs
    """


@logs.command("check")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@JSON_OPTION
def logs_check(paths: tuple[Path, ...], as_json: bool) -> None:
    """Count the records of each log and name the lines that are not records.

    \b
    Example: bitkiln logs check tuning_logs
    """
    from bitkiln.pipeline import records as stage

    found = stage.check(paths)
    if as_json:
        print_json(found)
    else:
        stage.print_check(found, console())
    if not found["ok"]:
        raise SystemExit(1)


@logs.command("merge")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The merged log.")
@JSON_OPTION
def logs_merge(sources: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Merge logs into one, each record once.

    \b
    Example: bitkiln logs merge mine.jsonl yours.jsonl -o ours.jsonl
    """
    from bitkiln.pipeline import records as stage

    merged = stage.merge(sources, output)
    if as_json:
        print_json(merged)
    else:
        click.echo("{output}: {records} records of {logs} logs, {duplicates} duplicates dropped".format(**merged))


@logs.command("best")
@TARGET_OPTION
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), help="Of a network; the board's cores unless given.")
@LOGS_OPTION
@JSON_OPTION
def logs_best(target: targets.Target, threads: int | None, logs: Path | None, as_json: bool) -> None:
    """Show the record of each workload that compile would use, and why.

    \b
    Example: bitkiln logs best --target rasp3b
    """
    rows = api.records(logs).choices(target, threads or target.cores)
    if as_json:
        found, why = [row.record.as_json() for row in rows], [row.why for row in rows]
        print_json(schema.LogsBest(schema="bitkiln.logs-best/1", target=target.name, records=found, why=why))
    elif not rows:
        click.echo(f"no records for {target.name}; bitkiln tune makes some", err=True)
    else:
        for row in rows:
            click.echo(f"{row.record.describe()}; {row.why}")

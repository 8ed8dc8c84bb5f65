"""Says what commands need that this machine lacks."""

from __future__ import annotations

import click

from bitkiln.pipeline import schema
from bitkiln.pipeline.cli.options import JSON_OPTION, print_json


@click.command()
@JSON_OPTION
def doctor(as_json: bool) -> None:
    """Check what each command needs on this machine, and say what to type where it is missing.

    What can be fetched or built is: afterwards simulated boards start at once.
    Exit status 0: nothing is missing. 1: something is.

    \b
    Example: bitkiln doctor
    """
    from bitkiln.pipeline.doctor import doctor

    checks = doctor()
    if as_json:
        rows = [
            schema.Check(name=check.name, ok=check.ok, explanation=check.explanation, serves=check.serves)
            for check in checks
        ]
        print_json(schema.Doctor(schema="bitkiln.doctor/1", ok=all(check.ok for check in checks), checks=rows))
    else:
        for check in checks:
            mark = "ok     " if check.ok else "MISSING"
            click.echo(f"{mark} {check.name}: {check.explanation}" + ("" if check.ok else f" (for {check.serves})"))
    if not all(check.ok for check in checks):
        raise SystemExit(1)

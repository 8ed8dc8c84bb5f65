"""Boards: those of a tracker, simulated ones, and what this machine lacks for them."""

from __future__ import annotations

import click

from bitkiln import targets
from bitkiln.pipeline import schema
from bitkiln.pipeline.cli.doctor import doctor
from bitkiln.pipeline.cli.options import BOARD_OPTIONS, JSON_OPTION, TARGET_OPTION, console, print_json


@click.group()
def boards() -> None:
    """List boards, start simulated ones, check what this machine lacks.

    \b
    Example: bitkiln boards list --tracker pi-lab:9190
    """


@boards.command("list")
@click.option("--tracker", metavar="HOST:PORT", default="127.0.0.1:9190", show_default=True)
@JSON_OPTION
def boards_list(tracker: str, as_json: bool) -> None:
    """List the boards that a tracker knows.

    \b
    Example: bitkiln boards list --tracker pi-lab:9190
    """
    from bitkiln.pipeline.boards import farm

    rows = farm.list_boards(tracker)
    if as_json:
        print_json(schema.BoardsList(schema="bitkiln.boards-list/1", tracker=tracker, boards=rows))
    else:
        farm.print_boards(rows, console())


boards.add_command(doctor)


@boards.command("start-sim")
@TARGET_OPTION
@BOARD_OPTIONS
@click.option("--count", type=click.IntRange(1, 64), default=1, show_default=True, help="How many boards.")
def boards_start_sim(target: targets.Target, tracker: str | None, key: str | None, count: int) -> None:
    """Start simulated boards, and a tracker where none is named; runs until interrupted.

    \b
    Example: bitkiln boards start-sim --target rasp3b --count 2
    """
    from bitkiln.pipeline.boards import farm

    farm.serve_simulated(target, tracker=tracker, key=key, count=count, console=console())

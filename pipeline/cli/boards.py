"""Boards: those of a tracker, simulated ones, and what this machine lacks for them."""

from __future__ import annotations

from pathlib import Path

import click

from bitkiln import targets
from bitkiln.pipeline import api, schema
from bitkiln.pipeline.cli.doctor import doctor
from bitkiln.pipeline.cli.options import (
    BOARD_OPTIONS,
    JSON_OPTION,
    TARGET_OPTION,
    ModelName,
    TargetName,
    console,
    print_json,
)


@click.group()
def boards() -> None:
    """List boards, set up real ones, start simulated ones and trackers, check what this machine lacks.

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


@boards.command("kinds")
@JSON_OPTION
def boards_kinds(as_json: bool) -> None:
    """List the kinds of boards that --target takes, and what else they may be called.

    \b
    Example: bitkiln boards kinds
    """
    from bitkiln.pipeline.boards import kinds

    rows = kinds.kinds()
    if as_json:
        print_json(schema.BoardsKinds(schema="bitkiln.boards-kinds/1", kinds=rows))
    else:
        kinds.print_kinds(rows, console())


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


@boards.command("tracker")
@click.option("--host", default="127.0.0.1", show_default=True, help="This machine's address in the boards' network.")
@click.option("--port", type=click.IntRange(1, 65535), default=9190, show_default=True, help="First port to try.")
def boards_tracker(host: str, port: int) -> None:
    """Run a tracker for boards that share your secret, until interrupted; the secret is made where there is none.

    \b
    Example: bitkiln boards tracker --host 192.168.1.10
    """
    from bitkiln.pipeline.boards import farm

    farm.serve_tracker(host, port, console())


@boards.command("setup")
@click.argument("board", metavar="USER@HOST")
@click.option("--tracker", metavar="HOST:PORT", help="As the board reaches it; with --tunnel as this machine does.")
@click.option(
    "--key", help="The kind of board, as tune asks for it; rasp3b or rasp3b32, by the system's width, unless given."
)
@click.option("--tunnel", is_flag=True, help="Keep everything on loopback, through ssh.")
@click.option("--port", type=int, help="The board's ssh port.")
@click.option(
    "--signer",
    "signers",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    help="A public ssh key: the board takes only bundles that it has signed. May repeat; needs no tracker.",
)
@click.option("--remove", is_flag=True, help="Stop the server there and delete it.")
def boards_setup(
    board: str,
    tracker: str | None,
    key: str | None,
    tunnel: bool,
    port: int | None,
    signers: tuple[Path, ...],
    remove: bool,
) -> None:
    """Make a board measure for a tracker, over ssh: USER@HOST is what you would type after ssh; keys must be set up.

    \b
    Example: bitkiln boards setup pi@raspberrypi --tracker 192.168.1.10:9190
    """
    if remove:
        api.remove_board(board, port)
        click.echo(f"{board}: removed")
        return
    if tracker is None and not signers:
        raise click.UsageError("give --tracker HOST:PORT; `bitkiln boards tracker` starts one")
    if signers:
        api.trust_signers(board, signers, port, console())
    if tracker is not None:
        api.set_up_board(board, tracker, key, tunnel, port, console())


@boards.command("measure")
@click.argument("board", metavar="USER@HOST")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Write what was found here."
)
@click.option(
    "--model",
    "models",
    type=ModelName(),
    multiple=True,
    default=api.BUILTIN,
    show_default=True,
    help="A network to measure, at one thread and at four; may repeat.",
)
@click.option("--target", type=TargetName(), help="Compile networks for this kind of board, not for the one that fits.")
@click.option("--port", type=int, help="The board's ssh port.")
def boards_measure(
    board: str, output: Path, models: tuple[str, ...], target: targets.Target | None, port: int | None
) -> None:
    """Measure what a board does and write it to a file that you can send in: no names, no addresses.

    USER@HOST is what you would type after ssh, or sim for the timing model. Nothing is left on the board.

    \b
    Example: bitkiln boards measure pi@raspberrypi -o evidence.json
    """
    api.measure_board(board, output, models, target, port, console())
    click.echo(f"{output}: written; scripts/validate_sim --against {output} holds the timing model against it")

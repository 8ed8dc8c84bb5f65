"""The command line: parses, calls one stage, prints. Every command's work is in the stage it names."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitkiln import targets
from bitkiln.pipeline import api
from bitkiln.pipeline.errors import BitkilnError

if TYPE_CHECKING:
    from bitkiln.pipeline.model import Model

# Stages are imported inside the commands: TVM takes a second to import, and --help should not.


class TargetName(click.ParamType):
    """The name of a target; a mistyped one lists those there are."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> targets.Target:
        """Look the name up."""
        return api.target(value)


class InputShape(click.ParamType):
    """``name=1,3,224,224``."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Split the name from its dimensions."""
        name, separator, dimensions = str(value).rpartition("=")
        try:
            shape = tuple(int(part) for part in dimensions.split(","))
        except ValueError:
            shape = ()
        if not separator or not name or not shape or min(shape) < 1:
            self.fail(f"{value!r} is not of the form name=1,3,224,224", param, context)
        return name, shape


class Numbers(click.ParamType):
    """One number, or several separated by commas."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> tuple[float, ...] | None:
        """Parse the list."""
        if value is None or isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a number or a comma-separated list of numbers", param, context)


def options(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    """Several click options as one decorator, in the order given."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


MODEL_OPTIONS = options(
    click.option("--shape", "shapes", type=InputShape(), multiple=True, help="Fix a dynamic input: name=1,3,224,224."),
    click.option("--labels", type=click.Path(path_type=Path), help="Class names, one a line."),
    click.option("--channel-order", type=click.Choice(["RGB", "BGR"]), help="Order of the image's channels."),
    click.option("--mean", type=Numbers(), help="Subtracted from pixels (0..255): one value or one a channel."),
    click.option("--scale", type=Numbers(), help="Multiplied after the mean: one value or one a channel."),
    click.option(
        "--resize", type=click.Choice(["stretch", "short-side"]), help="How an image gets the network's size."
    ),
    click.option("--resize-to", type=int, help="Length of the short side before the centre crop."),
    click.option("--leaky-factor", type=float, help="Slope of ELL's leaky ReLUs, where the file is silent or wrong."),
    click.option(
        "--weights", type=click.Path(path_type=Path), help="Weights of a darknet .cfg; those beside it unless given."
    ),
)
MODEL_OPTION_NAMES = (
    "shapes",
    "labels",
    "channel_order",
    "mean",
    "scale",
    "resize",
    "resize_to",
    "leaky_factor",
    "weights",
)
TARGET_OPTION = click.option(
    "--target", type=TargetName(), default=api.DEFAULT_TARGET, show_default=True, help="Kind of board."
)
LOGS_OPTION = click.option(
    "--logs",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of tuning records, besides the committed ones.",
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
BOARD_OPTIONS = options(
    click.option("--tracker", metavar="HOST:PORT", help="Use the boards of this tracker; without it, simulated ones."),
    click.option("--key", help="The boards' key at the tracker; the target's name unless given."),
)


def _load(model: str, settings: dict[str, Any]) -> Model:
    """Import ``model`` with the MODEL_OPTIONS found in ``settings``."""
    values = {name: settings[name] for name in MODEL_OPTION_NAMES}
    return api.load(model, **{**values, "shapes": dict(values["shapes"])})


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, default=str))


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=_SETTINGS)
@click.version_option(package_name="bitkiln")
def bitkiln() -> None:
    """Make trained CNNs, float or binarised, run as fast as a Cortex-A53 board can.

    \b
    Example: bitkiln compile model.onnx --target rasp3b -o bundle
    MODEL is an .onnx, .tflite, .ell, .ell.zip or darknet .cfg file, or card-binary or card-float.
    --debug with any command shows the traceback of an error.
    """


@bitkiln.command()
@click.argument("model")
@click.option("--target", type=TargetName(), help="The board to give the bound for; all known ones unless given.")
@click.option("--summary", is_flag=True, help="Totals, bounds, warnings and notes without the table of layers.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with the network's graph and all of this.")
@MODEL_OPTIONS
@JSON_OPTION
def inspect(
    model: str, target: targets.Target | None, summary: bool, html: Path | None, as_json: bool, **settings: Any
) -> None:
    """Show each layer of MODEL, its MACs and weights, and for each convolution whether it is binary, or why not.

    --json prints a list with an object for each layer; with --summary one object without the layers.

    \b
    Example: bitkiln inspect model.onnx --shape data=1,3,224,224 --html model.html
    """
    from bitkiln.pipeline.inspect import page, table
    from bitkiln.pipeline.support.files import atomic_write

    names = sorted(targets.known(), key=lambda name: name != api.DEFAULT_TARGET)
    boards = [target] if target else [targets.load(name) for name in names]
    found = api.inspect(_load(model, settings), boards)
    if html:
        with atomic_write(html) as temporary:
            temporary.write_text(page.render(found), encoding="utf-8")
    if as_json:
        _print_json(found.as_json() if summary else [row.as_json() for row in found.rows])
        return
    console = _console()
    if not summary:
        table.print_table(found.rows, console)
    table.print_summary(found, console)


@bitkiln.command(context_settings=_SETTINGS)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@TARGET_OPTION
@BOARD_OPTIONS
@click.option("--trials", type=click.IntRange(min=1), default=400, show_default=True, help="Measurements in all.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after this many minutes.")
@click.option(
    "--logs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("tuning_logs"),
    show_default=True,
    help="Folder the tuning records are appended to; a later run resumes from them.",
)
@click.option("--boards", type=click.IntRange(min=1), help="Simulated boards to start; one for each core unless given.")
@MODEL_OPTIONS
def tune(models: tuple[str, ...], target: targets.Target, logs: Path, **settings: Any) -> None:
    """Search the fastest kernels for MODEL on boards; without MODEL, for the two built-in networks.

    Ctrl-C keeps every finished trial. Run it again to go on.

    \b
    Example: tune model.onnx --target rasp3b --tracker pi-lab:9190 --key rasp3b
    """
    networks = [_load(model, settings) for model in models or api.BUILTIN]
    chosen = {name: settings[name] for name in ("trials", "minutes", "tracker", "key", "boards")}
    api.tune(*networks, target=target, logs=logs, console=_console(), **chosen)


@bitkiln.command()
@click.argument("model")
@TARGET_OPTION
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle's folder.")
@LOGS_OPTION
@MODEL_OPTIONS
def compile(model: str, target: targets.Target, output: Path, logs: Path | None, **settings: Any) -> None:
    """Turn MODEL into a bundle: a folder that runs on the board with Python alone.

    \b
    Example: bitkiln compile model.onnx --target rasp3b -o bundle
    """
    api.compile(_load(model, settings), output, target, logs, console=_console())


@bitkiln.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image", type=click.Path(path_type=Path), help="A photo; the bundle knows how to prepare it.")
@click.option("--input", "tensor", type=click.Path(path_type=Path), help="A raw input tensor, .npy.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to write the outputs, .npz.")
@click.option("--board", default="sim", show_default=True, help="sim, an ssh HOST, or TRACKER_HOST:PORT/KEY.")
@click.option("--threads", type=click.IntRange(1, 4), default=1, show_default=True, help="Threads on the board.")
@click.option("--steps", is_flag=True, help="Show the time of each step.")
@JSON_OPTION
def run(bundle: Path, **settings: Any) -> None:
    """Run BUNDLE as the board would, on a photo or a raw tensor.

    \b
    Example: bitkiln run bundle --image cat.jpg
    """
    api.run(bundle, console=_console(), **settings)


@bitkiln.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--layer", metavar="NAME", help="Show this layer's hottest blocks, instruction by instruction.")
@click.option("--cold", is_flag=True, help="Start with empty caches.")
@click.option("--board", default="sim", show_default=True, help="sim, or TRACKER_HOST:PORT/KEY.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with a bar chart and a roofline plot.")
@JSON_OPTION
def profile(bundle: Path, html: Path | None, layer: str | None, as_json: bool, cold: bool, board: str) -> None:
    """Show where BUNDLE's time goes, layer by layer, on one core.

    \b
    Example: bitkiln profile bundle --html profile.html
    """
    from bitkiln.pipeline import profile as stage
    from bitkiln.pipeline.profile import page as profile_page
    from bitkiln.pipeline.support.files import atomic_write

    result = api.profile(bundle, board, cold, layer)
    if html:
        with atomic_write(html) as temporary:
            temporary.write_text(profile_page.render(result, targets.load(result.target)), encoding="utf-8")
    if as_json:
        _print_json(result.as_json())
    elif layer:
        stage.print_blocks(result, _console())
    else:
        stage.print_table(result, _console())


@bitkiln.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("model")
@click.option("--image", type=click.Path(path_type=Path), help="Verify on this photo instead of random numbers.")
@click.option("--input", "tensor", type=click.Path(path_type=Path), help="Verify on this tensor, .npy or .npz.")
@click.option(
    "--expected",
    type=click.Path(path_type=Path),
    help="What another engine gave for the input, .npy or .npz: outputs by name, or one called y.",
)
@click.option("--board", default="sim", show_default=True, help="sim, an ssh HOST, or TRACKER_HOST:PORT/KEY.")
@click.option("--threads", type=click.IntRange(1, 4), default=1, show_default=True, help="Threads on the board.")
@click.option("--all", "every", is_flag=True, help="Show all steps, not only those that differ.")
@MODEL_OPTIONS
@JSON_OPTION
def verify(bundle: Path, model: str, as_json: bool, every: bool, board: str, threads: int, **settings: Any) -> None:
    """Hold BUNDLE against MODEL: every layer on identical inputs, then the outputs; and say why they differ.

    Exit status 0: they agree. 1: they do not. 2: the bundle, the model or an input cannot be used.

    \b
    Example: bitkiln verify bundle model.onnx
    Example: bitkiln verify bundle model.tflite --input x.npy --expected y.npy
    """
    from bitkiln.pipeline.verify.printing import print_report
    from bitkiln.pipeline.verify.samples import read_samples

    opened, loaded = api.open_bundle(bundle), _load(model, settings)
    samples = read_samples(opened, loaded, *(settings[name] for name in ("image", "tensor", "expected")))
    stated = [name for name in MODEL_OPTION_NAMES if settings[name]]
    report = api.verify(bundle, loaded, samples, board, threads, Path(model), stated)
    if as_json:
        _print_json(report.as_json())
    else:
        print_report(report, _console(), every)
    if not report.passed:
        raise SystemExit(1)


@bitkiln.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("destination", metavar="USER@HOST[:DIR]")
@click.option("--port", type=int, help="The board's ssh port.")
def deploy(bundle: Path, destination: str, port: int | None) -> None:
    """Copy BUNDLE to a board over ssh, verify it there and run its check.

    \b
    Example: bitkiln deploy bundle pi@raspberrypi:models/net
    """
    api.deploy(bundle, destination, port, console=_console())


@bitkiln.group()
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
        _print_json(rows)
    else:
        farm.print_boards(rows, _console())


@boards.command("doctor")
@JSON_OPTION
def boards_doctor(as_json: bool) -> None:
    """Check what simulated boards need on this machine, and say how to get what is missing.

    \b
    Example: bitkiln boards doctor
    """
    from bitkiln.pipeline.boards.doctor import doctor

    checks = doctor()
    if as_json:
        _print_json([check._asdict() for check in checks])
    else:
        for check in checks:
            click.echo(f"{'ok     ' if check.ok else 'MISSING'} {check.name}: {check.explanation}")
    if not all(check.ok for check in checks):
        raise SystemExit(1)


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

    farm.serve_simulated(target, tracker=tracker, key=key, count=count, console=_console())


@bitkiln.group()
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

    if not stage.check(paths, _console()):
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
        _print_json([row.as_json() for row in rows])
    elif not rows:
        click.echo(f"no records for {target.name}; bitkiln tune makes some", err=True)
    else:
        for row in rows:
            click.echo(row.describe())


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 160)


def _invoke(command: click.Command) -> None:
    """Run a command; any error is one line and exit status 2, with a traceback only after ``--debug``."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        command.main(args=arguments, prog_name=Path(sys.argv[0]).name, standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error, debug, error.format_message())
    except OSError as error:
        _fail(error, debug, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except BitkilnError as error:
        _fail(error, debug, str(error))
    except MemoryError as error:
        _fail(error, debug, "out of memory")
    except Exception as error:
        _fail(error, debug, f"internal error, {type(error).__name__}: {error}"[:400] + "; --debug shows where")


#: Characters of the longest message; models may have names of any length.
_LONGEST = 900


def _fail(error: Exception, debug: bool, text: str) -> None:
    if debug:
        traceback.print_exception(error)
    line = "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))
    click.echo(f"bitkiln: {line if len(line) <= _LONGEST else line[: _LONGEST - 3] + '...'}", err=True)
    sys.exit(2)


def main() -> None:
    """Entry point of ``bitkiln``."""
    _invoke(bitkiln)


def tune_main() -> None:
    """Entry point of ``tune``, the same as ``bitkiln tune``."""
    _invoke(tune)

"""What commands share: options, the types of their values, and where they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from bitkiln import targets
from bitkiln.pipeline import api

if TYPE_CHECKING:
    from rich.console import Console

    from bitkiln.pipeline.model import Model


#: As many as the runtime takes.
MOST_THREADS = 16

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class TargetName(click.ParamType):
    """The name of a target; a mistyped one lists those there are."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> targets.Target:
        """Look the name up."""
        return api.target(value)

    def shell_complete(self, context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The targets that begin so."""
        return [CompletionItem(name) for name in targets.known() if name.startswith(incomplete)]


class ModelName(click.ParamType):
    """A model's file, or the name of a built-in network."""

    name = "model"

    def shell_complete(self, context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The built-in networks that begin so, and else files."""
        builtin = [CompletionItem(name) for name in api.BUILTIN if incomplete and name.startswith(incomplete)]
        return builtin or [CompletionItem(incomplete, type="file")]


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


class InputValue(click.ParamType):
    """``name=16000``."""

    name = "value"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[str, float]:
        """Split the name from its number."""
        name, _, text = str(value).rpartition("=")
        try:
            number = float(text)
        except ValueError:
            name, number = "", 0.0
        if not name:
            self.fail(f"{value!r} is not of the form name=16000", param, context)
        return name, number


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


class ThreadCounts(click.ParamType):
    """One number of threads, or several separated by commas."""

    name = "threads"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...] | None:
        """Parse the list."""
        if value is None or isinstance(value, tuple):
            return value
        try:
            counts = sorted({int(part) for part in str(value).split(",")})
        except ValueError:
            self.fail(f"{value!r} is not a number of threads or a comma-separated list of such", param, context)
        if not 1 <= counts[0] <= counts[-1] <= MOST_THREADS:
            self.fail(f"{value}: a network runs on 1 to {MOST_THREADS} threads", param, context)
        return tuple(counts)


def options(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    """Several click options as one decorator, in the order given."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


MODEL_OPTIONS = options(
    click.option("--shape", "shapes", type=InputShape(), multiple=True, help="Fix a dynamic input: name=1,3,224,224."),
    click.option("--value", "values", type=InputValue(), multiple=True, help="An input that is always so: name=16000."),
    click.option("--labels", type=click.Path(path_type=Path), help="Class names, one a line."),
    click.option(
        "--channel-order",
        type=click.Choice(["RGB", "BGR"], case_sensitive=False),
        help="Order of the image's channels.",
    ),
    click.option(
        "--normalize",
        type=click.Choice(["imagenet", "0..1", "-1..1", "caffe"]),
        help="What pixels become: torchvision's mean and deviation, a range, or Caffe's means in BGR.",
    ),
    click.option("--mean", type=Numbers(), help="Subtracted from pixels of 0..1 or of 0..255, as the numbers tell."),
    click.option("--std", type=Numbers(), help="Pixels less the mean are divided by it; of the mean's range."),
    click.option(
        "--scale", type=Numbers(), help="Instead of --std: pixels of 0..255 less the mean are multiplied by it."
    ),
    click.option(
        "--resize",
        type=click.Choice(["stretch", "short-side", "letterbox"]),
        help="How an image gets the network's size.",
    ),
    click.option("--resize-to", type=int, help="Length of the short side before the centre crop."),
    click.option("--leaky-factor", type=float, help="Slope of ELL's leaky ReLUs, where the file is silent or wrong."),
    click.option(
        "--weights", type=click.Path(path_type=Path), help="Weights of a darknet .cfg; those beside it unless given."
    ),
    click.option("--head", help="What the outputs mean: none, yolov8, yolov5, ssd, segment, ... (docs/heads.md)."),
)
MODEL_OPTION_NAMES = (
    "shapes",
    "values",
    "labels",
    "channel_order",
    "normalize",
    "mean",
    "std",
    "scale",
    "resize",
    "resize_to",
    "leaky_factor",
    "weights",
    "head",
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


def load_model(model: str, settings: dict[str, Any]) -> Model:
    """Import ``model`` with the MODEL_OPTIONS found in ``settings``."""
    values = {name: settings[name] for name in MODEL_OPTION_NAMES}
    return api.load(model, **{**values, **{name: dict(values[name]) for name in ("shapes", "values")}})


def print_json(value: Any) -> None:
    """Print an object of ``schema`` on standard output."""
    click.echo(json.dumps(value, indent=1))


def console(err: bool = False) -> Console:
    """A console for people, on standard output, or on standard error where that is a program's (``err``)."""
    from rich.console import Console

    terminal = (sys.stderr if err else sys.stdout).isatty()
    return Console(soft_wrap=not terminal, width=None if terminal else 160, stderr=err)

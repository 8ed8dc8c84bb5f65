"""The command line: parses, calls one stage, prints. Every command's work is in the stage it names.

Stages are imported inside the commands: TVM takes a second to import, and --help should not.
"""

from __future__ import annotations

import click

from bitkiln.pipeline.cli import (
    boards,
    build,
    card,
    compare,
    compile,
    deploy,
    doctor,
    evaluate,
    fetch,
    inspect,
    logs,
    profile,
    run,
    sign,
    tune,
    verify,
)
from bitkiln.pipeline.cli.invoke import invoke
from bitkiln.pipeline.cli.options import SETTINGS


@click.group(context_settings=SETTINGS)
@click.version_option(package_name="bitkiln")
def bitkiln() -> None:
    """Make trained CNNs, float or binarised, run as fast as a Cortex-A53 board can.

    \b
    Example: bitkiln compile model.onnx --target rasp3b -o bundle
    MODEL is an .onnx, .tflite, .ell, .ell.zip or darknet .cfg file, or card-binary or card-float.
    --debug with any command shows the traceback of an error.
    """


for command in (
    build.build,
    inspect.inspect,
    tune.tune,
    compile.compile,
    compare.compare,
    run.run,
    profile.profile,
    verify.verify,
    sign.sign,
    deploy.deploy,
    evaluate.evaluate,
    card.card,
    card.gallery,
    boards.boards,
    logs.logs,
    doctor.doctor,
    fetch.fetch,
):
    bitkiln.add_command(command)


def main() -> None:
    """Entry point of ``bitkiln``."""
    invoke(bitkiln)


def tune_main() -> None:
    """Entry point of ``tune``, the same as ``bitkiln tune``."""
    invoke(tune.tune)

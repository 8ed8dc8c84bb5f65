"""Runs a command: every error is one line and an exit status."""

from __future__ import annotations

import errno
import io
import os
import sys
import tempfile
import traceback
from pathlib import Path

import click

from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.support import interrupts


def invoke(command: click.Command) -> None:
    """Run a command; any error is one line and exit status 2, with a traceback only after ``--debug``."""
    _ready_streams()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        with interrupts.ending_in_time():
            command.main(args=arguments, prog_name=Path(sys.argv[0]).name, standalone_mode=False)
        if interrupts.number():
            interrupts.leave()  # It may have been broken off where nothing raises.
    except click.exceptions.Abort:
        interrupts.leave()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error, debug, error.format_message())
    except OSError as error:
        _fail(error, debug, f"{error.filename}: {error.strerror}" if error.filename else _nameless(error))
    except BitkilnError as error:
        _fail(error, debug, str(error))
    except MemoryError as error:
        _fail(error, debug, "out of memory")
    except Exception as error:
        _fail(error, debug, f"internal error, {type(error).__name__}: {error}"[:400] + "; --debug shows where")


#: Characters of the longest message; models may have names of any length.
_LONGEST = 900


def _ready_streams() -> None:
    """Let any name be printed in any locale, and discard what goes to a closed output."""
    if sys.stdout is None or sys.stderr is None:
        nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  It stays open as long as we live.
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _nameless(error: OSError) -> str:
    """What went wrong with a file that the system does not name."""
    if error.errno == errno.ENOSPC:
        return f"{error.strerror}, where the output goes or in {tempfile.gettempdir()}"
    return error.strerror or str(error)


def _fail(error: Exception, debug: bool, text: str) -> None:
    if interrupts.number():
        interrupts.leave()  # What a signal broke off has failed.
    if debug:
        traceback.print_exception(error)
    line = "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))
    click.echo(f"bitkiln: {line if len(line) <= _LONGEST else line[: _LONGEST - 3] + '...'}", err=True)
    sys.exit(2)

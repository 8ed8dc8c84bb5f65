"""A board reached by ssh that nothing was set up on: the program that measures is copied there for each measurement."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from bitkiln.pipeline.boards import answers
from bitkiln.pipeline.boards.answers import Measurement
from bitkiln.pipeline.boards.board import Request, with_files
from bitkiln.pipeline.boards.setup import DEVICE, PROGRAMS, probe
from bitkiln.pipeline.boards.ssh import Remote
from bitkiln.pipeline.errors import BoardError
from bitkiln.targets.scratch import scratch_folder

#: Seconds for what a board can say at once, Python's start included.
PATIENCE = 60.0


class SshBoard:
    """A board that measures for us while the context lasts; its scratch folder goes with it.

    ``facts`` are what ``setup.probe`` says of its system. Raises BoardError where it will not do.
    """

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.facts: Mapping[str, Any] = {}
        self._folder = ""

    def __enter__(self) -> SshBoard:
        self.facts = probe(self.remote)
        self._folder = self.remote.scratch()
        try:
            self.remote.copy([DEVICE / program for program in PROGRAMS], self._folder)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def identity(self) -> Mapping[str, Any]:
        """What it is."""
        return answers.identity(self._asked(["--identity"], PATIENCE), self.remote.host)

    def health(self) -> Mapping[str, Any]:
        """Temperature, throttling and load now."""
        return answers.health(self._asked(["--health"], PATIENCE), self.remote.host)

    def put(self, path: Path) -> None:
        """Copy a file to where commands run."""
        self.remote.copy([path], self._folder)

    def run(self, arguments: Sequence[str], seconds: float) -> str:
        """Run a program that was put there and give what it prints. Raises BoardError."""
        return self.remote.run(f"cd {shlex.quote(self._folder)} && {shlex.join(arguments)}", seconds)

    def measure(
        self,
        library: Path,
        request: Request,
        inputs: Mapping[str, bytes] | None = None,
        known: Collection[str] = (),
    ) -> Measurement:
        """See ``Board``."""
        wanted, files = with_files(request, inputs)
        with scratch_folder() as name:
            for file, data in files.items():
                (Path(name) / file).write_bytes(data)
            (Path(name) / "model.so").write_bytes(library.read_bytes())
            self.remote.copy(sorted(Path(name).iterdir()), self._folder)
        answer = self._asked(
            ["--measure", "model.so", "--request", json.dumps(wanted)], request.limit_seconds + PATIENCE
        )
        return answers.measurement(answer, self._read, known, self.remote.host)

    def _read(self, file: str) -> bytes:
        return self.remote.read(f"{self._folder}/{file}")

    def _asked(self, arguments: Sequence[str], seconds: float) -> Any:
        return answers.parsed(self.run(["python3", PROGRAMS[0], *arguments], seconds), self.remote.host)

    def _remove(self) -> None:
        with suppress(BoardError):  # It is gone: what went wrong before says so.
            self.remote.run(f"rm -rf {shlex.quote(self._folder)}", 30.0)

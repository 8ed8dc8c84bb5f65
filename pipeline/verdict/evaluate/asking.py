"""Photos to boards and answers back, several boards side by side, and every answer on disk at once."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bitkiln.pipeline.boards import place
from bitkiln.pipeline.boards.userland import userland
from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.errors import BoardError, InputError
from bitkiln.pipeline.run import answer_on, read_inputs
from bitkiln.pipeline.verdict.evaluate.counting import Counting, Said

#: Seconds that an emulated board may take for one photo.
PATIENCE = 300.0
FRAMES = Path(runner.__file__).with_name("frames.py")


@dataclass(frozen=True)
class Answer:
    """What a bundle said of a photo; ``failed`` says why it could not be looked at."""

    photo: Path
    said: Said
    failed: str = ""


class Eye(Protocol):
    """Something that looks at photos."""

    def __call__(self, path: Path) -> Said:
        """What it says of the photo. Raises InputError for what is no photo, BoardError."""

    def close(self) -> None:
        """Leave nothing open."""


def digest(path: Path) -> str:
    """What a photo is known by in logs."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Log:
    """The answers of one compiled network, a line each."""

    def __init__(self, path: Path, bundle: Bundle, counting: Counting) -> None:
        self.path, self.counting = path, counting
        self.network = bundle.manifest["files"]["model.so"]["sha256"]

    def read(self) -> dict[str, Said]:
        """The answer to each photo that is known, by its digest; lines that are none are skipped."""
        if not self.path.is_file():
            return {}
        found = {}
        for line in self.path.read_bytes().split(b"\n"):
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                if row["network"] == self.network and self.counting.sound(row[self.counting.key]):
                    found[str(row["image"])] = row[self.counting.key]
        return found

    def append(self, answer: Answer) -> None:
        """Write an answer down; a line torn by an earlier crash is closed first."""
        row = {"network": self.network, "image": digest(answer.photo), self.counting.key: answer.said}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            torn = False
            if file.tell():
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")


def eye(board: str, bundle: Bundle, counting: Counting) -> Eye:
    """One that looks through ``board``: "sim" is an emulated one, others as ``run`` takes them."""
    return Emulated(bundle, counting) if place.parse(board) == place.Here() else _Board(board, bundle, counting)


@dataclass(frozen=True)
class _Board:
    """A real board, or a simulated one of a tracker."""

    board: str
    bundle: Bundle
    counting: Counting

    def __call__(self, path: Path) -> Said:
        answer = answer_on(self.board, self.bundle, read_inputs(self.bundle, path, None))
        return self.counting.of_outputs(self.bundle, answer.outputs, path)

    def close(self) -> None:
        """Nothing stays open."""


class Emulated:
    """A process of an emulated board that has the network loaded and takes photo after photo."""

    def __init__(self, bundle: Bundle, counting: Counting) -> None:
        self.bundle, self.counting = bundle, counting
        system = userland(bundle.target)
        argv = ["python3", str(FRAMES), str(bundle.folder.resolve()), *counting.arguments()]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            system.command(argv), env=system.environment, stdin=pipe, stdout=pipe, stderr=pipe
        )

    def __call__(self, path: Path) -> Said:
        try:
            photo = runner.read_photo(str(path)).convert("RGB")
        except runner.RunnerError as error:
            raise InputError(str(error)) from None
        watch = threading.Timer(PATIENCE, self.process.kill)
        watch.start()
        try:
            return self._asked(photo.size, photo.tobytes())
        except (OSError, ValueError, KeyError, TypeError):
            raise BoardError(f"{self.bundle.folder} on the emulated board: {self._complaint()}") from None
        finally:
            watch.cancel()

    def _asked(self, size: tuple[int, int], pixels: bytes) -> Said:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(b"%d %d\n" % size + pixels)
        self.process.stdin.flush()
        said: Said = json.loads(self.process.stdout.readline())[self.counting.key]
        if not self.counting.sound(said):
            raise ValueError
        return said

    def _complaint(self) -> str:
        self.process.kill()
        _, text = self.process.communicate()
        lines = [line for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("frames: ") if lines else "it ended without an answer"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def ask(make: Callable[[], Eye], photos: Sequence[Path], jobs: int) -> Iterator[Answer]:
    """The answers as they come, of ``jobs`` eyes side by side; an error of a board ends all of it."""
    waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Answer | BaseException] = queue.SimpleQueue()
    for photo in photos:
        waiting.put(photo)
    leaving = threading.Event()

    def work() -> None:
        try:
            looking = make()
        except BaseException as error:
            answers.put(error)
            return
        try:
            while not leaving.is_set():
                answers.put(_answer(looking, waiting.get_nowait()))
        except queue.Empty:
            return
        except BaseException as error:
            answers.put(error)
        finally:
            looking.close()

    crew = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
    for thread in crew:
        thread.start()
    try:
        for _ in photos:
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            yield answer
    finally:
        leaving.set()
        for thread in crew:
            thread.join(10)


def _answer(looking: Eye, photo: Path) -> Answer:
    try:
        return Answer(photo, looking(photo))
    except InputError as error:
        return Answer(photo, [], failed=str(error))

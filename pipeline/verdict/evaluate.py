"""How often a bundle's first choice, and its first five, hold the right class.

Photos go through the bundle's own code on emulated boards (the values of a real board, no times), a process for each processor
of this machine and many photos each, or through real boards. Every answer is on disk at once, so an evaluation goes on where it
stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console

from bitkiln.pipeline import schema
from bitkiln.pipeline.boards.userland import userland
from bitkiln.pipeline.bundle import Bundle, open_bundle
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.errors import BitkilnError, BoardError, InputError
from bitkiln.pipeline.run import answer_on, read_inputs
from bitkiln.pipeline.support.files import atomic_write
from bitkiln.pipeline.verdict.pictures import Picture, find_pictures

#: Classes of each answer that are kept.
KEPT = 5
#: Of a normal distribution, what 95 % lie within.
CONFIDENCE, Z = 0.95, 1.959964
#: Seconds that an emulated board may take for one photo.
PATIENCE = 300.0
FRAMES = Path(runner.__file__).with_name("frames.py")


class Classifier(Protocol):
    """Something that names the best classes of a photo."""

    def __call__(self, path: Path) -> list[int]:
        """Numbers of the best classes, best first. Raises InputError for what is no photo, BoardError."""


@dataclass(frozen=True)
class Answer:
    """What a bundle said of a photo; ``failed`` says why it could not be looked at."""

    picture: Picture
    top: tuple[int, ...] = ()
    failed: str = ""

    def within(self, count: int) -> bool:
        """Is the right class among the first ``count``?"""
        return self.picture.number in self.top[:count]


def evaluate(
    folder: Path,
    images: Path,
    listing: Path | None = None,
    board: str = "sim",
    jobs: int | None = None,
    results: Path | None = None,
    limit: int | None = None,
    console: Console | None = None,
) -> schema.Evaluate:
    """Count the right answers of the bundle in ``folder`` on the photos in ``images``.

    ``board`` is "sim" for emulated boards, an ssh host or "HOST:PORT/KEY", of which ``jobs`` are asked at once. Answers are
    appended to the file ``results``, the summary goes beside it as .json, and photos answered already are not asked for
    again. ``limit`` photos are taken at most, spread over all. Raises BundleError, InputError, BoardError.
    """
    bundle = open_bundle(folder)
    _check_task(bundle)
    classes = math.prod(bundle.manifest["outputs"][0]["shape"])
    pictures = find_pictures(images, listing, bundle.labels, classes)
    if limit is not None and limit < len(pictures):
        pictures = [pictures[at * len(pictures) // limit] for at in range(limit)]
    log = Log(results or folder.resolve().parent / f"{folder.resolve().name}-evaluation.jsonl", bundle)
    known = log.read()
    answers = {picture: known[digest] for picture in pictures if (digest := _digest(picture.path)) in known}
    missing = [picture for picture in pictures if picture not in answers]
    done = [Answer(picture, top) for picture, top in answers.items()]
    progress = Progress(console or Console(quiet=True), done, len(pictures))
    if missing:
        count = min(jobs or (os.cpu_count() or 1), len(missing))
        for answer in _ask(lambda: _classifier(board, bundle), missing, count):
            if not answer.failed:
                log.append(answer)
            done.append(answer)
            progress.show()
    summary = _summary(bundle, images, done, board, log.path)
    with atomic_write(log.path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _check_task(bundle: Bundle) -> None:
    head = bundle.manifest.get("head")
    if head:
        raise InputError(
            f"{bundle.folder}: its network is to {head['task']}; only classes of whole images are evaluated"
        )
    if not bundle.manifest.get("preprocessing"):
        raise InputError(
            f"{bundle.folder}: says nothing of how images become inputs; compile it with --mean, --scale, ..."
        )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Log:
    """The answers of one compiled network, a line each."""

    def __init__(self, path: Path, bundle: Bundle) -> None:
        self.path = path
        self.network = bundle.manifest["files"]["model.so"]["sha256"]

    def read(self) -> dict[str, tuple[int, ...]]:
        """The best classes of each photo that is known, by its digest; lines that are none are skipped."""
        if not self.path.is_file():
            return {}
        found = {}
        for line in self.path.read_bytes().split(b"\n"):
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                if row["network"] == self.network and all(isinstance(number, int) for number in row["top"]):
                    found[str(row["image"])] = tuple(row["top"])
        return found

    def append(self, answer: Answer) -> None:
        """Write an answer down; a line torn by an earlier crash is closed first."""
        row = {"network": self.network, "image": _digest(answer.picture.path), "top": list(answer.top)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            torn = False
            if file.tell():
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")


def _classifier(board: str, bundle: Bundle) -> Classifier:
    return Emulated(bundle) if board == "sim" else _Board(board, bundle)


@dataclass(frozen=True)
class _Board:
    """A real board, or a simulated one of a tracker."""

    board: str
    bundle: Bundle

    def __call__(self, path: Path) -> list[int]:
        answer = answer_on(self.board, self.bundle, read_inputs(self.bundle, path, None))
        scores = next(iter(answer.outputs.values())).ravel()
        return [int(number) for number in np.argsort(-scores.astype(np.float64), kind="stable")[:KEPT]]

    def close(self) -> None:
        """Nothing stays open."""


class Emulated:
    """A process of an emulated board that has the network loaded and takes photo after photo."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        system = userland(bundle.target)
        argv = ["python3", str(FRAMES), str(bundle.folder.resolve()), str(KEPT)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            system.command(argv), env=system.environment, stdin=pipe, stdout=pipe, stderr=pipe
        )

    def __call__(self, path: Path) -> list[int]:
        try:
            photo = runner.read_photo(str(path)).convert("RGB")
        except runner.RunnerError as error:
            raise InputError(str(error)) from None
        watch = threading.Timer(PATIENCE, self.process.kill)
        watch.start()
        try:
            return self._asked(photo.size, photo.tobytes())
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            raise BoardError(f"{self.bundle.folder} on the emulated board: {self._complaint()}") from None
        finally:
            watch.cancel()

    def _asked(self, size: tuple[int, int], pixels: bytes) -> list[int]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(b"%d %d\n" % size + pixels)
        self.process.stdin.flush()
        return [int(number) for number, _ in json.loads(self.process.stdout.readline())["top"]]

    def _complaint(self) -> str:
        self.process.kill()
        _, text = self.process.communicate()
        lines = [line for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("frames: ") if lines else "it ended without an answer"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def _ask(make: Callable[[], Any], pictures: Sequence[Picture], jobs: int) -> Iterator[Answer]:
    """The answers as they come, of ``jobs`` classifiers side by side; an error of a board ends all of it."""
    waiting: queue.SimpleQueue[Picture] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Answer | BaseException] = queue.SimpleQueue()
    for picture in pictures:
        waiting.put(picture)
    leaving = threading.Event()

    def work() -> None:
        try:
            classifier = make()
        except BaseException as error:
            answers.put(error)
            return
        try:
            while not leaving.is_set():
                answers.put(_answer(classifier, waiting.get_nowait()))
        except queue.Empty:
            return
        except BaseException as error:
            answers.put(error)
        finally:
            classifier.close()

    crew = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
    for thread in crew:
        thread.start()
    try:
        for _ in pictures:
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            yield answer
    finally:
        leaving.set()
        for thread in crew:
            thread.join(10)


def _answer(classifier: Classifier, picture: Picture) -> Answer:
    try:
        return Answer(picture, tuple(classifier(picture.path)))
    except InputError as error:
        return Answer(picture, failed=str(error))


@dataclass
class Progress:
    """A line now and then of how far it has come."""

    console: Console
    done: list[Answer]
    total: int

    def show(self) -> None:
        """Say how many are done: each tenth of all, and at the end."""
        count = len(self.done)
        step = max(1, self.total // 10)
        if count % step and count != self.total:
            return
        looked = [answer for answer in self.done if not answer.failed]
        right = sum(answer.within(1) for answer in looked)
        share = f", {right / len(looked):.1%} right" if looked else ""
        self.console.print(f"{count} of {self.total} photos{share}", highlight=False, markup=False)


def interval(right: int, count: int) -> schema.Rate:
    """A share and its 95 % confidence interval, by Wilson's formula: Wikipedia, "Binomial proportion confidence interval"."""
    if not count:
        raise BitkilnError("no photo could be looked at")
    share, square = right / count, Z * Z
    middle = (share + square / (2 * count)) / (1 + square / count)
    reach = Z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return {"value": share, "right": right, "low": max(middle - reach, 0.0), "high": min(middle + reach, 1.0)}


def _summary(bundle: Bundle, images: Path, done: Sequence[Answer], board: str, log: Path) -> schema.Evaluate:
    looked = [answer for answer in done if not answer.failed]
    if not looked:
        raise InputError(f"{images}: no photo could be looked at: {done[0].failed}")
    emulated = "emulated boards on this machine: the values of a board, no times"
    return {
        "schema": "bitkiln.evaluate/1",
        "bundle": str(bundle.folder),
        "model": bundle.manifest["model"]["name"],
        "network_sha256": bundle.manifest["files"]["model.so"]["sha256"],
        "images": str(images),
        "count": len(looked),
        "classes": len({answer.picture.number for answer in looked}),
        "confidence": CONFIDENCE,
        "top1": interval(sum(answer.within(1) for answer in looked), len(looked)),
        "top5": interval(sum(answer.within(KEPT) for answer in looked), len(looked)),
        "failed": [{"image": str(each.picture.path), "reason": each.failed} for each in done if each.failed],
        "measured_by": emulated if board == "sim" else f"boards of {board}",
        "results": str(log),
    }


def lines(found: schema.Evaluate) -> Iterator[str]:
    """The result for people."""
    yield f"{found['bundle']}: {found['count']} photos of {found['classes']} classes ({found['measured_by']})"
    for name, rate in (("top 1", found["top1"]), ("top 5", found["top5"])):
        yield (
            f"  {name}: {rate['value']:.2%} ({rate['right']} right), between {rate['low']:.2%} and {rate['high']:.2%} "
            f"with {found['confidence']:.0%} confidence"
        )
    for failed in found["failed"][:5]:
        yield f"  not looked at: {failed['reason']}"
    if len(found["failed"]) > 5:
        yield f"  and {len(found['failed']) - 5} more that could not be looked at"
    yield f"  answers: {found['results']}"

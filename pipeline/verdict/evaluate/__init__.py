"""How often a bundle's first choice, and its first five, hold the right class, or how precisely it finds boxes.

Photos go through the bundle's own code on emulated boards (the values of a real board, no times), a process for each processor
of this machine and many photos each, or through real boards. Every answer is on disk at once, so an evaluation goes on where it
stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bitkiln.pipeline import schema
from bitkiln.pipeline.bundle import Bundle, open_bundle
from bitkiln.pipeline.errors import InputError
from bitkiln.pipeline.support.files import atomic_write
from bitkiln.pipeline.verdict.evaluate.asking import Log, ask, digest, eye
from bitkiln.pipeline.verdict.evaluate.counting import CONFIDENCE, Counting, Said, kind_of

#: Classes whose precision is shown to people.
WORST = 5


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
    kind = kind_of(bundle, images, listing)
    photos = list(kind.photos)
    if limit is not None and limit < len(photos):
        photos = [photos[at * len(photos) // limit] for at in range(limit)]
    log = Log(results or folder.resolve().parent / f"{folder.resolve().name}-evaluation.jsonl", bundle, kind)
    known = log.read()
    answers = {photo: known[name] for photo in photos if (name := digest(photo)) in known}
    failed: dict[Path, str] = {}
    missing = [photo for photo in photos if photo not in answers]
    progress = Progress(console or Console(quiet=True), kind, len(photos))
    count = min(jobs or (os.cpu_count() or 1), len(missing))
    for answer in ask(lambda: eye(board, bundle, kind), missing, count):
        if answer.failed:
            failed[answer.photo] = answer.failed
        else:
            log.append(answer)
            answers[answer.photo] = answer.said
        progress.show(answers, failed)
    if not answers:
        raise InputError(f"{images}: no photo could be looked at: {next(iter(failed.values()))}")
    ordered = {photo: answers[photo] for photo in photos if photo in answers}
    summary = _summary(bundle, images, kind, ordered, failed, board, log.path)
    with atomic_write(log.path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


@dataclass(frozen=True)
class Progress:
    """A line now and then of how far it has come."""

    console: Console
    kind: Counting
    total: int

    def show(self, answers: Mapping[Path, Said], failed: Mapping[Path, str]) -> None:
        """Say how many are done: each tenth of all, and at the end."""
        count = len(answers) + len(failed)
        step = max(1, self.total // 10)
        if count % step and count != self.total:
            return
        how = self.kind.so_far(answers) if answers else ""
        self.console.print(f"{count} of {self.total} photos{', ' if how else ''}{how}", highlight=False, markup=False)


def _summary(
    bundle: Bundle,
    images: Path,
    kind: Counting,
    answers: Mapping[Path, Said],
    failed: Mapping[Path, str],
    board: str,
    log: Path,
) -> schema.Evaluate:
    emulated = "emulated boards on this machine: the values of a board, no times"
    return {
        "schema": "bitkiln.evaluate/1",
        "bundle": str(bundle.folder),
        "model": bundle.manifest["model"]["name"],
        "network_sha256": bundle.manifest["files"]["model.so"]["sha256"],
        "images": str(images),
        "task": kind.task,
        "count": len(answers),
        "confidence": CONFIDENCE,
        **kind.rates(answers),
        "failed": [{"image": str(path), "reason": reason} for path, reason in failed.items()],
        "measured_by": emulated if board == "sim" else f"boards of {board}",
        "results": str(log),
    }


def measures(found: schema.Evaluate) -> Sequence[tuple[str, schema.Rate | schema.Span]]:
    """What was counted and how much it is, the chief one first; shares of 1."""
    named = (("top 1", "top1"), ("top 5", "top5"), ("mAP 0.5:0.95", "map"), ("mAP 0.5", "map50"))
    return [(name, rate) for name, field in named if (rate := found.get(field)) is not None]  # type: ignore[misc]


def lines(found: schema.Evaluate) -> Iterator[str]:
    """The result for people."""
    objects = f" with {found['objects']} objects" if found["objects"] is not None else ""
    yield (
        f"{found['bundle']}: {found['count']} photos{objects} of {found['classes']} classes ({found['measured_by']})"
    )
    for name, rate in measures(found):
        right = f"{rate.get('right')} right, " if "right" in rate else ""
        yield (
            f"  {name}: {rate['value']:.2%} ({right}between {rate['low']:.2%} and {rate['high']:.2%} "
            f"with {found['confidence']:.0%} confidence)"
        )
    ranked = sorted(found["by_class"], key=lambda row: row["ap"])
    if ranked:
        shown = ", ".join(f"{row['label']} {row['ap']:.1%} of {row['objects']}" for row in ranked[:WORST])
        yield f"  least precise, 0.5:0.95: {shown}"
    for failure in found["failed"][:5]:
        yield f"  not looked at: {failure['reason']}"
    if len(found["failed"]) > 5:
        yield f"  and {len(found['failed']) - 5} more that could not be looked at"
    yield f"  answers: {found['results']}"

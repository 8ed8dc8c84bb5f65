"""Mutations of JSON that comes from outside: records, manifests, answers of boards and trackers, files of evidence.

scripts/test_kills runs a million. Whatever a reader is given, it takes it or refuses it with one of its own errors.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from bitkiln.pipeline import records
from bitkiln.pipeline.boards import answers, roster, tracker
from bitkiln.pipeline.bundle import open_bundle
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.evidence import read_part
from bitkiln.pipeline.evidence.file import read_evidence
from bitkiln.pipeline.support.checked import Malformed, decode
from bitkiln.pipeline.support.text import printable

#: What may be said of input that is no good.
REFUSALS = (BitkilnError, Malformed, records.NotARecord, runner.RunnerError)

#: Of the bytes that a board is pretended to give.
_RESULT = bytes(16)
_SHA = hashlib.sha256(_RESULT).hexdigest()
_TENSOR = {"name": "x", "dtype": "float32", "shape": [1, 4], "layout": "NHWC"}
_MEASURED = {
    **{"status": "ok", "unit": "seconds", "value": 1e-3, "kind": "board", "measured_by": "a Pi", "clock_mhz": 1200.0},
    **{"samples": [1e-3], "steps": [{"name": "a", "seconds": 1e-3}], "cpu": "Cortex-A53", "health": {"load": 0.5}},
    "outputs": [{"name": "y", "shape": [4], "dtype": "float32", "sha256": _SHA, "file": "output-0"}],
}
_IDENTITY = {
    "kind": "board",
    "measured_by": "a Pi",
    "cores": 4,
    "caches": {"l2_kib": 512},
    "health": {"temperature": 50.0},
}
_RECORD = {
    **{"workload": "conv2d 1 2", "target": "rasp3b", "knobs": {"tile": "a", "n": 4}, "unit": "cycles", "value": 1e6},
    **{"clock_mhz": 1200, "kind": "simulated", "measured_by": "simulated, v2", "time": "2026-01-01T00:00:00Z"},
    **{"tvm": "0.27.0", "schedule": 3, "health": {"load": 1}},
}
_EMPTY = {"size": 0, "sha256": hashlib.sha256().hexdigest()}
_MANIFEST = {
    **{
        "format": 1,
        "target": "rasp3b",
        "files": dict.fromkeys(runner.PROGRAMS, _EMPTY),
        "inputs": [_TENSOR],
        "outputs": [_TENSOR],
        "model": {"name": "net", "sha256": ""},
        "golden": {"inputs": ["i.npy"], "outputs": ["o.npy"]},
        "preprocessing": {"height": 8, "width": 8, "mean": [0.5]},
    },
    "steps": [{"name": "a", "kind": "conv2d", "macs": 5, "weight_bytes": 3, "binary": False}],
    **{"requires": {"cpu": "aarch64", "glibc": "2.17"}, "memory": {"activations": 1, "boundary": 1, "constants": 1}},
}
_SUMMARY = [
    0,
    {
        "server_info": [{"key": "server:pi", "addr": ["10.0.0.2", 9090]}],
        "queue_info": {"pi": {"free": 1, "pending": 0}},
    },
]
_EVIDENCE = {
    **{
        "schema": "bitkiln.evidence/1",
        "bitkiln": "0.2.0",
        "model_version": "v2",
        "day": "2026-01-01",
        "target": "rasp3b",
    },
    **{
        "board": {"kind": "board", "model": "a Pi", "cpu": "Cortex-A53"},
        "timing": "clock",
        "mhz": 1200.0,
        "health": [{}],
    },
    "facts": [{"name": "a", "asm": ["nop"], "loop": 1.0, "shot": None, "steady": True}],
    "memory": [{"name": "fill", "cycles": 40.0, "ns": 30.0, "mhz": 1200.0, "steady": True}],
    **{"probes": [], "networks": []},
}

#: Characters of the longest refusal.
MOST_TEXT = 2000

Reader = Callable[[bytes], object]

#: Values that have broken readers before.
NASTY: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 1 << 63, 10**400, -(10**400), 5e-324, 1e308, float("nan"), float("inf"), "", "x" * 5000),
    *("\x1b[2J", "../../etc/passwd", "/dev/zero", "\ud800", "a[/b]", [], {}, [[]], {"": None}, "9" * 400, "\0"),
)


@contextmanager
def readers() -> Iterator[dict[str, tuple[Any, Reader]]]:
    """What is read, by name: something good to begin with, and its reader."""
    with tempfile.TemporaryDirectory(prefix="bitkiln-mutations-") as name:
        folder = Path(name)
        for program in runner.PROGRAMS:
            (folder / program).touch()

        def through_file(file: str, read: Callable[[Path], object], data: bytes) -> object:
            (folder / file).write_bytes(data)
            return read(folder / file)

        def measured(data: bytes) -> object:
            return answers.measurement(answers.parsed(data, "pi"), lambda file: _RESULT, (), "pi")

        summary: Any = tracker._SUMMARY
        offer: Any = tracker._OFFER
        yield {
            "record": (_RECORD, records.parse),
            "manifest": (
                _MANIFEST,
                partial(through_file, "manifest.json", lambda path: open_bundle(path.parent).target),
            ),
            "manifest on the board": (
                _MANIFEST,
                partial(through_file, "manifest.json", lambda path: runner.Bundle(str(path.parent))),
            ),
            "measurement": (_MEASURED, measured),
            "identity": (_IDENTITY, lambda data: answers.identity(answers.parsed(data, "pi"), "pi")),
            "health": (
                {"load": 0.1, "throttled": False},
                lambda data: answers.health(answers.parsed(data, "pi"), "pi"),
            ),
            "summary": (_SUMMARY, lambda data: decode(data, summary, tracker.MOST_BYTES)),
            "offer": ([0, ["10.0.0.2", 9090, "pi:0.5"]], lambda data: decode(data, offer, tracker.MOST_BYTES)),
            "evidence": (_EVIDENCE, partial(through_file, "evidence.json", read_evidence)),
            "standings": ({"a:1": {"aside": "it lies"}}, partial(through_file, "boards.json", roster.read_standings)),
            "program": (
                {"timing": "clock", "mhz": 1200.0},
                lambda data: read_part("memory", data.decode(errors="replace"), "pi"),
            ),
        }


def mutated(good: Any, random: Random) -> bytes:
    """``good`` as JSON with a few things wrong: in its structure, in its bytes, or both."""
    value = json.loads(json.dumps(good))
    for index in range(random.choice((0, 1, 1, 1, 2, 4))):
        # A hundred copies of a hundred copies would take us minutes to write.
        value = _restructured(value, random, 1 if index else 100)
    try:
        data = bytearray(json.dumps(value).encode())
    except (ValueError, RecursionError):  # Deeper than we can write.
        data = bytearray(b"[" * random.choice((10, 5_000)))
    for _ in range(random.choice((0, 0, 1, 3))):
        _scratch(data, random)
    return bytes(data)


def _restructured(value: Any, random: Random, most: int) -> Any:
    """With one part replaced, dropped, copied up to ``most`` times, renamed or nested."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.05:
        if random.random() < 0.02:
            for _ in range(random.choice((50, 900))):
                value = [value]
            return value
        return _copied(random.choice(NASTY))
    at = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
    what = random.random()
    if what < 0.15:
        del value[at]
    elif what < 0.25 and isinstance(value, dict):
        value[str(random.choice(NASTY))[:50]] = value.pop(at)
    elif what < 0.3 and isinstance(value, list):
        value += [_copied(value[at]) for _ in range(random.choice((1, most)))]
    else:
        value[at] = _restructured(value[at], random, most)
    return value


def _copied(value: Any) -> Any:
    """Another one of the same content: what is changed in the one must not change the other."""
    try:
        return deepcopy(value)
    except RecursionError:
        return []


def _scratch(data: bytearray, random: Random) -> None:
    """One flipped, lost, doubled or strange byte."""
    if not data:
        return
    at = random.randrange(len(data))
    what = random.randrange(5)
    if what == 0:
        data[at] ^= 1 << random.randrange(8)
    elif what == 1:
        del data[at : at + random.choice((1, 1, 20, 10_000))]
    elif what == 2:
        data[at:at] = data[at : at + 20] * random.choice((1, 50))
    elif what == 3:
        data[at:at] = random.choice((b"[" * 100_000, b"\xff", b"\0", b'"', b"\\u", b"\n", b"1e", b"-"))
    else:
        data[at] = random.randrange(256)


def run(count: int, seed: str) -> Counter[str]:
    """Give ``count`` mutations to the readers in turn; how often each took and refused. Raises AssertionError for a defect."""
    tally: Counter[str] = Counter()
    with readers() as known:
        names = list(known)
        for index in range(count):
            name = names[index % len(names)]
            good, read = known[name]
            data = mutated(good, Random(f"{seed}/{index}"))
            try:
                read(data)
                tally[f"{name}: taken"] += 1
            except REFUSALS as error:
                tally[f"{name}: refused"] += 1
                text = str(error)
                assert len(text) < MOST_TEXT and printable(text) == text, (
                    f"{seed}/{index}, {name}: no line: {text[:300]!r}"
                )
            except Exception as error:
                raise AssertionError(
                    f"{seed}/{index}, {name}: {type(error).__name__}: {str(error)[:200]} of {data[:200]!r}"
                ) from error
            if (index + 1) % 100_000 == 0:
                print(f"{index + 1:,} mutations", flush=True)
    return tally

"""The file that ``bitkiln boards measure`` writes: its schema, reading and writing.

It says what a board is and how fast, and nothing of whose it is: no names of hosts or users, no addresses, no serial numbers.
docs/evidence.md explains the fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bitkiln.pipeline.boards.answers import Clock, Health, Kind
from bitkiln.pipeline.errors import InputError
from bitkiln.pipeline.support.checked import Count, Malformed, Name, Real, decode
from bitkiln.pipeline.support.files import atomic_write, read_file

SCHEMA = "bitkiln.evidence/1"
#: Bytes of the largest file that makes sense; one has some hundred thousand.
MOST_BYTES = 1 << 24

Amount = Annotated[float, Meta(ge=0, le=1e12)]
Threads = Annotated[int, Meta(ge=1, le=256)]


class Board(msgspec.Struct):
    """What was measured. ``kind`` is "board", or "simulated" for the timing model."""

    kind: Kind
    model: Name
    cpu: Name
    revision: Name = ""
    cores: Annotated[int, Meta(ge=1, le=4096)] | None = None
    machine: Name = ""
    bits: Literal[32, 64] = 64
    kernel: Name = ""
    glibc: Name = ""
    python: Name = ""
    min_mhz: Clock | None = None
    max_mhz: Clock | None = None
    caches: dict[Name, Count] = {}


class Sequence(msgspec.Struct):
    """Cycles of a sequence of instructions.

    ``loop`` are those of a turn of a loop with it, less those of the loop without; ``shot`` those between two reads of the
    cycle counter, less those between two reads in a row, null where programs may not read it.
    """

    name: Name
    asm: list[Name]
    loop: Real
    shot: Real | None
    steady: bool


class Row(msgspec.Struct):
    """A benchmark of memory: ``cycles`` and ``ns`` of one unit of its work."""

    name: Name
    cycles: Amount
    ns: Amount
    mhz: Clock | None
    steady: bool


class Step(msgspec.Struct):
    """A step of a network."""

    name: Name
    ms: Amount


class Network(msgspec.Struct):
    """A network on so many threads; ``library`` is the SHA-256 of the model.so that ran.

    ``health`` is from after the run: temperature in degrees C, throttling, governor, load.
    """

    name: Name
    threads: Threads
    library: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    ms: Amount
    samples_ms: list[Amount]
    clock_mhz: Clock | None
    steady: bool
    health: Health
    steps: list[Step]


class Evidence(msgspec.Struct):
    """The whole file. ``timing`` says what told time: the "simulator", the cycle "counter", or a "clock" and a frequency."""

    schema: Literal["bitkiln.evidence/1"]
    bitkiln: Name
    model_version: Name
    day: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\d\Z")]
    target: Name
    board: Board
    timing: Literal["simulator", "counter", "clock", "none"]
    mhz: Clock | None
    health: list[Health]
    facts: list[Sequence]
    memory: list[Row]
    probes: list[Row]
    networks: list[Network]
    notes: list[Name] = []


def read_evidence(path: Path) -> Evidence:
    """The file's content. Raises InputError."""
    try:
        return decode(read_file(path, MOST_BYTES), Evidence, MOST_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except Malformed as problem:
        raise InputError(f"{path}: no file of `bitkiln boards measure`: {problem}") from None


def write_evidence(path: Path, evidence: Evidence) -> None:
    """Write it so that people can read it, too."""
    plain: Any = msgspec.to_builtins(evidence)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")

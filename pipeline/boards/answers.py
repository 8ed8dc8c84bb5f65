"""What boards answer, checked before it is believed: forms, ranges, sizes, and that the bytes are those of the digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.support.checked import Count, Line, Malformed, Name, Positive, Real, convert, decode
from bitkiln.pipeline.support.text import printable

#: Bytes of an answer: a report of every step of the largest networks has some megabytes.
MOST_BYTES = 1 << 26
#: Bytes of an element by type: what our kernels give.
DTYPES = {"float32": 4, "float16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "uint32": 4, "bool": 1}

Kind = Literal["simulated", "board", "emulated"]
#: Clocks that a core may have.
LEAST_MHZ, MOST_MHZ = 1.0, 20_000.0
Clock = Annotated[float, Meta(ge=LEAST_MHZ, le=MOST_MHZ)]
Health = dict[Name, bool | int | float | Name | None]


class KernelFailed(BoardError):
    """The board is well but what it ran is not; ``status`` is crashed, timeout, stopped (passed its limit), error, or lost
    (it took the board with it).
    """

    def __init__(self, status: Literal["crashed", "timeout", "stopped", "error", "lost"], message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Output:
    """An output tensor: its digest, and its bytes where the request asked for them."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Measurement:
    """What a board answered.

    ``value`` is in ``unit``: "cycles" of a simulated core, or "seconds". ``kind`` is "simulated", "emulated" or "board";
    ``measured_by`` is how reports name it. ``clock_mhz`` is the clock it ran at, None where unknown; ``cpu`` the core of a real
    board. ``steps`` has a row for each step if asked for, ``report`` the simulator's account of the whole run. ``complete`` is
    false when the simulator met instructions it has no rule for; ``steady`` when a real board's clock moved meanwhile.
    """

    unit: Literal["cycles", "seconds"]
    value: float
    kind: Kind
    measured_by: str
    clock_mhz: float | None
    samples: tuple[float, ...] = ()
    steps: tuple[Mapping[str, Any], ...] = ()
    report: Mapping[str, Any] | None = None
    complete: bool = True
    steady: bool = True
    cpu: str = ""
    health: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[Output, ...] = ()
    trace: tuple[Output, ...] = ()

    @property
    def seconds(self) -> float:
        """The time; a simulated one's at the simulated clock."""
        return self.value if self.unit == "seconds" else self.value / (float(self.clock_mhz or 1) * 1e6)

    @property
    def cycles(self) -> float | None:
        """The cycles; a real board's from its time and measured clock, None where the clock is unknown."""
        if self.unit == "cycles":
            return self.value
        return self.seconds * self.clock_mhz * 1e6 if self.clock_mhz else None


# --- The schema ------------------------------------------------------------------------------------------------------------


class _Tensor(msgspec.Struct):
    name: Line
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 40)], ...], Meta(max_length=16)]
    dtype: Name
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    file: Annotated[str, Meta(pattern=r"^(output|trace)-\d{1,6}\Z")] | None = None


class _Answer(msgspec.Struct):
    unit: Literal["cycles", "seconds"]
    value: Positive
    kind: Kind
    measured_by: Name
    clock_mhz: Real | None = None
    samples: tuple[Positive, ...] = ()
    steps: tuple[dict[str, Any], ...] = ()
    report: dict[str, Any] | None = None
    complete: bool = True
    steady: bool = True
    cpu: Name = ""
    health: Health = {}
    outputs: tuple[_Tensor, ...] = ()
    trace: tuple[_Tensor, ...] = ()


class _Step(msgspec.Struct):
    name: Line
    cycles: Annotated[float, Meta(ge=0, le=1e18)] | None = None
    seconds: Annotated[float, Meta(ge=0, le=1e9)] | None = None


class _Failure(msgspec.Struct):
    status: Literal["crashed", "timeout", "stopped", "error", "unfit"]
    message: Annotated[str, Meta(max_length=1 << 16)]


class _Identity(msgspec.Struct):
    kind: Kind
    measured_by: Name
    model: Name = ""
    cpu: Name = ""
    cores: Annotated[int, Meta(ge=1, le=4096)] | None = None
    kernel: Name = ""
    machine: Name = ""
    python: Name = ""
    glibc: Name = ""
    revision: Name = ""
    min_mhz: Clock | None = None
    max_mhz: Clock | None = None
    caches: dict[Name, Count] = {}
    simulator: dict[Name, Real | Name | bool | list[Any] | dict[str, Any] | None] | None = None
    health: Health = {}
    busy: bool | None = None


def measurement(answer: Any, fetch: Callable[[str], bytes], known: Collection[str], board: str) -> Measurement:
    """The answer to ``bitkiln.measure`` as a value; ``fetch`` gets the files that it names.

    Outputs whose digest is among ``known`` come without their bytes. Raises KernelFailed, and BoardError, which names
    ``board``, for a board that cannot measure, and for an answer that cannot be one.
    """
    try:
        if not isinstance(answer, dict) or answer.get("status") != "ok":
            failure = convert(answer, _Failure)
            message = printable(" ".join(failure.message.split()), 400)
            if failure.status == "unfit":
                raise BoardError(f"{board} cannot measure: {message}")
            raise KernelFailed(failure.status, message)
        found = convert(answer, _Answer)
        convert(found.steps, tuple[_Step, ...])
        if (found.unit == "cycles") != (found.kind == "simulated"):
            raise Malformed(f"a board that is {found.kind} does not answer in {found.unit}")
        if found.unit == "cycles" and _clock(found) is None:
            raise Malformed("cycles without a clock that a core may have")
        names = [each for each in Measurement.__dataclass_fields__ if each not in ("outputs", "trace")]
        outputs, trace = (tuple(_output(row, fetch, known) for row in rows) for rows in (found.outputs, found.trace))
        values = {name: getattr(found, name) for name in names} | {"clock_mhz": _clock(found)}
        return Measurement(**values, outputs=outputs, trace=trace)
    except Malformed as problem:
        raise BoardError(f"{board} answers nonsense: {problem}") from None


def _clock(found: _Answer) -> float | None:
    """The clock, None where it is not known: a figure that no core has comes from a loaded machine, or an emulator."""
    return found.clock_mhz if found.clock_mhz is not None and LEAST_MHZ <= found.clock_mhz <= MOST_MHZ else None


def identity(answer: Any, board: str) -> dict[str, Any]:
    """The answer to ``bitkiln.identity``. Raises BoardError, which names ``board``."""
    try:
        return msgspec.to_builtins(convert(answer, _Identity))
    except Malformed as problem:
        raise BoardError(f"{board} answers nonsense about itself: {problem}") from None


def health(answer: Any, board: str) -> dict[str, Any]:
    """The answer to ``bitkiln.health``. Raises BoardError, which names ``board``."""
    try:
        return convert(answer, Health)
    except Malformed as problem:
        raise BoardError(f"{board} answers nonsense about its health: {problem}") from None


def parsed(text: str | bytes, board: str) -> Any:
    """The JSON of an answer. Raises BoardError, which names ``board``."""
    try:
        return decode(text.encode(errors="replace") if isinstance(text, str) else text, Any, MOST_BYTES)
    except Malformed as problem:
        raise BoardError(f"{board} answers nonsense: {problem}") from None


def _output(row: _Tensor, fetch: Callable[[str], bytes], known: Collection[str]) -> Output:
    data = None
    if row.dtype not in DTYPES:
        raise Malformed(f"a tensor of type {row.dtype}")
    if row.file is not None and row.sha256 not in known:
        data = fetch(row.file)
        size = prod(row.shape) * DTYPES[row.dtype]
        if len(data) != size:
            raise Malformed(f"{len(data):,} bytes for the {size:,} of {row.name}")
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise Malformed(f"{row.name} differs from the digest that came with it")
    return Output(row.name, row.shape, row.dtype, row.sha256, data)

"""What a schedule gives the compiler: a TIR function, its packed arguments and the micro-kernels it calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tvm import tirx

from bitkiln.targets import Target

#: A point of a tuning space: a value for each named knob.
Knobs = Mapping[str, int | str]


def size_text(size: tuple[int, int]) -> str:
    """A size as the value of a knob: "4x8"."""
    return f"{size[0]}x{size[1]}"


def size_of(text: int | str) -> tuple[int, int]:
    """The inverse of ``size_text``."""
    first, second = map(int, str(text).split("x"))
    return first, second


class MicroKernel(Protocol):
    """An assembly routine that a kernel calls by ``T.call_extern``; equal symbols mean equal code."""

    @property
    def symbol(self) -> str:
        """Its name in the object file, e.g. "bk_sgemm_7x12_a53"."""

    def assembly(self) -> str:
        """GNU assembler text that defines ``symbol`` (hidden, so that two libraries never share it)."""


@dataclass(frozen=True)
class Argument:
    """An argument of the emitted function, made from arguments of the workload.

    ``sources`` are positions in the workload's argument list. With ``pack`` None the one source is passed as it is
    (activations always are). Otherwise all sources are constants and ``pack`` makes the argument from their arrays, once,
    at compile time; ``shape`` and ``dtype`` are those of the result.
    """

    sources: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    pack: Callable[[Sequence[np.ndarray]], np.ndarray] | None = None


@dataclass(frozen=True)
class Constant:
    """An argument that depends on the workload and knobs alone, e.g. a table of pixel offsets."""

    array: np.ndarray


@dataclass(frozen=True)
class Kernel:
    """An implementation of a workload.

    ``func`` takes ``arguments`` in order, then the outputs; it is a PrimFunc with buffers of static shape. Scratch memory is
    allocated inside it. ``notes`` says in a line what was built, for reports.
    """

    func: tirx.PrimFunc
    arguments: tuple[Argument | Constant, ...]
    microkernels: tuple[MicroKernel, ...] = ()
    notes: str = ""


class Operator(Protocol):
    """What each operator's module in ``schedules`` offers, for workloads of its own kind."""

    def reference(self, workload: Any) -> tirx.PrimFunc:
        """The plain definition: arguments as ``workload.shapes`` lists them, the outputs last. Slow and obviously right."""

    def space(self, workload: Any, target: Target) -> dict[str, list[int | str]]:
        """The tuning space: the values each knob may take. Every combination is valid."""

    def default(self, workload: Any, target: Target, threads: int = 1) -> dict[str, int | str]:
        """The untuned default, a good guess within the space for so many threads."""

    def emit(self, workload: Any, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
        """The implementation at one point of the space."""

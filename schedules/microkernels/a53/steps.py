"""Steps of an epilogue on values in registers, for the Cortex-A53: their operands and their instructions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitkiln.schedules.microkernels.a53 import asm
from bitkiln.schedules.steps import STEPS, Assembly, Instruction, Step

#: Register of the first row of operands of ``lines``; as many behind it as the caller has vectors of channels.
FIRST_OPERAND = 16


def assembly(op: str) -> Assembly:
    """The code of a step that ``known`` knows."""
    return STEPS[op].assembly["a53"]


def known(step: Step, registers: int = 32) -> bool:
    """Whether there is code for ``step``, for which so many ``registers`` are enough; its operand may have any shape."""
    code = STEPS[step.op].assembly.get("a53")
    return code is not None and code.applies(step.values) and code.registers <= registers


def by_channel(step: Step, registers: int = 32 - FIRST_OPERAND) -> bool:
    """Whether so many ``registers`` beside its values are enough for ``step`` on two vectors of channels."""
    return step.operand in ("", "channel") and known(step, registers // 2)


def rows(ops: Iterable[str]) -> int:
    """Rows of operands that steps of these names read."""
    return sum(assembly(op).rows for op in ops)


def operand_rows(steps: Sequence[Step], arrays: Sequence[np.ndarray], channels: int) -> np.ndarray:
    """The rows of the steps' code, float32 [rows, channels]: the ``arrays`` of steps that have one, and constants."""
    given = iter(arrays)
    result: list[np.ndarray] = []
    for step in steps:
        result += [next(given)] if step.operand else []
        result += [np.full(channels, value) for value in (*step.values, *assembly(step.op).constants)]
    return np.array(result, "float32").reshape(len(result), channels)


def _line(instruction: Instruction, roles: Mapping[str, int]) -> str:
    lanes = "16b" if instruction.name == "bif" else "4s"
    registers = [
        f"v{roles[role]}.{lanes}" if role in roles else role for role in (instruction.target, *instruction.sources)
    ]
    return f"{instruction.name} {', '.join(registers)}"


def immediate(register: int, value: float) -> str:
    """Four times the number ``value``, which an instruction can hold."""
    return f"fmov v{register}.4s, #{value}" if value else f"movi v{register}.16b, #0"


@dataclass(frozen=True)
class Writer:
    """How an instruction set writes a step's instruction, of the registers of its roles, and an immediate of a register."""

    line: Callable[[Instruction, Mapping[str, int]], str]
    immediate: Callable[[int, float], str]


A64 = Writer(_line, immediate)


def lines(op: str, values: Sequence[tuple[int, Sequence[int]]], free: Sequence[int], writer: Writer = A64) -> list[str]:
    """One step on pairs of a value's register and those of its rows; ``free`` registers hold immediates and temporaries."""
    code = assembly(op)
    constants, spare = free[: len(code.immediates)], free[len(code.immediates) :]
    text = [writer.immediate(register, value) for register, value in zip(constants, code.immediates, strict=True)]
    shared = {f"k{i}": register for i, register in enumerate(constants)}
    for group in _groups(values, len(spare) // code.temporaries if code.temporaries else len(values)):
        roles = []
        for i, (value, operands) in enumerate(group):
            own = {"x": value} | {f"v{row}": register for row, register in enumerate(operands)}
            temporaries = spare[i * code.temporaries : (i + 1) * code.temporaries]
            roles.append(shared | own | {f"t{number}": register for number, register in enumerate(temporaries)})
        text += side_by_side(code, roles, writer)
    return asm.named(op, text)


def side_by_side(code: Assembly, values: Sequence[Mapping[str, int]], writer: Writer = A64) -> Iterator[str]:
    """Each instruction for all ``values``, which map roles to registers: latencies of one hide behind the others."""
    for instruction in code.code:
        for roles in values:
            yield writer.line(instruction, roles)


def _groups(values: Sequence[tuple[int, Sequence[int]]], most: int) -> Iterator[Sequence[tuple[int, Sequence[int]]]]:
    """``values`` in as few groups of at most ``most`` as there can be, of about the same size."""
    count = -(-len(values) // most)
    for i in range(count):
        yield values[len(values) * i // count : len(values) * (i + 1) // count]

"""Assembly routines in A32 for the Cortex-A53: framing, and how 128 bits are loaded in halves.

The rules of ``a53.asm`` hold, the datapath is the same. A high half takes two ``ldr`` beside arithmetic, and ``vmov d, r, r``
beside the next vector's ``vldr d``. There is no zero register: a pause is a comparison whose flags nobody reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bitkiln.schedules.microkernels.a53 import asm

#: Bytes that ``enter`` moves the stack pointer by; arguments on the stack are that much further up.
FRAME = 36 + 64
ENTER = ["push {r4-r11, lr}", "vpush {d8-d15}"]
LEAVE = ["vpop {d8-d15}", "pop {r4-r11, pc}"]


def routine(symbol: str, lines: Iterable[str], registers: Mapping[str, str]) -> str:
    """As ``a53.asm.routine``."""
    head = ".syntax unified\n.arm\n.fpu neon-fp-armv8\n"
    text = asm.routine(symbol, lines, registers).replace("// ", "@ ")
    return head + text.replace("%function", "#function")


def _word(carrier: str, address: str, number: int) -> str:
    base, offset = re.fullmatch(r"\[(\w+), #(\d+)\]", address).groups()  # type: ignore[union-attr]
    return f"ldr {carrier.split()[number]}, [{base}, #{int(offset) + 4 * number}]"


def _pause(register: int) -> str:
    # The registers of 32 bits are those of the lower half of the file.
    return (
        f"vcmp.f32 s{4 * register}, s{4 * register}" if register < 8 else f"vcmp.f64 d{2 * register}, d{2 * register}"
    )


#: Of a carrier that names two registers: "r10 r11".
A32 = asm.Halves(
    words=2,
    low=lambda register, address: f"vldr d{2 * register}, {address}",
    word=_word,
    join=lambda register, carrier: f"vmov d{2 * register + 1}, {carrier.replace(' ', ', ')}",
    pause=_pause,
)


def constant(register: str, value: int) -> list[str]:
    """``register = value`` for a value of up to 32 bits."""
    low, high = value & 0xFFFF, value >> 16
    return [f"movw {register}, #{low}", *([f"movt {register}, #{high}"] if high else [])]


def pattern(value: float) -> int:
    """The bits of ``value`` as a float of 32 bits."""
    return int(np.float32(value).view("uint32"))


def add(target: str, source: str, value: int) -> list[str]:
    """``target = source + value`` for a value of up to 32 bits."""
    if value < 256:
        return [f"add {target}, {source}, #{value}"]
    return [*constant(target, value), f"add {target}, {target}, {source}"]


def move(pointer: str, value: int) -> list[str]:
    """Moves ``pointer`` on by ``value`` bytes, backwards if it is negative."""
    name = "add" if value > 0 else "sub"
    parts = [abs(value) & 0xFF << shift for shift in (0, 8, 16, 24)]
    return [f"{name} {pointer}, {pointer}, #{part}" for part in parts if part]


def doubles(vectors: Sequence[int]) -> str:
    """The list of the halves of vector registers: "d0, d1, d2, d3"."""
    return ", ".join(f"d{2 * vector + half}" for vector in vectors for half in range(2))


#: The largest offset of a ``vldr``, and the step by which a pointer goes on that would be further away.
_REACH, _STRIDE = 1020, 512


def within_reach(lines: Sequence[str], pointer: str) -> list[str]:
    """``lines``, which read from ``pointer`` on, so that no offset is too large for a vector load.

    The pointer goes on beside arithmetic that has nothing beside it, and comes back in the end. Raises ValueError where loads
    outrun it.
    """
    address = re.compile(rf"\[{pointer}, #(\d+)\]")
    offsets = [int(found[1]) if (found := address.search(line)) else None for line in lines]
    base, result = 0, []
    for at, (line, offset) in enumerate(zip(lines, offsets, strict=True)):
        if offset is not None and offset - base > _REACH:
            raise ValueError(f"{line}: {pointer} cannot go on in time")
        result.append(line if offset is None else address.sub(f"[{pointer}, #{offset - base}]", line))
        alone = isinstance(line, asm.Arithmetic) and isinstance((*lines, "")[at + 1], asm.Arithmetic)
        ahead = next((each for each in offsets[at + 1 :] if each is not None), 0)
        if alone and ahead - base > _STRIDE:
            result += move(pointer, _STRIDE)
            base += _STRIDE
    return result + (move(pointer, -base) if base else [])

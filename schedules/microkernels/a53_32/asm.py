"""Assembly routines in A32 for the Cortex-A53: framing, and how 128 bits are loaded in halves.

The rules of ``a53.asm`` hold, the datapath is the same. A high half takes two ``ldr`` beside arithmetic, and ``vmov d, r, r``
beside the next vector's ``vldr d``. There is no zero register: a pause is a comparison whose flags nobody reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from bitkiln.schedules.microkernels.a53 import asm

#: Bytes that ``enter`` moves the stack pointer by; arguments on the stack are that much further up.
FRAME = 36 + 64
ENTER = ["push {r4-r11, lr}", "vpush {d8-d15}"]
LEAVE = ["vpop {d8-d15}", "pop {r4-r11, pc}"]


def routine(symbol: str, lines: Iterable[str], registers: Mapping[str, str]) -> str:
    """As ``a53.asm.routine``."""
    head = ".syntax unified\n.arm\n"
    text = asm.routine(symbol, lines, registers).replace("// ", "@ ")
    return head + text.replace("%function", "#function")


def _word(carrier: str, address: str, number: int) -> str:
    base, offset = re.fullmatch(r"\[(\w+), #(\d+)\]", address).groups()  # type: ignore[union-attr]
    return f"ldr {carrier.split()[number]}, [{base}, #{int(offset) + 4 * number}]"


#: Of a carrier that names two registers: "r10 r11".
A32 = asm.Halves(
    words=2,
    low=lambda register, address: f"vldr d{2 * register}, {address}",
    word=_word,
    join=lambda register, carrier: f"vmov d{2 * register + 1}, {carrier.replace(' ', ', ')}",
    pause=lambda register: f"vcmp.f32 s{4 * register}, s{4 * register}",
)


def constant(register: str, value: int) -> list[str]:
    """``register = value`` for a value of up to 32 bits."""
    low, high = value & 0xFFFF, value >> 16
    return [f"movw {register}, #{low}", *([f"movt {register}, #{high}"] if high else [])]


def add(target: str, source: str, value: int) -> list[str]:
    """``target = source + value`` for a value of up to 32 bits."""
    if value < 256:
        return [f"add {target}, {source}, #{value}"]
    return [*constant(target, value), f"add {target}, {target}, {source}"]

"""Damage that knows nothing of a format: flipped bits, cut and copied blocks, numbers at their limits."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

#: Whole numbers at which readers slip.
NUMBERS = (
    *(-1, 0, 1, 2, 3, 5, 7, 16, 127, 128, 255, 256, 1000, 4096, 32768, 65535, 65536, 1 << 20, (1 << 24) + 1),
    *(10**9, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, -(1 << 31), -(1 << 63)),
)

#: Floats at which arithmetic slips.
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 1e30, 3.4e38, -3.4e38, float("inf"), -float("inf"), float("nan"))

#: Texts at which messages, paths and terminals slip.
TEXTS = ("", " ", "\n", "a\nb", "[red]x[/red]", "\x1b[31m", "../../etc/passwd", "/dev/zero", "é☃", "x" * 5000, "%s{0}")


def damage(random: Random, content: bytes) -> tuple[bytes, str]:
    """``content`` damaged one to four times, and how."""
    done = []
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        mutate = random.choice(_MUTATIONS)
        content = mutate(random, content)
        done.append(mutate.__name__.strip("_"))
    return content, "+".join(done)


def _flip_bits(random: Random, content: bytes) -> bytes:
    result = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8, 64)) if result else 0):
        result[random.randrange(len(result))] ^= 1 << random.randrange(8)
    return bytes(result)


def _set_bytes(random: Random, content: bytes) -> bytes:
    result = bytearray(content)
    for _ in range(random.choice((1, 2, 8)) if result else 0):
        result[random.randrange(len(result))] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
    return bytes(result)


def _set_word(random: Random, content: bytes) -> bytes:
    """An aligned 32 or 64-bit word becomes a number at its limits."""
    size, code = random.choice(((4, "<I"), (8, "<Q")))
    if len(content) < size:
        return content
    at = random.randrange(len(content) - size + 1) & ~3
    word = struct.pack(code, random.choice(NUMBERS) & ((1 << 8 * size) - 1))
    return content[:at] + word + content[at + size :]


def _truncate(random: Random, content: bytes) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _remove_block(random: Random, content: bytes) -> bytes:
    start, end = _span(random, content)
    return content[:start] + content[end:]


def _repeat_block(random: Random, content: bytes) -> bytes:
    start, end = _span(random, content)
    return content[:end] + content[start:end] * random.choice((1, 2, 50)) + content[end:]


def _move_block(random: Random, content: bytes) -> bytes:
    start, end = _span(random, content)
    at = random.randrange(len(content) + 1)
    return content[:at] + content[start:end] + content[at:]


def _overwrite_block(random: Random, content: bytes) -> bytes:
    start, end = _span(random, content)
    fill = random.choice((b"\0", b"\xff", random.randbytes(1)))
    return content[:start] + fill * (end - start) + content[end:]


def _append(random: Random, content: bytes) -> bytes:
    return content + random.randbytes(random.choice((1, 100, 5000)))


def _span(random: Random, content: bytes) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + random.choice((1, 4, 16, 100, 1000)))


_MUTATIONS: tuple[Callable[[Random, bytes], bytes], ...] = (
    _flip_bits,
    _flip_bits,
    _set_bytes,
    _set_word,
    _set_word,
    _truncate,
    _remove_block,
    _repeat_block,
    _move_block,
    _overwrite_block,
    _append,
)

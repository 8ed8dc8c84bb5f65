"""Instructions that a Cortex-A53 may execute wrongly, by where they lie: erratum 843419.

Arm's Software Developers Errata Notice for the Cortex-A53 (EPM048406) describes it. In the last two words of a 4 KiB page an
ADRP, then a load or store, then (after at most one more instruction) a load or store that adds an unsigned offset to the ADRP's
register: that last one may use a wrong address. GNU's linker rewrites such sequences where Debian's gcc asks it to; the linker
that comes with zig takes no such option, so what it links has to be looked through.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from bitkiln.pipeline.compile.library import Code

#: Offsets in a 4 KiB page at which the ADRP is at risk.
_OFFSETS = (0xFF8, 0xFFC)


def erratum_843419(code: Iterable[Code]) -> Iterator[tuple[str, int]]:
    """The function and the address of each ADRP that begins such a sequence.

    It may name one that the processor executes rightly: what the second instruction does to the register is not looked at.
    """
    for part in code:
        if part.kind != "x":
            continue
        words = struct.unpack(f"<{len(part.data) // 4}I", part.data[: len(part.data) // 4 * 4])
        for at in range(len(words) - 2):
            if (part.address + 4 * at) & 0xFFF in _OFFSETS and _is_sequence(words[at : at + 4]):
                yield part.symbol, part.address + 4 * at


def _is_sequence(words: tuple[int, ...]) -> bool:
    adrp, access, *later = words
    if adrp & 0x9F000000 != 0x90000000 or not _accesses_memory(access):
        return False
    register = adrp & 31
    if _reads_at_offset(later[0], register):
        return True
    return len(later) > 1 and not _is_branch(later[0]) and _reads_at_offset(later[1], register)


def _accesses_memory(word: int) -> bool:
    """A load or a store of any kind: bits 28 to 25 are x1x0 (Arm Architecture Reference Manual, C4.1)."""
    return word & 0x0A000000 == 0x08000000


def _reads_at_offset(word: int, register: int) -> bool:
    """A load or store, also of vectors, at ``register`` plus an unsigned immediate."""
    return word & 0x3B000000 == 0x39000000 and word >> 5 & 31 == register


def _is_branch(word: int) -> bool:
    """Bits 28 to 26 are 101; those of exceptions (0xD4) and of the system (0xD5, NOP among them) are no branches."""
    return word & 0x1C000000 == 0x14000000 and word >> 24 not in (0xD4, 0xD5)

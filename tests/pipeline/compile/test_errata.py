"""Which sequences count as erratum 843419."""

from __future__ import annotations

import struct

import pytest

from bitkiln.pipeline.compile.errata import erratum_843419
from bitkiln.pipeline.compile.library import Code

ADRP_X0, ADRP_X7 = 0x90000000, 0x90000007
LDR_X1_X2, STP, NOP, ADD, BRANCH = 0xF9400041, 0xA9000861, 0xD503201F, 0x8B010020, 0x14000002
LDR_X3_X0_8, LDR_Q1_X0, LDR_X3_X7 = 0xF9400403, 0x3DC00001, 0xF94000E3


def found(words: list[int], address: int) -> list[tuple[str, int]]:
    return list(erratum_843419([Code(address, struct.pack(f"<{len(words)}I", *words), "x", "kernel")]))


@pytest.mark.parametrize("offset", [0xFF8, 0xFFC])
@pytest.mark.parametrize(
    "words",
    [
        [ADRP_X0, LDR_X1_X2, LDR_X3_X0_8],
        [ADRP_X0, LDR_X1_X2, ADD, LDR_X3_X0_8],
        [ADRP_X0, STP, NOP, LDR_Q1_X0],
        [ADRP_X7, STP, LDR_X3_X7],
    ],
)
def test_the_sequence_at_the_end_of_a_page(words, offset):
    assert found(words, 0x1000 + offset) == [("kernel", 0x1000 + offset)]
    assert found([NOP, *words], 0x1000 + offset - 4) == [("kernel", 0x1000 + offset)]
    assert found(words, 0x1000 + offset - 8) == []


@pytest.mark.parametrize(
    "words",
    [
        [ADRP_X0, ADD, LDR_X3_X0_8],  # No access in between.
        [ADRP_X0, LDR_X1_X2, BRANCH, LDR_X3_X0_8],
        [ADRP_X0, LDR_X1_X2, ADD, BRANCH],  # As GNU's linker mends it.
        [ADRP_X7, LDR_X1_X2, ADD, LDR_X3_X0_8],  # Another register.
        [ADRP_X0, LDR_X1_X2],
    ],
)
def test_other_code_is_left_alone(words):
    assert found(words, 0x1FF8) == []

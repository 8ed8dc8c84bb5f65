"""Framing of routines: what a reader of the assembly finds on top and beside blocks, and what stays the same for the core."""

from __future__ import annotations

import re

import pytest

from bitkiln.schedules.microkernels.a53 import asm
from bitkiln.schedules.microkernels.a53.bgemm import Bits, Counts
from bitkiln.schedules.microkernels.a53.binarize import Binarize
from bitkiln.schedules.microkernels.a53.bpack import PackPairs
from bitkiln.schedules.microkernels.a53.depthwise import Depthwise, Gather
from bitkiln.schedules.microkernels.a53.pool import PoolRow
from bitkiln.schedules.microkernels.a53.sgemm import Finish, Sgemm
from bitkiln.schedules.microkernels.a53.sgemm_stack import SgemmStack
from bitkiln.schedules.microkernels.a53.stem import Stem

KERNELS = [
    Bits(6, 4, 36, "one"),
    Counts(6, 4, 36),
    Binarize(64, shared=False),
    PackPairs(3, 64),
    PackPairs(9, 400),
    Gather(32, 4),
    Depthwise(32, 20, 8, (3, 3), (1, 1), (1, 1), (2, 4), ("add", "relu"), False),
    PoolRow("avg", (2, 2), 2, 32),
    Sgemm(8, 8, Finish(True, "leaky", (0.1,))),
    SgemmStack(7, 12, 16),
    Stem(3, (3, 3), (2, 2), ("add", "leaky"), False),
]


def test_a_table_of_registers_stands_on_top_and_names_beside_blocks():
    text = asm.routine("bk_x", asm.named("twice", ["fadd v0.4s, v0.4s, v0.4s", "ret"]), {"v0": "sum", "x1": "result"})
    first, second, *rest = text.splitlines()
    assert (first, second) == ("// v0  sum", "// x1  result")
    assert "    fadd v0.4s, v0.4s, v0.4s  // twice" in rest
    assert "    ret" in rest


def numbers(names: str, kind: str) -> set[int]:
    """The registers of a kind that a table names, spans written out."""
    found: set[int] = set()
    for first, last in re.findall(rf"\b{kind}(\d+)(?:-{kind}(\d+))?", names):
        found |= set(range(int(first), int(last or first) + 1))
    return found


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.symbol)
def test_a_table_names_registers_that_the_routine_uses(kernel):
    lines = kernel.assembly().splitlines()
    table = " ".join(line[3:].split("  ")[0] for line in lines if line.startswith("//"))
    code = "\n".join(line.split("//")[0] for line in lines if line.startswith("    "))
    used = {int(number) for number in re.findall(r"\b[vqds](\d+)\b", code)}
    assert numbers(table, "x") <= {int(number) for number in re.findall(r"\b[xw](\d+)\b", code)}
    assert used - set(range(8, 16)) <= numbers(table, "v") | set(range(16, 32))
    assert numbers(table, "v") <= used

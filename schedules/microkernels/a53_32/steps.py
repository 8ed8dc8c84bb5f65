"""Steps of an epilogue in A32: the code of ``a53.steps`` with the names that this state's instructions have.

NEON takes denormals for zero in this state, so a comparison with zero says of a positive denormal that it is not positive: the
answers of such steps differ by less than the smallest normal number.
"""

from __future__ import annotations

from collections.abc import Mapping

from bitkiln.schedules.microkernels.a53 import steps
from bitkiln.schedules.steps import Instruction

_NAMES = {
    "fmul": "vmul.f32",
    "fadd": "vadd.f32",
    "fmax": "vmax.f32",
    "fmin": "vmin.f32",
    "fcmgt": "vcgt.f32",
    "bif": "vbif",
    "frintn": "vrintn.f32",
}


def _line(instruction: Instruction, roles: Mapping[str, int]) -> str:
    names = (instruction.target, *instruction.sources)
    operands = [f"q{roles[name]}" if name in roles else name.replace("#0.0", "#0") for name in names]
    return f"{_NAMES[instruction.name]} {', '.join(operands)}"


def _immediate(register: int, value: float) -> str:
    return f"vmov.f32 q{register}, #{value}" if value else f"vmov.i32 q{register}, #0"


A32 = steps.Writer(_line, _immediate)

"""How a stream of multiply-adds and loads (``a53.stream``) is written in A32."""

from __future__ import annotations

from bitkiln.schedules.microkernels.a53 import stream
from bitkiln.schedules.microkernels.a53.asm import Arithmetic
from bitkiln.schedules.microkernels.a53_32 import asm


def _whole(register: int, value: stream.Value) -> list[str]:
    halves = [(2 * register + half, value.offset + 8 * half) for half in range(2)]
    return [f"vldr d{number}, [{value.base}, #{at}]" for number, at in halves]


def _multiply(operation: stream.MultiplyAdd, vector: int, scalar: int) -> Arithmetic:
    lane = operation.lane
    factor = f"q{scalar}" if lane is None else f"d{2 * scalar + lane // 2}[{lane % 2}]"
    return Arithmetic(f"{'vmul' if operation.first else 'vmla'}.f32 q{operation.sum}, q{vector}, {factor}")


A32 = stream.Writer(asm.A32, _whole, _multiply)

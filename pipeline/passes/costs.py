"""What a network pays without anyone having asked: layers computed several times over, and layers without fast kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import array_of, op_name, shape_of
from bitkiln.pipeline.ops import workload_of
from bitkiln.pipeline.passes.pipeline import Survey
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

#: Operators of many multiplications, and the position of what they multiply by.
_HEAVY = frozenset({"nn.conv1d", "nn.conv2d", "nn.conv3d", "nn.conv2d_transpose", "nn.conv3d_transpose", "matmul"})

#: Multiply-accumulates below which nobody notices a general kernel.
_NOTICED = 1_000_000


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of the layer ``name`` that need not be, or not so slowly; ``text`` says why."""

    name: str
    text: str
    macs: int
    binary: bool

    def priced(self, target: Target) -> str:
        """The text with the least that it costs on one core of ``target``."""
        peak = target.cpu["peak_binary_mac_per_cycle" if self.binary else "peak_f32_mac_per_cycle"]
        return (
            f"{self.text}: at least {self.macs / peak / (target.mhz * 1e3):.2g} ms on {target.name}, at its peak rate"
        )


def hidden_costs(found: Survey) -> Iterator[Cost]:
    """Those of the network that ``found`` is of, as far as its passes got."""
    if "binary" in found.phases:
        yield from _several_times(found)
    if "to_operators" in found.phases:
        yield from _without_kernels(found)


def _several_times(found: Survey) -> Iterator[Cost]:
    """Binary convolutions that run two or four times, since zeros of signs or weights have no bit."""
    defined = found.defined("binary")
    facts = {verdict.name: verdict.facts for verdict in found.verdicts}
    for name, operators in found.binary_operators().items():
        works = [work for each in operators if isinstance(work := workload_of(defined[each]), Conv2d)]
        if len(works) < 2:
            continue
        macs = sum(work.macs for work in works)
        known = facts.get(name)
        because = f", since {' and '.join(known.causes())}" if known and known.causes() else ""
        text = f"runs as {len(works)} binary convolutions instead of one{because}"
        yield Cost(name, text, macs * (len(works) - 1) // len(works), True)


def _without_kernels(found: Survey) -> Iterator[Cost]:
    """Layers of many multiplications that no schedule takes, so that TVM's definition runs as it is."""
    for name, value in found.defined("to_operators").items():
        if op_name(value) not in _HEAVY:
            continue
        macs = _macs(value)
        if macs < _NOTICED:
            continue
        yield Cost(name, f"runs in a general kernel, {_why(value)}", macs, False)


def _macs(call: Call) -> int:
    data, weight = shape_of(call.args[0]), shape_of(call.args[1])
    made = prod(_result(call))
    if op_name(call) == "matmul":
        return made * data[-1]
    if "transpose" in op_name(call):
        return prod(data) * prod(weight[1:])
    layout = str(call.attrs["kernel_layout"])
    return made * prod(weight) // weight[layout.index("O")]


def _result(call: Call) -> tuple[int, ...]:
    builder = relax.BlockBuilder()
    shape = getattr(builder.normalize(call).ty, "shape", None)
    return tuple(int(size) for size in shape.values) if isinstance(shape, relax.ShapeExpr) else (0,)


def _why(call: Call) -> str:
    if array_of(call.args[1]) is None:
        return "since what it multiplies by is computed while the network runs"
    if op_name(call) != "matmul" and shape_of(call.args[0])[0] != 1:
        return f"since it takes {shape_of(call.args[0])[0]} images at once"
    return "since its kind has no fast one"

"""What a user would want to know about the layers of a network: likely mistakes, and what costs time for no good reason.

Warnings are about what one would change in the network; notes explain what the compiled network does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.inspect.wording import listed
from bitkiln.pipeline.ir.graph import array_of, bindings, file_names, op_name, result_of, variables
from bitkiln.pipeline.ir.operands import clip_bounds
from bitkiln.pipeline.ops import has_workload, workload_of
from bitkiln.pipeline.passes.binary.recognise import TOLERANCE
from bitkiln.pipeline.passes.pipeline import Survey, origin
from bitkiln.pipeline.passes.split_groups import MOST_GROUPS, splits
from bitkiln.schedules.bconv2d.geometry import LANES, MAX_BITS, Geometry
from bitkiln.schedules.workload import Binarize, Conv2d

#: Bytes that the Cortex-A53's kernels fill a pixel's channels up to.
WORD = 2

#: Share of the arithmetic spent on channels that are there, below which a layer is said to waste the rest.
WORTHWHILE = 0.75
#: Share of the network's binary arithmetic below which what a layer wastes is no matter for a warning.
MATTERS = 0.02


@dataclass
class Advice:
    """Texts by the name of the layer they are about."""

    warnings: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def warn(self, name: str, text: str) -> None:
        """Something the user may want to change."""
        self.warnings.setdefault(name, []).append(text)

    def note(self, name: str, text: str) -> None:
        """Something that is good to know."""
        self.notes.setdefault(name, []).append(text)


def advise(found: Survey) -> Advice:
    """All there is to say about the network that ``found`` is of."""
    advice = Advice()
    if "binary" not in found.phases:
        return advice
    before, after = found.defined("merge_padding"), found.defined("binary")
    binary = {name: after[operators[0]] for name, operators in found.binary_operators().items()}
    _nearly_binary(advice, found, before)
    _signs_as_floats(advice, found, before, after, file_names(found.phases["imported"]["main"]))
    _wasted_channels(advice, binary)
    _signs_of_nothing(advice, binary, after)
    _kept_floats(advice, found, after)
    _broken_weights(advice, found.phases["imported"]["main"])
    return advice


def _nearly_binary(advice: Advice, found: Survey, defined: Mapping[str, relax.Expr]) -> None:
    """Convolutions that have half of the binary pattern."""
    for verdict in found.verdicts:
        if verdict.suspicious:
            weight = array_of(defined[verdict.name].args[1]) if verdict.name in defined else None
            advice.warn(
                verdict.name, f"not binary, though half of the pattern is there: {verdict.reason}; {_remedy(weight)}"
            )


def _remedy(weight: np.ndarray | None) -> str:
    """What to do about a convolution that is nearly binary; ``weight`` is OHWI."""
    if weight is None:
        return "export the network with its weights as constants"
    size = np.abs(weight.reshape(len(weight), -1)).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = size.mean(axis=1)
        spread = np.abs(size - mean[:, None]).max(axis=1) / mean
    uneven = int((spread > TOLERANCE).sum())
    if not uneven:
        return "a sign right before it would make it binary"
    worst = int(np.nanargmax(spread))
    return (
        f"{uneven} of {len(weight)} output channels are not +-s, channel {worst} is the furthest off "
        f"(|w| {size[worst].min():.3g} to {size[worst].max():.3g}): make the weights +-s in each channel, "
        "or leave the sign out"
    )


def _signs_as_floats(
    advice: Advice,
    found: Survey,
    before: Mapping[str, relax.Expr],
    after: Mapping[str, relax.Expr],
    names: Mapping[str, str],
) -> None:
    """Signs that a float layer reads: they are computed and stored as floats, beside the bits where those are read too."""
    binary = [before.get(verdict.name) for verdict in found.verdicts if verdict.binary]
    read_as_bits = {name for conv in binary if op_name(conv) == "nn.conv2d" for name in _signs_read(before, conv)}
    readers = _readers(found.phases["binary"]["main"])
    for name, value in after.items():
        if name not in read_as_bits and op_name(value) != "sign":
            continue
        reading = dict.fromkeys(readers.get(name, ()))
        users = [user for user in reading if op_name(after.get(user)) != "bitkiln.binarize"]
        if users:
            reading_them = listed([names.get(user, user) for user in users])
            also = "also feeds" if name in read_as_bits else "feeds only"
            advice.warn(
                name,
                f"{also} {reading_them}, which {'reads' if len(users) == 1 else 'read'} floats: the signs are stored "
                "as floats (32 times the bytes); feed that from before the sign, or make it binary",
            )


def _signs_read(defined: Mapping[str, relax.Expr], conv: Call) -> Iterator[str]:
    """The tensor of signs that a convolution reads, in front of its padding."""
    data = conv.args[0]
    if isinstance(data, relax.Var):
        pad = defined.get(data.name)
        if isinstance(pad, Call) and op_name(pad) == "nn.pad" and isinstance(pad.args[0], relax.Var):
            yield pad.args[0].name
        yield data.name


def _readers(function: relax.Function) -> dict[str, list[str]]:
    """For each variable what reads it."""
    readers: dict[str, list[str]] = {}
    for name, value in bindings(function):
        for var in variables(value):
            readers.setdefault(var.name, []).append(name)
    for var in variables(result_of(function)):
        readers.setdefault(var.name, []).append("the network's output")
    return readers


def _wasted_channels(advice: Advice, binary: Mapping[str, Call]) -> None:
    """Binary convolutions whose channel counts leave much of each vector empty, or that no fast kernel takes."""
    works = {name: work for name, call in binary.items() if isinstance(work := workload_of(call), Conv2d)}
    whole = sum(work.macs / _used(work) for work in works.values())
    for name, work in works.items():
        group = _group(work)
        bits = work.kernel[0] * work.kernel[1] * group.channels
        each = f"in each of {work.groups} groups, " if work.groups > 1 else ""
        if work.groups > 1 and not splits(work):
            advice.warn(
                name,
                f"is binary in {work.groups} groups of {group.channels} channels in and {group.out_channels} out, computed "
                "one output channel at a time without a micro-kernel; multiples of 8 channels in and out, in at most "
                f"{MOST_GROUPS} groups, have one",
            )
        elif bits > MAX_BITS:
            advice.warn(name, f"{each}sums over {bits} bits, more than the fast kernels' {MAX_BITS}")
        elif (used := _used(work)) < WORTHWHILE:
            channels, out = _rounded(group.channels, 8 * WORD), _rounded(group.out_channels, LANES)
            say = advice.warn if work.macs / used >= MATTERS * whole else advice.note
            say(
                name,
                f"{each}{group.channels} channels in and {group.out_channels} out take the time of {channels} and {out}: "
                f"{1 - used:.0%} of its arithmetic is on channels that are not there; "
                f"multiples of {8 * WORD} in and {LANES} out waste none",
            )


def _group(work: Conv2d) -> Conv2d:
    """The convolution of one group."""
    return replace(work, channels=work.channels // work.groups, out_channels=work.out_channels // work.groups, groups=1)


def _used(work: Conv2d) -> float:
    """The share of the kernel's arithmetic that is on real channels."""
    group = _group(work)
    where = Geometry(group, alignment=WORD)
    return group.channels * group.out_channels / (8 * where.pixel_bytes * where.channel_groups * LANES)


def _rounded(count: int, step: int) -> int:
    return -(-count // step) * step


def _signs_of_nothing(advice: Advice, binary: Mapping[str, Call], defined: Mapping[str, relax.Expr]) -> None:
    """Signs of what is never negative: all +1 where a zero is +1, and decided by exact zeros otherwise."""
    for name, call in binary.items():
        bits = defined.get(getattr(call.args[0], "name", ""))
        if bits is None or not has_workload(bits) or not isinstance(workload_of(bits), Binarize):
            continue
        source = defined.get(getattr(bits.args[0], "name", ""))
        if isinstance(source, Call) and op_name(source) == "nn.max_pool2d":
            source = defined.get(getattr(source.args[0], "name", ""))
        if op_name(source) not in ("nn.relu", "nn.relu6", "clip") or clip_bounds(source)[0] < 0:
            continue
        if workload_of(bits, Binarize).sign_zero > 0:
            advice.warn(
                name,
                "reads signs of what is never negative, and a zero counts as +1: every bit is +1; "
                "take the sign before the ReLU",
            )
        else:
            advice.note(name, "reads signs of a ReLU's result, where exact zeros are common: they count as -1")


def _kept_floats(advice: Advice, found: Survey, defined: Mapping[str, relax.Expr]) -> None:
    """Binary convolutions whose result only gives bits, and yet is written as floats."""
    names = {verdict.name for verdict in found.verdicts}
    for note in found.notes:
        advice.note(
            origin(note.name, defined, names),
            f"the result is written as floats, though only its signs are read next: no threshold can stand for it, since "
            f"{note.reason}",
        )


def _broken_weights(advice: Advice, function: relax.Function) -> None:
    """Constants that are no numbers."""
    for name, value in bindings(function):
        arrays = [array_of(arg) for arg in value.args] if isinstance(value, Call) else []
        if any(a is not None and a.dtype.kind == "f" and not np.isfinite(a).all() for a in arrays):
            advice.warn(name, "has constants that are infinite or not a number: was training finished?")

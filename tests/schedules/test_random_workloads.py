"""Kernels of random workloads, at random points of their tuning spaces, against plain numpy: on both kinds of boards.

Bits are compared bit by bit. Numbers are small multiples of 1/8, so that sums are exact in whatever order a kernel takes;
only where an epilogue or Winograd's transforms round may a sign beside zero come out differently.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.passes.fuse_epilogue import MOST_EXPONENTIALS
from bitkiln.schedules.registry import operator_for
from bitkiln.schedules.steps import EXPONENTIALS
from bitkiln.schedules.workload import Binarize, Conv2d, Pool2d, Signs, packed
from tests.property import plain
from tests.property.draws import ODD, Dice

#: Factors of a size that networks have.
SIZES = (1, 1, 3, 0.1)


def numbers(d):
    return lambda *shape: d.floats(*shape, sizes=SIZES)


def epilogue(d, size, most=4):
    steps = d.steps(size, most, numbers(d), tensors=True)
    # As many exponentials as the passes put into one epilogue.
    while sum(step.op in EXPONENTIALS for step, _ in steps) > MOST_EXPONENTIALS:
        steps = steps[:-1]
    return tuple(step for step, _ in steps), [operand for _, operand in steps if operand is not None]


def convolution(d):
    """A workload's shape: size, channels and window."""
    size = d.whole(1, 11), d.whole(1, 11)
    window = d.window(size)
    groups = d.pick([1, 1, 1, 2, 3])
    channels, outs = (-(-d.channels() // groups) * groups for _ in range(2))
    return Conv2d(*size, channels, outs, **window, groups=groups)


def pooled(d, work):
    pool = d.pool(work.conv_size)
    return replace(work, pool=pool) if pool and d.chance() else work


def binary(d):
    work = replace(convolution(d), binary=True, pad_value=d.pick([-1, 0, 1]))
    size = (*work.conv_size, work.out_channels)
    per_group = work.channels // work.groups
    args = [d.bits(1, work.height, work.width, work.channels), d.bits(work.out_channels, *work.kernel, per_group)]
    if d.chance():
        kind = d.pick(["channel", "element"])
        reach = plain.reach_of(work)
        wide = d.pick([reach + 2, round(reach**0.5) + 1])
        work = replace(work, out="bits", threshold=kind, thresholds=d.pick([1, 1, 2, 3]))
        thresholds = d.rng.integers(-wide, wide + 1, work.shapes[2][0]).astype("int32")
        return work, [*args, thresholds]
    steps, operands = epilogue(d, size)
    work = replace(work, epilogue=steps, out=d.pick(["float32", "float32", "bits"]), sign_zero=d.pick([1, -1]))
    return pooled(d, work), [*args, *operands]


#: Steps before signs beside floats: those that the pass lets through, which are comparisons, and one that bends.
_BESIDE = ("add", "mul", "relu", "clip")


def beside(d, work, args):
    """``work`` with one or several signs of its floats, each behind steps of its own."""
    size = (*work.out_size, channels_of(work))
    found, operands = [], []
    for _ in range(d.pick([1, 1, 2, 3])):
        steps, own = epilogue(d, size, 2) if d.chance() else ((), [])
        steps, own = compared(steps, own) if d.chance() else (steps, own)
        found.append(Signs(steps, d.pick([1, -1])))
        operands += own
    return replace(work, signs=tuple(found)), [*args, *operands]


def compared(steps, operands):
    """Those of ``steps`` behind which a sign is a comparison with a number of the channel."""
    remaining = iter(operands)
    pairs = [(step, next(remaining) if step.operand else None) for step in steps]
    kept = [(step, operand) for step, operand in pairs if step.op in _BESIDE and step.operand in ("", "channel")]
    return tuple(step for step, _ in kept), [operand for _, operand in kept if operand is not None]


def both(d):
    """A binary convolution or a pooling that gives floats and signs of them, or several signs of the same floats."""
    while True:
        work, args = d.pick([binary, pooling, signs])(d)
        if isinstance(work, Binarize) or work.out == "float32":
            return beside(d, work, args)


def floating(d):
    match d.pick(["any", "any", "depthwise", "winograd", "stem"]):
        case "any":
            work = convolution(d)
        case "depthwise":
            work = convolution(d)
            work = replace(work, channels=max(2, work.channels))
            work = replace(work, groups=work.channels, out_channels=work.channels)
        case "winograd":
            work = Conv2d(d.whole(1, 13), d.whole(1, 13), d.channels(), d.channels(), (3, 3))
            work = replace(
                work, padding=tuple(d.whole(0, 1) for _ in range(4)) if min(work.height, work.width) > 2 else (1,) * 4
            )
        case "stem":
            layout, shift = d.pick(["NHWC", "NCHW"]), d.chance()
            kernel, stride = d.pick([(3, 3), (5, 5), (7, 7)]), d.pick([(1, 1), (2, 2)])
            padding = tuple(d.whole(0, kernel[0] // 2) for _ in range(4))
            work = Conv2d(
                d.whole(12, 20), d.whole(12, 20), d.pick([1, 3, 4]), 8 * d.whole(1, 3), kernel, stride, padding
            )
            work = replace(work, layout=layout, shift=shift)
    steps, operands = epilogue(d, (*work.conv_size, work.out_channels))
    work = pooled(d, replace(work, epilogue=steps))
    work = replace(work, out=d.pick(["float32", "float32", "bits"]), sign_zero=d.pick([1, -1]))
    image, weights = work.shapes[0][0], work.shapes[1][0]
    shift = [d.numbers(work.channels)] if work.shift else []
    return work, [d.numbers(*image), d.numbers(*weights), *operands, *shift]


def signs(d):
    work = Binarize(d.whole(1, 11), d.whole(1, 11), d.channels(), sign_zero=d.pick([1, -1]))
    steps, operands = epilogue(d, (work.height, work.width, work.channels)) if d.chance() else ((), [])
    return replace(work, epilogue=steps), [d.numbers(*work.shapes[0][0], odd=None if steps else ODD), *operands]


def pooling(d):
    size = d.whole(3, 11), d.whole(3, 11)
    bits = d.chance()
    work = Pool2d(*size, d.channels(), d.pool(size, ["max"] if bits else ["max", "avg"]), bits)
    if bits:
        invert = d.chance()
        masks = [d.bits(work.channels)] if invert else []
        return replace(work, invert=invert, out="bits"), [d.bits(1, *size, work.channels), *masks]
    steps, operands = epilogue(d, (*work.out_size, work.channels))
    work = replace(work, epilogue=steps, out=d.pick(["float32", "bits"]), sign_zero=d.pick([1, -1]))
    return work, [d.numbers(1, *size, work.channels), *operands]


def fits(work, target):
    """Stems alone take an image as it comes."""
    plain_image = not isinstance(work, Conv2d) or (work.layout == "NHWC" and not work.shift)
    return plain_image or operator_for(work).is_stem(work, target)


def draw(count, seed, target):
    d = Dice(seed)
    makers = [binary, binary, both, floating, floating, signs, pooling, both]
    drawn = []
    while len(drawn) < count:
        work, args = makers[len(drawn) % len(makers)](d)
        if fits(work, target):
            knobs = {name: d.pick(values) for name, values in operator_for(work).space(work, target).items()}
            drawn.append((work, args, knobs))
    return drawn


def assert_right(work, args, knobs, result):
    with np.errstate(all="ignore"):
        expected = plain.workload(work, args)
    told = f"{work} {knobs}"
    if getattr(work, "signs", ()):
        assert_signs_of_the_floats(work, args, args[0] if isinstance(work, Binarize) else result[0], result[1:])
        result, expected, work = result[0], expected[0], replace(work, signs=())
    if result.dtype == np.float32:
        limit = 1e-4 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(result, expected, rtol=0, atol=limit, err_msg=told)
        return
    differ = plain.bits_of(result, channels_of(work)) != plain.bits_of(expected, channels_of(work))
    if not differ.any():
        return
    assert rounds(work, knobs), told
    with np.errstate(all="ignore"):
        values = before_sign(work, args)
    assert np.abs(values[differ]).max() <= 1e-5 * np.abs(values).max(), told


def assert_signs_of_the_floats(work, args, floats, bits):
    """The bits are those that the separate passes make of the floats that the kernel itself gave, or had."""
    operands = list(args[len(args) - sum(step.operand != "" for each in work.signs for step in each.epilogue) :])
    for each, found in zip(work.signs, bits, strict=True):
        own = [operands.pop(0) for step in each.epilogue if step.operand]
        with np.errstate(all="ignore"):
            value = plain.stepped(each.epilogue, floats, own)
        differ = plain.bits_of(found, channels_of(work)) != np.where(plain.signs(value, each.sign_zero), 1.0, -1.0)
        differ &= ~np.isnan(value)
        if all(step.op in _BESIDE for step in each.epilogue):
            assert not differ.any(), work
        else:
            assert np.abs(value[differ]).max(initial=0) <= 1e-5 * np.abs(value[np.isfinite(value)]).max(initial=0), work


def channels_of(work):
    return work.out_channels if isinstance(work, Conv2d) else work.channels


def rounds(work, knobs):
    """Whether a kernel may round what stands before a sign otherwise than the steps one by one."""
    if isinstance(work, Binarize):
        return bool(work.epilogue)
    average = work.pool is not None and work.pool.kind == "avg"
    return not getattr(work, "threshold", "") and bool(
        work.epilogue or average or str(knobs.get("algorithm", "")).startswith("winograd")
    )


def before_sign(work, args):
    if isinstance(work, Binarize):
        return plain.stepped(work.epilogue, args[0], args[1:])
    return plain.workload(replace(work, out="float32"), args)


@pytest.mark.parametrize(("name", "count"), [("rasp3b", 48), ("rasp3b32", 24)])
def test_random_workloads(name, count, run_kernels):
    target = targets.load(name)
    drawn = draw(count, 5, target)
    kernels = [
        operator_for(work).emit(work, knobs, target, 4 if index % 2 else 1)
        for index, (work, _, knobs) in enumerate(drawn)
    ]
    one, four = run_kernels([work for work, *_ in drawn], kernels, [args for _, args, _ in drawn], target, [1, 4])
    for (work, args, knobs), first, second in zip(drawn, one, four, strict=True):
        for own, shared in zip(
            *(each if isinstance(each, tuple) else (each,) for each in (first, second)), strict=True
        ):
            np.testing.assert_array_equal(own, shared, err_msg=f"{work} {knobs}: four threads")
        assert_right(work, args, knobs, first)


def test_spare_bits_are_clear():
    assert packed(9) == 2
    with pytest.raises(AssertionError, match="spare bit"):
        plain.bits_of(np.uint8([255, 2]), 9)

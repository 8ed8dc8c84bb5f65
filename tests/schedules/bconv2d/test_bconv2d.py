"""Emitted binary convolutions against the plain definition, and the definition against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.schedules import bconv2d as binary_conv2d
from bitkiln.schedules.bconv2d.geometry import Geometry
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Conv2d, Pool, Signs
from tests.schedules.kernels import bound, defined, example, identical, on_host, same, without_set

SAME = (1, 1, 1, 1)
MUL, ADD, TENSOR, HALF = Step("mul", "channel"), Step("add", "channel"), Step("add", "tensor"), Step("add", "half")


def conv(height: int, width: int, channels: int, out_channels: int, kernel: tuple[int, int] = (3, 3), **how) -> Conv2d:
    return Conv2d(height, width, channels, out_channels, kernel, binary=True, **how)


BITS = {"out": "bits", "threshold": "channel"}
WORKLOADS = [
    conv(7, 7, 64, 32, padding=SAME, pad_value=0),
    conv(7, 7, 64, 32, padding=SAME, pad_value=1),
    conv(7, 7, 64, 32, padding=SAME, pad_value=-1),
    conv(7, 7, 64, 64, padding=SAME, pad_value=-1, **BITS),
    conv(7, 6, 20, 13, strides=(2, 2), padding=(0, 1, 1, 0), pad_value=1),
    conv(7, 6, 20, 13, strides=(2, 2), padding=(0, 1, 1, 0), pad_value=0, **BITS),
    conv(7, 6, 20, 37, padding=SAME, pad_value=0, out="bits", threshold="element"),
    conv(9, 9, 24, 40, padding=(2, 2, 2, 2), dilation=(2, 2), pad_value=1, **BITS),
    conv(9, 9, 16, 4, padding=SAME, epilogue=(MUL, Step("relu")), pool=Pool((3, 3), (2, 2), SAME)),
    conv(13, 13, 64, 128, (1, 1), strides=(2, 2), epilogue=(MUL, ADD, TENSOR, MUL, ADD, Step("relu"))),
    conv(6, 6, 64, 48, padding=SAME, pad_value=0, epilogue=(MUL, Step("prelu", "element"), Step("clip", "", (-2, 9)))),
    conv(8, 8, 64, 32, padding=SAME, pad_value=1, epilogue=(MUL, ADD)),
    conv(8, 5, 64, 40, padding=SAME, pad_value=1, epilogue=(ADD, TENSOR, Step("leaky", "", (0.1,)), TENSOR, TENSOR)),
    conv(6, 6, 128, 64, padding=SAME, pad_value=0, epilogue=(MUL, ADD, Step("prelu", "channel"), TENSOR, MUL, ADD)),
    conv(6, 6, 64, 24, padding=SAME, pad_value=1, epilogue=(Step("leaky", "", (1.5,)), Step("tanh"))),
    conv(6, 6, 15, 24, padding=SAME, pad_value=1, epilogue=(MUL,)),
    conv(3, 3, 64, 32, padding=SAME, pad_value=0, strides=(4, 4)),
    conv(1, 1, 8192, 100, (1, 1), **BITS),
    conv(9, 4, 32, 64, (1, 1), epilogue=(MUL, ADD, TENSOR)),
    conv(9, 5, 32, 64, (1, 1), epilogue=(MUL, ADD, HALF, ADD, Step("prelu", "channel"), TENSOR)),
    conv(6, 6, 64, 128, padding=SAME, pad_value=0, epilogue=(MUL, HALF, ADD)),
    conv(5, 5, 16, 24, padding=SAME, pad_value=1, epilogue=(MUL, HALF)),
    conv(9, 4, 32, 120, (1, 1), **BITS),
    conv(5, 5, 3, 200, (5, 5), padding=(2, 2, 2, 2), pad_value=1, **BITS),
    conv(7, 7, 64, 96, padding=SAME, pad_value=0, epilogue=(MUL, TENSOR, ADD), signs=(Signs((MUL, ADD), -1),)),
    conv(8, 5, 64, 40, padding=SAME, pad_value=1, epilogue=(Step("relu"), TENSOR), signs=(Signs(),)),
    conv(9, 5, 32, 64, (1, 1), epilogue=(MUL, HALF, Step("prelu", "channel")), signs=(Signs((ADD,)),)),
    conv(7, 7, 64, 120, padding=SAME, pad_value=-1, signs=(Signs((), -1), Signs((ADD, MUL)))),
    conv(
        9, 9, 16, 8, padding=SAME, epilogue=(MUL, Step("relu")), pool=Pool((3, 3), (2, 2), SAME), signs=(Signs((), -1),)
    ),
    conv(7, 7, 64, 32, padding=SAME, pad_value=0, epilogue=(MUL, TENSOR, MUL, ADD), out="bits", sign_zero=-1),
    conv(9, 5, 32, 64, (1, 1), epilogue=(TENSOR, Step("prelu", "channel")), out="bits"),
    conv(6, 6, 64, 24, padding=SAME, pad_value=1, epilogue=(MUL, Step("tanh")), out="bits", pool=Pool((2, 2), (2, 2))),
    conv(6, 6, 15, 13, padding=SAME, pad_value=1, epilogue=(MUL,), signs=(Signs((ADD, Step("tanh"))),)),
]
GROUPED = [
    conv(9, 9, 24, 36, (3, 2), padding=(2, 0, 2, 1), dilation=(2, 3), groups=2, pad_value=1, **BITS),
    conv(9, 9, 36, 18, (3, 2), padding=(2, 0, 2, 1), groups=3, epilogue=(MUL, TENSOR)),
    conv(3, 3, 8192, 10, epilogue=(ADD,)),
    conv(3, 3, 8192, 10, **BITS),
]
#: Tiles of every shape, more of them than fill an image, fewer, and a rest.
KNOBS = [
    {},
    {"tile": "12x16", "chunk": 1},
    {"tile": "8x24", "chunk": 0},
    {"tile": "4x32", "chunk": 4},
    {"tile": "2x64", "chunk": 1},
]


@pytest.mark.parametrize("workload", [*WORKLOADS, *GROUPED], ids=Conv2d.key)
def test_plain_loops_compute_the_definition(workload):
    target = without_set()
    kernel = binary_conv2d.emit(workload, binary_conv2d.default(workload, target), target)
    assert not kernel.microkernels
    args = example(workload)
    assert same(on_host(kernel.func, bound(kernel, args), workload), defined(workload, args))


@pytest.mark.parametrize("workload", WORKLOADS, ids=Conv2d.key)
def test_micro_kernels_compute_the_definition(workload, run_kernel):
    target = targets.load("rasp3b")
    args = example(workload)
    expected = defined(workload, args)
    # Each workload with the default and one other point of the space, one thread and several.
    for knobs, threads in (({}, 1), (KNOBS[1 + WORKLOADS.index(workload) % (len(KNOBS) - 1)], 3)):
        chosen = {**binary_conv2d.default(workload, target), **knobs}
        kernel = binary_conv2d.emit(workload, chosen, target)
        assert kernel.microkernels
        assert same(run_kernel(workload, kernel, args, target, threads), expected), chosen


def test_32_bit_boards_compute_the_definition(run_kernels):
    """The orders of the loops by turns, on one thread and on three."""
    target = targets.load("rasp3b32")
    cases = [(work, {"tile": "4x16", "chunk": (0, 2)[index % 2]}) for index, work in enumerate(WORKLOADS)]
    cases += [(work, {}) for work in GROUPED]
    kernels = [binary_conv2d.emit(work, knobs, target) for work, knobs in cases]
    assert all(kernel.microkernels for kernel in kernels[: len(WORKLOADS)])
    args = [example(work) for work, _ in cases]
    one, three = run_kernels([work for work, _ in cases], kernels, args, target, [1, 3])
    for (work, knobs), given, first, second in zip(cases, args, one, three, strict=True):
        assert same(first, defined(work, given)), (work.key(), knobs)
        assert identical(first, second), (work.key(), knobs)


def test_every_point_of_the_space_is_valid():
    target = targets.load("rasp3b")
    workload = WORKLOADS[3]
    space = binary_conv2d.space(workload, target)
    for name, values in space.items():
        assert binary_conv2d.default(workload, target)[name] in values
        for value in values:
            binary_conv2d.emit(workload, {**binary_conv2d.default(workload, target), name: value}, target)


def test_definition_of_a_true_zero_border():
    workload = conv(2, 2, 8, 1, padding=SAME, pad_value=0)
    data, weights = example(workload)
    signs = np.unpackbits(data, axis=3, bitorder="little").astype(int) * 2 - 1
    kernel = np.unpackbits(weights, axis=3, bitorder="little").astype(int) * 2 - 1
    padded = np.pad(signs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for y in range(2):
        for x in range(2):
            dot = (padded[0, y : y + 3, x : x + 3] * kernel[0]).sum()
            assert defined(workload, [data, weights])[0, y, x, 0] == dot


def test_bounds_say_what_thresholds_say():
    workload = conv(4, 5, 24, 16, padding=SAME, pad_value=0, **BITS)
    where = Geometry(workload)
    _, weights, thresholds = example(workload)
    far = np.array([-(2**31), 2**31 - 1], "int32").repeat(8)
    for values in (thresholds, far):
        bases, bounds = where.bases(weights), where.bounds(weights, values, "uint16")
        counts = np.arange(where.taps * 24 + 1)
        set_by_threshold = bases[:, :, None] - 2 * counts >= values[None, :, None]
        assert (set_by_threshold == (counts < bounds[:, :16, None])).all()


def test_pixels_that_miss_the_same_taps_share_a_class():
    where = Geometry(conv(6, 9, 8, 8, padding=SAME, pad_value=0))
    assert len(set(where.classes)) == 9
    assert len(set(Geometry(conv(6, 9, 8, 8, padding=SAME, pad_value=1)).classes)) == 1

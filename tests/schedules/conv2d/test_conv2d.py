"""Emitted float convolutions against the plain definition."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.passes.round_weights import nearest
from bitkiln.schedules import conv2d
from bitkiln.schedules.conv2d import depthwise as conv2d_depthwise
from bitkiln.schedules.conv2d import packed as conv2d_packed
from bitkiln.schedules.conv2d import strassen as conv2d_strassen
from bitkiln.schedules.conv2d import winograd as conv2d_winograd
from bitkiln.schedules.conv2d.winograd_transforms import TRANSFORMS, UNFOLDED, matrix
from bitkiln.schedules.kernel import Argument, Kernel
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Conv2d, Pool
from tests.schedules.kernels import bound, defined, example, on_host, without_set

SAME = (1, 1, 1, 1)
ADD, RELU, LEAKY = Step("add", "channel"), Step("relu"), Step("leaky", values=(0.1,))
CLIP = Step("clip", values=(0.0, 6.0))
HALF = Pool((2, 2), (2, 2))
OVERLAPPING = Pool((3, 3), (2, 2), SAME)

DIRECT = [
    Conv2d(7, 9, 5, 6, (3, 3), padding=SAME),
    Conv2d(8, 8, 8, 12, (3, 3), (2, 2), (0, 1, 1, 0), epilogue=(ADD, RELU)),
    Conv2d(9, 9, 8, 20, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
    Conv2d(6, 7, 12, 24, (3, 3), padding=SAME, groups=3, epilogue=(Step("prelu", "element"),)),
    Conv2d(6, 7, 12, 24, (3, 3), (2, 1), SAME, groups=12),
    Conv2d(1, 1, 33, 10, (1, 1), epilogue=(ADD,)),
    Conv2d(2, 2, 64, 42, (1, 1), epilogue=(ADD, CLIP)),
    Conv2d(12, 12, 8, 16, (3, 3), padding=SAME, epilogue=(ADD, CLIP), pool=HALF),
    Conv2d(13, 11, 8, 16, (3, 3), padding=SAME, epilogue=(ADD, LEAKY), pool=HALF),
    Conv2d(12, 13, 3, 12, (7, 7), (2, 2), (3, 3, 3, 3), pool=OVERLAPPING),
    Conv2d(12, 13, 3, 12, (7, 7), (2, 2), (3, 3, 3, 3), pool=dataclasses.replace(OVERLAPPING, kind="avg")),
    Conv2d(12, 13, 16, 19, (3, 3), padding=SAME, pool=HALF, out="bits"),
    Conv2d(5, 13, 16, 64, (3, 3), padding=SAME, out="bits", sign_zero=-1),
    Conv2d(5, 13, 16, 64, (1, 3), padding=(0, 1, 0, 1)),
    Conv2d(4, 4, 16, 64, (4, 4)),
    # Many blocks: each claims the next one's lines, and fetches the next one's image.
    Conv2d(24, 25, 4, 24, (1, 1), epilogue=(ADD, CLIP)),
    Conv2d(13, 17, 144, 16, (1, 1), epilogue=(ADD, Step("add", "tensor"))),
    Conv2d(12, 16, 8, 16, (1, 1), epilogue=(ADD, LEAKY), pool=HALF),
]
STRASSEN = [
    Conv2d(5, 7, 16, 24, (1, 1), epilogue=(ADD, RELU)),
    Conv2d(6, 9, 136, 40, (1, 1), epilogue=(ADD, Step("add", "tensor"), Step("silu"), Step("add", "tensor"))),
    Conv2d(1, 2, 8, 8, (1, 1)),
    # The last pixel is a pair with itself, but has its late steps once.
    Conv2d(1, 7, 16, 24, (1, 1), epilogue=(ADD, Step("silu"))),
]
PANELS = [
    # Channels in two parts, output channels that leave a narrow panel, tiles of two sizes.
    Conv2d(5, 7, 544, 44, (1, 1), epilogue=(ADD, RELU)),
    # Pixels that are copied with gaps; steps that no register holds.
    Conv2d(7, 9, 1024, 100, (1, 1), epilogue=(ADD, Step("add", "tensor"), RELU)),
    # Two bands, of which one has pieces of two sizes.
    Conv2d(11, 13, 512, 20, (1, 1), epilogue=(ADD, LEAKY)),
    Conv2d(4, 4, 20, 12, (1, 1), epilogue=(RELU,)),
]
PACKED = [
    # Tiles of which the last is not whole, panels likewise; lines that a tile claims for the next one.
    Conv2d(24, 25, 36, 24, (1, 1), epilogue=(ADD, CLIP)),
    Conv2d(9, 13, 20, 44, (1, 1), epilogue=(ADD, LEAKY)),
    Conv2d(8, 12, 32, 8, (1, 1), epilogue=(ADD, Step("add", "tensor"), RELU)),
    Conv2d(13, 11, 16, 24, (3, 3), (2, 2), SAME, epilogue=(ADD, Step("hardswish"))),
    Conv2d(6, 8, 16, 40, (1, 1), (2, 2), epilogue=(Step("round"),)),
    # Sums in parts, where all tiles meet a panel.
    Conv2d(4, 4, 68, 20, (3, 3), padding=SAME, epilogue=(ADD, LEAKY)),
]
WINOGRAD = [
    Conv2d(7, 9, 8, 12, (3, 3), padding=SAME, epilogue=(ADD, RELU)),
    Conv2d(13, 10, 16, 20, (3, 3), padding=(0, 2, 1, 0), epilogue=(Step("prelu", "element"),)),
    Conv2d(12, 13, 16, 24, (3, 3), padding=SAME, epilogue=(ADD, LEAKY), pool=HALF),
    Conv2d(9, 11, 4, 24, (3, 3), padding=SAME, epilogue=(Step("add", "tensor"), RELU), pool=OVERLAPPING),
    Conv2d(4, 4, 32, 40, (3, 3), padding=SAME, pool=HALF, out="bits"),
    Conv2d(8, 8, 8, 12, (3, 3), padding=SAME, pool=HALF, out="bits"),
    Conv2d(3, 3, 4, 4, (3, 3)),
]
DEPTHWISE = [
    Conv2d(6, 7, 12, 12, (3, 3), (2, 1), SAME, groups=12, epilogue=(Step("add", "tensor"), LEAKY)),
    Conv2d(9, 17, 7, 7, (3, 3), (2, 2), (0, 0, 1, 1), groups=7, epilogue=(ADD, CLIP)),
    Conv2d(9, 11, 8, 8, (5, 5), padding=(2, 2, 2, 2), groups=8, pool=HALF, out="bits"),
    Conv2d(9, 11, 8, 8, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2), groups=8, epilogue=(Step("silu"),)),
]


def close(result: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    """Relative to the largest value; bits may differ where the sum is as good as zero."""
    if result.dtype == np.uint8:
        return np.unpackbits(result ^ expected).sum() <= 1
    return float(np.abs(result - expected).max()) <= tolerance * float(np.abs(expected).max())


def compute_the_definition(run_kernels, workload, cases, tolerance):
    """Kernels of ``workload`` by these knobs, each for so many threads, on three of them."""
    target, args = targets.load("rasp3b"), example(workload)
    kernels = [conv2d.emit(workload, knobs, target, threads) for knobs, threads in cases]
    expected, count = defined(workload, args), len(cases)
    (results,) = run_kernels([workload] * count, kernels, [args] * count, target, [3])
    for kernel, result in zip(kernels, results, strict=True):
        assert close(result, expected, tolerance), kernel.notes


@pytest.mark.parametrize("workload", DIRECT + DEPTHWISE, ids=Conv2d.key)
def test_plain_loops_compute_the_definition(workload):
    """Kernels of a CPU without a set call no assembly: they run on any machine."""
    target = without_set()
    kernel = conv2d.emit(workload, conv2d.default(workload, target), target)
    assert not kernel.microkernels
    args = example(workload)
    assert close(on_host(kernel.func, bound(kernel, args), workload), defined(workload, args), 1e-6)


@pytest.mark.parametrize("workload", DIRECT, ids=Conv2d.key)
def test_direct_micro_kernels_compute_the_definition(workload, run_kernels):
    points = [{"algorithm": "direct", "tile": tile, "block": block} for tile, block in (("8x8", 1), ("11x8", 0))]
    compute_the_definition(run_kernels, workload, [(knobs, 1) for knobs in points], 2e-6)


@pytest.mark.parametrize("workload", WINOGRAD, ids=Conv2d.key)
def test_winograd_computes_the_definition(workload, run_kernels):
    assert conv2d_winograd.applies(workload)
    points = (
        ("4x4", "8x8", 1, 1),
        ("4x4", "8x8", 1, 4),
        ("2x4", "4x20", 0, 1),
        ("2x2", "7x12", 2, 4),
        ("1x2", "8x8", 0, 1),
    )
    cases = [
        ({"algorithm": f"winograd {outputs}", "tile": tile, "block": block}, threads)
        for outputs, tile, block, threads in points
    ]
    compute_the_definition(run_kernels, workload, cases, 2e-5)


def test_lean_winograd_computes_the_definition_on_any_number_of_threads(run_kernels):
    """Some tiles and panels are not whole."""
    target = targets.load("rasp3b")
    points = (("1x4", "8x8", 1), ("4x4", "8x8", 1), ("2x4", "8x12", 0), ("1x4", "7x12", 0))
    points += (("2x2", "11x8", 2), ("4x4", "4x20", 2))
    # The first one's channels are three parts.
    works = (Conv2d(6, 9, 96, 24, (3, 3), padding=SAME, epilogue=(ADD, RELU)), *WINOGRAD)
    given = {work: example(work) for work in works}
    cases = [(work, *point) for work, point in zip(given, itertools.cycle(points), strict=False)]
    kernels = [
        conv2d.emit(work, {"algorithm": f"winograd {outputs} lean", "tile": tile, "block": block}, target, 4)
        for work, outputs, tile, block in cases
    ]
    works = [work for work, *_ in cases]
    one, three = run_kernels(works, kernels, [given[work] for work in works], target, [1, 3])
    for work, kernel, first, second in zip(works, kernels, one, three, strict=True):
        assert close(first, defined(work, given[work]), 1e-5), (work.key(), kernel.notes)
        assert np.array_equal(first, second), (work.key(), kernel.notes)


@pytest.mark.parametrize("outputs", UNFOLDED)
def test_positions_are_made_of_stored_weights(outputs):
    transform, unfolded = TRANSFORMS[outputs], UNFOLDED[outputs]
    made = [matrix(stages, len(unfolded.stored)) @ unfolded.stored for stages in unfolded.made]
    rows = [unfolded.stored[0], *np.concatenate(made), unfolded.stored[-1]]
    np.testing.assert_allclose(rows, transform.weight, atol=1e-15)


@pytest.mark.parametrize("workload", STRASSEN, ids=Conv2d.key)
def test_strassen_computes_the_definition(workload, run_kernel):
    assert conv2d_strassen.applies(workload)
    target = targets.load("rasp3b")
    args = example(workload)
    expected = defined(workload, args)
    for tile, block in (("7x12", 2), ("8x8", 0), ("6x16", 1)):
        kernel = conv2d.emit(workload, {"algorithm": "strassen", "tile": tile, "block": block}, target)
        assert close(run_kernel(workload, kernel, args, target, 3), expected, 6e-6), kernel.notes


def test_threads_share_the_panels_of_a_last_block(run_kernel):
    target = targets.load("rasp3b")
    workload = Conv2d(5, 7, 264, 260, (1, 1), epilogue=(ADD, Step("add", "tensor"), RELU))
    args, knobs = example(workload), {"algorithm": "direct", "tile": "8x8", "block": 1}
    alone = run_kernel(workload, conv2d.emit(workload, knobs, target), args, target, 1)
    assert close(alone, defined(workload, args), 2e-6)
    shared = run_kernel(workload, conv2d.emit(workload, knobs, target, threads=4), args, target, 3)
    assert (shared == alone).all()


@pytest.mark.parametrize("workload", PANELS, ids=Conv2d.key)
def test_panels_that_threads_share_compute_the_definition(workload, run_kernel):
    target = targets.load("rasp3b")
    args = example(workload)
    expected = defined(workload, args)
    one = None
    for tile, threads in (("8x8", 1), ("8x8", 3), ("7x12", 3)):
        kernel = conv2d.emit(workload, {"algorithm": "panels", "tile": tile, "block": 0}, target, threads)
        result = run_kernel(workload, kernel, args, target, threads)
        assert close(result, expected, 2e-6), kernel.notes
        # How many threads share the pixels does not change a sum.
        one = result if one is None else one
        assert tile != "8x8" or (result == one).all()


def test_weights_in_halves_give_what_their_floats_give(run_kernels):
    """Widening is exact, and the products of a tile are added in the same order."""
    target = targets.load("rasp3b")
    knobs = [("direct", "8x8", 1), ("direct", "6x12", 0), ("direct", "4x20", 2), ("direct", "4x16", 8)]
    cases = [(work, *knobs[number % 4]) for number, work in enumerate(DIRECT[::2])]
    cases += [(work, "panels", "8x8", 0) for work in PANELS]
    works = [dataclasses.replace(work, halves=True) for work, *_ in cases]
    args = [[given[0], nearest(given[1]), *given[2:]] for given in map(example, works)]
    results = []
    for storage in ("", " bf16"):
        kernels = [
            conv2d.emit(work, {"algorithm": algorithm + storage, "tile": tile, "block": block}, target, 4)
            for work, (_, algorithm, tile, block) in zip(works, cases, strict=True)
        ]
        assert all(
            ("uint16" in [argument.dtype for argument in _packed(kernel)]) == bool(storage) for kernel in kernels
        )
        results += run_kernels(works, kernels, args, target, [3])
    for work, given, floats, halves in zip(works, args, *results, strict=True):
        assert np.array_equal(floats, halves), work.key()
        assert close(floats, defined(work, given), 2e-6), work.key()


def _packed(kernel: Kernel) -> list[Argument]:
    return [argument for argument in kernel.arguments if isinstance(argument, Argument)]


def test_halves_are_the_default_where_weights_come_from_memory():
    target = targets.load("rasp3b")
    dense = Conv2d(1, 1, 1024, 1000, (1, 1), halves=True)
    assert conv2d.default(dense, target)["algorithm"] == "direct bf16"
    assert conv2d.default(dataclasses.replace(dense, halves=False), target)["algorithm"] == "direct"
    # One core has enough to do with the products, which take longer with weights that have to be widened.
    many = dataclasses.replace(dense, height=28, width=28)
    assert "bf16" not in str(conv2d.default(many, target)["algorithm"])
    assert "direct bf16" in conv2d.space(dense, target)["algorithm"]
    assert "direct bf16" not in conv2d.space(dense, targets.load("rasp3b32"))["algorithm"]


def test_strassen_is_the_default_where_sums_are_long():
    target = targets.load("rasp3b")
    assert conv2d.default(Conv2d(14, 14, 512, 512, (1, 1)), target)["algorithm"] == "strassen"
    assert conv2d.default(Conv2d(7, 7, 1024, 1024, (1, 1)), target)["algorithm"] == "strassen"
    assert conv2d.default(Conv2d(56, 56, 24, 144, (1, 1)), target)["algorithm"] == "direct"
    # More to combine than the few products of so few output channels save.
    assert conv2d.default(Conv2d(7, 7, 1152, 320, (1, 1)), target)["algorithm"] == "direct"
    # Sums of whole numbers that have to be exact are made directly.
    assert not conv2d_strassen.applies(Conv2d(14, 14, 512, 512, (1, 1), whole=True))


def test_32_bit_micro_kernels_compute_the_definition(run_kernels):
    target = targets.load("rasp3b32")
    cases = [(work, {"algorithm": "direct", "tile": "4x8", "block": i % 3}, 1) for i, work in enumerate(DIRECT)]
    # The transform's micro-kernel finishes with a bias and an activation.
    finishes = [(ADD, LEAKY), (CLIP,), (ADD, CLIP, Step("mul", "channel")), (Step("prelu", "channel"), RELU)]
    wide = [work for work in WINOGRAD if work.out_channels % 8 == 0]
    wide += [Conv2d(6, 9, 8, 16, (3, 3), padding=SAME, epilogue=steps) for steps in finishes]
    plain = [work for work in DIRECT if conv2d_packed.applies(work, target)]
    cases += [
        (work, {"algorithm": "packed", "tile": "4x8", "block": (1, 0, 2)[i % 3]}, 1) for i, work in enumerate(plain)
    ]
    cases += [
        (work, {"algorithm": "packed", "tile": "4x8", "block": block}, 1) for work in PACKED for block in (1, 4, 0)
    ]
    points = itertools.cycle((("4x4", 1, 1), ("2x4", 0, 1), ("4x4", 2, 4), ("2x2", 2, 4)))
    for work, (outputs, block, threads) in zip([*wide, *wide[::2]], points, strict=False):
        cases.append((work, {"algorithm": f"winograd {outputs}", "tile": "4x8", "block": block}, threads))
    kernels = [conv2d.emit(work, knobs, target, threads) for work, knobs, threads in cases]
    assert all(kernel.microkernels for kernel in kernels)
    args = [example(work) for work, *_ in cases]
    one, three = run_kernels([work for work, *_ in cases], kernels, args, target, [1, 3])
    for (work, knobs, _), given, first, second in zip(cases, args, one, three, strict=True):
        tolerance = 2e-6 if knobs["algorithm"] in ("direct", "packed") else 2e-5
        assert close(first, defined(work, given), tolerance), (work.key(), knobs)
        assert np.array_equal(first, second), (work.key(), knobs)


@pytest.mark.parametrize("workload", DEPTHWISE, ids=Conv2d.key)
def test_depthwise_kernels_compute_the_definition(workload, run_kernel):
    assert conv2d_depthwise.applies(workload)
    target = targets.load("rasp3b")
    args = example(workload)
    expected = defined(workload, args)
    for pixels in conv2d_depthwise.PIXELS[1:]:
        result = run_kernel(workload, conv2d_depthwise.emit(workload, pixels), args, target, 2)
        assert close(result, expected, 1e-6)


@pytest.mark.parametrize("name", ["rasp3b", "rasp3b32"])
def test_defaults_lie_in_the_space(name):
    target = targets.load(name)
    for workload in DIRECT + STRASSEN + WINOGRAD + DEPTHWISE:
        space, default = conv2d.space(workload, target), conv2d.default(workload, target)
        assert space.keys() == default.keys()
        assert all(default[knob] in values for knob, values in space.items()), workload.key()


@pytest.mark.parametrize("outputs", TRANSFORMS)
def test_transforms_are_filters(outputs):
    """Result, weight and data matrices together compute a correlation with 3 taps."""
    transform = TRANSFORMS[outputs]
    rng = np.random.default_rng(0)
    data, taps = rng.normal(size=transform.points), rng.normal(size=3)
    products = (matrix(transform.data, transform.points) @ data) * (transform.weight @ taps)
    result = matrix(transform.result, transform.points) @ products
    np.testing.assert_allclose(result, np.correlate(data, taps), atol=1e-12)


def test_definition_of_a_small_convolution():
    workload = Conv2d(3, 3, 1, 1, (2, 2), padding=(1, 0, 0, 0), epilogue=(ADD,))
    data = np.arange(9, dtype="float32").reshape(1, 3, 3, 1)
    weight = np.array([1, 2, 3, 4], "float32").reshape(1, 2, 2, 1)
    result = defined(workload, [data, weight, np.array([0.5], "float32")])
    assert result[0, :, :, 0].tolist() == [[4.5, 11.5], [27.5, 37.5], [57.5, 67.5]]


def test_defaults_of_several_threads_bring_less_from_memory():
    target = targets.load("rasp3b")
    pointwise = Conv2d(13, 13, 512, 1000, (1, 1))
    assert conv2d.default(pointwise, target)["algorithm"] == "strassen"
    assert conv2d.default(pointwise, target, threads=4)["algorithm"] == "panels"
    assert conv2d.default(Conv2d(14, 14, 512, 512, (1, 1)), target, 4)["algorithm"] == "panels"
    assert conv2d.default(Conv2d(7, 7, 1024, 1024, (1, 1)), target, 4)["algorithm"] == "panels"
    # 22 tiles of 8 pixels are more for two of the threads than for the others.
    assert conv2d.default(Conv2d(13, 13, 64, 256, (1, 1)), target, 4)["algorithm"] == "panels"
    assert conv2d.default(Conv2d(27, 27, 64, 256, (1, 1)), target, 4)["algorithm"] == "direct"
    # Too few pixels for all threads to do something with a panel.
    assert conv2d.default(Conv2d(4, 4, 1024, 1024, (1, 1)), target, 4)["algorithm"] == "direct"
    deep = Conv2d(13, 13, 64, 256, (3, 3), padding=(1, 1, 1, 1))
    assert conv2d.default(deep, target)["block"] == 1
    # Transformed weights would push everything else out of the cache that threads share, unless they are lean.
    assert conv2d.default(deep, target, threads=4)["algorithm"] == "winograd 4x4 lean"
    # Small images of many channels are transformed along x alone.
    small = Conv2d(8, 8, 256, 512, (3, 3), padding=(1, 1, 1, 1))
    assert conv2d.default(small, target, threads=4) == {"algorithm": "winograd 1x4 lean", "tile": "8x8", "block": 0}
    many = Conv2d(16, 16, 128, 256, (3, 3), padding=(1, 1, 1, 1))
    assert "lean" not in conv2d.default(many, target)["algorithm"]
    assert conv2d.default(many, target, threads=4) == {"algorithm": "winograd 4x4 lean", "tile": "8x8", "block": 2}
    # Threads go through fewer weights side by side.
    assert conv2d.default(dataclasses.replace(deep, channels=32, out_channels=128), target, threads=4)["block"] == 1

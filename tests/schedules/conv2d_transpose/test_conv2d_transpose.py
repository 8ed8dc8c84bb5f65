"""Emitted transposed convolutions against the plain definition and against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.reference.workloads import compute
from bitkiln.schedules import conv2d_transpose
from bitkiln.schedules.conv2d_transpose.phases import border, phases
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import ConvTranspose2d, from_json, to_json
from tests.schedules.kernels import bound, defined, example, on_host, without_set

ADD, RELU = Step("add", "channel"), Step("relu")
WORKLOADS = [
    ConvTranspose2d(4, 5, 8, 12, (2, 2), (2, 2), epilogue=(ADD, RELU)),
    ConvTranspose2d(5, 9, 8, 12, (3, 3), (2, 2), (1, 1, 1, 1), output_padding=(1, 0), epilogue=(ADD,)),
    ConvTranspose2d(5, 9, 5, 7, (4, 4), (2, 2), (1, 1, 1, 1)),
    ConvTranspose2d(5, 4, 6, 4, (3, 2), (3, 2), (0, 0, 1, 2), (2, 1), groups=2, epilogue=(Step("prelu", "element"),)),
    ConvTranspose2d(5, 4, 6, 6, (4, 4), (2, 2), (1, 1, 1, 1), groups=6, epilogue=(ADD, RELU)),
    ConvTranspose2d(3, 5, 8, 8, (2, 2), (2, 2), groups=8),
    ConvTranspose2d(3, 4, 4, 8, (1, 1), (2, 3), output_padding=(1, 1), epilogue=(ADD,)),
    ConvTranspose2d(3, 4, 4, 8, (5, 5), (3, 3), (4, 4, 3, 3), (3, 3)),
    ConvTranspose2d(7, 7, 4, 8, (3, 3), (1, 1), (3, 3, 3, 3)),
    ConvTranspose2d(6, 17, 16, 24, (6, 5), (2, 2), (2, 2, 2, 1), epilogue=(Step("add", "tensor"), RELU)),
]


def close(result: np.ndarray, expected: np.ndarray) -> bool:
    """Relative to the largest value."""
    return float(np.abs(result - expected).max()) <= 2e-6 * max(1.0, float(np.abs(expected).max()))


def points(workload, target):
    """The default of a workload, and the other order of its loops."""
    knobs = conv2d_transpose.default(workload, target)
    return [knobs, {**knobs, "order": "panels"}] if knobs else [knobs]


@pytest.mark.parametrize("workload", WORKLOADS, ids=ConvTranspose2d.key)
def test_plain_loops_compute_the_definition(workload):
    target, args = without_set(), example(workload)
    expected = defined(workload, args)
    assert close(compute(workload, args), expected)
    for knobs in points(workload, target):
        kernel = conv2d_transpose.emit(workload, knobs, target)
        assert not kernel.microkernels
        assert close(on_host(kernel.func, bound(kernel, args), workload), expected), kernel.notes


def test_micro_kernels_compute_the_definition(run_kernels):
    target = targets.load("rasp3b")
    cases = [(work, knobs) for work in WORKLOADS for knobs in points(work, target)]
    cases += [(work, {"tile": "11x8", "order": "rows"}) for work in WORKLOADS[1:4]]
    kernels = [conv2d_transpose.emit(work, knobs, target) for work, knobs in cases]
    args = [example(work) for work, _ in cases]
    one, four = run_kernels([work for work, _ in cases], kernels, args, target, [1, 4])
    for (work, knobs), given, first, second in zip(cases, args, one, four, strict=True):
        expected = compute(work, given)
        assert close(first, expected), (work.key(), knobs, float(np.abs(first - expected).max()))
        assert np.array_equal(first, second), (work.key(), knobs)


def test_tuning_space_holds_the_default():
    for target in map(targets.load, ("rasp3b", "rasp3b32")):
        for workload in WORKLOADS:
            space, default = conv2d_transpose.space(workload, target), conv2d_transpose.default(workload, target)
            assert space.keys() == default.keys()
            assert all(default[knob] in values for knob, values in space.items())


def test_phases_share_the_taps():
    """Of 3x3 taps with stride 2, one axis has phases of one tap and of two: every tap belongs to one phase."""
    workload = ConvTranspose2d(4, 4, 1, 1, (3, 3), (2, 2), (1, 1, 1, 1), output_padding=(1, 1))
    even, odd = phases(workload, 0)
    assert (even.taps, even.places, even.count) == ((1,), (0,), 4)
    assert (odd.taps, odd.places, odd.count) == ((2, 0), (0, 1), 4)
    assert border(workload) == (0, 0, 1, 1)


def test_definition_of_a_small_one():
    workload = ConvTranspose2d(1, 2, 1, 1, (2, 2), (2, 2), epilogue=(ADD,))
    data = np.float32([[[[1], [10]]]])
    weight = np.float32([1, 2, 3, 4]).reshape(1, 2, 2, 1)
    result = defined(workload, [data, weight, np.float32([0.5])])
    assert result[0, :, :, 0].tolist() == [[1.5, 2.5, 10.5, 20.5], [3.5, 4.5, 30.5, 40.5]]


def test_workload_is_a_value():
    assert [from_json(to_json(workload)) for workload in WORKLOADS] == WORKLOADS
    assert len({workload.key() for workload in WORKLOADS}) == len(WORKLOADS)

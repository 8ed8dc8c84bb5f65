"""Emitted float convolutions against the plain definition."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from bitkiln import targets
from bitkiln.schedules import conv2d
from bitkiln.schedules.kernel import Argument, Kernel
from bitkiln.schedules.workload import Conv2d, Pool, Step

SAME = (1, 1, 1, 1)
ADD, RELU = Step("add", "channel"), Step("relu")
WORKLOADS = [
    Conv2d(7, 9, 5, 6, (3, 3), padding=SAME),
    Conv2d(8, 8, 8, 12, (3, 3), (2, 2), (0, 1, 1, 0), epilogue=(ADD, RELU)),
    Conv2d(9, 9, 8, 20, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
    Conv2d(6, 7, 12, 24, (3, 3), padding=SAME, groups=3, epilogue=(Step("prelu", "element"),)),
    Conv2d(6, 7, 12, 12, (3, 3), (2, 1), SAME, groups=12, epilogue=(Step("add", "tensor"), Step("leaky", "", (0.1,)))),
    Conv2d(6, 7, 12, 24, (3, 3), (2, 1), SAME, groups=12),
    Conv2d(1, 1, 33, 10, (1, 1), epilogue=(ADD,)),
    Conv2d(12, 12, 3, 16, (3, 3), padding=SAME, epilogue=(ADD, Step("clip", "", (0, 6))), pool=Pool((2, 2), (2, 2))),
    Conv2d(12, 13, 3, 16, (7, 7), (2, 2), (3, 3, 3, 3), pool=Pool((3, 3), (2, 2), SAME)),
    Conv2d(12, 13, 3, 16, (7, 7), (2, 2), (3, 3, 3, 3), pool=Pool((3, 3), (2, 2), SAME, "avg", False)),
    Conv2d(12, 13, 16, 19, (3, 3), padding=SAME, pool=Pool((2, 2), (2, 2)), out="bits"),
    Conv2d(5, 13, 16, 64, (3, 3), padding=SAME, out="bits", sign_zero=-1),
    Conv2d(5, 13, 16, 64, (1, 3), padding=(0, 1, 0, 1)),
    Conv2d(4, 4, 16, 64, (4, 4)),
]


def example(workload: Conv2d) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.normal(0, 1, shape).astype(dtype) for shape, dtype in workload.shapes[:-1]]


def bound(kernel: Kernel, args: list[np.ndarray]) -> list[np.ndarray]:
    """The arguments of the emitted function for arguments of the workload."""
    result = []
    for argument in kernel.arguments:
        if not isinstance(argument, Argument):
            result.append(argument.array)
            continue
        sources = [args[i] for i in argument.sources]
        array = argument.pack(sources) if argument.pack else sources[0]
        assert (array.shape, str(array.dtype)) == (argument.shape, argument.dtype)
        result.append(array)
    return result


def on_host(function: tvm.tirx.PrimFunc, args: list[np.ndarray], workload: Conv2d) -> np.ndarray:
    shape, dtype = workload.shapes[-1]
    out = tvm.runtime.tensor(np.full(shape, 77, dtype))
    tvm.compile(function, target="llvm")(*map(tvm.runtime.tensor, args), out)
    return out.numpy()


def close(result: np.ndarray, expected: np.ndarray) -> bool:
    if result.dtype == np.uint8:
        return bool((result == expected).all())
    return float(np.abs(result - expected).max() / np.abs(expected).max()) < 1e-5


@pytest.mark.parametrize("workload", WORKLOADS, ids=Conv2d.key)
def test_plain_loops_compute_the_definition(workload):
    """The kernels of 32-bit boards call no assembly: they run on any machine."""
    target = targets.load("rasp3b32")
    kernel = conv2d.emit(workload, conv2d.default(workload, target), target)
    assert not kernel.microkernels
    args = example(workload)
    expected = on_host(conv2d.reference(workload), args, workload)
    assert close(on_host(kernel.func, bound(kernel, args), workload), expected)


def test_definition_of_a_small_convolution():
    workload = Conv2d(3, 3, 1, 1, (2, 2), padding=(1, 0, 0, 0), epilogue=(ADD,))
    data = np.arange(9, dtype="float32").reshape(1, 3, 3, 1)
    weight = np.array([1, 2, 3, 4], "float32").reshape(1, 2, 2, 1)
    result = on_host(conv2d.reference(workload), [data, weight, np.array([0.5], "float32")], workload)
    assert result[0, :, :, 0].tolist() == [[4.5, 11.5], [27.5, 37.5], [57.5, 67.5]]

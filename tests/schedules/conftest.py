"""Runs emitted kernels as ARM programs under qemu."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from bitkiln.pipeline.boards.userland import userland
from bitkiln.pipeline.compile import link, plan
from bitkiln.pipeline.compile.single import link_kernel
from bitkiln.pipeline.errors import SetupError
from bitkiln.schedules.kernel import Argument, Constant, Kernel
from bitkiln.schedules.workload import Workload, result_specs
from bitkiln.targets import Target
from bitkiln.targets.needs import Missing
from bitkiln.targets.sim import build as simulator
from bitkiln.targets.sim.reports import Reports
from bitkiln.targets.toolchain import toolchain
from tests.schedules.kernels import Results, bound, read_results

#: Runs a kernel on arguments of its workload, for a target, with a number of threads.
RunKernel = Callable[[Workload, Kernel, Sequence[np.ndarray], Target, int], Results]
#: Runs kernels of workloads on their arguments; the results for each number of threads.
RunKernels = Callable[
    [Sequence[Workload], Sequence[Kernel], Sequence[Sequence[np.ndarray]], Target, Sequence[int]],
    list[list[Results]],
]
#: Cycles of a kernel on the simulated core, caches warm.
KernelCycles = Callable[[Kernel, Sequence[np.ndarray], Target], int]

#: Where the cross compilers keep their systems' libraries, by the width of a pointer.


class _Bench:
    """Links kernels as tuning does, each as a network of one step, and holds the program that runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "output"
        self._programs: dict[int, Path] = {}

    def command(self, kernel: Kernel, args: Sequence[np.ndarray], target: Target, threads: int) -> list[str]:
        """The program's command line for ``kernel`` on ``args``; it writes ``output``."""
        _need_tools(target)
        library, inputs = self.folder / "kernel.so", self.folder / "inputs"
        link_kernel(kernel, target, library)
        # Tables are embedded in the library; the rest are its inputs.
        arrays = zip(bound(kernel, args), kernel.arguments, strict=True)
        inputs.write_bytes(b"".join(array.tobytes() for array, kind in arrays if isinstance(kind, Argument)))
        return list(map(str, [self._program(target), library, inputs, self.output, threads]))

    def command_of_many(
        self, kernels: Sequence[Kernel], args: Sequence[Sequence[np.ndarray]], target: Target, threads: int
    ) -> list[str]:
        """As ``command`` for several kernels in one library, each with its own arguments and output."""
        _need_tools(target)
        calls, functions, inputs, outputs = [], {}, [], []
        for index, (kernel, arrays) in enumerate(zip(kernels, args, strict=True)):
            views = []
            for at, (argument, array) in enumerate(zip(kernel.arguments, bound(kernel, arrays), strict=True)):
                if isinstance(argument, Constant) or argument.pack:
                    views.append(plan.constant_view(f"table{index}.{at}", array))
                else:
                    views.append(plan.new_view(f"arg{index}.{at}", argument.shape, argument.dtype, boundary=True))
                    inputs.append((views[-1], array))
            results = tuple(
                plan.new_view(f"out{index}.{at}", list(map(int, written.shape)), str(written.dtype))
                for at, written in enumerate(list(kernel.func.params)[len(views) :])
            )
            outputs += results
            functions[f"kernel{index}"] = kernel.func
            calls.append(plan.PlannedCall(f"out{index}", "kernel", f"kernel{index}", tuple(views), results))
        steps = plan.make_plan(calls, [view for view, _ in inputs], outputs)
        micro = [each for kernel in kernels for each in kernel.microkernels]
        link.link_library(functions, micro, steps, target, self.folder / "many.so")
        (self.folder / "inputs").write_bytes(b"".join(array.tobytes() for _, array in inputs))
        names = self._program(target), self.folder / "many.so", self.folder / "inputs", self.output, threads
        return list(map(str, names))

    def _program(self, target: Target) -> Path:
        if target.architecture not in self._programs:
            self._programs[target.architecture] = self.folder / f"run_library-{target.architecture}"
            source, cross = Path(__file__).with_name("run_library.c"), toolchain(target)
            command = [
                *cross.command,
                f"-I{link.DEVICE}",
                "-O1",
                source,
                "-ldl",
                "-o",
                self._programs[target.architecture],
            ]
            subprocess.run(command, check=True, timeout=60, env=cross.environment)
        return self._programs[target.architecture]


def _need_tools(target: Target) -> None:
    try:
        toolchain(target), userland(target)
    except (Missing, SetupError) as problem:
        pytest.skip(str(problem))


def _emulated(command: Sequence[str], target: Target) -> list[str]:
    return userland(target).command(command)


def _run(command: Sequence[str], seconds: float = 60) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> _Bench:
    """Where kernels are linked."""
    return _Bench(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def run_kernel(bench: _Bench) -> RunKernel:
    """Runs kernels under qemu."""

    def run(workload: Workload, kernel: Kernel, args: Sequence[np.ndarray], target: Target, threads: int) -> Results:
        _run(_emulated(bench.command(kernel, args, target, threads), target))
        return read_results(workload, bench.output.read_bytes())

    return run


@pytest.fixture(scope="session")
def run_kernels(bench: _Bench) -> RunKernels:
    """Runs many kernels of one library under qemu, with each of several numbers of threads."""

    def run(
        workloads: Sequence[Workload],
        kernels: Sequence[Kernel],
        args: Sequence[Sequence[np.ndarray]],
        target: Target,
        threads: Sequence[int],
    ) -> list[list[Results]]:
        command = _emulated(bench.command_of_many(kernels, args, target, threads[0]), target)
        results = []
        for number in threads:
            _run([*command[:-1], str(number)], 300)
            answer, results_of_all = bench.output.read_bytes(), []
            for workload in workloads:
                size = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in result_specs(workload))
                results_of_all.append(read_results(workload, answer[:size]))
                answer = answer[size:]
            results.append(results_of_all)
        return results

    return run


@pytest.fixture(scope="session")
def kernel_cycles(bench: _Bench) -> KernelCycles:
    """Measures kernels on the simulated core."""

    def cycles(kernel: Kernel, args: Sequence[np.ndarray], target: Target) -> int:
        reports = bench.folder / "reports"
        reports.unlink(missing_ok=True)
        program = [*bench.command(kernel, args, target, 1), "marked"]
        options = ["roi=1", f"out={reports}"]
        try:
            command, _ = simulator.qemu_command(
                {"cpu": target.cpu, "dram": target.dram, "userland": target.userland},
                program,
                sysroot=userland(target).root,
                options=options,
            )
        except Missing as missing:
            pytest.skip(str(missing))
        _run(command, 120)
        return Reports(reports).new()[-1]["cycles"]

    return cycles

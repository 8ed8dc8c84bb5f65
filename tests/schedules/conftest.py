"""Runs emitted kernels as ARM programs under qemu."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from bitkiln.pipeline import compile as compiling
from bitkiln.pipeline import link
from bitkiln.schedules.kernel import Argument, Kernel
from bitkiln.schedules.workload import Workload
from bitkiln.targets import Target
from tests.schedules.kernels import bound

#: Runs a kernel on arguments of its workload, for a target, with a number of threads.
RunKernel = Callable[[Workload, Kernel, Sequence[np.ndarray], Target, int], np.ndarray]

_SYSROOT = {
    64: ("qemu-aarch64", "cortex-a53", "/usr/aarch64-linux-gnu"),
    32: ("qemu-arm", "cortex-a7", "/usr/arm-linux-gnueabihf"),
}


@pytest.fixture(scope="session")
def run_kernel(tmp_path_factory: pytest.TempPathFactory) -> RunKernel:
    """Links a kernel as tuning does and runs it under qemu."""
    folder = tmp_path_factory.mktemp("kernels")
    harness: dict[str, Path] = {}

    def program(target: Target) -> Path:
        compiler = target.cc["compiler"]
        if compiler not in harness:
            harness[compiler] = folder / f"run_library-{target.bits}"
            source = Path(__file__).with_name("run_library.c")
            command = [compiler, f"-I{link.DEVICE}", "-O1", source, "-ldl", "-o", harness[compiler]]
            subprocess.run(command, check=True, timeout=60)
        return harness[compiler]

    def run(workload: Workload, kernel: Kernel, args: Sequence[np.ndarray], target: Target, threads: int) -> np.ndarray:
        emulator, cpu, sysroot = _SYSROOT[target.bits]
        if not shutil.which(emulator) or not shutil.which(target.cc["compiler"]):
            pytest.skip(f"needs {emulator} and {target.cc['compiler']}")
        compiling.link_kernel(kernel, target, folder / "kernel.so")
        # Tables are embedded in the library; the rest are its inputs.
        inputs = [
            a for a, kind in zip(bound(kernel, args), kernel.arguments, strict=True) if isinstance(kind, Argument)
        ]
        (folder / "inputs").write_bytes(b"".join(array.tobytes() for array in inputs))
        command = [emulator, "-cpu", cpu, "-L", sysroot, program(target)]
        command += [folder / "kernel.so", folder / "inputs", folder / "output", threads]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        shape, dtype = workload.shapes[-1]
        return np.fromfile(folder / "output", dtype).reshape(shape)

    return run

"""The example in C, built against a bundle as its README says and run as on the board."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tvm.script import tirx as T

from bitkiln import targets
from bitkiln.pipeline.compile import link_kernel
from bitkiln.pipeline.link import DEVICE
from bitkiln.pipeline.userland import userland
from bitkiln.schedules import generic
from bitkiln.schedules.kernel import Argument, Kernel

EXAMPLE = Path(__file__).parents[2] / "examples" / "c"


@T.prim_func(s_tir=True)
def double(x: T.Buffer((1, 8), "float32"), y: T.Buffer((1, 8), "float32")):
    """y = 2 x."""
    T.func_attr({"tirx.noalias": True})
    for i, j in T.grid(1, 8):
        with T.sblock("y"):
            vi, vj = T.axis.remap("SS", [i, j])
            y[vi, vj] = x[vi, vj] * T.float32(2)


@pytest.fixture(scope="module", params=["rasp3b", "rasp3b32"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command that runs the example in the userland, and its folder."""
    target = targets.load(request.param)
    folder = tmp_path_factory.mktemp("c")
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
    shutil.copyfile(DEVICE / "bitkiln.h", folder / "bitkiln.h")
    link_kernel(Kernel(generic.schedule(double), (Argument((0,), (1, 8), "float32"),)), target, folder / "model.so")
    flags = f"CFLAGS=-Wall -Wextra -Werror {' '.join(target.cc['flags'])}"
    command = ["make", "-C", folder, "BUNDLE=.", f"CC={target.cc['compiler']}", flags]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return userland(target).command([str(folder / "classify")]), folder


def test_it_prints_the_best_classes_and_the_steps(program: tuple[list[str], Path]) -> None:
    command, folder = program
    np.array([1, 5, 3, -1, 4, 0, 2, 0], "float32").tofile(folder / "input.raw")
    (folder / "labels.txt").write_text("".join(f"thing {index}\n" for index in range(8)))
    arguments = [str(folder / "input.raw"), str(folder / "labels.txt")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert lines[:5] == [
        ["10.00000", "thing 1"],
        ["8.00000", "thing 4"],
        ["6.00000", "thing 2"],
        ["4.00000", "thing 6"],
        ["2.00000", "thing 0"],
    ]
    assert lines[5][1] == "ms  out (kernel)"


def test_a_wrong_file_is_one_line(program: tuple[list[str], Path]) -> None:
    command, folder = program
    (folder / "short.raw").write_bytes(b"123")
    for name, why in (("short.raw", "has not the size of the network's input"), ("absent.raw", "cannot be opened")):
        done = subprocess.run([*command, str(folder / name)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (2, f"classify: {folder / name}: {why}\n")


def test_the_header_is_c_plus_plus_too(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text('#include "bitkiln.h"\nint main() { return bk_abi_version(); }\n')
    command = ["g++", "-std=c++11", "-Wall", "-Wextra", "-Werror", f"-I{DEVICE}", "-c", "a.cpp"]
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)

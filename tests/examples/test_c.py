"""The examples in C and C++, built against bundles as their README says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tvm.script import tirx as T

from bitkiln import targets
from bitkiln.pipeline.boards.userland import userland
from bitkiln.pipeline.compile.link import DEVICE
from bitkiln.pipeline.compile.single import link_kernel
from bitkiln.schedules import generic
from bitkiln.schedules.kernel import Argument, Kernel
from bitkiln.targets import Target

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
    for name in ("bitkiln.c", "bitkiln.h"):
        shutil.copyfile(DEVICE / name, folder / name)
    link_kernel(Kernel(generic.schedule(double), (Argument((0,), (1, 8), "float32"),)), target, folder / "model.so")
    flags = f"CFLAGS=-Wall -Wextra -Werror {' '.join(target.cc['flags'])}"
    command = ["make", "-C", folder, "BUNDLE=.", f"CC={target.cc['compiler']}", flags]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return userland(target).command([str(folder / "classify"), str(folder)]), folder


def test_it_prints_the_best_classes_and_the_steps(program: tuple[list[str], Path]) -> None:
    command, folder = program
    np.array([1, 5, 3, -1, 4, 0, 2, 0], "float32").tofile(folder / "input.raw")
    (folder / "labels.txt").write_text("".join(f"thing {index}\n" for index in range(8)))
    done = subprocess.run([*command, str(folder / "input.raw")], capture_output=True, text=True, timeout=60)
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


@T.prim_func(s_tir=True)
def triple(long: T.Buffer((4, 5), "float32"), y: T.Buffer((4, 5), "float32")):
    """y = 3 x."""
    T.func_attr({"tirx.noalias": True})
    for i, j in T.grid(4, 5):
        with T.sblock("y"):
            vi, vj = T.axis.remap("SS", [i, j])
            y[vi, vj] = long[vi, vj] * T.float32(3)


@pytest.fixture(scope="module")
def two(host: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two bundles for this machine, "double" [1, 8] and "triple" [4, 5], and the interface's source."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("two")
    for name in ("bitkiln.c", "bitkiln.h"):
        shutil.copyfile(DEVICE / name, folder / name)
    for name, function, shape in (("double", double, (1, 8)), ("triple", triple, (4, 5))):
        (folder / name).mkdir()
        kernel = Kernel(generic.schedule(function), (Argument((0,), shape, "float32"),))
        link_kernel(kernel, host, folder / name / "model.so")
    return folder


def test_a_program_runs_several_bundles_in_threads(two: Path) -> None:
    flags = "CXXFLAGS=-Wall -Wextra -Werror"
    command = ["make", "-f", EXAMPLE / "Makefile", f"VPATH={EXAMPLE}", "BUNDLE=.", flags, "together"]
    subprocess.run(command, cwd=two, check=True, capture_output=True, timeout=60)
    command = ["./together", "double", "./triple", "triple/model.so"]
    done = subprocess.run(command, cwd=two, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = [line.partition(",")[0] for line in done.stdout.splitlines()]
    assert lines == ["double: arg0 1 8", "./triple: arg0 4 5", "triple/model.so: arg0 4 5"]


SEVERAL = r"""
#include <bitkiln.h>
#include <stdio.h>
#include <string.h>
int main(void) {
    static const char *const wrong[] = {"absent", "bitkiln.h", "libm.so.6", ""};
    for (int i = 0; i < 4; i++) printf("%d %s\n", bk_open(wrong[i], 1) != NULL, bk_last_error(NULL));
    printf("%d %s\n", bk_open("double", 99) != NULL, bk_last_error(NULL));
    bk_model *twice = bk_open("double", 2), *thrice = bk_open("triple", 2);
    float x[20] = {1, 2}, y[20];
    bk_set_input(twice, 0, x, 32), bk_set_input(thrice, 0, x, 80);
    if (bk_run(thrice) || bk_run(twice) || bk_get_output(twice, 0, y, 32)) return 1;
    printf("%g", y[1]);
    if (bk_get_output(thrice, 0, y, 80)) return 1;
    printf(" %g\n%d %s\n", y[1], bk_set_input(twice, 0, x, 80), bk_last_error(twice));
    printf("%d\n", bk_set_input(twice, 0, NULL, 32));
    bk_destroy(twice);
    printf("%d %d %d\n", bk_run(thrice), bk_run(NULL), bk_step_count(NULL));
    bk_destroy(thrice), bk_destroy(NULL);
    return 0;
}
"""


@pytest.mark.parametrize("compiler", ["gcc -std=c11", "g++ -std=c++11"])
def test_bundles_are_opened_by_their_path(two: Path, compiler: str) -> None:
    (two / "several.c").write_text(SEVERAL)
    command = [*compiler.split(), "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-I.", "several.c"]
    command += ["bitkiln.c", "-ldl", "-lpthread", "-o", "several"]
    subprocess.run(command, cwd=two, check=True, capture_output=True, timeout=120)
    done = subprocess.run(["./several"], cwd=two, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *wrong, threads, values, size, null, counts = done.stdout.splitlines()
    for line, named in zip(wrong, ("./absent", "./bitkiln.h", "./libm.so.6", "./"), strict=True):
        assert line.startswith("0 ") and named in line
    assert threads.startswith("0 double/model.so: 99 threads") or threads.startswith("0 ./double/model.so: 99 threads")
    assert values == "4 6"
    assert size.startswith("-1 ") and "32 bytes, not 80" in size
    assert (null, counts) == ("-1", "0 -1 -1")

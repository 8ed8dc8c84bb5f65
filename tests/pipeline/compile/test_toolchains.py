"""gcc and zig make the same of a kernel: the same bytes of micro-kernels, and as many cycles but for where code lies."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from bitkiln import targets
from bitkiln.pipeline.boards.board import LocalBoard, Request
from bitkiln.pipeline.compile import tools
from bitkiln.pipeline.compile.link import assembly_text
from bitkiln.pipeline.compile.single import build_kernel_library
from bitkiln.pipeline.compile.tools import compile_with
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.schedules.registry import operator_for
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target, zig

RASP3B = targets.load("rasp3b")
WORKLOADS = [
    Conv2d(28, 28, 64, 64, (3, 3), padding=(1, 1, 1, 1)),
    Conv2d(28, 28, 128, 128, (3, 3), padding=(1, 1, 1, 1), binary=True),
]


@pytest.fixture(autouse=True)
def both() -> None:
    if not zig.installed() or shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("needs aarch64-linux-gnu-gcc and ziglang, of the extra toolchain")


def assembled(text: str, target: Target, folder: Path) -> bytes:
    """The code that the toolchain in force makes of assembly."""
    source = folder / "kernels.S"
    source.write_text(text, encoding="utf-8")
    with compile_with(target, ["-c", source], folder / "kernels.o").open("rb") as file:
        return ELFFile(file).get_section_by_name(".text").data()


@pytest.mark.parametrize("workload", WORKLOADS, ids=["float", "binary"])
def test_two_toolchains_one_kernel(workload: Conv2d, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    operator = operator_for(workload)
    knobs = operator.default(workload, RASP3B)
    text = assembly_text(operator.emit(workload, knobs, RASP3B).microkernels)
    code, cycles = [], []
    for name in ("gcc", "zig"):
        monkeypatch.setenv("BITKILN_TOOLCHAIN", name)
        code.append(assembled(text, RASP3B, tmp_path))
        library = tmp_path / f"{name}.so"
        build_kernel_library(workload, knobs, RASP3B, library)
        cycles.append(LocalBoard(RASP3B).measure(library, Request()).value)
    assert code[0] == code[1] != b""
    assert cycles[1] == pytest.approx(cycles[0], rel=0.01)


def test_a_compiler_that_is_killed_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By the system, for want of memory: that says nothing of what it compiles."""
    source, out, count = tmp_path / "a.c", tmp_path / "a.o", tmp_path / "count"
    source.write_text("int a;")
    real = tools.toolchain(RASP3B)

    def killing(times: int) -> None:
        count.unlink(missing_ok=True)
        script = f'echo >> {count}; [ $(wc -l < {count}) -gt {times} ] || kill -9 $$; exec "$@"'
        again = dataclasses.replace(real, command=("sh", "-c", script, "sh", *real.command))
        monkeypatch.setattr(tools, "toolchain", lambda target: again)

    killing(2)
    assert compile_with(RASP3B, ["-c", source], out).exists()
    killing(9)
    with pytest.raises(BitkilnError, match=r"killed 3 times.*memory"):
        compile_with(RASP3B, ["-c", source], out)

"""What a linked library needs and exports, and what goes into it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tvm.script import tirx as T

from bitkiln import targets
from bitkiln.pipeline.boards.board import LocalBoard, Request
from bitkiln.pipeline.compile import link
from bitkiln.pipeline.compile.plan import PlannedCall, constant_view, make_plan, new_view
from bitkiln.pipeline.compile.single import link_kernel
from bitkiln.pipeline.errors import BitkilnError, SetupError
from bitkiln.schedules.kernel import Argument, Constant, Kernel
from bitkiln.targets import Target, zig
from bitkiln.targets.toolchain import CHOICE

TARGETS = ("rasp3b", "rasp3b32")


@T.prim_func(s_tir=True)
def curves(x: T.Buffer((64,), "float32"), table: T.Buffer((64,), "float32"), y: T.Buffer((64,), "float32")):
    """Uses threads, and functions of libm that have newer versions."""
    T.func_attr({"tirx.noalias": True})
    for i in T.parallel(4):
        for j in T.serial(16):
            y[i * 16 + j] = T.exp(x[i * 16 + j]) + T.log(table[i * 16 + j]) + T.pow(x[j] + 2.0, table[j])


@T.prim_func(s_tir=True)
def through_scratch(x: T.Buffer((64,), "float32"), y: T.Buffer((64,), "float32")):
    """Its micro-kernel fills scratch memory of which TIR itself reads one element."""
    T.func_attr({"tirx.noalias": True})
    scratch = T.alloc_buffer((40000,), "float32")
    T.evaluate(T.call_extern("int32", "bk_test_fill", T.address_of(scratch[0]), T.address_of(x[0]), 40000))
    for i in T.serial(64):
        y[i] = scratch[0]


@dataclass(frozen=True)
class Fill:
    """Stores x[0] + 1 into n floats."""

    symbol: str = "bk_test_fill"

    def assembly(self) -> str:
        """void bk_test_fill(float *to, const float *x, int n)."""
        return f"""
    .text
    .hidden {self.symbol}
    .globl {self.symbol}
    .type {self.symbol}, %function
{self.symbol}:
    ldr s0, [x1]
    fmov s1, #1.0
    fadd s0, s0, s1
1:  str s0, [x0], #4
    subs w2, w2, #1
    b.gt 1b
    mov w0, #0
    ret
"""


@pytest.fixture(params=["gcc", "zig"])
def tools(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each toolchain in turn."""
    if request.param == "zig" and not zig.installed():
        pytest.skip("needs ziglang, of the extra toolchain")
    monkeypatch.setenv(CHOICE, request.param)
    return request.param


CURVES = Kernel(curves, (Argument((0,), (64,), "float32"), Constant(np.arange(1, 65, dtype="float32"))))
FILL = Kernel(through_scratch, (Argument((0,), (64,), "float32"),), (Fill(), Fill()))


@pytest.mark.parametrize("name", TARGETS)
def test_a_library_needs_only_libc_libm_and_pthreads_of_any_age(name: str, tmp_path: Path, tools: str) -> None:
    target = targets.load(name)
    facts = link_kernel(CURVES, target, tmp_path / "model.so")
    assert set(facts.needed) <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}
    # Debian 10, the oldest Raspberry Pi OS still met, has 2.28.
    assert tuple(map(int, facts.glibc.split("."))) <= (2, 17)


@pytest.mark.parametrize("name", TARGETS)
def test_a_library_exports_its_interface_alone(name: str, tmp_path: Path, tools: str) -> None:
    target = targets.load(name)
    link_kernel(CURVES, target, tmp_path / "model.so")
    nm = target.cc["compiler"].replace("gcc", "nm")
    text = subprocess.run([nm, "-D", "--defined-only", tmp_path / "model.so"], capture_output=True, text=True).stdout
    exported = {line.split()[-1] for line in text.splitlines()}
    declared = set(re.findall(r"\b(bk_[a-z_]+)\(", (link.DEVICE / "bitkiln.h").read_text())) - {"bk_model", "bk_open"}
    assert exported == declared


def test_each_network_has_a_name_of_its_own(tmp_path: Path) -> None:
    target, names = targets.load("rasp3b"), set()
    for number, kernel in enumerate((CURVES, FILL, CURVES)):
        link_kernel(kernel, target, tmp_path / f"{number}.so")
        command = [target.cc["compiler"].replace("gcc", "readelf"), "-d", tmp_path / f"{number}.so"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        names.update(re.findall(r"SONAME.*\[(.+)\]", text))
    assert len(names) == 2


@pytest.mark.parametrize("name", TARGETS)
def test_math_is_right_on_the_board(name: str, tmp_path: Path, tools: str) -> None:
    target = targets.load(name)
    link_kernel(CURVES, target, tmp_path / "model.so")
    x = np.linspace(-1, 1, 64, dtype="float32")
    board = LocalBoard(target, timing=False)
    (output,) = board.measure(tmp_path / "model.so", Request(outputs=True), {"arg0": x.tobytes()}).outputs
    table = np.arange(1, 65, dtype="float32")
    expected = np.exp(x) + np.log(table) + np.tile(np.power(x[:16] + 2, table[:16]), 4)
    np.testing.assert_allclose(np.frombuffer(output.data, "float32"), expected, rtol=2e-6)


def test_scratch_that_only_micro_kernels_use_keeps_its_size(tmp_path: Path) -> None:
    target = targets.load("rasp3b")
    link_kernel(FILL, target, tmp_path / "model.so")
    board = LocalBoard(target, timing=False)
    x = np.full(64, 41, "float32")
    (output,) = board.measure(tmp_path / "model.so", Request(outputs=True), {"arg0": x.tobytes()}).outputs
    assert set(np.frombuffer(output.data, "float32")) == {42.0}


def test_equal_micro_kernels_are_assembled_once_in_a_fixed_order() -> None:
    text = link.assembly_text([Fill("bk_b"), Fill("bk_a"), Fill("bk_b")])
    assert [text.count(".globl bk_a"), text.count(".globl bk_b")] == [1, 1]
    assert text.index(".globl bk_a") < text.index(".globl bk_b")


def test_names_are_quoted_and_constants_aligned(host: Target, tmp_path: Path) -> None:
    from bitkiln.pipeline.device import runner

    x = new_view('in "put"\\?? é\n', (2,), "float32", boundary=True)
    out = new_view("out", (3,), "int32")
    calls = [PlannedCall('step "1"', "copy", "bk_copy", (constant_view("c", np.arange(3, dtype="int32")),), (out,))]
    link.link_library({}, (), make_plan(calls, [x], [out]), host, tmp_path / "model.so")
    with runner.Model(tmp_path / "model.so") as model:
        assert model.inputs[0].name == 'in "put"\\?? é\n' and model.step_names == ['step "1"']
        assert model(np.zeros(2, "float32")).tolist() == [0, 1, 2]


def test_a_missing_compiler_is_named(tmp_path: Path, host: Target) -> None:
    absent = Target(**{**vars(host), "cc": {"compiler": "no-such-gcc", "flags": []}})
    with pytest.raises(SetupError, match=r"no-such-gcc.*bitkiln\[toolchain\]"):
        link_kernel(CURVES, absent, tmp_path / "model.so")


def test_a_compiler_error_is_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(BitkilnError, match=r"gcc .* for rasp3b failed: .*bk_test_fill") as caught:
        link_kernel(Kernel(through_scratch, FILL.arguments), targets.load("rasp3b"), tmp_path / "model.so")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TARGETS)
def test_a_library_is_the_same_every_time(name: str, tmp_path: Path, tools: str) -> None:
    for out in ("a.so", "b.so"):
        link_kernel(CURVES, targets.load(name), tmp_path / out)
    assert (tmp_path / "a.so").read_bytes() == (tmp_path / "b.so").read_bytes()


def test_a_full_temporary_folder_is_one_line_that_names_it(tmp_path: Path) -> None:
    """In a process of its own: LLVM used to end it."""
    disk, model = tmp_path / "disk", tmp_path / "small.onnx"
    disk.mkdir()
    weights = numpy_helper.from_array(np.ones((4, 3, 3, 3), "f"), "w")
    values = [helper.make_tensor_value_info(name, 1, [1, size, 8, 8]) for name, size in (("x", 3), ("y", 4))]
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "small", values[:1], values[1:], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), model)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        (disk / "fill").write_bytes(bytes(56 << 10))
        command = [sys.executable, "-m", "bitkiln", "compile", str(model), "-o", str(tmp_path / "out")]
        environment = {**os.environ, "TMPDIR": str(disk)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert str(disk) in done.stderr and "TMPDIR" in done.stderr
        assert [path.name for path in disk.iterdir()] == ["fill"]
    finally:
        subprocess.run(["umount", disk], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "small.onnx"]


def test_a_cache_that_cannot_be_written_is_pointed_out(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(link, "cache_directory", lambda: tmp_path / "file" / "bitkiln")
    with pytest.raises(SetupError, match="set XDG_CACHE_HOME"):
        link._runtime_object(targets.load("rasp3b"), "runtime.c")


def test_a_damaged_cache_is_made_anew(monkeypatch, tmp_path: Path) -> None:
    """A disk that was full once leaves less than was written."""
    monkeypatch.setattr(link, "cache_directory", lambda: tmp_path)
    kept = link._runtime_object(targets.load("rasp3b"), "runtime.c")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])
    assert link._runtime_object(targets.load("rasp3b"), "runtime.c").read_bytes() == whole

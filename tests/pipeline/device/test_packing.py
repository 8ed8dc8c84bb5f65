"""Weights packed on the board take less time than their bytes would from a card."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.compile.link import DEVICE, link_library
from bitkiln.pipeline.compile.plan import COPY, Made, PlannedCall, Storage, View, constant_view, make_plan, new_view
from bitkiln.schedules.conv2d.geometry import split
from bitkiln.schedules.conv2d.packing import Chunk, Packing, panels_alone
from bitkiln.schedules.conv2d.winograd_transforms import TRANSFORMS, weight_sums
from bitkiln.targets import Target
from bitkiln.targets import sim as simulator
from bitkiln.targets.sim.reports import Reports

#: What the fastest cards of these boards give.
CARD_MB_S = 43

TIMED = r"""
#include <bitkiln.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/prctl.h>
int main(int argc, char **argv)
{
    void *library = dlopen(argv[1], RTLD_NOW);
    bk_model *(*create)(int) = library ? (bk_model *(*)(int))dlsym(library, "bk_create") : NULL;
    if (argc != 3 || !create) return 2;
    prctl(0x41353301, 0, 0, 0, 0);
    bk_model *model = create(atoi(argv[2]));
    prctl(0x41353302, 0, 0, 0, 0);
    return !model;
}
"""


def four_by_four(channels: int, depth: int) -> Packing:
    """Winograd's F(4x4, 3x3): 36 positions of 9 taps."""
    panels = tuple(split(16, 16))
    taps = tuple(tap * depth for tap in range(9))
    sums = weight_sums(TRANSFORMS[4].weight, TRANSFORMS[4].weight)
    chunks = tuple(Chunk(run, panels) for run in split(channels, 16))
    return Packing(channels, depth, 9 * depth, taps, sums, chunks, zero=0.0)


@pytest.mark.parametrize(
    ("packing", "threads", "least"),
    [(four_by_four(64, 64), 1, 4), (four_by_four(64, 64), 4, 10), (panels_alone(256, 256, split(256, 12, 4)), 1, 5)],
    ids=["F(4x4) on 1 thread", "F(4x4) on 4 threads", "panels on 1 thread"],
)
def test_packing_is_faster_than_reading(packing: Packing, threads: int, least: int, tmp_path: Path) -> None:
    """On the simulated Cortex-A53 at 1200 MHz: so many times as many packed bytes a second as the fastest card has bytes."""
    target = targets.load("rasp3b")
    count = packing.channels * packing.pitch
    source = constant_view("raw", np.random.default_rng(1).normal(size=count).astype("float32")).storage
    made = View("made", (packing.floats,), "float32", Storage(4 * packing.floats, made=Made(packing, source)))
    out = new_view("out", made.shape, made.dtype)
    plan = make_plan([PlannedCall("out", "copy", COPY, (made,), (out,))], [], [out])
    link_library({}, [], plan, target, tmp_path / "model.so")
    (tmp_path / "timed.c").write_text(TIMED)
    command = [target.cc["compiler"], f"-I{DEVICE}", "timed.c", "-ldl", "-o", "timed"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    program = [str(tmp_path / "timed"), str(tmp_path / "model.so"), str(threads)]
    try:
        command, _ = simulator.qemu_command(
            {"cpu": target.cpu, "dram": target.dram},
            program,
            sysroot=Path("/usr/aarch64-linux-gnu"),
            options=["roi=1", f"out={tmp_path / 'reports'}"],
        )
    except simulator.SimUnavailable as missing:
        pytest.skip(str(missing))
    subprocess.run(command, check=True, timeout=300)
    seconds = Reports(tmp_path / "reports").new()[-1]["cycles"] / 1.2e9
    print(f"{made.storage.nbytes / seconds / 1e6:.0f} MB/s of packed weights, {1e3 * seconds:.2f} ms")
    assert made.storage.nbytes / seconds / 1e6 > least * CARD_MB_S


PEAK = """
import runner, sys
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
before = peak()
with runner.Model(sys.argv[1], 2) as model:
    print(peak() - before)
"""


def test_memory_never_holds_weights_twice(host: Target, tmp_path: Path) -> None:
    """24 MiB of weights: pages of the file are let go while they are packed."""
    packing = panels_alone(3072, 2048, split(3072, 12, 4))
    source = constant_view("raw", np.ones(3072 * 2048, "float32")).storage
    made = View("made", (packing.floats,), "float32", Storage(4 * packing.floats, made=Made(packing, source)))
    out = new_view("out", (1,), "float32")
    plan = make_plan([PlannedCall("out", "copy", COPY, (made,), (out,))], [], [out])
    link_library({}, [], plan, host, tmp_path / "model.so")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "model.so")]
    done = subprocess.run(command, cwd=DEVICE, capture_output=True, text=True, check=True, timeout=60)
    assert 24 <= float(done.stdout) < 24 + 8

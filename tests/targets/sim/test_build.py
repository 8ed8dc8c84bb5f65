"""Building the model: once, in the cache, and one clear line when a piece is missing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bitkiln.targets import zig
from bitkiln.targets.needs import Missing
from bitkiln.targets.sim import build, doctor, microbench, qemu_command
from bitkiln.targets.sim.emulator import Emulator


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as PATH and a cache of its own: programs exist if the test puts them there."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return programs


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_built_once_for_the_same_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build.plugin()
    assert first.parent == tmp_path / "bitkiln/sim"
    built = first.stat().st_mtime_ns
    assert build.plugin() == first
    assert first.stat().st_mtime_ns == built
    beside = first.with_name(f"{first.name}.sha256")
    assert sorted(first.parent.iterdir()) == [first, beside], "nothing is left beside it"
    whole = first.read_bytes()
    for damage in (lambda: first.write_bytes(whole[:1000]), lambda: first.write_bytes(b""), beside.unlink):
        damage()
        assert build.plugin().read_bytes() == whole


def test_missing_compiler(only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zig, "installed", lambda: False)
    with pytest.raises(Missing, match=r"no C compiler for this machine: .*bitkiln\[toolchain\]"):
        build.host_compiler()


def test_without_gcc_the_compiler_from_pypi_serves(only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zig, "installed", lambda: True)
    assert "ziglang" in build.host_compiler()


def test_the_plugin_keeps_its_capstone_to_itself() -> None:
    names = subprocess.run(["nm", "-D", "--defined-only", build.plugin()], capture_output=True, text=True, timeout=60)
    assert {line.split()[-1] for line in names.stdout.splitlines()} == {"qemu_plugin_install", "qemu_plugin_version"}
    needed = subprocess.run(["readelf", "-d", build.plugin()], capture_output=True, text=True, timeout=60).stdout
    assert "capstone" not in needed


def test_sources_that_do_not_compile(only: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "emulator", lambda: Emulator(tmp_path))
    program(only / "gcc", 'test "$1" = --version || { echo "x.c:1: error: no good" >&2; exit 1; }')
    with pytest.raises(Missing, match=r"does not compile \(x.c:1: error: no good\)") as caught:
        build.plugin()
    assert "\n" not in str(caught.value)


def test_the_doctor_names_every_missing_piece(only: Path) -> None:
    checks = doctor()
    assert [check.ok for check in checks] == [False] * 3
    assert "mmdebstrap" in checks[0].explanation


def test_the_doctor_is_content_where_all_is_there() -> None:
    assert [check for check in doctor() if not check.ok] == []


def test_parameters_become_options(tmp_path: Path) -> None:
    params = {
        "cpu": {"mhz": 700, "l2_kib": 256, "peak_f32_mac_per_cycle": 4.0},
        "dram": {"latency_ns": 90, "bandwidth_mb_s": 1000},
        "sim": {"mispredict": 8},
    }
    argv, env = qemu_command(params, ["prog", "arg"], sysroot=tmp_path, options=["limit=5"])
    model = argv[argv.index("-plugin") + 1].split(",")
    assert model[1:] == [
        "mhz=700",
        "l2_kib=256",
        "dram_latency_ns=90",
        "dram_bandwidth_mb_s=1000",
        "mispredict=8",
        "limit=5",
    ]
    assert argv[-4:] == ["-L", str(tmp_path), "prog", "arg"]
    assert env["PATH"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("mhz=fast", "option mhz=fast: expected a whole number"),
        ("clock=3", "option clock=3: unknown"),
        ("rule=FMLA.speed:3", "no such row or column of the rule table"),
        ("rule=FMLE.lat:3", "no such row or column of the rule table"),
    ],
)
def test_bad_options_are_refused(run_guest: object, option: str, message: str) -> None:
    ran = run_guest("regions", options=[option])
    assert ran.returncode != 0
    assert message in ran.stderr


def test_a_model_that_does_not_run_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"does not run under the model \(.*option mhz=fast") as caught:
        microbench.run([microbench.Fact("nop", ("nop",), 1)], options=["mhz=fast"])
    assert "\n" not in str(caught.value)

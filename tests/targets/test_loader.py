"""Targets and the errors of a mistyped name."""

import pytest

from bitkiln import targets
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.targets import loader, sim


def test_every_target_loads_with_the_tables_stages_read():
    for name in targets.known():
        target = targets.load(name)
        assert target.architecture in ("aarch64", "armv7l")
        assert kernel_set(target).name == target.kernels
        assert target.mhz > 0
        assert {"compiler", "flags"} <= set(target.cc)
        assert {"peak_f32_mac_per_cycle", "peak_binary_mac_per_cycle", "l1d_kib", "l2_kib"} <= set(target.cpu)
        assert {"bandwidth_mb_s", "latency_ns", "size_mb"} <= set(target.dram)
        assert set(target.records) <= set(targets.known())


def test_an_alias_is_its_target():
    assert targets.load("pi3") is targets.load("pi3")
    assert targets.load("pi3").name == "rasp3b"


def test_an_unknown_name_lists_targets_and_suggests_the_nearest():
    with pytest.raises(targets.UnknownTarget, match=r"dragonboard410c, rasp3b.*did you mean rasp3b\?"):
        targets.load("rasp3c")


def test_tvm_accepts_every_target():
    for name in targets.known():
        assert targets.load(name).tvm_target().kind.name == "llvm"


def test_a_page_says_what_differs_from_the_board_that_it_is_like():
    zero, pi = targets.load("zero2w"), targets.load("rasp3b")
    assert (zero.mhz, zero.dram["size_mb"], zero.kernels) == (1000, 512, "a53")
    assert zero.cpu == {**pi.cpu, "mhz": 1000}
    assert zero.records == ("zero2w", "rasp3b")
    assert targets.load("rasp3bplus-1200").records == ("rasp3bplus-1200", "rasp3bplus", "rasp3b")
    assert pi.records == ("rasp3b",)


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """A folder of pages with that of a Pi 3 in it; others may be added before they are loaded."""
    (tmp_path / "rasp3b.toml").write_text((loader.FOLDER / "rasp3b.toml").read_text())
    monkeypatch.setattr(loader, "FOLDER", tmp_path)
    loader._files.cache_clear()
    loader.load.cache_clear()
    yield tmp_path
    loader._files.cache_clear()
    loader.load.cache_clear()


def test_a_cpu_without_a_set_gets_plain_kernels_and_no_simulator(pages):
    table = (pages / "rasp3b.toml").read_text()
    table = table.replace('[kernels]\nset = "a53"\n', "").replace('mcpu = "cortex-a53"', 'mcpu = "cortex-a72"')
    (pages / "pi4.toml").write_text(table.replace('aliases = ["pi3", "raspberrypi3", "rpi3"]\n', ""))
    target = targets.load("pi4")
    assert not kernel_set(target).assembly
    assert "cortex-a72" in sim.unlike(target)
    assert sim.unlike(targets.load("rasp3b")) is None


def test_a_set_that_nobody_has_written_is_named(pages):
    (pages / "odd.toml").write_text('description = "odd"\nlike = "rasp3b"\n[kernels]\nset = "a99"\n')
    with pytest.raises(targets.UnknownTarget, match=r"odd.*'a99'.*a53"):
        kernel_set(targets.load("odd"))

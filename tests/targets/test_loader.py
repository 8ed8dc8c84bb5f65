"""Targets and the errors of a mistyped name."""

import pytest

from bitkiln import targets


def test_every_target_loads_with_the_tables_stages_read():
    for name in targets.known():
        target = targets.load(name)
        assert target.bits in (32, 64)
        assert target.mhz > 0
        assert {"compiler", "flags"} <= set(target.cc)
        assert {"peak_f32_mac_per_cycle", "peak_binary_mac_per_cycle", "l1d_kib", "l2_kib"} <= set(target.cpu)
        assert {"bandwidth_mb_s", "latency_ns"} <= set(target.dram)
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

"""Profiles: arithmetic of the rows, the table and the page."""

import io

import pytest
from rich.console import Console

from bitkiln import targets
from bitkiln.pipeline import profile
from bitkiln.pipeline.boards.board import Measurement
from bitkiln.pipeline.profile import page as profile_page

RASP3B = targets.load("rasp3b")
WORKS = (
    profile.LayerWork("conv1", "conv2d", macs=4_000_000, weight_bytes=1728),
    profile.LayerWork("fc", "conv2d", macs=1_024_000, weight_bytes=4_096_000),
    profile.LayerWork("softmax", "generic"),
)
MEASURED = (
    {"cycles": 2_000_000, "where": {"issue": 1_500_000, "dram": 500_000}, "mix": {"neon_fp_mac": 1_000_000}},
    {"cycles": 4_000_000, "where": {"dram": 4_000_000}},
    {"cycles": 10_000},
)


def measured_by(name: str) -> Measurement:
    return Measurement(unit="cycles", value=0, kind="simulated", measured_by=name, clock_mhz=1200)


@pytest.fixture
def built() -> profile.Profile:
    return profile.build("net", WORKS, MEASURED, RASP3B, measured_by("simulated Cortex-A53, 1200 MHz"))


def test_a_compute_bound_layer_is_held_against_the_peak(built):
    assert built.layers[0].mac_per_cycle == 2.0
    assert built.layers[0].roof_percent == pytest.approx(50.0)


def test_a_layer_whose_weights_stream_is_held_against_dram(built):
    cycles_to_read = 4_096_000 / (2200 / 1200)
    assert built.layers[1].roof_percent == pytest.approx(100 * cycles_to_read / 4_000_000)


def test_a_layer_without_macs_has_no_roof(built):
    assert built.layers[2].roof_percent is None


def test_totals_are_sums(built):
    assert built.cycles == 6_010_000
    assert built.ms == pytest.approx(6_010_000 / 1.2e6)
    assert sum(layer.share for layer in built.layers) == pytest.approx(1.0)


def test_a_missing_layer_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        profile.build("net", WORKS, MEASURED[:2], RASP3B, measured_by("x"))


def test_the_table_names_what_measured_and_the_causes(built):
    out = io.StringIO()
    profile.print_table(built, Console(file=out, width=160))
    assert "simulated Cortex-A53" in out.getvalue()
    assert "issue 75%, dram 25%" in out.getvalue()


def test_the_page_is_self_contained_and_escapes_names():
    odd = (profile.LayerWork("<b>&", "conv2d", macs=10, weight_bytes=1),)
    page = profile_page.render(profile.build("n", odd, ({"cycles": 5},), RASP3B, measured_by("x")), RASP3B)
    assert "<b>&<" not in page and "&lt;b&gt;&amp;" in page
    assert "http" not in page and "<script src" not in page
    assert page.count("<circle") == 1

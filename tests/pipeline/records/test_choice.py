"""Which record decides: by what was measured where, never by clocks on walls or the order of logs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitkiln import targets
from bitkiln.pipeline.records import Record
from bitkiln.pipeline.records.choice import GENERAL, choose, cpu_of
from bitkiln.schedules.workload import Generic
from bitkiln.targets.sim import MODEL_VERSION

RASP3B = targets.load("rasp3b")
DEFAULT, TUNED, OTHER = {"tile": "4x16"}, {"tile": "8x8"}, {"tile": "6x8"}


def simulated(cycles: float, knobs: dict, version: str = MODEL_VERSION, **changes) -> Record:
    by = changes.pop("measured_by", f"simulated Cortex-A53, model {version}, 1200 MHz")
    fields = {"value": cycles, "clock_mhz": 1200, "kind": "simulated", "measured_by": by, "default": knobs is DEFAULT}
    return Record("conv2d 8x8x4 o4 k3x3", "rasp3b", knobs, **{**fields, **changes})


def real(milliseconds: float, knobs: dict, mhz: float | None = 1200, **changes) -> Record:
    fields = {"unit": "seconds", "value": milliseconds / 1e3, "clock_mhz": mhz, "kind": "board", "cpu": "Cortex-A53"}
    fields |= {"measured_by": "Raspberry Pi 3 Model B, Cortex-A53", "default": knobs is DEFAULT}
    return Record("conv2d 8x8x4 o4 k3x3", "rasp3b", knobs, **{**fields, **changes})


def chosen(*records: Record) -> Record:
    """The choice, which does not depend on the order."""
    there, back = choose(records, RASP3B), choose(records[::-1], RASP3B)
    assert there.record.knobs == back.record.knobs
    assert there.why.isprintable()
    return there.record


def test_a_cooler_board_does_not_make_a_kernel_better():
    better, worse = real(10, TUNED, mhz=600), real(9, DEFAULT, mhz=1200)  # 6.0 and 10.8 million cycles.
    assert chosen(worse, better) is better


@pytest.mark.parametrize("change", [{"unsteady": True}, {"health": {"throttled": True}}])
def test_the_unsteady_and_the_throttled_lose_to_steady_ones(change):
    doubtful, steady = real(1, TUNED, **change), real(5, DEFAULT)
    assert chosen(doubtful, steady, real(6, {"tile": "6x8"})) is steady
    assert chosen(doubtful) is doubtful, "better than nothing"
    assert "no better" in choose([doubtful], RASP3B).why


def test_a_default_hides_no_search():
    tuned = simulated(1e6, TUNED)
    found = choose([simulated(2e6, DEFAULT), tuned, real(5, DEFAULT)], RASP3B)
    assert found.record is tuned
    assert "default alone" in found.why
    first = real(5, TUNED)
    other = real(50, DEFAULT, measured_by="another board, Cortex-A53", time="2999-01-01T00:00:00Z")
    assert chosen(first, real(9, DEFAULT), other) is first


def test_real_searches_go_before_simulated_ones():
    measured = real(5, TUNED)
    assert chosen(simulated(1, {"tile": "9x9"}), simulated(2, DEFAULT), measured, real(6, DEFAULT)) is measured


def test_another_cpu_s_board_decides_nothing():
    foreign = real(0.1, TUNED, cpu="Cortex-A72", measured_by="Raspberry Pi 4, Cortex-A72")
    own = real(5, DEFAULT)
    assert chosen(foreign, own) is own
    assert choose([foreign], RASP3B) is None
    assert choose([real(0.1, TUNED, cpu="", measured_by="Raspberry Pi 4, Cortex-A72")], RASP3B) is None


def test_what_is_doubted_never_wins():
    assert chosen(simulated(1, TUNED, status="doubted"), simulated(9, DEFAULT)).value == 9


def test_models_and_clocks_are_not_mixed_and_times_decide_nothing():
    future = {"time": "9999-01-01T00:00:00Z"}
    slow_clock = {"clock_mhz": 700, "measured_by": f"simulated Cortex-A53, model {MODEL_VERSION}, 700 MHz"}
    own = simulated(1000, TUNED)
    assert chosen(own, simulated(10, {"tile": "1x1"}, **slow_clock, **future), simulated(2000, DEFAULT)) is own
    assert chosen(own, simulated(10, {"tile": "1x1"}, version="v0", **future)) is own
    old = simulated(10, TUNED, version="v0")
    assert chosen(old) is old
    assert "older timing model" in choose([old], RASP3B).why


def test_the_cpu_is_called_as_boards_call_it():
    assert cpu_of(RASP3B) == "Cortex-A53"


def on_four(cycles: float, knobs: dict, version: str = MODEL_VERSION) -> Record:
    by = f"simulated Cortex-A53, 4 cores, model {version}, 1200 MHz"
    return simulated(cycles, knobs, version, measured_by=by, threads=4)


def test_the_number_of_threads_decides_before_the_time():
    records = [simulated(100, TUNED), on_four(90, DEFAULT), on_four(80, OTHER)]
    assert choose(records, RASP3B, threads=1).record.knobs == TUNED
    assert choose(records, RASP3B, threads=4).record.knobs == OTHER


def test_another_number_of_threads_has_another_default():
    """Where the default of one thread was the best on one, four threads keep their own."""
    default = replace(simulated(100, TUNED), default=True)
    assert choose([default, simulated(200, OTHER)], RASP3B, threads=1).record.knobs == TUNED
    assert choose([default, simulated(200, OTHER)], RASP3B, threads=4) is None


def test_a_kernel_of_ours_takes_nothing_from_another_number_of_threads():
    """What four threads run fastest was slower than the default on one: MobileNet v2 took 107.3 ms for 106.4."""
    assert choose([on_four(50, OTHER), on_four(90, DEFAULT)], RASP3B, threads=1) is None
    assert choose([simulated(50, OTHER), simulated(90, DEFAULT)], RASP3B, threads=4) is None
    old = on_four(50, OTHER, version="v1")
    assert old.superseded
    assert choose([old, simulated(100, TUNED)], RASP3B, threads=4).record is old


def test_a_general_kernel_is_taken_from_another_number_of_threads():
    """It is the same loops on all of them."""
    assert Generic.tag == GENERAL
    key = "tir conv3d 1x4x6x8 to 1x8 0123456789ab"
    tuned = replace(simulated(100, TUNED), workload=key)
    found = choose([tuned, replace(simulated(200, DEFAULT), workload=key)], RASP3B, threads=4)
    assert found.record is tuned
    assert "1 thread," in found.why
    own = replace(on_four(300, DEFAULT), workload=key)
    assert choose([tuned, own], RASP3B, threads=4).record is own

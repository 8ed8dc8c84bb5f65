"""The files that make programs in a userland take the machine for a Cortex-A53."""

from __future__ import annotations

from pathlib import Path

from bitkiln.targets.sim import write_cpu_identity

PARAMS = {"cpu": {"mhz": 1200, "cores": 4, "l1d_kib": 32, "l1d_ways": 4, "l2_kib": 512, "l2_ways": 16}}


def test_cpuinfo_names_four_cortex_a53(tmp_path: Path) -> None:
    write_cpu_identity(tmp_path, PARAMS)
    text = (tmp_path / "proc/cpuinfo").read_text()
    assert text.count("processor\t:") == 4
    assert text.count("CPU part\t: 0xd03") == 4


def test_sysfs_gives_caches_and_midr(tmp_path: Path) -> None:
    write_cpu_identity(tmp_path, PARAMS)
    cpu = tmp_path / "sys/devices/system/cpu"
    assert (cpu / "online").read_text() == "0-3\n"
    assert int((cpu / "cpu3/regs/identification/midr_el1").read_text(), 16) >> 4 & 0xFFF == 0xD03
    assert (cpu / "cpu0/cache/index2/size").read_text() == "512K\n"
    assert (cpu / "cpu0/cache/index2/number_of_sets").read_text() == "512\n"
    assert (cpu / "cpu0/cache/index0/number_of_sets").read_text() == "128\n"


def test_files_that_say_so_already_are_left_alone(tmp_path: Path) -> None:
    """Programs that run in the userland may be reading them."""
    write_cpu_identity(tmp_path, PARAMS)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = {path: path.stat().st_ino for path in files}
    write_cpu_identity(tmp_path, PARAMS)
    assert before == {path: path.stat().st_ino for path in files}
    write_cpu_identity(tmp_path, {"cpu": PARAMS["cpu"] | {"l2_kib": 256}})
    changed = {path for path, inode in before.items() if path.stat().st_ino != inode}
    assert {path.relative_to(tmp_path / "sys/devices/system/cpu").parts[0] for path in changed} == {
        f"cpu{i}" for i in range(4)
    }

"""Deploying over a real sshd on loopback, whose "board" runs an ARM Python."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bitkiln import targets
from bitkiln.pipeline import run
from bitkiln.pipeline.boards.ssh import Remote
from bitkiln.pipeline.bundle import Bundle, open_bundle
from bitkiln.pipeline.compile import compile_lowered
from bitkiln.pipeline.errors import BoardError, BundleError, SetupError
from bitkiln.pipeline.run.deploy import deploy
from tests.ssh_board import Device, free_port


def deployed(bundle: Path, destination: str, port: int) -> str:
    file = io.StringIO()
    deploy(bundle, destination, port, Console(file=file, width=200))
    return file.getvalue()


def test_a_bundle_is_copied_checked_and_ready(device: Device, toy_bundle: Bundle) -> None:
    text = deployed(toy_bundle.folder, f"{device.address}:nets/a toy", device.port)
    assert "8 as compiled" in text and "output scores within" in text and "nets/a toy is ready" in text
    assert open_bundle(device.home / "nets/a toy").manifest == toy_bundle.manifest
    assert [path.name for path in (device.home / "nets").iterdir()] == ["a toy"]


def test_without_a_folder_it_goes_to_the_home(device: Device, toy_bundle: Bundle) -> None:
    deployed(toy_bundle.folder, device.address, device.port)
    assert open_bundle(device.home / "bitkiln/toy")


def test_an_older_bundle_is_replaced(device: Device, toy_bundle: Bundle) -> None:
    old = device.home / "net"
    shutil.copytree(toy_bundle.folder, old)
    (old / "old.txt").write_text("old")
    deployed(toy_bundle.folder, f"{device.address}:net", device.port)
    assert not (old / "old.txt").exists() and open_bundle(old)
    assert [path.name for path in device.home.iterdir()] == ["net"]


def test_other_folders_are_left_alone(device: Device, toy_bundle: Bundle) -> None:
    (device.home / "photos").mkdir()
    with pytest.raises(BundleError, match="photos exists and is no bundle"):
        deploy(toy_bundle.folder, f"{device.address}:photos", device.port)
    assert [path.name for path in device.home.iterdir()] == ["photos"]


def test_a_bundle_that_fails_its_check_is_not_installed(device: Device, toy_bundle: Bundle, monkeypatch) -> None:
    copy = Remote.copy

    def corrupt(self: Remote, files: list[Path], folder: str, timeout: float = 600.0) -> None:
        copy(self, files, folder, timeout)
        with (device.home / folder / "model.so").open("r+b") as file:
            file.write(b"?")

    monkeypatch.setattr(Remote, "copy", corrupt)
    with pytest.raises(BoardError, match=r"does not run there: .*model\.so: altered"):
        deploy(toy_bundle.folder, f"{device.address}:net", device.port)
    assert not list(device.home.iterdir())


def test_a_bundle_for_another_cpu_is_told_apart(device: Device, toy, no_records, tmp_path: Path) -> None:
    compile_lowered(toy, toy.module, targets.load("rasp3b32"), no_records, tmp_path / "toy32")
    with pytest.raises(BoardError, match=r"is for 32-bit ARM \(armv7l\), this Python is 64-bit ARM"):
        deploy(tmp_path / "toy32", f"{device.address}:net", device.port)


def test_an_altered_bundle_is_not_sent(device: Device, toy_bundle: Bundle) -> None:
    (toy_bundle.folder / "labels.txt").write_text("")
    with pytest.raises(BundleError, match="altered"):
        deploy(toy_bundle.folder, f"{device.address}:net", device.port)
    assert not list(device.home.iterdir())


@pytest.mark.parametrize("host", ["nobody-of-this-name@127.0.0.1", "127.0.0.1.invalid"])
def test_a_board_that_cannot_be_reached_is_one_line(device: Device, toy_bundle: Bundle, host: str) -> None:
    start = time.monotonic()
    with pytest.raises(BoardError, match="try: ssh") as caught:
        deploy(toy_bundle.folder, f"{host}:net", device.port)
    assert host in str(caught.value) and "\n" not in str(caught.value)
    assert time.monotonic() - start < 30


def test_a_closed_port_is_one_line(device: Device, toy_bundle: Bundle) -> None:
    with pytest.raises(BoardError, match="Connection refused"):
        deploy(toy_bundle.folder, device.address, free_port())


def test_ssh_itself_may_be_missing(toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITKILN_SSH", "no-such-ssh")
    with pytest.raises(SetupError, match="no-such-ssh is not installed"):
        deploy(toy_bundle.folder, "pi@raspberrypi")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount a small file system")
def test_a_full_disk_on_the_board_is_one_line(device: Device, toy_bundle: Bundle) -> None:
    disk = device.home / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        with pytest.raises(BoardError, match=f"{device.address}: tar: .*") as caught:
            deploy(toy_bundle.folder, f"{device.address}:disk/net", device.port)
        assert "\n" not in str(caught.value) and not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_network_runs_on_a_board_over_ssh(
    device: Device, toy_bundle: Bundle, toy_input: np.ndarray, toy_answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITKILN_SSH", f"{os.environ['BITKILN_SSH']} -p {device.port}")
    answer = run.answer_on(device.address, toy_bundle, {"x": toy_input}, threads=2)
    np.testing.assert_allclose(answer.outputs["scores"], toy_answer(toy_input)[0], rtol=1e-5)
    assert answer.measured_by == f"measured on {device.address}" and len(answer.steps) == 3

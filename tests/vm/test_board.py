"""What happens on a whole arm64 Linux with systemd and sshd, when things go well and when they do not."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bitkiln import targets
from bitkiln.pipeline import api
from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.boards.remote import SshBoard
from bitkiln.pipeline.boards.ssh import Remote
from bitkiln.pipeline.boards.tracker import NoBoard, TrackerClient
from bitkiln.pipeline.boards.tracker_server import TrackerProcess
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.profile import profile_bundle
from bitkiln.pipeline.run.deploy import deploy
from bitkiln.pipeline.tune.belief import compare_identity
from tests.conftest import FORK_CHILDREN
from tests.vm import system
from tests.vm.system import Machine

pytestmark = pytest.mark.vm
BOARD = "pi@board"
#: Seconds for what a loaded machine's emulated board does at last.
PATIENCE = 300.0


@pytest.fixture(scope="session")
def source(scratch: Path) -> Path:
    """A small network."""
    weights = np.random.default_rng(0).normal(size=(16, 3, 3, 3)).astype("f")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["y"], name="flatten"),
    ]
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [1, 3, 24, 24]), ("y", [1, 16]))]
    graph = helper.make_graph(nodes, "small", values[:1], values[1:], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), scratch / "small.onnx")
    return scratch / "small.onnx"


@pytest.fixture(scope="session")
def bundle(source: Path, scratch: Path) -> Path:
    return api.compile(source, scratch / "small").folder


def eventually(what: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until ``what`` gives something true; errors of boards and of ssh count as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if what():
                return
        except (BoardError, subprocess.SubprocessError):
            pass
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(2)


def test_the_first_answer_from_a_card(board: Machine, bundle: Path) -> None:
    """From a disk of 20 MB/s whose pages are not in memory: what was read, and the memory that the manifest says."""
    deploy(bundle, f"{BOARD}:net")
    board.monitor("block_set_io_throttle d 20000000 0 0 0 0 0")
    try:
        board.ssh("sync; echo 3 > /proc/sys/vm/drop_caches", user="root")
        cold, warm = (json.loads(board.ssh("python3 net/runner.py --bench --json"))["bench"] for _ in range(2))
    finally:
        board.monitor("block_set_io_throttle d 0 0 0 0 0 0")
    assert cold["storage_read_mib"] > cold["library_mib"] and warm["storage_read_mib"] < cold["storage_read_mib"] / 4
    assert cold["stages_ms"]["digest"] > 1e3 * cold["library_mib"] * 1.048576 / 20
    said = json.loads((bundle / "manifest.json").read_text())["memory"]["running"] / 2**20
    assert abs(cold["network_mib"] - said) < 0.1 * said


def test_deploy_check_and_threads(board: Machine, bundle: Path) -> None:
    made = deploy(bundle, f"{BOARD}:net")
    assert any("as compiled" in line for line in made.checks)
    for threads in (1, 2, 4):
        said = board.ssh(f"cd net && python3 runner.py --check --threads {threads}")
        assert "of the golden one" in said
        answer = json.loads(
            board.ssh(f"cd net && python3 runner.py --input golden_input.npy --json --threads {threads}")
        )
        assert answer["threads"] == threads


def test_children_of_a_fork_may_use_a_model_close_it_or_exit(board: Machine, bundle: Path) -> None:
    deploy(bundle, f"{BOARD}:net")
    script = shlex.quote(FORK_CHILDREN.read_text())
    assert board.ssh(f"cd net && python3 -c {script} model.so") == "done\n"


def test_a_profile_over_ssh(board: Machine, bundle: Path) -> None:
    found = profile_bundle(bundle, BOARD, threads=4)
    assert found.ms > 0 and "Cortex-A53" in found.measured_by
    assert board.ssh("ls -A").split() == [".bashrc", ".ssh"], "nothing is left there"


def test_evidence_names_nobody(board: Machine, source: Path, bundle: Path, tmp_path: Path) -> None:
    from bitkiln.pipeline import evidence

    wanted = evidence.Wanted([api.load(source)], lambda *_: bundle / "model.so", ("memory", "probes"))
    found = evidence.measure(BOARD, wanted, None, None, lambda text: None)
    assert found.board.kind == "board" and found.board.cpu == "Cortex-A53" and found.timing in ("clock", "counter")
    assert len(found.probes) > 15 and [each.threads for each in found.networks] == [1, 4]
    evidence.file.write_evidence(tmp_path / "e.json", found)
    assert not any(name in (tmp_path / "e.json").read_text() for name in ('"pi"', "10.0.2.15", "127.0.0.1"))


def test_a_login_script_that_prints(board: Machine, bundle: Path) -> None:
    board.ssh("echo 'echo welcome to the board; echo and beware >&2' > .bashrc")
    deploy(bundle, f"{BOARD}:net")
    assert board.ssh("ls net/model.so").endswith("net/model.so\n")


def test_a_full_disk(board: Machine, bundle: Path) -> None:
    board.ssh("fallocate -l $(($(df --output=avail -B1 / | tail -1) - 30000)) /root/full", "root")
    try:
        with pytest.raises(BoardError, match=r"No space left on device.*free some space"):
            deploy(bundle, f"{BOARD}:net")
    finally:
        board.ssh("rm /root/full", "root")
    assert board.ssh("ls -A | grep -c bitkiln-new || true").strip() == "0"


def test_a_root_that_turned_read_only(board: Machine, bundle: Path) -> None:
    board.ssh("sync; mount -o remount,ro /", "root")
    try:
        with pytest.raises(BoardError, match=r"Read-only file system.*remount"):
            deploy(bundle, f"{BOARD}:net")
    finally:
        board.ssh("mount -o remount,rw /", "root")


def test_a_tmp_that_runs_nothing(board: Machine, bundle: Path) -> None:
    board.ssh("mount -t tmpfs -o noexec,mode=1777 tmpfs /tmp", "root")
    try:
        deploy(bundle, f"{BOARD}:net")
        assert profile_bundle(bundle, BOARD).ms > 0
    finally:
        board.ssh("umount -l /tmp", "root")


@pytest.mark.parametrize("trouble", ["unknown host", "no key"])
def test_remedies_can_be_typed_as_they_stand(
    board: Machine, bundle: Path, trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (board.folder / "ssh_config").read_text()
    if trouble == "unknown host":
        text = text.replace("StrictHostKeyChecking no", "StrictHostKeyChecking yes").replace(
            "/known_hosts", "/new_hosts"
        )
    else:
        text = "\n".join(line for line in text.splitlines() if "IdentityFile" not in line) + "\n"
    config = tmp_path / "ssh_config"
    config.write_text(text)
    monkeypatch.setenv("BITKILN_SSH", f"ssh -F {config} {system.PATIENT}")
    with pytest.raises(BoardError) as caught:
        deploy(bundle, f"{BOARD}:net")
    remedy = str(caught.value).partition("try: ")[2]
    if trouble == "unknown host":
        subprocess.run(shlex.split(remedy), check=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
        deploy(bundle, f"{BOARD}:net")
    else:
        assert remedy.startswith("ssh-copy-id ")


# --- A board of a tracker, as an ordinary user's service -----------------------------------------------------------------


@pytest.fixture(scope="module")
def tracker(secret: bytes) -> Iterator[TrackerProcess]:
    process = TrackerProcess(secret=secret)
    yield process
    process.stop()


@contextmanager
def joined(tracker: Address, board: str, key: str, kept_by: str) -> Iterator[TrackerClient]:
    """The board under a key of ``tracker``, through a tunnel that is held meanwhile; ``kept_by`` keeps its server running."""
    argv = [
        *(sys.executable, "-m", "bitkiln", "boards", "setup", board, "--tunnel"),
        *("--tracker", str(tracker), "--key", key),
    ]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    assert process.stdout
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("holding the tunnel"):
                break
        else:
            pytest.fail("".join(lines))
        assert any(kept_by in line for line in lines), lines
        yield TrackerClient(tracker)
    finally:
        process.terminate()
        process.wait(30)


def test_a_service_outlives_kills_lost_links_and_resets(board: Machine, tracker: TrackerProcess) -> None:
    with joined(tracker.address, BOARD, "vm", "systemd user service bitkiln-board") as client:
        assert board.ssh("systemctl --user is-active bitkiln-board").strip() == "active"
        former = board.ssh("systemctl --user show -p MainPID --value bitkiln-board").strip()
        board.ssh(f"kill -9 {former}")
        eventually(
            lambda: board.ssh("systemctl --user show -p MainPID --value bitkiln-board").strip() not in (former, "0")
        )
        eventually(lambda: client.require("vm").free == 1)

        board.monitor("set_link n off")
        try:
            cut = time.monotonic()
            eventually(lambda: _gone(client))
            assert time.monotonic() - cut < PATIENCE / 2, "a lost link is noticed"
        finally:
            board.monitor("set_link n on")
        eventually(lambda: client.require("vm").count == 1)

        board.monitor("system_reset")
        time.sleep(10)
        board.wait()
        eventually(lambda: client.require("vm").free == 1)
    removed(BOARD)
    assert board.ssh("ls .local/share 2> /dev/null; ls .config/systemd/user/*.service 2> /dev/null; true").strip() == ""


def removed(board: str) -> None:
    """Take what setting it up has put there away again."""
    argv = [sys.executable, "-m", "bitkiln", "boards", "setup", board, "--remove"]
    subprocess.run(argv, check=True, timeout=PATIENCE, capture_output=True)


def _gone(client: TrackerClient) -> bool:
    try:
        client.require("vm")
    except NoBoard:
        return True
    return False


# --- Other systems -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("system_name", "version"), [("bullseye", "3.9"), ("trixie", "3.13")])
def test_an_older_and_a_newer_python(
    board: Machine, bundle: Path, tracker: TrackerProcess, system_name: str, version: str
) -> None:
    there = f"{system_name}@board"
    assert board.ssh("python3 --version", system_name).startswith(f"Python {version}.")
    deploy(bundle, f"{there}:net")
    for threads in (1, 4):
        assert "of the golden one" in board.ssh(f"cd net && python3 runner.py --check --threads {threads}", system_name)
    assert profile_bundle(bundle, there).ms > 0
    with joined(tracker.address, there, system_name, "background process") as client:
        assert client.require(system_name).count == 1
    removed(there)
    assert board.ssh("ls -A .local/share; rm -rf net", system_name).strip() == ""


def test_a_32_bit_system_on_a_64_bit_kernel(board: Machine, source: Path, bundle: Path, scratch: Path) -> None:
    assert board.ssh("uname -m; getconf LONG_BIT || true", "armhf").split()[0] == "aarch64"
    with pytest.raises(BoardError, match="32"):
        deploy(bundle, "armhf@board:net")
    assert board.ssh("ls -A", "armhf").split() == [".ssh"]
    narrow = api.compile(source, scratch / "narrow", target="rasp3b32").folder
    deploy(narrow, "armhf@board:net")
    for threads in (1, 4):
        assert "of the golden one" in board.ssh(f"cd net && python3 runner.py --check --threads {threads}", "armhf")
    assert profile_bundle(narrow, "armhf@board").ms > 0
    with pytest.raises(BoardError, match="64"):
        deploy(narrow, f"{BOARD}:net")
    board.ssh("rm -rf net", "armhf")


def test_another_cpu_is_told_before_anything_is_measured(image: system.Image, tmp_path: Path, monkeypatch) -> None:
    with system.running(image, tmp_path, "cortex-a72") as other:
        monkeypatch.setenv("BITKILN_SSH", other.environment["BITKILN_SSH"])
        with SshBoard(Remote(BOARD)) as reached:
            identity = reached.identity()
        assert identity["cpu"] == "Cortex-A72"
        with pytest.raises(BoardError, match="Cortex-A72"):
            compare_identity(identity, targets.load("rasp3b"))

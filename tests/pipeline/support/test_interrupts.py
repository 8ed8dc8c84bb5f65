"""Signals end a command within a second, whatever it does, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bitkiln.pipeline.support import processes

COMMAND = """
import subprocess, sys, time
import click
from bitkiln.pipeline.cli.invoke import invoke
from bitkiln.pipeline.support import interrupts, processes
from bitkiln.pipeline.support.files import atomic_write
from bitkiln.targets.scratch import scratch_folder
from pathlib import Path

@click.command()
@click.argument("out")
def command(out):
    with scratch_folder() as folder, atomic_write(Path(out)) as aside:
        program = processes.start(["sleep", "777"])
        (Path(folder) / "file").touch()
        print("begun", flush=True)
        {body}
invoke(command)
"""

BODIES = {
    # Native code that never comes back: no handler of Python's runs.
    "native code": "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)",
    "python": "\n        while True: pass",
    "a wait": "\n        with interrupts.waiting(): time.sleep(600)",
    "a program": "processes.run(['sleep', '666'], 600)",
    # What compilers do with an exception in their callbacks.
    "swallowed": "\n        while True:\n            try: time.sleep(0.01)\n            except BaseException: pass",
    "a slow way out": "\n        try:\n            with interrupts.waiting(): time.sleep(600)\n        finally: time.sleep(99)",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("body", BODIES)
def test_a_signal_ends_it_in_time_and_nothing_is_left(tmp_path: Path, body: str, number: int):
    out, scratch = tmp_path / "out", tmp_path / "tmp"
    scratch.mkdir()
    code = COMMAND.replace("{body}", BODIES[body])
    environment = {**os.environ, "TMPDIR": str(scratch)}
    command = [sys.executable, "-c", code, str(out)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "begun\n", process.stderr.read()
    time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.killpg(process.pid, number)  # As a terminal does.
    # A second, and what a busy machine adds; everything else here takes longer.
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, said
    assert said.strip() == "interrupted"
    _, alive = psutil.wait_procs(children, 5)
    assert not alive
    assert list(tmp_path.iterdir()) == [scratch]
    assert list(scratch.iterdir()) == []


def test_a_command_that_is_over_keeps_its_status():
    code = COMMAND.replace("{body}", "program.kill()")
    done = subprocess.run([sys.executable, "-c", code, "/dev/null"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_runs_in_the_background_ignores_ctrl_c_as_its_shell_said():
    code = "import signal; from bitkiln.pipeline.support.interrupts import ending_in_time\n"
    code += "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += "with ending_in_time(): signal.raise_signal(signal.SIGINT); print('ran on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "ran on\n"


def test_a_program_dies_with_whoever_started_it(tmp_path):
    code = "from bitkiln.pipeline.support import processes; p = processes.start(['sleep', '888']); print(p.pid, flush=True)\n"
    code += "import time; time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.communicate(timeout=10)
    psutil.wait_procs([child], 5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_program_does_not_begin_where_whoever_started_it_is_dead(tmp_path):
    """Killed before the system was asked to kill its program with it: as if by another process than the one that asks."""
    command = processes.bound_to_us(["touch", str(tmp_path / "begun")])
    subprocess.run(command, timeout=60)
    assert (tmp_path / "begun").exists()
    (tmp_path / "begun").unlink()
    orphan = f"import os, subprocess; subprocess.run({command!r})"
    subprocess.run([sys.executable, "-c", orphan], timeout=60)
    assert not (tmp_path / "begun").exists()


EARLY = """
import importlib.abc, os, signal, sys
class Importing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.{signal})
sys.meta_path.insert(0, Importing())
from bitkiln.pipeline import entry
sys.argv = ["bitkiln", "logs", "best"]
entry.main()
"""


def test_little_is_imported_before_the_commands_are_heard():
    code = "import sys; former = {*sys.modules}; import bitkiln.pipeline.entry; print(*({*sys.modules} - former))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    ours = {
        name
        for name in done.stdout.split()
        if (name not in sys.stdlib_module_names and "." in name) or name == "bitkiln"
    }
    assert ours == {"bitkiln", "bitkiln.pipeline", "bitkiln.pipeline.entry"}


@pytest.mark.parametrize("name", ["bitkiln.pipeline.cli", "click", "bitkiln.pipeline.support.interrupts"])
@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", -15)])
def test_a_signal_while_modules_are_imported_leaves_no_traceback(name: str, number: str, status: int):
    code = EARLY.format(name=name, signal=number)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == status
    assert "Traceback" not in done.stderr

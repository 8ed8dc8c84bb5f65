"""Simulated boards: the real board_server.py in an ARM userland, under the timing model of a Cortex-A53."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.boards.tracker import NoBoard, TrackerClient
from bitkiln.pipeline.boards.userland import missing_as_setup_error, userland
from bitkiln.pipeline.errors import BoardError, SetupError
from bitkiln.pipeline.support import interrupts, processes
from bitkiln.targets import Target
from bitkiln.targets.scratch import scratch_folder
from bitkiln.targets.sim import build, unlike

SERVER = Path(__file__).parents[1] / "device" / "board_server.py"
#: The file, in the folder of a farm, with what its boards share with their tracker and its clients.
SECRET = "secret"
#: Seconds a board has to register; it takes two on an idle machine.
READY = 60.0


@dataclass(frozen=True)
class Machine:
    """How to run a program of ``target``: under the timing model, or with ``timing`` false under plain emulation.

    ``options`` are further ones of the timing model (docs/simulator.md).
    """

    target: Target
    timing: bool = True
    options: tuple[str, ...] = ()

    def command(self, arguments: Sequence[str], report: Path) -> tuple[list[str], dict[str, str]]:
        """The host's command and environment for board_server.py with ``arguments``. Raises SetupError.

        The timing model appends its reports to ``report``.
        """
        system = userland(self.target)
        argv = ["python3", str(SERVER), "--emulated", *arguments]
        if not self.timing:
            return system.command(argv), system.environment
        if (why := unlike(self.target)) is not None:
            raise SetupError(why)
        return system.command([*argv, "--report", str(report)], self._plugin(report)), system.environment

    def _plugin(self, report: Path) -> str:
        options = build.plugin_options({"cpu": self.target.cpu, "dram": self.target.dram})
        with missing_as_setup_error():
            parts = [str(build.plugin()), *options, *self.options, f"out={report}"]
        # Commas part the options; in a path qemu wants them twice.
        return ",".join(part.replace(",", ",,") for part in parts)


class SimulatedBoards:
    """``count`` boards registered under ``key``, kept alive: one that dies is started again.

    Use as a context manager; they end with this process, however it ends.
    """

    def __init__(self, machine: Machine, tracker: Address, key: str, count: int) -> None:
        self.machine, self.tracker, self.key, self.count = machine, tracker, key, count
        self._folder = scratch_folder()
        if tracker.secret is not None:
            (Path(self._folder.name) / SECRET).touch(mode=0o600)
            (Path(self._folder.name) / SECRET).write_bytes(tracker.secret)
        self._stopping = threading.Event()
        self.boards = [_BoardProcess(machine, tracker, key, Path(self._folder.name), i) for i in range(count)]
        self._keeper = threading.Thread(target=self._keep, name="board-keeper", daemon=True)

    def __enter__(self) -> SimulatedBoards:
        try:
            for board in self.boards:
                board.start()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the boards."""
        self._stopping.set()
        if self._keeper.is_alive():
            self._keeper.join(10)
        for board in self.boards:
            board.stop()
        self._folder.cleanup()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY
        client = TrackerClient(self.tracker)
        while self._registered(client, deadline) < self.count:
            for board in self.boards:
                if board.running:
                    continue
                if not board.was_killed or board.hopeless:
                    raise BoardError(f"a simulated board does not start: {board.last_words()}")
                board.start()
            if time.monotonic() > deadline:
                raise BoardError(f"simulated boards did not register with {self.tracker} within {READY:g} s")
            with interrupts.waiting():
                time.sleep(0.1)

    def _registered(self, client: TrackerClient, deadline: float) -> int:
        """How many of the key the tracker knows; none while it is started again. Raises NoBoard where it is not until then."""
        try:
            return sum(found.count for found in client.boards() if found.key == self.key)
        except NoBoard:
            if time.monotonic() > deadline:
                raise
            return 0

    def _keep(self) -> None:
        # A signal kills boards: then they stay dead.
        while not self._stopping.wait(0.5) and not interrupts.number():
            for board in self.boards:
                if not board.running and not board.hopeless:
                    with suppress(OSError):  # Their folder is gone, or there is no room for a process: tried again.
                        board.start()


class _BoardProcess:
    """One board's process; its standard input is the line it lives by."""

    #: A board that dies this often, each time within QUICK seconds, is not started again.
    MOST_QUICK_DEATHS = 3
    QUICK = 5.0

    def __init__(self, machine: Machine, tracker: Address, key: str, folder: Path, index: int) -> None:
        self._report = folder / f"board-{index}.jsonl"
        self._log = folder / f"board-{index}.log"
        arguments = ["--tracker", str(tracker), "--key", key, "--port", "0"]
        arguments += ["--open"] if tracker.secret is None else ["--secret", str(folder / SECRET)]
        self._command, environment = machine.command([*arguments, "--stop-with-stdin"], self._report)
        # Sessions of a board that is killed then go with the folder of its farm.
        self._environment = {**environment, "TMPDIR": str(folder)}
        self.process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._quick_deaths = 0

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def was_killed(self) -> bool:
        """Whether somebody else ended it, as the system does when memory is short."""
        return self.process is not None and self.process.poll() == -signal.SIGKILL

    @property
    def hopeless(self) -> bool:
        """Whether it keeps dying at once."""
        return self._quick_deaths >= self.MOST_QUICK_DEATHS

    def start(self) -> None:
        """Start it, again if it ran before."""
        if self.process is not None:
            self._release()
            self._quick_deaths = self._quick_deaths + 1 if time.monotonic() - self._started < self.QUICK else 0
        self._started = time.monotonic()
        with self._log.open("ab") as log:
            settings = {"stdout": log, "stderr": log, "env": self._environment, "cwd": self._log.parent}
            self.process = processes.start(self._command, stdin=subprocess.PIPE, **settings)

    def stop(self) -> None:
        """End it, and whatever it is running."""
        if self.process is None:
            return
        self._release()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        processes.kill(self.process)

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return lines[-1] if lines else "it says nothing"

    def _release(self) -> None:
        assert self.process and self.process.stdin
        self.process.stdin.close()


def measure_once(machine: Machine, library: Path, request: Mapping[str, object], folder: Path) -> dict[str, Any]:
    """Measure ``library`` in a process of its own without any tracker; ``folder`` holds the request's files.

    The same code on the same simulated board as over a tracker, so the same cycles.
    """
    arguments = ["--measure", str(library.resolve()), "--request", json.dumps(request)]
    return _answer(machine, arguments, folder, float(str(request.get("limit_seconds", 3600))) + 60)


def identify(machine: Machine, folder: Path) -> dict[str, Any]:
    """The identity of such a board."""
    return _answer(machine, ["--identity"], folder, 60.0)


def _answer(machine: Machine, arguments: Sequence[str], folder: Path, seconds: float) -> dict[str, Any]:
    command, environment = machine.command(arguments, folder / "report.jsonl")
    try:
        done = processes.run(command, seconds, environment, folder)
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise BoardError(f"the simulated board gave no answer in {seconds:g} s")
    except ValueError:
        words = (done.stderr.decode(errors="replace").strip() or "it says nothing").splitlines()[-1]
        raise BoardError(f"the simulated board failed: {words}")

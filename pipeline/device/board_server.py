#!/usr/bin/env python3
"""Lets a board be measured over the network: registers with a TVM RPC tracker and runs what clients upload.

Needs Python 3.9 or later, and board_rpc.py, board_wire.py and runner.py beside this file: no library of TVM's. The same file
runs on real boards and on emulated ones, of 64 and of 32 bits.

Life of a measurement: the server waits for a client sent by the tracker and forks a *session*, which speaks TVM's RPC on
the connection. The client uploads a compiled library into the session's folder and calls ``bitkiln.measure``. That forks
once more, so a kernel that crashes or never ends takes down nothing but itself, and the session answers with what
happened. A session that outlives its time is killed. A tracker that goes away is waited for and registered with again.

A TVM RPC server runs whatever a client sends. Before a client may speak it, both ends therefore prove that they share a
secret; without one the server tells everybody what it is and serves nobody. It binds to loopback unless told otherwise.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import json
import os
import platform
import random
import resource
import select
import shutil
import signal
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from bitkiln.pipeline.device import board_rpc as rpc
    from bitkiln.pipeline.device import board_wire as wire
else:  # On a board they are files in one folder.
    import board_rpc as rpc
    import board_wire as wire

#: What goes over the wire as JSON.
Answer = dict[str, Any]

# --- The clock -----------------------------------------------------------------------------------------------------------

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1
# prctl options that a simulated Cortex-A53 answers and any other Linux refuses (docs/simulator.md).
READ, IDENTIFY, COLD, LIMIT, BLOCKS = 0x41353303, 0x41353304, 0x41353305, 0x41353306, 0x41353307
QUESTION = b"A53ASK?"


def ask_simulator(what: int, size: int = 1 << 20) -> Answer | None:
    """The simulator's answer as a mapping, or None where there is no simulator."""
    buffer = ctypes.create_string_buffer(QUESTION, size)
    LIBC.prctl(ctypes.c_int(what), buffer, ctypes.c_ulong(size), ctypes.c_ulong(0), ctypes.c_ulong(0))
    return json.loads(buffer.value) if buffer.raw[:1] == b"{" else None


def tell_simulator(what: int, value: int = 0) -> None:
    """Set an option of the simulator; does nothing elsewhere."""
    LIBC.prctl(ctypes.c_int(what), ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


class CycleLoop:
    """Finds the core's real clock by timing a chain of dependent additions, one cycle each on any ARM core of this class.

    The clock a kernel driver reports cannot be trusted: firmware lowers it behind the driver's back when hot or short
    of voltage.
    """

    ADDS = 500
    #: MHz that cores have. What lies outside was measured while the system's clock jumped, or by an emulator that skips work.
    LEAST, MOST = 50.0, 5000.0

    def __init__(self) -> None:
        if sys.maxsize > 2**32:
            add, count, ret = 0x91000421, 0xF1000400, 0xD65F03C0  # add x1, x1, #1; subs x0, x0, #1; ret
            back = 0x54000001 | ((-(self.ADDS + 1) & 0x7FFFF) << 5)  # b.ne to the first add
        else:
            # A 32-bit system, whatever the width of its kernel. Branches count from two instructions on.
            add, count, ret = 0xE2811001, 0xE2500001, 0xE12FFF1E  # add r1, r1, #1; subs r0, r0, #1; bx lr
            back = 0x1A000000 | (-(self.ADDS + 3) & 0xFFFFFF)  # bne to the first add
        code = struct.pack(f"<{self.ADDS + 3}I", *[add] * self.ADDS, count, back, ret)
        # Code reaches the instruction cache coherently when it is mapped from a file.
        descriptor = os.memfd_create("cycles")
        os.write(descriptor, code)
        LIBC.mmap.restype = ctypes.c_void_p
        length, read_execute, shared = ctypes.c_size_t(len(code)), 5, 1
        address = LIBC.mmap(None, length, read_execute, shared, descriptor, ctypes.c_long(0))
        os.close(descriptor)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "cannot map the clock's code")
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_ulong)(address)

    def mhz(self) -> float | None:
        """The clock now, from the fastest of five runs of about 2 ms; None where that is no clock of a core."""
        rounds = 4000
        best = min(self._seconds(rounds) for _ in range(5))
        found = rounds * self.ADDS / max(best, 1e-9) / 1e6
        return found if self.LEAST <= found <= self.MOST else None

    def _seconds(self, rounds: int) -> float:
        start = time.perf_counter()
        self._run(rounds)
        return time.perf_counter() - start


# --- Identity and health of the board --------------------------------------------------------------------------------------

CPU_PARTS = {"0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57"}
CPU_PARTS.update({"0xd08": "Cortex-A72", "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76"})


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().strip(b"\0\n ").decode(errors="replace")
    except OSError:
        return ""


class Board:
    """This board; ``emulated`` says that qemu runs it, so that its files and its clock are not a board's."""

    def __init__(self, emulated: bool, report: str = "") -> None:
        self.emulated = emulated
        self.report = report
        self.simulator = ask_simulator(IDENTIFY) if emulated else None

    @property
    def kind(self) -> str:
        """ "simulated" (answers in cycles of a modelled Cortex-A53), "emulated" or "board"."""
        return "simulated" if self.simulator else "emulated" if self.emulated else "board"

    def measured_by(self, cores: int = 1) -> str:
        """What a figure of this board is called in reports and records; ``cores``: how many worked for it."""
        if self.simulator:
            working = "1 core" if cores == 1 else f"{cores} cores"
            model, mhz = (self.simulator.get(name) for name in ("model", "mhz"))
            return f"simulated Cortex-A53, {working}, model {model}, {mhz} MHz"
        if self.emulated:
            return "emulated (qemu), not a Cortex-A53"
        return f"{self.model}, {self.cpu}"

    @property
    def model(self) -> str:
        """The kind of board as its firmware gives it; never the name that its owner gave it."""
        return _read("/proc/device-tree/model") or "unnamed board"

    @property
    def cpu(self) -> str:
        """The core's name."""
        parts = [
            line.split(":")[1].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("CPU part")
        ]
        return CPU_PARTS.get(parts[0], f"CPU part {parts[0]}") if parts else platform.machine()

    def identity(self) -> Answer:
        """What does not change while the board runs."""
        own = {"model": "qemu", "cpu": "Cortex-A53"} if self.emulated else {"model": self.model, "cpu": self.cpu}
        return {
            **own,
            "kind": self.kind,
            "measured_by": self.measured_by(),
            "cores": self.simulator.get("cpus") if self.simulator else os.cpu_count(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "glibc": (os.confstr("CS_GNU_LIBC_VERSION") or "").replace("glibc ", ""),
            **({} if self.emulated else self._hardware()),
            "simulator": self.simulator,
        }

    def _hardware(self) -> Answer:
        """Revision of the core, range of its clock in MHz, sizes of its caches: what tells boards of one kind apart."""
        lines = [line.partition(":") for line in _read("/proc/cpuinfo").splitlines()]
        facts = {name.strip(): value.strip() for name, _, value in lines}
        cpu = "/sys/devices/system/cpu/cpu0"
        khz = [_read(f"{cpu}/cpufreq/cpuinfo_{end}_freq") for end in ("min", "max")]
        caches = {}
        for folder in sorted(Path(cpu, "cache").glob("index*")):
            level, kind, size = (_read(str(folder / name)) for name in ("level", "type", "size"))
            if size.endswith("K") and size[:-1].isdigit() and kind != "Instruction":
                caches["l1d_kib" if level == "1" else f"l{level}_kib"] = int(size[:-1])
        found = {"revision": f"r{facts.get('CPU variant', '?')}p{facts.get('CPU revision', '?')}", "caches": caches}
        clocks = [int(text) // 1000 if text.isdigit() else None for text in khz]
        return {**found, "min_mhz": clocks[0], "max_mhz": clocks[1]}

    def health(self) -> Answer:
        """What may spoil a measurement: temperature in degrees C, throttling, governor, clock in MHz, load."""
        state = {"load": os.getloadavg()[0]}
        if self.emulated:
            return state
        files: dict[str, tuple[str, Callable[[str], Any]]] = {
            "temperature": ("/sys/class/thermal/thermal_zone0/temp", lambda text: int(text) / 1000),
            "throttled": (
                "/sys/devices/platform/soc/soc:firmware/get_throttled",
                lambda text: int(text, 16) & 0xF != 0,
            ),
            "governor": ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", str),
            "mhz": ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", lambda text: int(text) // 1000),
        }
        for name, (path, parse) in files.items():
            text = _read(path)
            try:
                if text:
                    state[name] = parse(text)
            except ValueError:  # Other kernels say it in other words.
                continue
        return state


# --- Measuring -------------------------------------------------------------------------------------------------------------


class Trial:
    """One library loaded and measured, in a process of its own.

    ``request`` may hold: threads (1), repeats (3; simulated: 1), warmup (1), per_step (false), seed (0), cold (false),
    limit_cycles (0 = none), blocks (0), inputs (name -> file with the raw tensor; the rest is filled from the seed),
    outputs (false: only their digests; true: also files with the raw tensors), trace (false; true: files with the raw
    outputs of every step, named as runner.py names them).
    """

    def __init__(self, board: Board, path: str, request: Answer) -> None:
        if TYPE_CHECKING:
            from bitkiln.pipeline.device.runner import Model
        else:
            from runner import Model

        self.board = board
        self.request = request
        self.per_step = bool(request.get("per_step"))
        self.model = Model(str(Path(path).resolve()), threads=int(request.get("threads", 1)))
        self.model.fill_random(int(request.get("seed", 0)))
        for name, file in request.get("inputs", {}).items():
            self.model.set_input(name, Path(file).read_bytes())

    def measure(self) -> Answer:
        """The answer to ``bitkiln.measure``."""
        answer = self._simulated() if self.board.simulator else self._timed()
        return {
            "status": "ok",
            "kind": self.board.kind,
            "measured_by": self.board.measured_by(self.model.threads),
            **answer,
            **self._outputs(),
        }

    def run(self) -> Answer:
        """The answer to ``bitkiln.run``: one run, its time and its outputs."""
        self.request.update(outputs=True, repeats=1, warmup=0)
        return self.measure()

    def _simulated(self) -> Answer:
        cold = bool(self.request.get("cold"))
        limit = int(self.request.get("limit_cycles", 0))
        tell_simulator(BLOCKS, int(self.request.get("blocks", 0)))
        if not cold:
            # The run that warms the caches is slower than the one that counts.
            tell_simulator(LIMIT, 2 * limit)
            self.model.run_marked(self.per_step)
        tell_simulator(LIMIT, limit)
        if cold:
            tell_simulator(COLD)
        reports = Reports(self.board.report)
        self.model.run_marked(self.per_step)
        found = reports.new(len(self.model.step_names)) if self.per_step else [believable(ask_simulator(READ))]
        cycles = sum(report["cycles"] for report in found)
        answer = {"unit": "cycles", "value": cycles, "samples": [cycles]}
        answer["clock_mhz"] = (self.board.simulator or {}).get("mhz")
        answer["complete"] = all(report.get("complete", True) for report in found)
        if self.per_step:
            # zip's strict= came with Python 3.10; ``found`` has one for each step.
            answer["steps"] = [{**report, "name": name} for name, report in zip(self.model.step_names, found)]  # noqa: B905
        else:
            answer["report"] = found[0]
        return answer

    def _timed(self) -> Answer:
        for _ in range(int(self.request.get("warmup", 1))):
            self.model.run()
        clock = None if self.board.emulated else CycleLoop()
        for _attempt in range(5):
            before = clock.mhz() if clock else None
            samples, steps = self._batch()
            after = clock.mhz() if clock else None
            # A clock that moved under the batch makes its times worthless; one that cannot be measured says nothing.
            mhz = round((before + after) / 2, 1) if before is not None and after is not None else None
            steady = before is None or after is None or abs(before - after) <= 0.02 * before
            if steady:
                break
        answer = {"unit": "seconds", "value": statistics.median(samples), "samples": samples}
        answer["clock_mhz"] = mhz
        answer["steady"] = steady
        answer["health"] = self.board.health()
        if self.per_step:
            medians = [statistics.median(times) for times in zip(*steps)]  # noqa: B905
            rows = zip(self.model.step_names, medians)  # noqa: B905
            answer["steps"] = [{"name": name, "seconds": seconds} for name, seconds in rows]
        return answer

    def _batch(self) -> tuple[list[float], list[list[float]]]:
        """Seconds of single runs: at least ``repeats``, more until the three fastest agree within 2 % or 2 s are over."""
        wanted = int(self.request.get("repeats", 3))
        samples: list[float] = []
        steps: list[list[float]] = []
        deadline = time.perf_counter() + 2.0
        while len(samples) < wanted or (wanted > 1 and not _agree(samples) and time.perf_counter() < deadline):
            start = time.perf_counter()
            self.model.run()
            samples.append(time.perf_counter() - start)
            steps.append(self.model.step_seconds)
        return samples, steps

    def _outputs(self) -> Answer:
        keep = bool(self.request.get("outputs"))
        outputs = [(info.name, self.model.output(i)) for i, info in enumerate(self.model.outputs)]
        answer = {
            "outputs": [_described(f"output-{i}", name, values, keep) for i, (name, values) in enumerate(outputs)]
        }
        if self.request.get("trace"):
            if TYPE_CHECKING:
                from bitkiln.pipeline.device.runner import trace_tensors
            else:
                from runner import trace_tensors

            traced = enumerate(trace_tensors(self.model).items())
            answer["trace"] = [_described(f"trace-{i}", name, values, True) for i, (name, values) in traced]
        return answer


def _described(file: str, name: str, values: Any, keep: bool) -> Answer:
    """A tensor's name, shape, type and digest; ``keep`` writes its bytes to ``file``."""
    data = values.tobytes()
    row = {"name": name, "shape": list(values.shape), "dtype": str(values.dtype)}
    row["sha256"] = hashlib.sha256(data).hexdigest()
    if keep:
        row["file"] = file
        Path(file).write_bytes(data)
    return row


def _agree(samples: list[float]) -> bool:
    fastest = sorted(samples)[:3]
    return len(fastest) == 3 and fastest[2] <= 1.02 * fastest[0]


class BoardUnfit(Exception):
    """The board itself cannot measure, whatever it runs."""


def believable(report: Answer | None) -> Answer:
    """The simulator's report of a region. Raises BoardUnfit for an answer without cycles: it may say what is wrong instead."""
    if report is None:
        raise BoardUnfit("the simulator does not answer")
    cycles = report.get("cycles")
    if isinstance(cycles, bool) or not isinstance(cycles, int) or cycles < 0:
        raise BoardUnfit(f"the simulator gives no cycles ({report.get('error', 'its report has none')})")
    return report


class Reports:
    """The simulator's reports as it appends them to its file, one line of JSON for each region."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.start = self.path.stat().st_size if self.path.exists() else 0

    def new(self, count: int) -> list[Answer]:
        """Those that came since this object was made. Raises BoardUnfit where they are not ``count``, each whole."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                found = [json.loads(line) for line in file.read().splitlines()]
        except (OSError, ValueError, RecursionError) as error:
            raise BoardUnfit(f"the simulator's reports cannot be read ({error}); its disk may be full") from None
        if len(found) != count or not all(isinstance(report, dict) for report in found):
            raise BoardUnfit(f"the simulator reported {len(found)} of {count} steps; its disk may be full")
        return [believable(report) for report in found]


def in_child(function: Callable[[], Answer], seconds: float) -> Answer:
    """The mapping ``function`` gives, computed in a forked process that has ``seconds``; its death becomes an answer too."""
    reader, writer = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        os.close(reader)
        die_with(parent)
        for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
            signal.signal(number, signal.SIG_DFL)  # TVM's handler would print a page and hide the signal.
        answer_and_exit(function, writer)
    os.close(writer)
    deadline = time.monotonic() + seconds
    try:
        text = read_all(reader, deadline)
    finally:
        os.close(reader)
    status = None if text is None else status_by(child, deadline)
    if text is None or status is None:  # It may have closed the pipe and go on.
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return {"status": "timeout", "message": f"the kernel did not end within {seconds:g} s"}
    return verdict(text, status)


def answer_and_exit(function: Callable[[], Answer], writer: int) -> None:
    """Write what ``function`` gives, or its error, to the pipe and end this process, whatever happens."""
    ended = 1
    try:
        try:
            answer = function()
        except BoardUnfit as error:
            answer = {"status": "unfit", "message": str(error)}
        except BaseException as error:
            answer = {"status": "error", "message": f"{type(error).__name__}: {error}"}
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(writer, data) :]
        ended = 0
    finally:  # A kernel may have closed the pipe; what this process was forked from must not go on in it.
        os._exit(ended)


def read_all(reader: int, deadline: float) -> bytes | None:
    """All that comes from the pipe until its writer is gone; None when that takes until after ``deadline``."""
    chunks: list[bytes] = []
    while True:
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


def status_by(child: int, deadline: float) -> int | None:
    """How the process ``child`` ended, as waitpid says it; None where it goes on after ``deadline``."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def verdict(text: bytes, status: int) -> Answer:
    """What became of a forked trial that ended: its answer, or how it died."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return {"status": "stopped", "message": "the kernel passed the limit of cycles"}
        return {"status": "crashed", "message": f"the kernel died of {signal.Signals(number).name}"}
    if not text or os.WEXITSTATUS(status):
        return {"status": "crashed", "message": f"the kernel ended its process with status {os.WEXITSTATUS(status)}"}
    return json.loads(text)


def die_with(parent: int) -> None:
    """Have the system kill this process when its parent goes, however that happens; it may have gone already."""
    LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


# --- Sessions --------------------------------------------------------------------------------------------------------------

FOLDER_PREFIX = "bitkiln-session-"


class Session:
    """A client being served, in a forked process group with a folder of its own; ``others`` are sockets it has no part in."""

    def __init__(
        self,
        offered: rpc.RpcServer,
        connection: wire.Connection,
        peer: str,
        seconds: float,
        others: list[wire.Connection],
    ) -> None:
        self.connection = connection
        self.peer = peer
        self.others = others
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self.offered = offered
        self.folder = tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-")
        parent, self.process = os.getpid(), os.fork()
        if self.process == 0:
            self._serve(parent)

    def ended(self) -> bool:
        """Whether the session is over; one whose time is up is ended here."""
        if os.waitpid(self.process, os.WNOHANG)[0] != 0:
            return True
        if time.monotonic() < self.deadline:
            return False
        log(f"session of {self.peer} passed its {self.seconds:g} s and is ended")
        self._kill()
        rpc.refuse(self.connection, f"session timeout: the session's {self.seconds:g} s are over")
        return True

    def kill(self) -> None:
        """End the session now."""
        self._kill()
        self.close()

    def close(self) -> None:
        """Release what an ended session held."""
        self.connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill(self) -> None:
        for target in (-self.process, self.process):
            try:
                os.kill(target, signal.SIGKILL)
            except ProcessLookupError:
                continue
        os.waitpid(self.process, 0)

    def _serve(self, parent: int) -> None:
        try:
            os.setpgid(0, 0)
            die_with(parent)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            for connection in self.others:
                connection.close()
            os.chdir(self.folder)
            self.offered.serve(self.connection, Path(self.folder))
        except BaseException as error:
            log(f"session of {self.peer} failed: {error}")
            os._exit(1)
        os._exit(0)


def choose_scratch() -> None:
    """Have temporary folders made where libraries may be loaded from: some systems forbid that in /tmp."""
    if os.statvfs(tempfile.gettempdir()).f_flag & os.ST_NOEXEC:
        tempfile.tempdir = str(Path(__file__).resolve().parent)


def sweep_folders() -> None:
    """Remove the session folders of servers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        owner = folder.name[len(FOLDER_PREFIX) :].split("-")[0]
        if owner.isdigit() and not _still_runs(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _still_runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def confined(path: str) -> str:
    """``path`` as an absolute one in the session's folder, which is the current one; raises PermissionError for others."""
    here = Path.cwd().resolve()
    full = (here / path).resolve()
    if here not in full.parents:
        raise PermissionError(f"{path!r} is not in the session's folder")
    return str(full)


def offer_functions(offered: rpc.RpcServer, board: Board) -> None:
    """Register what clients may call. Paths are relative to the session's folder and do not leave it."""

    def trial(method: Callable[[Trial], Answer]) -> Callable[[str, str], str]:
        def call(path: str, text: str) -> str:
            request = json.loads(text)
            library = confined(path)
            request["inputs"] = {name: confined(file) for name, file in request.get("inputs", {}).items()}
            seconds = float(request.get("limit_seconds", 60))
            return json.dumps(in_child(lambda: method(Trial(board, library, request)), seconds))

        return call

    offered.offer("bitkiln.identity", lambda: json.dumps(board.identity()))
    offered.offer("bitkiln.health", lambda: json.dumps(board.health()))
    offered.offer("bitkiln.measure", trial(Trial.measure))
    offered.offer("bitkiln.run", trial(Trial.run))


# --- The tracker and its clients -------------------------------------------------------------------------------------------

RPC_MAGIC, RPC_MISMATCH, TRACKER_MAGIC = 0xFF271, 0xFF273, 0x2F271
SUCCESS, PUT, UPDATE_INFO, PENDING_KEYS = 0, 3, 5, 7
#: The value of --host that follows the way to the tracker.
TOWARDS_TRACKER = "tracker"
#: Bytes of the words with which TVM's clients open a session, at most.
MOST_GREETING = 4096


def log(text: str) -> None:
    """One line on standard error."""
    print(f"{time.strftime('%H:%M:%S')} board_server: {text}", file=sys.stderr, flush=True)


class Tracker:
    """The connection to the tracker: JSON messages, each after its length, each answered."""

    #: Seconds for an answer, and its largest size.
    PATIENCE, MOST = 10.0, 1 << 20

    def __init__(self, address: tuple[str, int], key: str, secret: bytes | None) -> None:
        self.key = key
        connection = socket.create_connection(address, timeout=self.PATIENCE)
        #: The address of this board on the way to the tracker.
        self.own_host = str(connection.getsockname()[0])
        wire.keep_alive(connection)
        self.matchkey = ""
        self.unclaimed_since = 0.0
        try:
            self.connection = self._open(connection, secret)
        except BaseException:
            connection.close()
            raise

    def register(self, host: str, port: int) -> None:
        """Say where clients find the board."""
        self.advertised, self.port = host, port
        self._call([UPDATE_INFO, {"key": f"server:{self.key}", "addr": [host, port]}])

    def put(self) -> None:
        """Offer the board, under a fresh name that only the client it is given to learns."""
        self.matchkey = f"{self.key}:{random.SystemRandom().random()}"
        self._call([PUT, self.key, [self.port, self.matchkey], self.advertised])
        self.unclaimed_since = time.monotonic()

    def renew(self) -> None:
        """Offer the board again when it was given to a client that never came."""
        if self.matchkey in self._call([PENDING_KEYS]):
            self.unclaimed_since = time.monotonic()
        elif time.monotonic() - self.unclaimed_since > 8:
            log("the client it was given to never came: offering the board again")
            self.put()

    def ping(self) -> None:
        """Raises OSError when the tracker is gone."""
        self._call([PENDING_KEYS])

    def close(self) -> None:
        """Leave the tracker, which forgets the board."""
        self.connection.close()

    def _open(self, bare: socket.socket, secret: bytes | None) -> wire.Connection:
        deadline = time.monotonic() + self.PATIENCE
        connection = bare if secret is None else wire.prove(bare, secret, b"tracker", deadline)
        magic = struct.pack("<i", TRACKER_MAGIC)
        connection.sendall(magic)
        if wire.receive(connection, 4, deadline) != magic:
            raise OSError("it is no RPC tracker")
        return connection

    def _call(self, message: list[Any]) -> Any:
        deadline = time.monotonic() + self.PATIENCE
        wire.send_json(self.connection, message, deadline)
        try:
            answer = json.loads(wire.receive_message(self.connection, self.MOST, deadline))
        except RecursionError:
            raise ValueError("it nests its answer too deep")
        keys = message[0] == PENDING_KEYS
        if not (isinstance(answer, list) if keys else answer == SUCCESS):
            raise OSError(f"it answered {str(answer)[:80]!r}")
        return answer


class Server:
    """Waits for clients, one at a time, and keeps the board known to the tracker."""

    PING = 2.0
    #: Connections that may be in their first seconds at once; one more sends the eldest away.
    MOST_VISITORS = 64

    def __init__(self, offered: rpc.RpcServer, board: Board, options: argparse.Namespace) -> None:
        self.offered = offered
        self.board, self.identity = board, board.identity()
        self.options = options
        self.secret = wire.read_secret(Path(options.secret)) if options.secret else None
        self.visitors: list[wire.Visitor] = []
        self.tracker: Tracker | None = None
        self.session: Session | None = None
        self.host = "127.0.0.1" if options.host == TOWARDS_TRACKER else options.host
        self.listener, self.port = listen(self.host, options.port, options.port_end)
        self.next_ping = self.next_attempt = 0.0
        self.attempt_delay = 0.5
        self.waker, wakened = os.pipe()
        os.set_blocking(wakened, False)
        signal.set_wakeup_fd(wakened)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._leave)

    def serve(self) -> None:
        """Run until told to stop."""
        log(f"listening on {self.host}:{self.port} as {self.options.key!r}")
        while True:
            standing: list[Any] = [self.listener, self.waker] + ([sys.stdin] if self.options.stop_with_stdin else [])
            self._end_session()
            self._keep_tracker()
            self._dismiss_the_slow()
            ready = select.select([*standing, *(each.connection for each in self.visitors)], [], [], 0.5)[0]
            if self.waker in ready:
                os.read(self.waker, 512)
            if sys.stdin in ready and not os.read(sys.stdin.fileno(), 512):
                self._leave()
            for visitor in [each for each in self.visitors if each.connection in ready]:
                self._listen_to(visitor)
            if self.listener in ready:
                self._accept()

    def _leave(self, *_: object) -> None:
        if self.session:
            self.session.kill()
        os._exit(0)

    def _end_session(self) -> None:
        if self.session and self.session.ended():
            self.session.close()
            self.session = None
            self._with_tracker(lambda tracker: tracker.put())

    def _keep_tracker(self) -> None:
        now = time.monotonic()
        if self.tracker is None and now >= self.next_attempt:
            self._connect()
        elif self.tracker and now >= self.next_ping:
            self.next_ping = now + self.PING
            self._with_tracker(lambda tracker: tracker.ping() if self.session else tracker.renew())

    def _connect(self) -> None:
        try:
            self.tracker = Tracker(self.options.tracker, self.options.key, self.secret)
            if self.options.host == TOWARDS_TRACKER:
                self._move_to(self.tracker.own_host)
            self.tracker.register(*(self.options.advertise or (self.tracker.own_host, self.port)))
            if not self.session:
                self.tracker.put()
            log("registered with the tracker at {}:{}".format(*self.options.tracker))
            self.attempt_delay = 0.5
        except (OSError, ValueError) as error:
            if self.attempt_delay == 0.5:
                log("no tracker at {}:{} ({}): waiting for it".format(*self.options.tracker, error))
            if self.tracker:
                self.tracker.close()
            self.tracker = None
            self.next_attempt = time.monotonic() + self.attempt_delay
            self.attempt_delay = min(5.0, 2 * self.attempt_delay)

    def _move_to(self, host: str) -> None:
        """Listen where the tracker's network is: a board may have several, and a new address in it since it was set up."""
        if host == self.host:
            return
        listener, self.port = listen(host, self.options.port, self.options.port_end)
        self.listener.close()
        self.listener, self.host = listener, host
        log(f"listening on {host}:{self.port}")

    def _with_tracker(self, action: Callable[[Tracker], None]) -> None:
        tracker = self.tracker
        if tracker is None:
            return
        try:
            action(tracker)
        except (OSError, ValueError) as error:
            log(f"lost the tracker ({error}): waiting for it")
            tracker.close()
            self.tracker = None
            self.next_attempt, self.attempt_delay = 0.0, 1.0

    def _accept(self) -> None:
        try:
            connection, address = self.listener.accept()
            wire.keep_alive(connection)
        except OSError:  # It left before we came to it, or there are too many.
            return
        if len(self.visitors) >= self.MOST_VISITORS:
            self._dismiss(self.visitors[0], "too many at once")
        self.visitors.append(wire.Visitor(connection, f"{address[0]}:{address[1]}", self._greet))

    def _listen_to(self, visitor: wire.Visitor) -> None:
        try:
            over, seconds = visitor.read()
        except (OSError, ValueError) as error:
            self._dismiss(visitor, str(error))
            return
        if not over:
            return
        self.visitors.remove(visitor)
        if seconds is None:
            visitor.close()
            return
        visitor.connection.setblocking(True)
        others = [each.connection for each in self.visitors] + [self.listener]
        others += [self.tracker.connection] if self.tracker else []
        self.session = Session(self.offered, visitor.connection, visitor.peer, seconds, others)

    def _dismiss_the_slow(self) -> None:
        now = time.monotonic()
        for visitor in [each for each in self.visitors if now > each.deadline]:
            self._dismiss(visitor, "it is too slow")

    def _dismiss(self, visitor: wire.Visitor, reason: str) -> None:
        log(f"refused {visitor.peer}: {reason}")
        visitor.close()
        self.visitors.remove(visitor)

    def _greet(self, visitor: wire.Visitor) -> wire.Conversation:
        """What is said before TVM's RPC; comes to the session's time limit in seconds, None where there will be none."""
        word = yield 4
        if word == wire.IDENTIFY:
            about = {**self.identity, "health": self.board.health(), "busy": self.session is not None}
            data = json.dumps(about).encode()
            visitor.send(struct.pack("<i", len(data)) + data)
            return None
        if word == wire.PROVE:
            visitor.sign((yield from wire.demand_proof(visitor.send, self.secret, b"board", self.options.open)))
            word = yield 4
        elif not self.options.open:
            raise OSError("it does not prove who sends it")
        return (yield from self._open_session(visitor, word))

    def _open_session(self, visitor: wire.Visitor, word: bytes) -> wire.Conversation:
        """TVM's opening of a session; comes to its time limit in seconds."""
        if word != struct.pack("<i", RPC_MAGIC):
            raise OSError("it does not speak TVM's RPC")
        (size,) = struct.unpack("<i", (yield 4))
        if not 0 < size <= MOST_GREETING:
            raise OSError(f"it greets with {size} bytes")
        words = (yield size).decode(errors="replace").split()
        if self.session or not self.tracker or not words or words[0] != f"client:{self.tracker.matchkey}":
            visitor.send(struct.pack("<i", RPC_MISMATCH))
            raise OSError("it was not sent by the tracker")
        name = f"server:{self.options.key}".encode()
        visitor.send(struct.pack("<ii", RPC_MAGIC, len(name)) + name)
        limits = [float(word[len("-timeout=") :]) for word in words[1:] if word.startswith("-timeout=")]
        return min([*limits, self.options.session_seconds])


def listen(host: str, first: int, end: int) -> tuple[socket.socket, int]:
    """A listening socket on the first free port of [first, end), and that port. Raises OSError."""
    for port in range(first, max(end, first + 1)):
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(64)
            listener.setblocking(False)
            return listener, listener.getsockname()[1]
        except OSError as error:
            listener.close()
            reason = error
    raise OSError(f"no port of {host}:{first}-{end - 1} is free ({reason})")


# --- Command line ------------------------------------------------------------------------------------------------------------


def address(text: str) -> tuple[str, int]:
    """HOST:PORT as a pair."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description="Register this board with a TVM RPC tracker, or measure one library.",
        epilog="example: board_server.py --tracker 127.0.0.1:9190 --key rasp3b",
    )
    parser.add_argument("--tracker", type=address, metavar="HOST:PORT", help="where to register")
    parser.add_argument("--key", default="rasp3b", help="the kind of board, as clients ask for it")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help=f"address to listen on (%(default)s); {TOWARDS_TRACKER}: the one from which the tracker is reached, as it changes",
    )
    parser.add_argument("--port", type=int, default=9090, help="first port to try (%(default)s); 0 takes any")
    parser.add_argument("--port-end", type=int, default=9190, help="port to stop before (%(default)s)")
    parser.add_argument("--advertise", type=address, metavar="HOST:PORT", help="where clients find this board")
    parser.add_argument("--secret", metavar="FILE", help="what clients and tracker share with us; a file of mode 0600")
    parser.add_argument("--open", action="store_true", help="serve whoever comes: all who reach us can run code here")
    parser.add_argument("--session-seconds", type=float, default=3600.0, help="longest session (%(default)s)")
    parser.add_argument("--emulated", action="store_true", help="qemu runs this: its times are not a board's")
    parser.add_argument("--report", default="", help="the file the simulator appends its reports to")
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when standard input closes")
    parser.add_argument("--identity", action="store_true", help="say what this board is and stop")
    parser.add_argument("--health", action="store_true", help="print temperature, throttling and load, and stop")
    parser.add_argument("--measure", metavar="LIBRARY", help="measure this library, print the answer and stop")
    parser.add_argument("--request", default="{}", help="with --measure: the request, as JSON")
    options = parser.parse_args(arguments)
    if not (options.tracker or options.measure or options.identity or options.health):
        parser.error("give --tracker HOST:PORT, --measure LIBRARY, --identity or --health")
    if options.secret and options.open:
        parser.error("give --secret FILE or --open, not both")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Serve, or measure once."""
    options = parse(arguments)
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    importlib.import_module("runner")  # Once, before anything is forked.

    # A crashing kernel is expected; its memory image is of no use.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    board = Board(options.emulated, options.report)
    if options.identity or options.health:
        print(json.dumps(board.identity() if options.identity else board.health()))
        return
    if options.measure:
        request = json.loads(options.request)
        seconds = float(request.get("limit_seconds", options.session_seconds))
        print(json.dumps(in_child(lambda: Trial(board, options.measure, request).measure(), seconds)))
        return
    choose_scratch()
    sweep_folders()
    offered = rpc.RpcServer()
    offer_functions(offered, board)
    try:
        server = Server(offered, board, options)
    except (OSError, ValueError) as error:
        sys.exit(f"board_server: {error}")
    server.serve()


if __name__ == "__main__":
    main()

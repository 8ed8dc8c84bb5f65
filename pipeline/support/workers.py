"""Processes that do one kind of job again and again; one that hangs or dies is replaced.

A worker reads jobs from its standard input and writes answers to its standard output, JSON after its length. It has a session
of its own, so that a terminal's Ctrl-C does not reach it, and ends when its input does.
"""

from __future__ import annotations

import json
import os
import queue
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bitkiln.pipeline.support import processes

#: Bytes of an answer.
MOST_BYTES = 1 << 20


class WorkerDied(Exception):
    """A worker ended instead of answering."""


class WorkerPool:
    """``count`` processes that run ``module``, which calls ``work``. Threads may ask side by side.

    What is temporary of theirs goes into ``folder``: killed ones do not tidy up.
    """

    def __init__(self, module: str, count: int, folder: Path) -> None:
        self._workers = [_Worker(module, folder) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._closed = threading.Event()
        for worker in self._workers:
            self._idle.put(worker)

    def ask(self, job: Any, seconds: float) -> Any:
        """What a worker makes of ``job`` within ``seconds``. Raises TimeoutError, WorkerDied."""
        worker = self._free_worker()
        try:
            return worker.ask(job, seconds)
        except (TimeoutError, WorkerDied):
            worker.end()
            if not self._closed.is_set():
                worker.start()
            raise
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End them all; whoever waits for one gets WorkerDied."""
        self._closed.set()
        for worker in self._workers:
            worker.end()

    def _free_worker(self) -> _Worker:
        while not self._closed.is_set():
            with suppress(queue.Empty):
                return self._idle.get(timeout=0.2)
        raise WorkerDied("it was told to end")


class _Worker:
    def __init__(self, module: str, folder: Path) -> None:
        self._command = [sys.executable, "-m", module]
        self._environment = {**os.environ, "TMPDIR": str(folder)}
        self.start()

    def start(self) -> None:
        """Begin, again after an end."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = processes.start(self._command, env=self._environment, bufsize=0, **pipes)

    def ask(self, job: Any, seconds: float) -> Any:
        assert self._process.stdin
        data = json.dumps(job).encode()
        deadline = time.monotonic() + seconds
        try:
            self._process.stdin.write(struct.pack("<I", len(data)) + data)
            (size,) = struct.unpack("<I", self._read(4, deadline))
            return json.loads(self._read(min(size, MOST_BYTES), deadline))
        except (OSError, ValueError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise WorkerDied(self._fate()) from None

    def end(self) -> None:
        """End it now. Its pipes stay: another thread may be at them, and gets their end."""
        processes.kill(self._process)

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout
        data = b""
        while len(data) < size:
            left = deadline - time.monotonic()
            # Looked at often, since closing a pool kills the process whose pipe this is.
            if left <= 0:
                raise TimeoutError
            if select.select([self._process.stdout], [], [], min(left, 1.0))[0]:
                chunk = self._process.stdout.read(size - len(data))
                if not chunk:
                    raise ConnectionError
                data += chunk
        return data

    def _fate(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(1)
            return f"signal {-code}" if code < 0 else f"status {code}"
        return "it closed its output"


# --- In a worker -----------------------------------------------------------------------------------------------------------


def work(prepare: Callable[[], None], do: Callable[..., Any]) -> None:
    """Answer jobs, lists of arguments of ``do``, until the input ends."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # What others print is no answer.
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    prepare()
    while True:
        data = json.dumps(do(*jobs.get())).encode()
        answers.write(struct.pack("<I", len(data)) + data)


def _read_jobs(jobs: queue.SimpleQueue[Any]) -> None:
    """Hand jobs on; at the end of the input end the process, whatever it compiles."""
    source = sys.stdin.buffer
    with suppress(OSError, struct.error, ValueError):
        while True:
            (size,) = struct.unpack("<I", source.read(4))
            jobs.put(json.loads(source.read(size)))
    os._exit(0)

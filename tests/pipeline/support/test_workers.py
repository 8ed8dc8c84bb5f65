"""Workers answer, and those that hang or die are replaced. This file is also the module that they run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Any

import psutil
import pytest

from bitkiln.pipeline.support.workers import WorkerDied, WorkerPool, work


def do(what: str, argument: Any = None) -> Any:
    """In a worker."""
    if what == "print":
        print("chatter", flush=True)
    if what == "hang":
        time.sleep(60)
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    return [what, argument, os.getpid()]


@pytest.fixture
def pool(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", ".")
    pool = WorkerPool("tests.pipeline.support.test_workers", 2, tmp_path)
    yield pool
    pool.close()


def children() -> list[psutil.Process]:
    found = []
    for each in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # It may end, or be dead already.
            if "test_workers" in " ".join(each.cmdline()):
                found.append(each)
    return found


def test_answers_come_from_workers_whatever_they_print(pool):
    assert pool.ask(["print", "ü" * 100_000], 30)[:2] == ["print", "ü" * 100_000]
    assert pool.ask(["again"], 30)[2] != os.getpid()


def test_one_that_hangs_or_dies_is_replaced(pool):
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        pool.ask(["hang"], 0.5)
    assert time.monotonic() - start < 10
    with pytest.raises(WorkerDied, match="signal 11"):
        pool.ask(["die"], 30)
    assert {pool.ask(["good"], 30)[0] for _ in range(4)} == {"good"}
    assert len(children()) == 2


def test_closing_ends_them_and_whoever_waits(pool):
    found: list[BaseException] = []

    def ask() -> None:
        try:
            pool.ask(["hang"], 60)
        except WorkerDied as error:
            found.append(error)

    waiting = [threading.Thread(target=ask) for _ in range(3)]
    for thread in waiting:
        thread.start()
    time.sleep(0.5)
    start = time.monotonic()
    pool.close()
    for thread in waiting:
        thread.join(10)
    assert time.monotonic() - start < 5
    assert len(found) == 3
    assert children() == []
    with pytest.raises(WorkerDied):
        pool.ask(["good"], 5)


def test_they_are_out_of_reach_of_ctrl_c(pool):
    assert {pool.ask(["good"], 30)[0] for _ in range(4)} == {"good"}  # Both have begun.
    assert {os.getsid(child.pid) for child in children()} == {child.pid for child in children()}


if __name__ == "__main__":
    work(lambda: None, do)

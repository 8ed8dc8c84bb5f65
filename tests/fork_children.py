"""Forks a program with a loaded model: fork_children.py LIBRARY, with runner.py on the path. "done" when all went well.

Children run the model, close it, just leave, or do so while another thread of their parent runs it; multiprocessing's too.
"""

import multiprocessing
import os
import sys
import threading

import runner

WHAT = ("use", "close", "exit")
model = runner.Model(sys.argv[1], 4)


def answer(model: "runner.Model") -> bytes:
    """What it makes of its input."""
    model.run()
    return model.output(0).tobytes()


def behave(what: str) -> None:
    """What a child does, and its end."""
    if what == "use":
        os._exit(answer(model) != expected or answer(model) != expected)
    if what == "close":
        model.close()
        os._exit(0)
    sys.exit(0)


def fork_all(times: int) -> None:
    """Children of each kind; raises AssertionError where one does not end as it should."""
    for what in WHAT * times:
        child = os.fork()
        if child == 0:
            behave(what)
        assert os.waitpid(child, 0)[1] == 0, what


model.fill_random()
expected = answer(model)
fork_all(5)
other = runner.Model(sys.argv[1], 4)
other.fill_random()
over = threading.Event()
busy = threading.Thread(target=lambda: [answer(other) for _ in iter(over.is_set, True)])
busy.start()
fork_all(5)
over.set()
busy.join()
process = multiprocessing.get_context("fork").Process(target=behave, args=("use",))
process.start()
process.join(60)
assert process.exitcode == 0
assert answer(model) == expected == answer(other)
print("done")

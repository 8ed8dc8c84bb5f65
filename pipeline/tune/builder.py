"""Builds candidates in worker processes, which a compiler that hangs or crashes takes down instead of us."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bitkiln import targets
from bitkiln.pipeline.support.files import require_space
from bitkiln.pipeline.support.workers import WorkerDied, WorkerPool, work
from bitkiln.schedules.workload import Tunable, to_json, tunable_from_json
from bitkiln.targets import Target
from bitkiln.targets.scratch import scratch_folder

BUILD_SECONDS = 120.0
#: How many workers may die of a candidate before it is the candidate's fault.
ATTEMPTS = 3
#: Fixes the tensors that candidates of a task run on.
SEED = 1


@dataclass(frozen=True)
class Artifact:
    """A candidate as a board takes it: a library and its raw inputs by name, in a folder of its own."""

    folder: Path

    @property
    def library(self) -> Path:
        """The library."""
        return self.folder / "model.so"

    def inputs(self) -> dict[str, bytes]:
        """The raw inputs by name."""
        return {path.stem: path.read_bytes() for path in sorted(self.folder.glob("*.raw"))}

    def discard(self) -> None:
        """Delete it."""
        shutil.rmtree(self.folder, ignore_errors=True)


class BuildFailed(Exception):
    """A candidate that does not compile; the message is one line."""


class Builder:
    """``workers`` processes that emit, compile and link kernels. Threads may build side by side."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or max(1, min(8, os.cpu_count() or 1))
        self._folder = scratch_folder()
        self._pool = WorkerPool("bitkiln.pipeline.tune.builder", self.workers, Path(self._folder.name))

    def close(self) -> None:
        """End the workers and delete what they built."""
        self._pool.close()
        self._folder.cleanup()

    def build(self, workload: Tunable, knobs: Mapping[str, int | str], target: Target, threads: int = 1) -> Artifact:
        """Build one candidate for so many threads.

        Raises BuildFailed; SetupError where it is this machine that fails, not the candidate.
        """
        require_space(Path(self._folder.name))
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        try:
            wanted = [to_json(workload), dict(knobs), target.name, threads, str(folder)]
            complaint = self._ask(wanted)
        except TimeoutError:
            complaint = f"the compiler took more than {BUILD_SECONDS:g} s"
        except WorkerDied as problem:
            complaint = f"the compiler's process died ({problem})"
        if complaint:
            shutil.rmtree(folder, ignore_errors=True)
            require_space(Path(self._folder.name))
            raise BuildFailed(complaint)
        return Artifact(folder)

    def _ask(self, wanted: list[object]) -> str:
        """What a worker says. One that died is replaced and another asked: the system may have ended it for want of memory."""
        for _ in range(ATTEMPTS - 1):
            with suppress(WorkerDied):
                return str(self._pool.ask(wanted, BUILD_SECONDS))
        return str(self._pool.ask(wanted, BUILD_SECONDS))


def prepare() -> None:
    """In a worker: load what building needs."""
    from bitkiln.pipeline import compile  # noqa: F401


def build(workload_json: str, knobs: dict[str, int | str], target_name: str, threads: int, folder: str) -> str:
    """In a worker: build a candidate and its inputs into ``folder``; gives what went wrong, or nothing."""
    import numpy as np

    from bitkiln.pipeline.compile.single import build_kernel_library
    from bitkiln.pipeline.tune.data import arguments
    from bitkiln.schedules.kernel import Constant

    try:
        workload = tunable_from_json(workload_json)
        library = Path(folder) / "model.so"
        kernel = build_kernel_library(workload, knobs, targets.load(target_name), library, threads)
        sources = arguments(workload, SEED)
        for index, argument in enumerate(kernel.arguments):
            if isinstance(argument, Constant):
                continue
            arrays = [sources[at] for at in argument.sources]
            array = argument.pack(arrays) if argument.pack else arrays[0]
            raw = np.ascontiguousarray(array, argument.dtype).tobytes()
            (Path(folder) / f"arg{index}.raw").write_bytes(raw)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[-1]}"
    return ""


if __name__ == "__main__":
    work(prepare, build)

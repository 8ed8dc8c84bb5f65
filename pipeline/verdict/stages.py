"""Stages of a build that are kept: what one found is on disk before the next begins, and is taken from there the next time."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bitkiln.pipeline import schema
from bitkiln.pipeline.support.files import atomic_write

#: Counts up when what stages keep changes its meaning.
VERSION = 1


def digest(*facts: Any) -> str:
    """Equal for equal facts, which are plain data or dataclasses."""
    return hashlib.sha256(json.dumps(schema.plain(facts), sort_keys=True).encode()).hexdigest()


@dataclass
class Stages:
    """The stages of one build in ``folder``, in the order they are run; ``total`` of them are announced."""

    folder: Path
    console: Console
    total: int
    done: list[schema.Stage] = field(default_factory=list)

    def run(self, name: str, key: str, work: Callable[[], Any], say: Callable[[Any], str]) -> Any:
        """What ``work`` gives, plain data; or what it gave the last time, if that was for the same ``key``.

        ``say`` makes a line of it. An error leaves the stage undone.
        """
        kept = self._kept(name)
        began = time.monotonic()
        known = kept is not None and kept.get("key") == key
        if not known:
            self.console.print(f"[{len(self.done) + 1}/{self.total}] {name} ...", highlight=False, markup=False)
        result = kept["result"] if kept is not None and known else work()
        if not known:
            self.keep(name, key, result)
        seconds = time.monotonic() - began
        self.done.append({"name": name, "kept": known, "seconds": seconds})
        how = "as before" if known else f"{seconds:.1f} s"
        self.console.print(
            f"[{len(self.done)}/{self.total}] {name}: {say(result)} ({how})",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return result

    def knows(self, name: str, key: str) -> bool:
        """Whether ``run`` would take over what a stage gave the last time."""
        kept = self._kept(name)
        return kept is not None and kept.get("key") == key

    def keep(self, name: str, key: str, result: Any) -> None:
        """Write down what a stage gave, to be taken over by the next build with the same ``key``."""
        with atomic_write(self._file(name)) as temporary:
            temporary.write_text(json.dumps({"version": VERSION, "key": key, "result": result}), encoding="utf-8")

    def skip(self, name: str, why: str) -> None:
        """Say that a stage was not wanted."""
        self.done.append({"name": name, "kept": False, "seconds": 0.0})
        self.console.print(f"[{len(self.done)}/{self.total}] {name}: {why}", highlight=False, markup=False)

    def _file(self, name: str) -> Path:
        return self.folder / "stages" / f"{name}.json"

    def _kept(self, name: str) -> dict[str, Any] | None:
        """What is on disk of a stage; None where that is damaged or of another version: it is then run again."""
        try:
            kept = json.loads(self._file(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(kept, dict) and kept.get("version") == VERSION and "result" in kept
        return kept if whole else None

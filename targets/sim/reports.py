"""The host's end of the region protocol: reads the reports that the model appends to the file of its option `out`."""

import json
import time
from pathlib import Path
from typing import Any


class Reports:
    """Reports of a program under the model, in the order in which its regions ended. Each is returned once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """Reports that came since the last call; a line still being written is left for the next."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [json.loads(line) for line in complete.splitlines()]

    def wait(self, count: int, timeout: float) -> list[dict[str, Any]]:
        """At least `count` new reports; raises TimeoutError after `timeout` seconds."""
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + timeout
        while len(found) < count:
            found += self.new()
            if len(found) < count:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.path}: {len(found)} of {count} reports after {timeout:g} s")
                time.sleep(0.01)
        return found

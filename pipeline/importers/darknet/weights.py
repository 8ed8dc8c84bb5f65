"""Reading darknet's ``.weights``: a header, then float32 values without names, in the order of the layers.

The header is major, minor, revision (int32) and the number of images seen: int64 from version 0.2 on, int32 before. Versions
above 1000, an early trick, say that dense weights are transposed. The file does not say what is in it: only its
length tells whether it belongs to a cfg.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers.common.archive import check_file

#: The first revision of AlexeyAB's fork that says so in its header; the original has always written 0.
_FORK_REVISION = 5


@dataclass(frozen=True)
class Header:
    """What the header says: its length in bytes, whether dense weights are transposed, and which darknet wrote it."""

    size: int
    transposed: bool
    fork: bool


class Weights:
    """The values of one file, taken from its front."""

    def __init__(self, path: Path) -> None:
        """Open the file; ModelError where it has no whole header."""
        check_file(path)
        self.path = path
        self.length = path.stat().st_size
        self.header = self._header()
        self._taken = 0

    def _header(self) -> Header:
        with self.path.open("rb") as file:
            start = file.read(20)
        if len(start) < 16:
            raise ModelError(f"{self.path}: is too short for darknet weights ({len(start)} bytes)")
        major, minor, revision = struct.unpack("<3i", start[:12])
        transposed = major > 1000 or minor > 1000
        wide = major * 10 + minor >= 2 and not transposed
        return Header(20 if wide else 16, transposed, wide and revision >= _FORK_REVISION)

    def check(self, cfg: Path, count: int, shorter: int | None = None) -> bool:
        """Hold the file's length against the ``count`` values that ``cfg`` needs, or the ``shorter`` count some writers have.

        True where it is the shorter one; ModelError where it is neither.
        """
        expected = self.header.size + 4 * count
        if self.length == expected:
            return False
        if shorter is not None and self.length == self.header.size + 4 * shorter:
            return True
        raise ModelError(
            f"{self.path}: has {self.length} bytes, the layers of {cfg.name} need {expected}; "
            f"{'the file is truncated or' if self.length < expected else 'it'} belongs to another cfg"
        )

    def take(self, counts: Mapping[str, int], where: str) -> dict[str, np.ndarray]:
        """The next values, ``counts`` of each name: flat float32, all finite. Call ``check`` before the first."""
        arrays = {}
        for name, count in counts.items():
            offset = self.header.size + 4 * self._taken
            array = np.fromfile(self.path, "<f4", count, offset=offset).astype(np.float32)
            if array.size != count:
                raise ModelError(f"{self.path}: ends within the {name} of {where}")
            if not np.isfinite(array).all():
                raise ModelError(f"{self.path}: non-finite weight in the {name} of {where}")
            arrays[name] = array
            self._taken += count
        return arrays

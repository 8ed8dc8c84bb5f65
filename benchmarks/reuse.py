"""Figures of other engines from an earlier run: simulated cycles repeat, so that what has not changed need not run again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from benchmarks import peers, wheels
from benchmarks.report import OWN, Row
from bitkiln.pipeline.errors import ModelError
from bitkiln.targets import Target
from bitkiln.targets.sim import MODEL_VERSION

#: Bytes of a file of rows, at most: 11 networks on 6 engines are 20 kB.
MOST = 4 << 20
_FIELDS = {field.name for field in fields(Row)}


class Known:
    """Rows that ``scripts/bench --json`` wrote."""

    def __init__(self, path: Path | None) -> None:
        """Raises ModelError where ``path`` is none of these files."""
        rows = [] if path is None else _read(path)
        self.rows = {(row.work, row.engine, row.target, row.threads): row for row in rows}

    def row(self, work: str, engine: str, bound_ms: float, target: Target, threads: int) -> Row | None:
        """The row of another engine, if it was measured by the model in force, with today's wheel and as much work."""
        row = self.rows.get((work, engine, target.name, threads))
        if row is None or row.ms is None or engine in OWN:
            return None
        wheel = peers.PEERS[engine].wheel
        version = f"{wheel} {wheels.VERSIONS[target.architecture].get(wheel)},"
        parts = row.how.replace(";", ",").split(", ")
        of_now = f"model {MODEL_VERSION}" in parts and f"{target.mhz} MHz" in parts and version in row.how
        return row if of_now and math.isclose(row.bound_ms, bound_ms) else None


def _read(path: Path) -> list[Row]:
    try:
        if path.stat().st_size > MOST:
            raise ModelError(f"{path}: is too large for rows of the bench")
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not JSON: {error}") from error
    if not isinstance(plain, list) or not all(map(_is_row, plain)):
        raise ModelError(f"{path}: has no rows as scripts/bench --json writes them")
    return [Row(**row) for row in plain]


def _is_row(plain: object) -> bool:
    if not isinstance(plain, Mapping) or set(plain) != _FIELDS:
        return False
    texts = all(isinstance(plain[name], str) for name in ("work", "engine", "target", "how"))
    numbers = [plain[name] for name in ("cycles", "ms", "error") if plain[name] is not None]
    numbers += [plain["bound_ms"], plain["threads"]]
    return texts and all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)

"""The files of a darknet network: the cfg and its weights lie beside each other, and so may the names of its classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers.common.archive import check_file
from bitkiln.pipeline.importers.common.labels import read_labels
from bitkiln.pipeline.importers.common.options import ImportOptions

_MAX_DATA_BYTES = 1 << 16

#: What darknet adds to a cfg's name when it saves weights while training.
_SAVED = ("_final", "_best", "_last")
_SAVED_STEM = re.compile(r"(.+)_(?:final|best|last|\d+)")


def find_cfg(path: Path, options: ImportOptions) -> Path:
    """The cfg: ``path``, or what lies beside the weights ``path``."""
    check_file(path)
    if not _is_weights(path):
        return path
    if options.weights is not None:
        raise ModelError(f"{path}: name the .cfg and give its weights with --weights, not two weights files")
    saved = _SAVED_STEM.fullmatch(path.stem)
    found = _beside(path, [path.stem, saved[1]] if saved else [path.stem], ".cfg")
    if found is None:
        raise ModelError(f"{path}: needs {path.stem}.cfg beside it; or name the .cfg and give --weights {path}")
    return found


def find_weights(path: Path, options: ImportOptions) -> Path:
    """The weights: ``path``, those the user names, or what lies beside the cfg ``path``."""
    if _is_weights(path) or options.weights is not None:
        return options.weights or path
    found = _beside(path, [path.stem, *(path.stem + ending for ending in _SAVED)], ".weights")
    if found is None:
        raise ModelError(f"{path}: needs {path.stem}.weights beside it; say where it is with --weights FILE")
    return found


def find_names(cfg: Path, count: int) -> tuple[str, ...]:
    """``count`` class names from ``<stem>.names``, or from the file that ``<stem>.data`` calls ``names`` or ``labels``."""
    for candidate in _names_beside(cfg):
        if candidate.is_file():
            try:
                return read_labels(candidate, count)
            except ModelError:
                continue  # nobody asked for this file: it may be anything
    return ()


def _names_beside(cfg: Path) -> Iterator[Path]:
    """Where the names may be: paths in a ``.data`` are relative to where darknet is started, mostly a folder above."""
    yield cfg.with_suffix(".names")
    data = cfg.with_suffix(".data")
    if not data.is_file() or data.stat().st_size >= _MAX_DATA_BYTES:
        return
    for line in data.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = "".join(line.split()).partition("=")
        relative = Path(value)
        if key in ("names", "labels") and value and len(value) < 256:
            yield cfg.parent / relative.name
            if not relative.is_absolute() and ".." not in relative.parts:
                yield cfg.parent / relative
                yield cfg.parent.parent / relative


def _is_weights(path: Path) -> bool:
    return path.suffix.lower() == ".weights"


def _beside(path: Path, stems: Sequence[str], suffix: str) -> Path | None:
    """The file beside ``path`` with the first of ``stems`` that is there."""
    candidates = (path.with_name(stem + ending) for stem in stems for ending in (suffix, suffix.upper()))
    return next((candidate for candidate in candidates if candidate.is_file()), None)

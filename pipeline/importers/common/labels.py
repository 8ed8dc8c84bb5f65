"""Class names: one a line in a text file, given by the user or found beside the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.model import TensorSpec

#: Names such files have beside a model: ELL's gallery, ONNX zoos, ImageNet's own.
_NEIGHBOURS = ("categories.txt", "labels.txt", "ILSVRC2012_labels.txt", "synset.txt")

_MAX_BYTES = 16 << 20


def read_labels(path: Path, outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The labels in ``path``; ModelError unless there is one for each element of the (first) output."""
    labels = _lines(path)
    wanted = math.prod(outputs[0].shape)
    if len(labels) != wanted:
        raise ModelError(f"{path}: has {len(labels)} labels, the model's output has {wanted} elements")
    return labels


def find_labels(model: Path, outputs: Sequence[TensorSpec]) -> tuple[tuple[str, ...], str]:
    """Labels in a file beside ``model`` whose count fits its output, and where they are; none if there is no such file."""
    stem = model.name.partition(".")[0]
    for name in (f"{stem}.labels.txt", f"{stem}.txt", *_NEIGHBOURS):
        path = model.parent / name
        if path.is_file():
            try:
                return read_labels(path, outputs), f"{path}, beside the model"
            except ModelError:
                continue  # nobody asked for this file: it may be anything
    return (), ""


def _lines(path: Path) -> tuple[str, ...]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelError(f"{path}: is too large for a list of labels")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path}: is not UTF-8 text with one label a line") from None
    return tuple(line.strip() for line in text.rstrip().splitlines())

"""Class names: one a line in a text file, given by the user or found beside the model."""

from __future__ import annotations

import math
import stat
from pathlib import Path

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.model import Model

#: Names such files have beside a model: ELL's gallery, ONNX zoos, ImageNet's own.
_NEIGHBOURS = ("categories.txt", "labels.txt", "ILSVRC2012_labels.txt", "synset.txt")

_MAX_BYTES = 16 << 20


def class_count(model: Model) -> int:
    """How many classes a network tells apart: what its head says, else the elements of its first output."""
    return model.head.classes if model.head else math.prod(model.outputs[0].shape)


def read_labels(path: Path, count: int, background: bool = False) -> tuple[str, ...]:
    """The labels in ``path``; ModelError unless there are ``count``. A first class, ``background``, may be left out."""
    labels = _lines(path)
    if background and len(labels) == count - 1:
        labels = ("background", *labels)
    if len(labels) != count:
        raise ModelError(f"{path}: has {len(labels)} labels, the model tells {count} classes apart")
    return labels


def find_labels(model: Path, count: int, background: bool = False) -> tuple[tuple[str, ...], str]:
    """``count`` labels in a file beside ``model``, and where they are; none if there is no such file."""
    stem = model.name.partition(".")[0]
    for name in (f"{stem}.labels.txt", f"{stem}.txt", *_NEIGHBOURS):
        path = model.parent / name
        if path.is_file():
            try:
                return read_labels(path, count, background), f"{path}, beside the model"
            except ModelError:
                continue  # nobody asked for this file: it may be anything
    return (), ""


def _lines(path: Path) -> tuple[str, ...]:
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise ModelError(f"{path}: is no file of labels")  # A pipe or a device may never end.
        if about.st_size > _MAX_BYTES:
            raise ModelError(f"{path}: is too large for a list of labels")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path}: is not UTF-8 text with one label a line") from None
    return tuple(line.strip() for line in text.rstrip().splitlines())

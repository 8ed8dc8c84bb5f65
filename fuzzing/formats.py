"""The formats there are: for each what makes its cases, and what damages a file of a user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from fuzzing import darknet, ell, onnx_mutation, others, tflite
from fuzzing.bytes_mutation import damage
from fuzzing.case import Case

#: Name -> ``make(random, index)``.
FORMATS: dict[str, Callable[[Random, int], Case]] = {
    "onnx": onnx_mutation.case,
    "ell": ell.case,
    "darknet": darknet.case,
    "tflite": tflite.case,
    "bundle": others.bundle_case,
    "records": others.records_case,
    "input": others.input_case,
}

_BY_SUFFIX = {
    ".onnx": onnx_mutation.damaged_file,
    ".ell": ell.damaged_file,
    ".cfg": darknet.damaged_file,
    ".tflite": tflite.damaged_file,
}


def damage_of(path: Path) -> Callable[[Random, bytes], tuple[bytes, str]]:
    """What knows best how to damage a file of this name."""
    return _BY_SUFFIX.get(path.suffix, damage)

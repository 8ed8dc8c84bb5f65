"""Other engines that run the model on the same input, to compare the bundle's outputs with."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.passes.pipeline import Lowered
from bitkiln.pipeline.verify.compare import Tensors

#: The name under which our own reference appears.
REFERENCE = "reference"

#: The network before any rewriting, evaluated in numpy.
IMPORTED = "model as imported"

ONNXRUNTIME = "onnxruntime"

#: What the user says that another engine gave.
EXPECTED = "expected"


@dataclass(frozen=True)
class Rival:
    """Another engine's outputs for the same input; ``by_file`` if it may give zeros the sign 0 where the file says so."""

    name: str
    outputs: Sequence[np.ndarray | None]
    by_file: bool = True


def as_imported(lowered: Lowered, inputs: Tensors) -> list[np.ndarray] | None:
    """The outputs of the network as imported; None where it has operators that the reference does not know."""
    try:
        return reference.run(lowered.phases["imported"], inputs)
    except BitkilnError:
        return None


def by_onnxruntime(source: Path | None, inputs: Tensors) -> list[np.ndarray] | None:
    """The model's outputs by onnxruntime; None where it is not installed or cannot run the file."""
    if source is None or not source.name.lower().endswith((".onnx", ".onnx.xz")):
        return None
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors; its warnings are about what exporters leave behind.
    try:
        model = lzma.decompress(source.read_bytes()) if source.name.endswith(".xz") else str(source)
        session = onnxruntime.InferenceSession(model, options)
        names = [entry.name for entry in session.get_inputs()]
        return session.run(None, dict(zip(names, inputs.values(), strict=True)))
    except Exception:
        # It refuses what it has no operator for, such as QONNX's; then there is nothing to compare with.
        return None

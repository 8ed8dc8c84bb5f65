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


def as_imported(lowered: Lowered, inputs: Tensors) -> list[np.ndarray]:
    """The outputs of the network as imported. Raises Unchecked where it has operators that the reference does not know."""
    try:
        return reference.run(lowered.phases["imported"], inputs)
    except BitkilnError as error:
        raise Unchecked(
            f"the model as imported cannot be evaluated ({error}): only its lowered form is compared"
        ) from None


class Unchecked(Exception):
    """Another engine could not be asked; the message says why."""


def by_onnxruntime(source: Path | None, inputs: Tensors, fixed: Tensors | None = None) -> list[np.ndarray] | None:
    """The model's outputs by onnxruntime, operator by operator; None for files that are not its.

    Without its optimiser, which changes the order of sums: what it joins to kernels of 8 bits we join alike, one unit off at
    most where a sum lies between two. ``inputs`` stand in the file's order, without those that are ``fixed``. Raises Unchecked.
    """
    if source is None or not source.name.lower().endswith((".onnx", ".onnx.xz")):
        return None
    try:
        import onnxruntime
    except ImportError:
        raise Unchecked("onnxruntime is not installed: the outputs are compared with our own reference alone") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # Its errors come as exceptions; its warnings are about what exporters leave behind.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        model = lzma.decompress(source.read_bytes()) if source.name.endswith(".xz") else str(source)
        session = onnxruntime.InferenceSession(model, options)
        always = fixed or {}
        free = [entry for entry in session.get_inputs() if entry.name not in always]
        feeds = {
            entry.name: values.astype(_DTYPES.get(entry.type, values.dtype))
            for entry, values in zip(free, inputs.values(), strict=True)
        }
        feeds |= {entry.name: always[entry.name] for entry in session.get_inputs() if entry.name in always}
        return session.run(None, feeds)
    except Exception as error:
        # It refuses what it has no operator for, such as QONNX's; then there is nothing to compare with.
        reason = " ".join(str(error).split())[:160]
        raise Unchecked(
            f"onnxruntime cannot run the file ({reason}): the outputs are compared with our own reference"
        ) from None


#: Types of inputs that are not those of the bundle, whose floats are all float32.
_DTYPES = {"tensor(float16)": np.float16}

"""The node tests that the onnx package brings, as networks with one input, and what becomes of them here.

In each the first tensor of float32 is the input and all others are constants, as in a trained network; where none is of
float32, the first tensor of numbers is the input, by way of a Cast.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test.case.node as node_tests
from onnx import TensorProto, helper, numpy_helper

from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.importers import load_model

#: Relative and absolute tolerance of a comparison.
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4, "equal_nan": True}

#: Types that are computed in another, wider one.
_WIDENED = {"float16": "float32", "bfloat16": "float32"}


@dataclass(frozen=True)
class Case:
    """A network, its one input and the outputs it should give."""

    name: str
    model: onnx.ModelProto
    x: np.ndarray
    expected: Sequence[np.ndarray]

    @property
    def node(self) -> onnx.NodeProto:
        """The node that is tested."""
        return next(node for node in self.model.graph.node if node.name != "given")


@cache
def cases() -> tuple[Case, ...]:
    """All node tests that are about tensors of numbers."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = [_case(test) for test in node_tests.collect_testcases(None)]
    return tuple(case for case in found if case is not None)


def _case(test: object) -> Case | None:
    inputs, outputs = test.data_sets[0]
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    graph = model.graph
    arrays = {value.name: _numbers(value, given) for value, given in zip(graph.input, inputs, strict=False)}
    expected = [_numbers(value, given) for value, given in zip(graph.output, outputs, strict=False)]
    if any(array is None for array in (*arrays.values(), *expected)):
        return None
    first = next((name for name, array in arrays.items() if array.dtype == np.float32 and array.size), None)
    name, cast = first, None
    if first is None:
        first = next((name for name, array in arrays.items() if array.size and _fits_float(array)), None)
        if first is None:
            return None
        name, cast = "given", helper.np_dtype_to_tensor_dtype(arrays[first].dtype)
    graph.initializer.extend(numpy_helper.from_array(array, each) for each, array in arrays.items() if each != first)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, arrays[first].shape))
    if cast is not None:
        nodes = [helper.make_node("Cast", ["given"], [first], name="given", to=cast), *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
    return Case(test.name, model, arrays[first].astype(np.float32), expected)


def _numbers(value: onnx.ValueInfoProto, given: object) -> np.ndarray | None:
    if given is None or isinstance(given, list) or not value.type.HasField("tensor_type"):
        return None
    array = numpy_helper.to_array(given) if isinstance(given, onnx.TensorProto) else np.asarray(given)
    return array if array.dtype.kind in "fiub" else None


def _fits_float(array: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.array_equal(array.astype(np.float32).astype(array.dtype), array))


def judge(case: Case, folder: Path) -> tuple[str, str]:
    """ "right", "refused", "wrong", "no reference" or "crash", and the message or the difference."""
    verdict, result = run(case, folder)
    if verdict != "ran":
        return verdict, result
    return next((("wrong", text) for text in differences(result, case.expected)), ("right", ""))


def run(case: Case, folder: Path) -> tuple[str, str | list[np.ndarray]]:
    """ "ran" and the outputs by the reference; or "refused", "no reference" or "crash", and the message."""
    path = folder / "case.onnx"
    path.write_bytes(case.model.SerializeToString())
    try:
        imported = load_model(path)
    except BitkilnError as error:
        return "crash" if "internal error" in str(error) else "refused", str(error)
    try:
        return "ran", reference.run(imported.module, {imported.module["main"].params[0].name: case.x})
    except BitkilnError as error:
        return "no reference", str(error)
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"


def differences(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> list[str]:
    """What is other in the outputs, a phrase each."""
    found = []
    for a, b in zip(got, expected, strict=True):
        kind = _WIDENED.get(str(b.dtype), str(b.dtype))
        if (a.shape, str(a.dtype)) != (b.shape, kind):
            found.append(f"{a.dtype} {a.shape} for {kind} {b.shape}")
        elif not np.allclose(a.astype(np.float64), b.astype(np.float64), **TOLERANCE):
            found.append(f"{a.ravel()[:5]} for {b.ravel()[:5]}")
    return found

"""No attribute of an ONNX operator is ignored: each, given another value, is honoured or refused by name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, defs, helper

from bitkiln.pipeline.errors import UnsupportedLayer
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.importers.onnx.attributes import ENTRIES
from tests.pipeline.importers.onnx_cases import Case, cases, differences, run

#: Node tests of an operator that are changed.
_BASES = 2

#: Operators whose attributes are graphs, or change what the network's inputs are.
_LEFT_OUT = frozenset({"If", "Constant"})


def _operators() -> list[str]:
    return sorted(name for name in ENTRIES if name not in _LEFT_OUT and defs.has(name, ""))


def _values(kind: int, given: object, others: set[bytes]) -> Iterator[object]:
    """Values of an attribute of the schema's type ``kind``, where ``given`` is what it has."""
    if kind == AttributeProto.INT:
        yield from (value for value in (-1, 0, 1, 2, 3) if value != given)
    elif kind == AttributeProto.FLOAT:
        yield from (value for value in (0.25, 1.5) if value != given)
    elif kind == AttributeProto.STRING:
        yield from sorted(others | {b"nonsense"} - {given})
    elif kind in (AttributeProto.INTS, AttributeProto.FLOATS):
        given = list(given) if given else [1, 1]
        yield from ([value + 1 for value in given], given[::-1], [1] * len(given), [2] * len(given))


def _mutations(kind: str) -> Iterator[tuple[str, Case]]:
    """Node tests of the operator with one attribute changed."""
    bases = [case for case in cases() if case.node.op_type == kind and not case.name.endswith("_expanded")]
    texts = {(attribute.name, attribute.s) for case in bases for attribute in case.node.attribute if attribute.s}
    rng = np.random.default_rng(7)
    for base in [bases[at] for at in sorted(rng.permutation(len(bases))[:_BASES])]:
        opset = next(entry.version for entry in base.model.opset_import if not entry.domain)
        for name, attribute in defs.get_schema(kind, opset, "").attributes.items():
            given = {each.name: helper.get_attribute_value(each) for each in base.node.attribute}
            others = {text for owner, text in texts if owner == name}
            for value in _values(int(attribute.type), given.get(name), others):
                yield f"{name}={value}", _with_attribute(base, name, value, int(attribute.type))


def _with_attribute(base: Case, name: str, value: object, kind: int) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(base.model)
    changed = Case(base.name, model, base.x, ())
    kept = [attribute for attribute in changed.node.attribute if attribute.name != name]
    node = changed.node
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.append(helper.make_attribute(name, value, attr_type=kind))
    for output in model.graph.output:  # its shape may be another now
        output.type.tensor_type.ClearField("shape")
    return changed


def _truth(case: Case) -> list[np.ndarray] | None:
    """What onnxruntime gives, or where it lacks the operator, ONNX's own evaluator; None where the file is no network."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    feeds = {case.model.graph.input[0].name: case.x}
    try:
        return onnxruntime.InferenceSession(case.model.SerializeToString(), options).run(None, feeds)
    except Exception as error:
        if "NOT_IMPLEMENTED" not in str(error) and "is not a registered function" not in str(error):
            return None
    try:
        return onnx.reference.ReferenceEvaluator(case.model).run(None, feeds)
    except Exception:
        return None


@pytest.mark.parametrize("kind", _operators())
def test_attributes(kind, tmp_path):
    faults = []
    for what, case in _mutations(kind):
        verdict, result = run(case, tmp_path)
        if verdict == "refused":
            if "node " not in result:
                faults.append(f"{case.name}, {what}: names no node: {result}")
        elif verdict != "ran":
            faults.append(f"{case.name}, {what}: {verdict}: {result}")
        else:
            expected = _truth(case)
            found = differences(result, expected) if expected is not None else []
            faults += [f"{case.name}, {what}: {text}" for text in found]
    assert not faults, "\n".join(faults)


def test_unknown_attributes_are_refused(write_onnx):
    path = write_onnx([helper.make_node("Relu", ["x"], ["y"], slope=3)], {}, [1, 3])
    with pytest.raises(UnsupportedLayer, match=r"node 'y' \(Relu\): its attribute slope=3 is not supported"):
        load_model(path)

"""ONNX's own node tests: each right by the reference, or refused in one line; a few on the emulated board, others each day."""

from __future__ import annotations

import random
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx import numpy_helper

from bitkiln import targets
from bitkiln.pipeline import reference
from bitkiln.pipeline.boards.emulated import on_emulator
from bitkiln.pipeline.compile import compile_model
from bitkiln.pipeline.errors import SetupError
from bitkiln.pipeline.importers import load_model
from tests.pipeline.conftest import NoRecords
from tests.pipeline.importers.onnx_cases import cases, differences, judge

#: Node tests of onnx 1.23 that are right, of 1,602 about tensors of numbers. It may only grow.
RIGHT = 1318

#: Node tests that are compiled in one run of this suite.
_COMPILED = 4

_LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """Verdict and message of every node test, by name."""
    folder = tmp_path_factory.mktemp("cases")
    return {case.name: judge(case, folder) for case in cases()}


def test_none_is_wrong(verdicts):
    faults = [f"{name}: {': '.join(found)}" for name, found in verdicts.items() if found[0] not in ("right", "refused")]
    assert not faults, "\n".join(faults)


def test_refusals_are_one_line_that_names_what_is_not_supported(verdicts):
    for name, (verdict, text) in verdicts.items():
        if verdict == "refused":
            assert "\n" not in text, name
            assert any(word in text for word in ("node ", "input ", "output ", "opset ", "weight ")), (name, text)
            for foreign in ("relax", "tirx", "T.int", "R.const", "NoneType", "zip()", "InternalError"):
                assert foreign not in text, (name, text)


def test_as_many_are_right_as_ever(verdicts):
    counts = Counter(verdict for verdict, _ in verdicts.values())
    if onnx.__version__.startswith("1.23."):
        assert counts["right"] >= RIGHT


def test_some_on_the_emulated_board(verdicts, tmp_path):
    right = [case for case in cases() if verdicts[case.name][0] == "right"]
    seed = date.today().toordinal()
    board = targets.load("rasp3b")
    for case in random.Random(seed).sample(right, _COMPILED):
        path = tmp_path / "case.onnx"
        path.write_bytes(case.model.SerializeToString())
        model = load_model(path)
        bundle = compile_model(model, board, NoRecords(), tmp_path / f"bundle_{case.name}")
        try:
            answer = on_emulator(bundle, board, {model.module["main"].params[0].name: case.x})
        except SetupError as problem:
            pytest.skip(str(problem))
        got = [values.reshape(want.shape) for values, want in zip(answer.outputs.values(), case.expected, strict=True)]
        assert not differences(got, case.expected), f"{case.name} (seed {seed})"


@pytest.mark.parametrize("path", sorted(_LIGHT.glob("*.onnx")), ids=lambda path: path.stem)
def test_light_networks(path):
    """ONNX's networks whose weights are one number each."""
    expected = onnx.TensorProto()
    expected.ParseFromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    expected = numpy_helper.to_array(expected)
    model = load_model(path)
    count = int(np.prod(model.inputs[0].shape))
    x = (np.arange(count, dtype=np.float32) / count).reshape(model.inputs[0].shape)
    (got,) = reference.run(model.module, {model.module["main"].params[0].name: x})
    np.testing.assert_allclose(got, expected, rtol=1e-3)

"""A short round of fuzzing, the same every time, and files that were worth a fix: all end soon, in one line."""

from __future__ import annotations

import os
import signal
import time
from random import Random

import numpy as np
import pytest
from onnx import TensorProto, helper

from bitkiln.pipeline import cli
from fuzzing import ell, onnx_mutation
from fuzzing.case import Case, Outcome, judge
from fuzzing.forkserver import Limits, import_everything, run
from fuzzing.formats import FORMATS
from fuzzing.onnx_seeds import model, node

LIMITS = Limits(seconds=60, memory_mib=2048)

#: Cases of each format: kinds of damage follow each other in these numbers.
CASES = {"onnx": 24, "ell": 16, "darknet": 16, "tflite": 24}


@pytest.fixture(scope="session", autouse=True)
def _imported():
    import_everything()


def judged(case: Case, folder) -> tuple[str, str]:
    case.write(folder)
    outcome = run(["inspect", case.model], folder, LIMITS)
    return judge(outcome, case.model, LIMITS.memory_mib)


@pytest.mark.parametrize("name", CASES)
def test_damaged_models(name, tmp_path):
    verdicts = []
    for index in range(CASES[name]):
        case = FORMATS[name](Random(f"test/{name}/{index}"), index)
        verdict, reason = judged(case, tmp_path / str(index))
        assert verdict != "DEFECT", f"case {index}, {case.how}: {reason}"
        verdicts.append(verdict)
    assert "refused" in verdicts and "accepted" in verdicts


def test_equal_seeds_make_equal_cases():
    for name in CASES:
        for index in range(8):
            assert FORMATS[name](Random(index), index) == FORMATS[name](Random(index), index)


def constants(kind: str, inputs: str, weights: dict[str, np.ndarray], times: int = 1):
    """``times`` nodes in a row on constants, their sum added to the input."""
    weights = weights | {"k0": np.ones(64, "f")}
    nodes = [node(kind, inputs.format(k=f"k{at}"), f"k{at + 1}") for at in range(times)]
    nodes += [node("ReduceSum", f"k{times}", "s", keepdims=0), node("Add", "x s", "y")]
    return model(nodes, weights, {"x": [1, 4]})


def chain_of_functions():
    """Each function calls the next one twice."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    functions = []
    for level in range(30):
        callee = helper.make_node("Relu", ["a"], ["b"]) if level == 29 else None
        calls = [callee or helper.make_node(f"F{level + 1}", [a], [b], domain="local") for a, b in ("ab", "bc")]
        functions.append(
            helper.make_function(
                "local", f"F{level}", ["a"], ["b" if callee else "c"], calls[: 1 if callee else 2], imports
            )
        )
    return model([helper.make_node("F0", ["x"], ["y"], domain="local")], {}, {"x": [1, 4]}, functions=functions)


MANY = [f"k{at}" for at in range(4500)]

REFUSED = {
    "a constant of any size": (constants("Expand", "{k} n", {"n": np.int64([1 << 40, 64])}), "computes a constant of"),
    "constants that double": (constants("Tile", "{k} n", {"n": np.int64([2])}, 40), "computes a constant of"),
    "an outer product": (
        constants("MatMul", "a b", {"a": np.ones((1 << 16, 1), "f"), "b": np.ones((1, 1 << 16), "f")}),
        "computes a constant of",
    ),
    "a tensor of any size": (
        model([node("Expand", "x n", "e"), node("Relu", "e")], {"n": np.int64([1, 2, 1 << 30])}, {"x": [1, 2, 1]}),
        "boards take tensors of up to",
    ),
    "functions that double": (chain_of_functions(), "nodes; networks of up to"),
    "identities in a circle": (
        model([node("Identity", "a", "b"), node("Identity", "b", "a"), node("Add", "x a")], {}, {"x": [4], "a": [4]}),
        "makes 'a', which is there already",
    ),
    "no operands": (model([helper.make_node("Relu", [], ["y"])], {}, {"x": [4]}), "has 0 operands"),
    "two outputs of one name": (model([node("Relu", "x")], {}, {"x": [4]}, ["y", "y"]), "two outputs called 'y'"),
    "an output without a name": (model([node("Relu", "x")], {}, {"x": [4]}, ["y", ""]), "output ''"),
    "a sequence that is a tensor": (
        model([node("ConcatFromSequence", "x", axis=0)], {}, {"x": [4]}),
        "(ConcatFromSequence): operators of this type are not supported",
    ),
    "an opset to come": (model([node("Relu", "x")], {}, {"x": [4]}, opset=1 << 40), "opsets up to"),
    "more nodes than can be meant": (
        model([node("Split", "x", " ".join(MANY), axis=1)], {}, {"x": [1, len(MANY)]}, MANY),
        "(Split): its result",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_ask_for_too_much(name, tmp_path):
    proto, message = REFUSED[name]
    verdict, line = judged(Case({"m.onnx": proto.SerializeToString()}, name), tmp_path)
    assert (verdict, message in line) == ("refused", True), line


def test_operators_without_kernels_are_named(tmp_path):
    """What TVM's definition of an operator cannot do comes to light when it is lowered."""
    proto = model([node("GreaterOrEqual", "x w", "g"), node("Xor", "x x")], {"w": np.float32(0)}, {"x": [1, 4]})
    case = Case({"m.onnx": proto.SerializeToString()}, "xor of floats")
    case.write(tmp_path)
    outcome = run(["compile", "m.onnx", "-o", "bundle"], tmp_path, LIMITS)
    assert judge(outcome, "m.onnx", LIMITS.memory_mib)[0] == "refused", outcome.stderr


def test_verdicts():
    """What a user could not bear is a defect."""

    def verdict(status: int | None, stderr: str, stdout: str = "", peak: float = 1) -> str:
        return judge(Outcome(status, stdout, stderr, 1.0, peak), "m.onnx", 10)[0]

    assert verdict(0, "", "a table\n") == verdict(0, "warning: a layer runs in floats\n") == "accepted"
    assert verdict(2, "bitkiln: m.onnx: is damaged\n") == "refused"
    for status, stderr in (
        (None, ""),
        (-11, ""),
        (1, "bitkiln: m.onnx: is damaged\n"),
        (2, ""),
        (2, "bitkiln: m.onnx: two\nlines\n"),
        (2, "bitkiln: no idea which file\n"),
        (2, "bitkiln: m.onnx: internal error while importing it, KeyError\n"),
        (0, "[12:00:00] ir.cc: Warning\n"),
        (2, "Traceback (most recent call last):\nKeyError: 'x'\n"),
    ):
        assert verdict(status, stderr) == "DEFECT", stderr
    assert verdict(0, "", peak=11) == "DEFECT"


def test_a_command_that_hangs_or_crashes_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "main", lambda: time.sleep(60))
    assert run([], tmp_path, Limits(seconds=0.2)).status is None
    monkeypatch.setattr(cli, "main", lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert run([], tmp_path, LIMITS).status == -signal.SIGKILL
    monkeypatch.setattr(cli, "main", lambda: bytearray(1 << 31))
    greedy = run([], tmp_path, Limits(memory_mib=1024))
    assert "MemoryError" in greedy.stderr


def test_users_files_are_damaged_too():
    network = model([node("Relu", "x")], {}, {"x": [1, 4]}).SerializeToString()
    archive = b'{"model": {"nodes": [1, 2, "three", {"four": 5.5}]}}'
    for damaged, content in ((onnx_mutation.damaged_file, network), (ell.damaged_file, archive)):
        assert len({damaged(Random(index), content)[0] for index in range(20)}) > 5


def test_types_of_constants_that_are_unknown(tmp_path):
    proto = model([node("Add", "x w")], {"w": np.ones(4, "f")}, {"x": [1, 4]})
    for kind in (TensorProto.STRING, TensorProto.BFLOAT16, 23, 99):
        proto.graph.initializer[0].data_type = kind
        verdict, reason = judged(Case({"m.onnx": proto.SerializeToString()}, f"type {kind}"), tmp_path / str(kind))
        assert verdict != "DEFECT", reason

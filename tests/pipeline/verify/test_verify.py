"""``bitkiln verify`` on compiled bundles: whole, damaged in one bit, of other options and of other models."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline import cli, run
from bitkiln.pipeline.boards.farm import simulated_farm
from bitkiln.pipeline.boards.ssh import Remote
from bitkiln.pipeline.bundle import describe_file, open_bundle
from bitkiln.pipeline.compile import compile_model
from bitkiln.pipeline.compile.arguments import plan_network
from bitkiln.pipeline.compile.kernels import choose_kernels
from bitkiln.pipeline.compile.plan import read_network
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.ir.graph import array_of, bindings
from bitkiln.pipeline.model import Model, TensorSpec
from bitkiln.pipeline.passes.pipeline import lower
from bitkiln.pipeline.verify import Report, print_report, verify_bundle
from bitkiln.pipeline.verify.constants import find_damage
from bitkiln.pipeline.verify.explain import Cause
from bitkiln.pipeline.verify.samples import make_inputs
from tests.pipeline.verify.fakes import Case, small_model


@pytest.fixture(scope="module")
def model():
    """The small network."""
    return small_model()


@pytest.fixture(scope="module")
def lowered(model):
    """The small network, lowered."""
    return lower(model, targets.load("rasp3b"))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, no_records) -> Path:
    """The small network's bundle; not to be altered."""
    return compile_model(small_model(), targets.load("rasp3b"), no_records, tmp_path_factory.mktemp("verify") / "small")


@pytest.fixture
def bundle(compiled, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(compiled, tmp_path / "small"))


def text_of(report: Report, every: bool = False) -> str:
    file = io.StringIO()
    print_report(report, Console(file=file, width=200), every)
    return file.getvalue()


def replace_bytes(bundle: Path, old: bytes, new: bytes) -> None:
    """Alter model.so where it holds ``old``, and let the manifest say that this is as it was compiled."""
    library = bundle / "model.so"
    data = library.read_bytes()
    assert data.count(old) == 1
    library.write_bytes(data.replace(old, new))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["model.so"] = describe_file(library)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def weights_of(layer: str) -> np.ndarray:
    """The packed weights of a binary layer, uint8 [O, 3, 3, bytes]."""
    return array_of(dict(bindings(small_model().module["main"]))[layer].args[1])


def test_a_whole_bundle_agrees(compiled):
    report = verify_bundle(compiled, small_model())
    assert report.passed and report.as_json()["first_wrong"] is None
    lines = text_of(report).splitlines()
    assert lines[0] == "agrees: the bundle computes what the model says"
    assert len(lines) <= 5 and "6 steps, each on the inputs it had" in lines[-1]
    assert "first_bits" in text_of(report, every=True)
    json.dumps(report.as_json())


def test_outputs_that_no_step_computes_are_compared_too(tmp_path, no_records):
    """A constant, the input itself, and a computed tensor between them."""
    values = np.arange(6, dtype="float32").reshape(1, 6)
    x = relax.Var("x", relax.TensorType((1, 6), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.relu(x), "y")
            result = builder.emit_output(relax.Tuple([relax.const(values), y, x]))
        builder.emit_func_output(result)
    module = relax.transform.Normalize()(builder.finalize())
    specs = tuple(TensorSpec(name, (1, 6)) for name in ("c", "y", "same"))
    model = Model("constant", module, (TensorSpec("x", (1, 6)),), specs, "0" * 64)
    folder = compile_model(model, targets.load("rasp3b"), no_records, tmp_path / "constant")
    report = verify_bundle(folder, model)
    assert report.passed
    assert {decision.output for decision in report.decisions} == {"c", "y", "same"}
    replace_bytes(folder, values.tobytes(), (values + 1).tobytes())
    report = verify_bundle(folder, model)
    assert not report.passed
    assert {decision.output for decision in report.decisions if not decision.passed} == {"c"}


def test_an_altered_weight_is_found_where_it_is(bundle):
    """One bit of the kernel's packed weights, wherever the packing put them."""
    data = (bundle / "model.so").read_bytes()
    found = None
    for size in (16, 8):
        row = weights_of("third").reshape(16, -1)
        pieces = [bytes(row[:, at : at + 2].reshape(-1)[:size]) for at in range(0, 18, 2)]
        found = next((piece for piece in pieces if data.count(piece) == 1), found)
    if found is None:
        pytest.skip("the kernel packs these weights otherwise")
    replace_bytes(bundle, found, bytes([found[0] ^ 1]) + found[1:])
    report = verify_bundle(bundle, small_model())
    assert [row.name for row in report.wrong] == ["relu"]
    assert report.wrong[0].cause == Cause.CHANNELS and "third" in report.wrong[0].layers
    assert [(each.step, each.bits) for each in report.damage] == [("relu", 1)]
    assert "1 bit of the weights and constants of relu" in text_of(report) and "altered since" in report.advice


def test_damaged_constants_are_found_though_no_step_shows_them(bundle, lowered, model, no_records):
    """One bit of a constant of each step in turn, in weights, thresholds and tables alike."""
    network, target = read_network(lowered.module), targets.load("rasp3b")
    plan = plan_network(model, network, choose_kernels(lowered.module, network, target, no_records))
    whole = (bundle / "model.so").read_bytes()
    start = whole.index(plan.constants)
    opened = open_bundle(bundle)
    assert find_damage(opened, model, lowered) == []
    for step in plan.steps:
        for tensor in (plan.tensors[i] for i in step.arguments if plan.tensors[i].place == "constant"):
            data = bytearray(whole)
            data[start + tensor.offset + tensor.nbytes - 1] ^= 0x40
            (bundle / "model.so").write_bytes(data)
            found = find_damage(opened, model, lowered)
            assert step.name in [each.step for each in found] and all(each.bits == 1 for each in found)
    for packed in plan.packings:
        data = bytearray(whole)
        data[start + packed.source.offset + packed.source.nbytes - 1] ^= 0x40
        (bundle / "model.so").write_bytes(data)
        assert [each.bits for each in find_damage(opened, model, lowered)] == [1]
    changed = bytes(byte ^ 0xFF for byte in plan.constants)
    (bundle / "model.so").write_bytes(whole.replace(plan.constants, changed))
    assert (
        find_damage(opened, model, lowered) == []
    )  # Packed otherwise as a whole: not to be told from another version.


def test_a_damaged_file_is_refused(bundle, invoke):
    data = bytearray((bundle / "model.so").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.so").write_bytes(data)
    status, out, err = invoke("verify", bundle, "card-binary")
    assert status == 2 and out == "" and "model.so: altered since it was compiled" in err and err.count("\n") == 1


def test_a_bundle_compiled_with_another_padding(tmp_path, no_records):
    folder = compile_model(small_model(Case(pad_value=1)), targets.load("rasp3b"), no_records, tmp_path / "padded")
    report = verify_bundle(folder, small_model())
    assert report.wrong[0].cause == Cause.PADDING and "pad+1" in report.wrong[0].compiled_as
    text = text_of(report)
    assert text.splitlines()[0].startswith("disagrees:") and "first in second_bits" in text
    assert (
        "pads first with +1, the model with true zeros" in text
        and "the first choice" in text
        and "it still gives its golden answer" in text
    )
    assert "second_bits" in [line.split(" ")[0] for line in text.splitlines()]


def test_boards_of_every_kind_give_the_same(compiled, device, secret):
    bundle, inputs = open_bundle(compiled), make_inputs(small_model())
    emulated = run.trace_on("sim", bundle, inputs)
    with simulated_farm(bundle.target, count=1, secret=secret) as (tracker, key):
        simulated = run.trace_on(f"{tracker}/{key}", bundle, inputs)
    reached = run.over_ssh(Remote(device.address, device.port), bundle, inputs, 1, with_trace=True)
    for other in (simulated, reached):
        assert list(other.trace) == list(emulated.trace)
        for name, values in emulated.trace.items():
            np.testing.assert_array_equal(other.trace[name], values)


@pytest.fixture
def invoke(monkeypatch, capsys):
    """Run ``bitkiln ARGUMENTS`` in this process: status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bitkiln", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def as_file(monkeypatch):
    """Let the command line load the small network whatever file it is asked for."""
    monkeypatch.setattr("bitkiln.pipeline.cli.verify.load_model", lambda _name, _settings: small_model())


def test_the_command_compares_with_what_another_engine_gave(compiled, as_file, invoke, tmp_path):
    x = make_inputs(small_model())["x"]
    answer = run.answer_on("sim", open_bundle(compiled), {"x": x})
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", answer.outputs["y"])
    arguments = ["verify", compiled, "small.onnx", "--input", tmp_path / "x.npy", "--expected", tmp_path / "y.npy"]
    status, out, err = invoke(*arguments)
    assert (status, err) == (0, "") and "and the expected outputs have it" in out
    np.save(tmp_path / "y.npy", answer.outputs["y"][:, ::-1])
    status, out, _ = invoke(*arguments, "--json")
    found = json.loads(out)
    assert status == 1 and not found["passed"] and "output y is not that of the expected outputs" in found["verdict"]
    assert [each["passed"] for each in found["decisions"]] == [True, True, False]
    assert "each of the 6 steps is right" in " ".join(found["reasons"])


def test_bad_inputs_have_status_2(compiled, as_file, invoke, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 8), "float32"))
    for options, message in (
        (["--input", tmp_path / "x.npy"], "the model's 1x8x8x3"),
        (["--input", tmp_path / "absent.npy"], "absent.npy"),
        (["--expected", tmp_path / "x.npy"], "give the --input"),
        (["--board", "127.0.0.1:1/rasp3b"], "127.0.0.1:1"),
    ):
        status, out, err = invoke("verify", compiled, "small.onnx", *options)
        assert status == 2 and out == "" and message in err and err.count("\n") == 1


def test_exact_zeros_before_a_sign_are_told_and_held_against_onnxruntime(tmp_path, no_records, invoke):
    onnx = pytest.importorskip("onnx", reason="makes an ONNX file whose Sign meets zeros")
    pytest.importorskip("onnxruntime", reason="onnxruntime says what Sign gives")
    rng = np.random.default_rng(4)
    weight = rng.choice([-1.0, 1.0], (8, 16, 3, 3)).astype("float32")
    nodes = [
        onnx.helper.make_node("Sign", ["x"], ["s"]),
        onnx.helper.make_node("Conv", ["s", "w"], ["c"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("GlobalAveragePool", ["c"], ["y"]),
    ]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 16, 6, 6]), ("y", [1, 8, 1, 1]))
    ]
    graph = onnx.helper.make_graph(nodes, "signs", values[:1], values[1:], [onnx.numpy_helper.from_array(weight, "w")])
    opset = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path / "signs.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    x = rng.integers(-1, 2, (1, 16, 6, 6)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    compile_model(load_model(path), targets.load("rasp3b"), no_records, tmp_path / "signs")
    status, out, _ = invoke("verify", tmp_path / "signs", path, "--input", tmp_path / "x.npy", "--json")
    found = json.loads(out)
    assert status == 0 and found["passed"], found["reasons"]
    assert found["exact_zeros"] == [{"layer": "c", "count": int((x == 0).sum()), "elements": x.size}]
    theirs = {each["against"]: each for each in found["decisions"]}
    assert theirs["reference"]["why"] == ""
    for against in ("model as imported", "onnxruntime"):
        assert theirs[against]["error"] > 1e-2 and "exact zeros" in theirs[against]["why"]
    assert any("exact zeros stand before the signs of c" in text for text in found["reasons"])

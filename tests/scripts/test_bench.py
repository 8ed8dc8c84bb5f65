"""The benchmark's arithmetic, tables, conversions and refusals; nothing is measured here."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tflite
from click.testing import CliRunner, Result

from benchmarks import __main__ as bench
from benchmarks import guest, networks, onnx_to_tflite, peers, picture, report, wheels
from benchmarks.bounds import bound_ms, layers
from benchmarks.graph import Graph
from benchmarks.measurements import Figure
from benchmarks.report import Row
from benchmarks.reuse import Known
from benchmarks.stand import Job
from benchmarks.zoo import ZOO
from bitkiln import targets
from bitkiln.pipeline.errors import BoardError, ModelError, SetupError, UnsupportedLayer
from bitkiln.targets.sim import MODEL_VERSION

BOARD = targets.load("rasp3b")


def rows() -> list[Row]:
    return [
        Row("card-binary", "bitkiln", 60_000_000, 50.0, 37.6, "rasp3b", "simulated"),
        Row("card-binary", "ncnn", 198_000_000, 165.0, 37.6, "rasp3b", "simulated; ncnn 1"),
        Row("card-binary", "litert", None, None, 37.6, "rasp3b", report.FAILED + "it has no sign"),
    ]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(bench.main, list(arguments))


@pytest.mark.parametrize(("network", "expected"), [(networks.card_binary, 37.6), (networks.card_float, 102.1)])
def test_bounds_of_the_cards(network, expected):
    assert bound_ms(network(), BOARD) == pytest.approx(expected, abs=0.05)


def test_bound_of_a_layer_is_arithmetic_or_memory():
    conv = networks.Layer(64, 64, 56, binary=True)
    (work,) = layers(networks.single(conv))
    assert (work.macs, work.binary, work.weight_bytes) == (56 * 56 * 64 * 64 * 9, True, 64 * 64 * 9 // 8)
    assert bound_ms(networks.single(conv), BOARD) == pytest.approx(work.macs / 42.67 / 1.2e6)
    streamed = networks.Layer(512, 1024, 1, binary=False)
    assert bound_ms(networks.single(streamed), BOARD) == pytest.approx(512 * 1024 * 9 * 4 / 2200e3)
    assert bound_ms(networks.single(conv), BOARD, 4) == pytest.approx(bound_ms(networks.single(conv), BOARD) / 4)
    assert bound_ms(networks.single(streamed), BOARD, 4) == bound_ms(networks.single(streamed), BOARD)


def test_the_binary_card_has_the_card_s_macs():
    done = layers(networks.card_binary())
    assert sum(layer.macs for layer in done if layer.binary) == pytest.approx(364.5e6, rel=0.001)
    assert sum(layer.macs for layer in done if not layer.binary) == pytest.approx(141.4e6, rel=0.001)


@pytest.mark.parametrize(
    "work", [work for work in networks.known() if "resnet18" not in work.name], ids=lambda work: work.name
)
def test_networks_are_valid_and_have_finite_unsaturated_answers(work):
    model = work.onnx(False)
    onnx.checker.check_model(model)
    data = work.input(model)
    answer = peers.reference(model, data)[0]
    assert np.isfinite(answer).all()
    if work.name in ZOO:
        assert answer.std() > 0.01 and abs(answer).max() < 100
    elif work.layer is None:
        assert answer.sum() == pytest.approx(1, abs=1e-4) and answer.max() < 0.99
    elif work.layer.binary:
        assert set(np.unique(data)) == {-1, 1} and np.array_equal(answer, np.round(answer))


@pytest.mark.parametrize("layer", networks.LAYERS, ids=lambda layer: layer.name)
def test_our_kernel_of_a_layer_has_the_same_work(layer):
    from benchmarks.ours import workload  # Brings TVM with it.

    (theirs,) = layers(networks.single(layer))
    assert (workload(layer).macs, workload(layer).binary) == (theirs.macs, theirs.binary)


def test_our_layers_are_checked_against_the_plain_definition():
    from benchmarks.ours import workload
    from bitkiln.pipeline.tune.builder import SEED
    from bitkiln.pipeline.tune.data import arguments, reference_result

    layer = networks.Layer(3, 8, 6, binary=False)
    data, weight, bias = arguments(workload(layer), SEED)
    model = networks.single(layer)
    for tensor, values in zip(model.graph.initializer, (weight.transpose(0, 3, 1, 2), bias), strict=True):
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    wanted = peers.reference(model, np.ascontiguousarray(data.transpose(0, 3, 1, 2)))[0].transpose(0, 2, 3, 1)
    ours = np.frombuffer(reference_result(workload(layer), SEED), np.float32)
    assert ours == pytest.approx(wanted.ravel(), rel=1e-5, abs=1e-5)


def test_json_rows_have_the_agreed_fields():
    plain = json.loads(report.to_json(rows()))
    assert [set(row) for row in plain] == [
        {"work", "engine", "cycles", "ms", "bound_ms", "target", "how", "threads", "error"}
    ] * 3
    assert plain[2]["cycles"] is None and "no sign" in plain[2]["how"]


def test_the_table_shows_bounds_and_ratios():
    heads, lines = report.table(rows())
    assert heads == ["ms", "bound", "bitkiln", "ncnn", "x bound", "x faster"]
    assert lines == [["card-binary", "37.60", "50.00", "165.0", "1.33", "3.30"]]


def test_the_table_without_us_has_no_ratios():
    heads, lines = report.table(rows()[1:])
    assert heads == ["ms", "bound", "ncnn"]
    assert lines == [["card-binary", "37.60", "165.0"]]


def test_markdown_names_what_measured_and_what_failed():
    text = report.to_markdown(rows(), "Title")
    assert text.startswith("Title\n\n| ms | bound | bitkiln |")
    assert "- ncnn: simulated; ncnn 1\n" in text and "- litert: not measured: it has no sign\n" in text


def test_notes_name_the_works_where_they_were_measured_differently():
    ours = [
        Row(work, "bitkiln", 1, 1.0, 1.0, "rasp3b", how)
        for work, how in (("a", "tuned"), ("b", "default"), ("c", "tuned"))
    ]
    assert report.notes(ours) == ["bitkiln, a, c: tuned", "bitkiln, b: default"]


def test_notes_say_how_far_outputs_are_off_and_which_works_failed():
    theirs = [Row(work, "x", 1, 1.0, 1.0, "rasp3b", "fast", 1, error) for work, error in (("a", 0.002), ("b", 0.02))]
    theirs.append(Row("c", "x", None, None, 1.0, "rasp3b", report.FAILED + "no sign"))
    wanted = ["x: fast", "x, c: not measured: no sign", "x: its outputs are 0.2% to 2.0% off the reference's"]
    assert report.notes(theirs) == wanted


def test_the_summary_names_the_best_other_engine_and_the_network_where_one_comes_nearest():
    four = [Row("card-binary", name, 1, ms, 9.0, "rasp3b", "", 4) for name, ms in (("bitkiln", 10.0), ("litert", 9.0))]
    layer = Row("float conv 3x3 3->16@224", "bitkiln", 1, 1.0, 1.0, "rasp3b", "simulated")
    text = report.summary([[*rows(), layer], four])
    assert "| card-binary | 50.00 | 165.0 ncnn | 3.30 | 10.00 | 9.00 litert | 0.90 |\n" in text
    assert "conv" not in text and "Nearest: card-binary on 4 threads, litert, 0.90 times" in text


def test_a_document_keeps_what_is_around_its_part():
    parts = ["before\n<!-- bench -->\n{}<!-- /bench -->\nbetween\n<!-- cards -->\n{}<!-- /cards -->\nafter\n"]
    document = parts[0].format("old\n", "old too\n")
    assert report.into_document(document, "new\n") == parts[0].format("new\n", "old too\n")
    assert report.into_document(document, "new\n", "cards") == parts[0].format("old\n", "new\n")
    assert report.into_document("an older table", "new\n") == "new\n"


def test_the_summary_shows_what_others_have_published_of_the_same_board():
    ours = [Row("card-float", "bitkiln", 1, 100.0, 50.0, "rasp3b32-700", "simulated", 4)]
    text = report.summary([ours])
    assert "| ms | published | bitkiln, 4 threads |" in text and "| card-float | 590 | 100.0 |" in text
    assert "Raspbian at 700 MHz" in text
    assert "published" not in report.summary([[replace(ours[0], target="rasp3b32")]])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "rasp3"], "did you mean rasp3b"),
        (["--only", "card-ternary"], "no work starts with 'card-ternary'"),
        (["--engines", "ncn"], "ncn is not among: bitkiln, bitkiln-int8, onnxruntime, ncnn, ncnn-bf16, litert"),
        (["--engines", ","], "nothing is not among"),
        (["--model", "/nowhere/a.onnx", "--only", "a", "--engines", "ncnn"], "/nowhere/a.onnx: cannot be read"),
        (["--threads", "9"], "rasp3b has 4 cores"),
        (["--threads", "0", "--only", "none"], "0: a network runs on 1 to"),
    ],
)
def test_refusals_are_one_line(arguments, words):
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr.splitlines()[-1]


def test_a_model_that_is_none_is_refused(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"broken\.onnx: not an ONNX model"):
        networks.from_file(path).onnx(False)


class FakeBench:
    target, threads = BOARD, 1

    def measure(self, work: networks.Work, engine: str, folder: Path) -> Figure:
        if engine == "ncnn":
            raise BoardError("ncnn fell over")
        if engine == "litert":
            raise IndexError("list index out of range")
        return Figure(1_200_000, 1.0, "pretended")


def test_what_was_measured_as_it_would_be_now_is_not_measured_again(tmp_path):
    (work,) = bench.chosen(networks.known(), "float conv 3x3 3->16")
    how = f"simulated Cortex-A53, 1 core, model {MODEL_VERSION}, 1200 MHz; ncnn {wheels.VERSIONS['aarch64']['ncnn']}, as float"
    row = Row(work.name, "ncnn", 600_000, 0.5, 4.5, "rasp3b", how, 1, 0.0)
    (tmp_path / "rows.json").write_text(report.to_json([row, replace(row, engine="bitkiln")]))
    known = Known(tmp_path / "rows.json")
    ours, theirs = bench.run([(work, 4.5)], ["bitkiln", "ncnn"], FakeBench(), 1, known)
    assert (ours.ms, theirs) == (1.0, row)
    for other in (
        replace(row, how=how.replace(MODEL_VERSION, "v0")),
        replace(row, how=how.replace("ncnn ", "ncnn 1")),
        replace(row, bound_ms=5.0),
        replace(row, threads=4),
        replace(row, ms=None),
    ):
        (tmp_path / "rows.json").write_text(report.to_json([other]))
        assert Known(tmp_path / "rows.json").row(work.name, "ncnn", 4.5, BOARD, 1) is None, other


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"work": "a"}]', "[" * 100_000])
def test_a_file_without_rows_is_refused(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(ModelError, match=r"rows\.json"):
        Known(tmp_path / "rows.json")


def test_a_failing_engine_becomes_a_row():
    (work,) = bench.chosen(networks.known(), "float conv 3x3 3->16")
    first, second, third = bench.run([(work, 4.5)], ["bitkiln", "ncnn", "litert"], FakeBench())
    assert (first.ms, first.cycles, first.how) == (1.0, 1_200_000, "pretended")
    assert (second.ms, second.cycles, second.how) == (None, None, "not measured: ncnn fell over")
    assert (third.ms, third.how) == (None, "not measured: IndexError: list index out of range")


def test_files_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "Bench", lambda *arguments: FakeBench())
    done = invoke(
        "--only", "card-float", "--no-peers", "--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "a.json").read_text())[0]["ms"] == 1.0
    assert "| card-float | 102.1 | 1.00 |" in (tmp_path / "a.md").read_text()


def test_an_interrupted_run_keeps_its_rows(tmp_path, monkeypatch):
    class Interrupted(FakeBench):
        def measure(self, work: networks.Work, engine: str, folder: Path) -> Figure:
            if engine == "ncnn":
                raise KeyboardInterrupt
            return super().measure(work, engine, folder)

    monkeypatch.setattr(bench, "Bench", lambda *arguments: Interrupted())
    done = invoke("--only", "card-float", "--engines", "bitkiln,ncnn", "--json", str(tmp_path / "a.json"))
    assert "interrupted" in done.stderr and len(json.loads((tmp_path / "a.json").read_text())) == 1


def test_nothing_measured_is_a_failure(monkeypatch):
    monkeypatch.setattr(bench, "Bench", lambda *arguments: FakeBench())
    assert invoke("--only", "card-float", "--engines", "ncnn").exit_code == 1


def test_wrong_outputs_are_refused():
    expected = np.array([1.0, 2.0, 3.0])
    assert guest.error([expected, expected * 1.05], [expected, expected], 0.1) == pytest.approx(0.05)
    for outputs, words in [
        ([expected, expected * 4], "300% off"),
        ([expected, expected[:2]], "3, 2 elements instead of 3, 3"),
        ([expected], "3 elements instead of 3, 3"),
        ([expected, np.full(3, math.nan)], "nan"),
    ]:
        with pytest.raises(SystemExit, match=words):
            guest.error(outputs, [expected, expected], 0.1)


def test_an_engine_without_a_wheel_says_so(tmp_path):
    class Board32:
        target = targets.load("rasp3b32")

    work = bench.chosen(networks.known(), "card-float")[0]
    with pytest.raises(SetupError, match="no wheel of onnxruntime for 32-bit ARM"):
        peers.measure("onnxruntime", work, Board32(), tmp_path, 1)
    assert {"ncnn", "ncnn-bf16", "tflite-runtime", "onnxruntime", "litert"} <= set(peers.of("armv7l"))
    assert "tflite-runtime" not in peers.of("aarch64")


def test_another_process_installs_no_second_time(tmp_path, monkeypatch):
    """As many runs at once as there are: one of them calls pip, the others wait for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def pip(command: list[str]) -> None:
        calls.append(command)
        time.sleep(0.3)
        next(Path(word.removeprefix("--target=")) for word in command if word.startswith("--target=")).mkdir()

    monkeypatch.setattr(wheels, "_pip", pip)
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: wheels._installed("peers", ["a==1"], []), range(3)))
    assert len(calls) == 1 and len(set(folders)) == 1 and folders[0].is_dir()


def zoo_operators() -> onnx.ModelProto:
    """Every operator that the zoo's networks have and the cards' have not."""
    graph = Graph((1, 4, 8, 8), seed=5)
    x = graph.add("HardSwish", graph.depthwise(graph.input, 5, stride=2))
    x = graph.clip(graph.conv(x, 8, 1), 0, 6)
    x = graph.add("Mul", [x, graph.add("HardSigmoid", graph.conv(graph.global_pool(x), 8, 1), alpha=1 / 6, beta=0.5)])
    first, second = graph.halves(x)
    x = graph.shuffle(graph.concat(first, graph.add("Sigmoid", graph.depthwise(second))), 2)
    x = graph.concat(graph.doubled(x), graph.transposed(x, 4))
    fine = graph.add("Add", [x, graph.pool(x, 5, 1)])
    graph.dense(graph.flatten(graph.global_pool(fine)), 3)
    return graph.model("all", fine, graph.nodes[-1].output[0])


def test_the_converter_keeps_what_a_network_computes(tmp_path):
    """By our own importer and reference, which share no code with the converter; outputs are NHWC there."""
    from bitkiln.pipeline import reference
    from bitkiln.pipeline.importers import load_model

    model = zoo_operators()
    data = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
    path = tmp_path / "all.tflite"
    path.write_bytes(onnx_to_tflite.convert(model))
    imported = load_model(path)
    (name,) = (parameter.name for parameter in imported.module["main"].params)
    image, scores = reference.run(imported.module, {name: np.ascontiguousarray(data.transpose(0, 2, 3, 1))})
    assert guest.error([image.transpose(0, 3, 1, 2), scores], peers.reference(model, data), 1e-5) < 1e-5


@pytest.mark.parametrize("build", [*ZOO.values(), networks.card_binary])
def test_padding_as_tensorflow_s_keeps_every_size_and_needs_no_pass_of_its_own(build):
    one, other = build(False), build(True)
    sizes = [[value.type.tensor_type.shape for value in model.graph.value_info] for model in (one, other)]
    assert sizes[0] == sizes[1]
    done = operators(onnx_to_tflite.convert(other))
    assert not {"PAD", "PADV2"} & set(done) and "CONV_2D" in done


def test_the_int8_form_computes_nearly_what_the_float_one_does(tmp_path):
    """By our own importer and reference; its outputs are int8, with a scale."""
    from bitkiln.pipeline import reference
    from bitkiln.pipeline.importers import load_model

    model = zoo_operators()
    path = peers.to_tflite_int8(model, tmp_path)[0]
    done = operators(path.read_bytes())
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(done)
    imported = load_model(path)
    (parameter,) = imported.module["main"].params
    graph = tflite.Model.GetRootAs(path.read_bytes(), 0).Subgraphs(0)

    def scale(tensor: int) -> tuple[float, int]:
        how = graph.Tensors(tensor).Quantization()
        return how.Scale(0), how.ZeroPoint(0)

    image = np.random.default_rng(5).uniform(0, 255, (1, 4, 8, 8)).astype(np.float32)
    step, zero = scale(graph.Inputs(0))
    data = (np.round(image.transpose(0, 2, 3, 1) / step) + zero).astype(np.int8)
    results = reference.run(imported.module, {parameter.name: np.ascontiguousarray(data)})
    floats = []
    for i, result in enumerate(results):
        step, zero = scale(graph.Outputs(i))
        floats.append((result.astype(np.float32) - zero) * step)
    assert guest.error([floats[0].transpose(0, 3, 1, 2), floats[1]], peers.reference(model, image), 0.1) > 0


def test_signs_have_no_int8_form(tmp_path):
    with pytest.raises(UnsupportedLayer, match="RELU_N1_TO_1 has no int8 form"):
        peers.to_tflite_int8(networks.card_binary(True), tmp_path)


def operators(content: bytes) -> list[str]:
    names = {value: name for name, value in vars(tflite.BuiltinOperator).items() if not name.startswith("_")}
    model = tflite.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    codes = [model.OperatorCodes(graph.Operators(i).OpcodeIndex()) for i in range(graph.OperatorsLength())]
    return [names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes]


def test_the_binary_card_as_tflite():
    content = onnx_to_tflite.convert(networks.card_binary(same=True))
    block = ["CONV_2D", "PRELU", "MAX_POOL_2D", "MUL", "ADD"]
    expected = ["SUB", "CONV_2D", "MUL", "ADD", "MAX_POOL_2D", "CONV_2D", "MUL", "ADD", "MAX_POOL_2D", "RELU_N1_TO_1"]
    # The clamp of later blocks is fused into the add in front; the ReLU into its convolution.
    assert operators(content) == [*expected, *block * 5, "CONV_2D", "AVERAGE_POOL_2D", "RESHAPE", "SOFTMAX"]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads", "expected"),
    [
        (56, 3, 1, (1, 1, 1, 1), "SAME"),
        (56, 3, 2, (0, 0, 1, 1), "SAME"),
        (56, 3, 2, (1, 1, 1, 1), None),
        (7, 3, 2, (1, 1, 1, 1), "SAME"),
        (56, 2, 2, (0, 0, 0, 0), "VALID"),
    ],
)
def test_padding_words(size, kernel, stride, pads, expected):
    word = onnx_to_tflite.padding_of([1, size, size, 8], [kernel, kernel], (stride, stride), pads)
    assert word == (None if expected is None else getattr(tflite.Padding, expected))


def test_unknown_operators_are_named():
    node = onnx.helper.make_node("Erf", ["x"], ["y"], name="gelu.3")
    value = [onnx.helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]))
    with pytest.raises(UnsupportedLayer, match=r"gelu\.3 \(Erf\)"):
        onnx_to_tflite.convert(model)


def test_the_guest_runs_and_knows_when_no_simulator_answers(tmp_path, monkeypatch, capsys):
    class Left(Exception):
        pass

    def leave(status: int) -> None:
        raise Left

    monkeypatch.setattr(guest.os, "_exit", leave)
    model = networks.single(networks.Layer(3, 8, 8, binary=False))
    (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    data = np.ones((1, 3, 8, 8), np.float32)
    job = Job("onnxruntime", [tmp_path / "n.onnx"], data, peers.reference(model, data), 0.1)
    with pytest.raises(Left):
        guest.main(json.loads(job.write(tmp_path).read_text()))
    answer = json.loads(capsys.readouterr().out.removeprefix("answer: "))
    assert answer["report"] is None and answer["error"] < 1e-6
    wrong = replace(job, expected=[output + 1 for output in job.expected])
    with pytest.raises(SystemExit, match="off the reference's"):
        guest.main(json.loads(wrong.write(tmp_path).read_text()))


def test_the_picture_has_a_bar_for_each_measured_network():
    single = Row("float conv 3x3 3->16@224", "bitkiln", 1, 1.0, 1.0, "rasp3b", "simulated")
    svg = picture.to_svg([*rows(), single], "a < b")
    assert svg.count("<rect") == 3
    assert "a &lt; b" in svg and "165.0 ms" in svg
    assert "3-&gt;16" not in svg


def test_quantised_networks_compare_with_their_like():
    """Floats of ours with floats of others, int8 with int8; a summary has a line for each."""
    times = {"bitkiln": 100.0, "bitkiln-int8": 60.0, "ncnn": 150.0, "litert-int8": 90.0}
    rows = [Row("net", engine, 1, ms, 50.0, "rasp3b", "", 1) for engine, ms in times.items()]
    heads, (cells,) = report.table(rows)
    ratios = dict(zip(heads, cells, strict=True))
    assert (ratios["x bound"], ratios["x faster"], ratios["x int8"]) == ("2.00", "1.50", "1.50")
    lines = report.summary([rows]).splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| net")] == ["net", "net, int8"]

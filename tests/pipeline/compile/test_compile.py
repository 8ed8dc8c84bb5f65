"""From a lowered network to a bundle: which kernels are chosen, how weights are packed, what the manifest says."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline import compile as compile_stage
from bitkiln.pipeline.boards.board import LocalBoard, Request
from bitkiln.pipeline.boards.emulated import on_emulator
from bitkiln.pipeline.bundle import open_bundle
from bitkiln.pipeline.compile import compile_lowered, compile_model
from bitkiln.pipeline.compile.kernels import ChosenKernel, choose_kernels, choose_knobs, where_they_differ
from bitkiln.pipeline.compile.manifest import on_most_threads
from bitkiln.pipeline.compile.plan import read_network
from bitkiln.pipeline.compile.single import build_kernel_library
from bitkiln.pipeline.errors import BundleError, InputError, ModelError
from bitkiln.pipeline.model import Model, TensorSpec
from bitkiln.schedules.registry import operator_for
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Conv2d, Signs, to_json
from bitkiln.targets import Target

CONV = Conv2d(6, 6, 8, 16, (3, 3), padding=(1, 1, 1, 1), epilogue=(Step("add", "channel"), Step("relu")))


@dataclass
class OneRecord:
    """Knows ``knobs`` for every workload."""

    knobs: dict[str, int | str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def best(self, workload: str, target: Target, threads: int) -> OneRecord:
        self.asked.append(workload)
        return self

    def as_json(self) -> dict[str, Any]:
        return {"measured_by": "a test"}


def conv_module(count: int = 1) -> tuple[tvm.IRModule, list[np.ndarray]]:
    """``count`` convolutions with the same workload and weights of their own, one after the other on the same input."""
    source = np.random.default_rng(0)
    reference = operator_for(CONV).reference(CONV).with_attr("bitkiln.workload", to_json(CONV))
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 6, 6, 8), "float32"))
    weights, results = [], []
    with builder.function("main", [x]):
        with builder.dataflow():
            function = builder.add_func(reference.with_attr("global_symbol", "conv"), "conv")
            for _ in range(count):
                w, b = source.normal(size=(16, 3, 3, 8)).astype("float32"), source.normal(size=16).astype("float32")
                weights += [w, b]
                type_ = relax.TensorType((1, 6, 6, 16), "float32")
                arguments = [x, relax.const(w), relax.const(b)]
                results.append(builder.emit(relax.op.call_tir(function, arguments, out_ty=type_)))
            total = results[0] if count == 1 else builder.emit(relax.op.add(results[0], results[1]))
            result = builder.emit_output(total)
        builder.emit_func_output(result)
    return relax.transform.LegalizeOps()(builder.get()), weights


def conv_model(module: tvm.IRModule) -> Model:
    return Model("conv", module, (TensorSpec("x", (1, 6, 6, 8)),), (TensorSpec("y", (1, 6, 6, 16)),), "0" * 64)


def convolve(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0))).astype("float64")
    out = np.zeros((6, 6, 16))
    for dy in range(3):
        for dx in range(3):
            out += padded[dy : dy + 6, dx : dx + 6] @ w[:, dy, dx].T.astype("float64")
    return np.maximum(out + b, 0)[None]


@pytest.mark.parametrize("name", ["rasp3b", "rasp3b32"])
def test_a_convolution_computes_on_the_board_what_it_should(name: str, no_records, tmp_path: Path) -> None:
    module, weights = conv_module(2)
    compile_lowered(conv_model(module), module, targets.load(name), no_records, tmp_path / "conv")
    x = np.random.default_rng(1).normal(size=(1, 6, 6, 8)).astype("float32")
    bundle = open_bundle(tmp_path / "conv")
    expected = convolve(x, *weights[:2]) + convolve(x, *weights[2:])
    answer = on_emulator(bundle.folder, bundle.target, {"x": x}, threads=3)
    np.testing.assert_allclose(answer.outputs["y"], expected, rtol=1e-4, atol=1e-5)


def wide_numbers_module() -> tvm.IRModule:
    """x[1,24] -> (int64(x) * 3 - 7) // 5, and in float64 x / 3 to int64, both as float32."""
    x = relax.Var("x", relax.TensorType((1, 24), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            whole = builder.emit(relax.op.multiply(relax.op.astype(x, "int64"), relax.const(3, "int64")))
            whole = builder.emit(relax.op.subtract(whole, relax.const(7, "int64")))
            whole = builder.emit(relax.op.floor_divide(whole, relax.const(5, "int64")))
            third = builder.emit(relax.op.divide(relax.op.astype(x, "float64"), relax.const(3, "float64")))
            third = builder.emit(relax.op.astype(third, "int64"))
            results = [builder.emit(relax.op.astype(each, "float32")) for each in (whole, third)]
            result = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(result)
    return relax.transform.LegalizeOps()(builder.get())


@pytest.mark.parametrize("name", ["rasp3b", "rasp3b32"])
def test_whole_numbers_of_64_bits_are_computed_by_the_boards_own_calls(name: str, no_records, tmp_path: Path) -> None:
    """A 32-bit board converts and divides them by functions of its compiler's library, which take floats in core registers."""
    module = wide_numbers_module()
    specs = (TensorSpec("x", (1, 24)),), (TensorSpec("y", (1, 24)), TensorSpec("z", (1, 24)))
    compile_lowered(Model("wide", module, *specs, "0" * 64), module, targets.load(name), no_records, tmp_path / "wide")
    x = np.linspace(-6e9, 6e9, 24, dtype="float32")[None]
    bundle = open_bundle(tmp_path / "wide")
    answer = on_emulator(bundle.folder, bundle.target, {"x": x})
    whole = x.astype("int64")
    np.testing.assert_array_equal(answer.outputs["y"], ((whole * 3 - 7) // 5).astype("float32"))
    np.testing.assert_array_equal(answer.outputs["z"], (x.astype("float64") / 3).astype("int64").astype("float32"))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (0, r"wide: output y has 268 MB \(float32 \[1, 64, 1024, 1024\]\)"),
        (2, "wide: what its layers pass on takes 1342 MB"),
    ],
)
def test_networks_too_large_for_a_boards_memory_are_refused_at_once(
    layers, expected, no_records, tmp_path: Path
) -> None:
    x, size = relax.Var("x", relax.TensorType((1, 64, 1, 1), "float32")), (1, 64, 1024, 1024)
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.broadcast_to(x, size))
            for _ in range(layers):
                y = builder.emit(relax.op.concat([y, builder.emit(relax.op.nn.relu(y))], 1))
                y = builder.emit(relax.op.strided_slice(y, [1], [0], [64]))
            result = builder.emit_output(relax.op.max(y, [2, 3], keepdims=True) if layers else y)
        builder.emit_func_output(result)
    module = relax.transform.LegalizeOps()(builder.get())
    shape = (1, 64, 1, 1) if layers else size
    model = Model("wide", module, (TensorSpec("x", (1, 64, 1, 1)),), (TensorSpec("y", shape),), "0" * 64)
    with pytest.raises(ModelError, match=expected):
        compile_lowered(model, module, targets.load("rasp3b"), no_records, tmp_path / "wide")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_a_small_board_cannot_hold_are_refused_before_they_are_packed(
    no_records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_stage, "choose_kernels", lambda *_: pytest.fail("kernels are made"))
    x = relax.Var("x", relax.TensorType((1, 1 << 20), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = x
            for number in range(100):
                y = builder.emit(relax.op.multiply(y, relax.const(np.full((1, 1 << 20), number, "float32"))))
            result = builder.emit_output(y)
        builder.emit_func_output(result)
    module = relax.transform.LegalizeOps()(builder.get())
    spec = TensorSpec("x", (1, 1 << 20))
    model = Model("heavy", module, (spec,), (replace(spec, name="y"),), "0" * 64)
    with pytest.raises(ModelError, match=r"heavy: its weights take 419 MB.* zero2w 403 MB at most"):
        compile_lowered(model, module, targets.load("zero2w"), no_records, tmp_path / "heavy")


def test_weights_that_grow_beyond_a_small_board_are_refused_before_they_are_packed(
    no_records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of 10 MB that Winograd's transform makes 40 MB, where a network may have 35."""
    monkeypatch.setattr(compile_stage, "plan_network", lambda *_: pytest.fail("weights are packed"))
    target = targets.load("rasp3b")
    small = replace(target, dram={**target.dram, "size_mb": 46})
    x, weights = relax.Var("x", relax.TensorType((1, 512, 28, 28), "float32")), np.ones((544, 512, 3, 3), "float32")
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.nn.conv2d(x, relax.const(weights), padding=1))
        builder.emit_func_output(result)
    model = Model(
        "grown", builder.get(), (TensorSpec("x", (1, 512, 28, 28)),), (TensorSpec("y", (1, 544, 28, 28)),), "0" * 64
    )
    with pytest.raises(ModelError, match="grown: its weights take 40 MB"):
        compile_model(model, small, no_records, tmp_path / "grown", threads=[1])


def test_equal_workloads_share_a_kernel_and_keep_their_weights() -> None:
    module, _ = conv_module(2)
    network = read_network(module)
    records = OneRecord()
    chosen = choose_kernels(module, network, targets.load("rasp3b"), records)
    assert [call.kernel for call in network.calls][:2] == ["conv", "conv"]
    assert len({kernel.symbol for kernel in chosen.values()}) == 2
    assert [key for key in records.asked if not key.startswith("tir ")] == [CONV.key()]


def test_records_choose_the_knobs_and_the_manifest_says_so(tmp_path: Path) -> None:
    target = targets.load("rasp3b")
    operator = operator_for(CONV)
    knobs = {name: values[-1] for name, values in operator.space(CONV, target).items()}
    module, _ = conv_module()
    compile_lowered(conv_model(module), module, target, OneRecord(knobs), tmp_path / "conv")
    (step,) = json.loads((tmp_path / "conv/manifest.json").read_text())["steps"]
    assert step["chosen"] == "tuned" and step["knobs"] == knobs and step["record"] == {"measured_by": "a test"}
    assert step["workload"] == CONV.key() and step["macs"] == CONV.macs and not step["binary"]
    assert step["weight_bytes"] == 4 * (16 * 9 * 8 + 16)


def test_a_kernel_may_differ_for_several_threads_at_the_same_knobs() -> None:
    """Several threads share the channels of a depthwise layer."""
    target = targets.load("rasp3b")
    shared, same = Conv2d(112, 112, 32, 32, (3, 3), padding=(1, 1, 1, 1), groups=32), CONV
    for workload, differs in ((shared, True), (same, False)):
        operator = operator_for(workload)
        knobs = operator.default(workload, target)
        one, four = (
            {
                "f": ChosenKernel(
                    "kernel0", "conv2d", operator.emit(workload, knobs, target, count).func, "default", knobs=knobs
                )
            }
            for count in (1, 4)
        )
        assert bool(where_they_differ(four, one)) is differs


def test_kernels_count_as_the_plan_for_the_most_threads_has_them() -> None:
    steps = [{"chosen": "default"}, {"chosen": "default", "several": {"chosen": "tuned"}}]
    assert [on_most_threads(step)["chosen"] for step in steps] == ["default", "tuned"]


@dataclass
class ByThreads:
    """Other knobs for several threads than for one."""

    one: dict[str, int | str]
    several: dict[str, int | str]

    def best(self, workload: str, target: Target, threads: int) -> OneRecord:
        return OneRecord(self.one if threads == 1 else self.several)


def test_a_bundle_may_hold_a_plan_for_one_thread_and_one_for_several(tmp_path: Path) -> None:
    """A step has the same name and outputs in both plans."""
    target = targets.load("rasp3b")
    default = dict(operator_for(CONV).default(CONV, target))
    other = default | {"algorithm": "direct", "tile": "4x16", "block": 0}
    assert default != other
    module, weights = conv_module(2)
    out = tmp_path / "conv"
    compile_lowered(conv_model(module), module, target, ByThreads(default, other), out, threads=(1, 4))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["threads"] == [1, 4]
    kernels = [step for step in manifest["steps"] if step["kind"] == "conv2d"]
    assert [(step["knobs"], step["several"]["knobs"]) for step in kernels] == [(default, other)] * 2
    x = np.random.default_rng(1).normal(size=(1, 6, 6, 8)).astype("float32")
    expected = convolve(x, *weights[:2]) + convolve(x, *weights[2:])
    steps = []
    for threads in (1, 2, 4):
        answer = on_emulator(out, target, {"x": x}, threads=threads, with_trace=True)
        np.testing.assert_allclose(answer.outputs["y"], expected, rtol=1e-4, atol=1e-5)
        steps.append(list(answer.trace))
    assert steps[0] == steps[1] == steps[2]


@pytest.mark.parametrize("threads", [(2, 4), (1, 2, 4)])
def test_a_library_has_a_plan_for_one_thread_and_one_for_several_and_no_others(
    threads, no_records, tmp_path: Path
) -> None:
    module, _ = conv_module(1)
    with pytest.raises(InputError, match="--threads N or 1,N"):
        compile_lowered(
            conv_model(module), module, targets.load("rasp3b"), no_records, tmp_path / "conv", threads=threads
        )
    assert list(tmp_path.iterdir()) == []


def test_records_outside_of_the_space_are_not_used() -> None:
    module, _ = conv_module()
    chosen = choose_kernels(module, read_network(module), targets.load("rasp3b"), OneRecord({"no such knob": 1}))
    assert chosen["conv"].source == "default"


class WithoutSigns(OneRecord):
    """As ``OneRecord``, but of workloads that give signs beside their floats it knows nothing."""

    def best(self, workload: str, target: Target, threads: int) -> OneRecord | None:
        return None if "signs" in workload else super().best(workload, target, threads)


def test_records_of_a_layer_without_its_signs_decide_where_there_are_none_with_them() -> None:
    layer, target = Conv2d(24, 24, 3, 16, (7, 7), (2, 2), (3, 3, 3, 3), signs=(Signs(),)), targets.load("rasp3b")
    tuned = {"algorithm": "stem"}
    assert tuned != operator_for(layer).default(layer, target)
    assert choose_knobs(layer, target, WithoutSigns(tuned))[0] == tuned
    with_signs = OneRecord(tuned)
    choose_knobs(layer, target, with_signs)
    assert with_signs.asked == [layer.key()]


def test_other_peoples_folders_are_left_alone(no_records, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    module, _ = conv_module()
    with pytest.raises(BundleError, match="exists and is no bundle"):
        compile_lowered(conv_model(module), module, targets.load("rasp3b"), no_records, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("name", ["rasp3b", "rasp3b32"])
def test_a_kernel_library_is_built_fast_and_takes_its_arguments_as_inputs(name: str, tmp_path: Path) -> None:
    target = targets.load(name)
    knobs = operator_for(CONV).default(CONV, target)
    build_kernel_library(CONV, knobs, target, tmp_path / "warm.so")
    start = time.perf_counter()
    kernel = build_kernel_library(CONV, knobs, target, tmp_path / "kernel.so")
    assert time.perf_counter() - start < 5, "a trial builds one of these: a fraction of a second on an idle machine"
    source = np.random.default_rng(0)
    x, w, b = (source.normal(size=size).astype("float32") for size in ((1, 6, 6, 8), (16, 3, 3, 8), (16,)))
    inputs = {}
    for index, argument in enumerate(kernel.arguments):
        if hasattr(argument, "sources"):
            arrays = [(x, w, b)[source] for source in argument.sources]
            inputs[f"arg{index}"] = (argument.pack(arrays) if argument.pack else arrays[0]).tobytes()
    measured = LocalBoard(target, timing=False).measure(tmp_path / "kernel.so", Request(outputs=True), inputs)
    result = np.frombuffer(measured.outputs[0].data, "float32").reshape(1, 6, 6, 16)
    np.testing.assert_allclose(result, convolve(x, w, b), rtol=1e-4, atol=1e-5)

"""The layer table: every layer, its work, and the verdict on each convolution."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline import ops
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.inspect import inspect_model, layer_table
from bitkiln.pipeline.passes.pipeline import lower
from bitkiln.pipeline.profile import LayerWork
from bitkiln.pipeline.verify.steps import workloads_of
from bitkiln.schedules.workload import Conv2d
from tests.pipeline.inspect.networks import RNG, model_of, weight


def test_each_convolution_has_a_verdict():
    def body(emit, x):
        stem = emit(relax.op.nn.conv2d(x, weight(8, 4, 3, 3), padding=1), "stem")
        sign = emit(relax.op.sign(stem), "sign")
        good = emit(relax.op.nn.conv2d(sign, weight(8, 8, 3, 3, binary=True), padding=1), "good")
        half = emit(relax.op.nn.conv2d(good, weight(8, 8, 1, 1, binary=True)), "half")
        return relax.op.nn.relu(half)

    rows = {row.name: row for row in layer_table(model_of(body))}
    assert list(rows) == ["stem", "sign", "good", "half", "y"]
    assert (rows["stem"].binary, rows["good"].binary, rows["half"].binary) == (False, True, False)
    assert "float weights" in rows["stem"].reason
    assert "true zero padding" in rows["good"].reason
    assert "not the sign" in rows["half"].reason
    assert rows["half"].suspicious
    assert rows["sign"].binary is None
    good = rows["good"]
    assert (good.kind, good.shape, good.input_shape, good.macs) == ("conv2d", (1, 8, 6, 6), (1, 8, 6, 6), 8 * 36 * 72)


def test_a_binary_layer_that_keeps_floats_says_why():
    def body(emit, x):
        first = emit(relax.op.nn.conv2d(relax.op.sign(x), weight(8, 4, 3, 3, binary=True), padding=1), "first")
        pooled = emit(relax.op.nn.avg_pool2d(first, (2, 2), strides=(2, 2)), "pooled")
        return relax.op.nn.conv2d(relax.op.sign(pooled), weight(8, 8, 3, 3, binary=True), padding=1)

    rows = {row.name: row for row in layer_table(model_of(body))}
    assert rows["first"].binary
    assert "keeps floats: " in rows["first"].reason
    assert "keeps floats" not in rows["y"].reason


def test_a_sum_with_another_tensor_keeps_floats():
    def body(emit, x):
        first = emit(relax.op.nn.conv2d(relax.op.sign(x), weight(4, 4, 3, 3, binary=True), padding=1), "first")
        both = emit(relax.op.add(x, first), "both")
        return relax.op.nn.conv2d(relax.op.sign(both), weight(8, 4, 3, 3, binary=True), padding=1)

    rows = {row.name: row for row in layer_table(model_of(body))}
    assert "not known before the network runs" in rows["first"].reason


def test_macs_of_other_layers():
    def body(emit, x):
        depthwise = emit(relax.op.nn.conv2d(x, weight(4, 1, 3, 3), groups=4), "depthwise")
        up = emit(relax.op.nn.conv2d_transpose(depthwise, weight(4, 2, 2, 2), strides=2), "up")
        flat = emit(relax.op.reshape(up, (1, 128)), "flat")
        return relax.op.matmul(flat, weight(128, 10))

    rows = {row.name: row for row in layer_table(model_of(body))}
    assert rows["depthwise"].macs == 4 * 16 * 9
    assert rows["up"].macs == 16 * 4 * 2 * 4
    assert (rows["y"].kind, rows["y"].macs) == ("matmul", 1280)
    assert rows["flat"].macs == 0


def test_operators_that_are_binary_already():
    bits = relax.const(ops.pack_bits(RNG.choice([-1, 1], (8, 3, 3, 16))))

    def body(emit, x):
        return ops.bconv2d(emit(ops.binarize(x), "bits"), bits, channels=16)

    rows = layer_table(model_of(body, (1, 5, 5, 16)))
    assert [row.kind for row in rows] == ["binarize", "bconv2d"]
    assert (rows[1].binary, rows[1].macs) == (True, 9 * 8 * 144)
    assert (rows[0].shape, rows[0].bits, rows[1].input_bits, rows[1].bits) == ((1, 5, 5, 2), 16, 16, 0)


@pytest.mark.parametrize(
    ("name", "binary", "convolutions"),
    [
        ("onnx/imagenet_resnet18_w1a1.onnx.xz", 20, 22),
        ("onnx/TFC_1W1A.onnx", 4, 4),
        ("onnx/pt_reactnet_block.onnx", 1, 1),
    ],
)
def test_trained_networks(shared, name, binary, convolutions):
    rows = [row for row in layer_table(load_model(shared / "models" / name)) if row.binary is not None]
    assert (sum(row.binary for row in rows), len(rows)) == (binary, convolutions)
    assert not any(row.suspicious for row in rows)


def binary_chain(emit, x):
    """Two binary convolutions with a threshold between them, and a dense layer behind them."""
    first = emit(relax.op.nn.conv2d(relax.op.sign(x), weight(8, 4, 3, 3, binary=True), padding=1), "first")
    moved = emit(relax.op.add(first, relax.const(np.full((1, 8, 1, 1), 0.3, np.float32))), "moved")
    sign = emit(relax.op.where(relax.op.greater(moved, zero()), one(), relax.const(np.float32(-1))), "sign")
    padded = emit(relax.op.nn.pad(sign, [0, 0, 0, 0, 1, 1, 1, 1], "constant", -1.0), "padded")
    second = emit(relax.op.nn.conv2d(padded, weight(8, 8, 3, 3, binary=True), strides=2), "second")
    flat = emit(relax.op.reshape(second, (1, 72)), "flat")
    return relax.op.matmul(flat, weight(72, 10))


def zero():
    return relax.const(np.float32(0))


def one():
    return relax.const(np.float32(1))


def test_what_a_binary_layer_is_found_to_be():
    rows = {row.name: row for row in layer_table(model_of(binary_chain))}
    first, second, dense = rows["first"], rows["second"], rows["y"]
    assert (first.sign_zero, first.pad_value, first.padding, first.result) == (1, 0, (1, 1, 1, 1), "bits")
    assert (second.sign_zero, second.pad_value, second.padding) == (-1, -1, (1, 1, 1, 1))
    assert (second.kernel, second.strides, second.dilation, second.groups) == ((3, 3), (2, 2), (1, 1), 1)
    assert (second.weight_bytes, second.packed_bytes) == (8 * 8 * 9 * 4, 8 * 9)
    assert first.packed_bytes == 8 * 9  # Four channels fill half of a byte.
    assert first.constant_bytes == 8 * 4  # A threshold for each channel instead of the scale and the addition.
    assert (dense.binary, dense.weight_bytes, dense.packed_bytes) == (False, 2880, 2880)
    assert (dense.sign_zero, dense.pad_value) == (None, None)
    assert "sign(0) = -1" in second.reason


def test_what_is_drawn_into_a_float_convolution_is_found_again():
    rows = {row.name: row for row in layer_table(load_model("card-float"))}
    convolutions = [row for row in rows.values() if row.binary is False]
    assert {row.result for row in convolutions} == {"float32"}
    assert all(row.constant_bytes >= 4 * row.shape[-1] for row in convolutions)


def test_zeros_that_count_as_zero():
    def body(emit, x):
        first = emit(relax.op.nn.conv2d(relax.op.sign(x), weight(8, 4, 1, 1, binary=True)), "first")
        return relax.op.nn.conv2d(emit(relax.op.sign(first), "sign"), weight(8, 8, 1, 1, binary=True))

    rows = {row.name: row for row in layer_table(model_of(body))}
    assert (rows["first"].sign_zero, rows["y"].sign_zero) == (1, 0)
    assert rows["y"].packed_bytes == 8


@pytest.mark.parametrize(
    ("ternary", "often_zero", "runs", "packings", "sign_zero"),
    [(True, False, 2, 2, 1), (False, True, 2, 1, 0), (True, True, 4, 2, 0)],
)
def test_layers_that_run_as_several_convolutions_count_as_often(ternary, often_zero, runs, packings, sign_zero):
    values = np.where(np.arange(8 * 8).reshape(8, 8, 1, 1) % 3 == 0, 0, 0.5) if ternary else np.full((8, 8, 1, 1), 0.5)

    def body(emit, x):
        first = emit(relax.op.nn.conv2d(relax.op.sign(x), weight(8, 4, 1, 1, binary=True)), "first")
        first = first if often_zero else emit(relax.op.tanh(first), "bent")
        signs = emit(relax.op.sign(first), "sign")
        return relax.op.nn.conv2d(signs, relax.const(values.astype(np.float32)))

    model, target = model_of(body), targets.load("rasp3b")
    found = inspect_model(model, [target])
    rows = {row.name: row for row in found.rows}
    once = 36 * 8 * 8
    assert f"in {runs} convolutions" in rows["y"].reason
    assert (rows["y"].macs, rows["y"].packed_bytes, rows["y"].sign_zero) == (runs * once, packings * 8, sign_zero)
    each = {id(work): work for work in workloads_of(lower(model, target)).values()}  # Once, whatever results it has.
    run = [work for work in each.values() if isinstance(work, Conv2d)]
    assert found.totals.binary_macs == sum(work.macs for work in run)
    assert found.bounds[0].ms == pytest.approx(sum(row.roof_ms(target) for row in found.rows))
    assert found.bounds[0].ms >= found.totals.binary_macs / (target.cpu["peak_binary_mac_per_cycle"] * target.mhz * 1e3)


def test_rows_know_what_they_read():
    rows = {row.name: row for row in layer_table(model_of(binary_chain))}
    assert rows["second"].inputs == ("padded",)
    assert rows["second"].input_shape == (1, 8, 8, 8)
    assert rows["flat"].inputs == ("second",)
    assert rows["sign"].absorbed and rows["padded"].absorbed and not rows["moved"].absorbed


def test_the_keys_of_a_row():
    row = json.loads(json.dumps(inspect_model(model_of(binary_chain), []).layers()))[1]
    contract = {"name", "kind", "shape", "macs", "binary", "reason"}
    added = {"input_shape", "weight_bytes", "packed_bytes", "sign_zero", "pad_value", "warnings", "notes", "inputs"}
    assert contract | added <= row.keys()


def test_several_results_of_one_operation():
    def body(emit, x):
        parts = emit(relax.op.split(x, 2, axis=1), "parts")
        return relax.op.add(emit(parts[0], "left"), emit(relax.op.nn.relu(parts[1]), "right"))

    rows = {row.name: row for row in layer_table(model_of(body))}
    assert (rows["parts"].kind, rows["parts"].shape) == ("split", (1, 2, 6, 6))
    assert rows["y"].inputs == ("parts", "right")


def test_totals_and_bounds():
    target = targets.load("rasp3b")
    found = inspect_model(model_of(binary_chain), [target])
    rows = {row.name: row for row in found.rows}
    totals = found.totals
    assert (totals.convolutions, totals.binary) == (3, 2)
    assert totals.binary_macs == rows["first"].macs + rows["second"].macs
    assert totals.float_macs == 720
    assert totals.weight_bytes == sum(row.weight_bytes for row in found.rows)
    assert totals.packed_bytes == 8 * 9 + 8 * 9 + 2880
    assert totals.activation_bytes > 0
    works = [LayerWork(r.name, "", r.macs, bool(r.binary), r.packed_bytes + r.constant_bytes) for r in rows.values()]
    (bound,) = found.bounds
    assert bound.ms == pytest.approx(sum(work.roof_cycles(target) for work in works) / (target.mhz * 1e3))
    assert bound.ms == pytest.approx(bound.binary_ms + bound.float_ms)


def test_the_summary_as_json():
    found = inspect_model(model_of(binary_chain), [targets.load(name) for name in targets.known()])
    summary = json.loads(json.dumps(found.as_json()))
    assert [bound["target"] for bound in summary["bounds"]] == list(targets.known())
    assert summary["totals"]["binary"] == 2
    assert summary["problems"] == []


def test_what_compiling_refuses_is_no_error():
    def body(emit, x):
        conv = emit(relax.op.nn.conv2d(x, weight(4, 4, 1, 1)), "conv")
        return emit(relax.op.nonzero(conv), "found")

    found = inspect_model(model_of(body), [targets.load("rasp3b")])
    assert [row.name for row in found.rows] == ["conv", "found"]
    assert found.rows[1].shape[1] == -1
    assert (found.rows[0].binary, found.totals.activation_bytes) == (False, None)
    assert "cannot be compiled" in found.rows[0].reason
    assert len(found.problems) == 1 and "depends on the input" in found.problems[0]


@pytest.mark.parametrize("name", ["conv1d", "conv3d", "conv1d_transpose"])
def test_convolutions_of_other_dimensions(name):
    sizes = {"conv1d": ((1, 4, 9), (6, 4, 3)), "conv3d": ((1, 4, 5, 5, 5), (6, 4, 3, 3, 3))}
    shape, kernel = sizes.get(name, ((1, 4, 9), (4, 6, 3)))

    def body(_emit, x):
        return getattr(relax.op.nn, name)(x, weight(*kernel))

    (row,) = layer_table(model_of(body, shape))
    result = np.prod(row.shape)
    taps = np.prod(kernel[2:])
    assert row.macs == (result * 4 * taps if "transpose" not in name else 9 * 4 * 6 * taps)
    assert row.binary is False and row.reason
    assert row.kernel == kernel[2:]


def test_nothing_but_constants():
    found = inspect_model(model_of(lambda emit, x: emit(relax.op.abs(one()), "known")), [targets.load("rasp3b")])
    assert [row.absorbed for row in found.rows] == [True]
    assert found.totals.convolutions == 0
    assert found.bounds[0].ms == 0


def test_weights_that_come_as_an_input():
    rows = layer_table(model_of(lambda emit, x: relax.op.matmul(x, emit(relax.op.abs(x), "other")), (1, 1, 6, 6)))
    assert rows[-1].binary is False
    assert "computed while the network runs" in rows[-1].reason
    assert rows[-1].weight_bytes == 0


def test_layers_of_8_bits_are_named_where_the_target_has_kernels_of_them():
    def body(emit, x):
        def whole(y, name, factor=1.0):
            scaled = emit(relax.op.multiply(y, relax.const(np.float32(factor))), f"{name}_scaled")
            return emit(relax.op.clip(emit(relax.op.round(scaled), f"{name}_rounded"), -128, 127), name)

        weights = relax.const(RNG.integers(-9, 10, (8, 4, 3, 3)).astype(np.float32))
        quantised = emit(relax.op.nn.conv2d(whole(x, "data"), weights), "quantised")
        return emit(relax.op.nn.conv2d(whole(quantised, "result", 0.01), weight(3, 8, 1, 1)), "floats")

    model = model_of(body)
    for name, expected in (("rasp3b", "int8"), ("rasp3b32", "float32")):
        rows = {row.name: row for row in inspect_model(model, [targets.load(name)]).rows}
        assert (rows["quantised"].result, rows["floats"].result) == (expected, "float32")
    assert rows["quantised"].packed_bytes == 4 * rows["quantised"].kernel[0] ** 2 * 32

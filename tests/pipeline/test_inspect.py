"""The layer table: every layer, its work, and the verdict on each convolution."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tvm
from rich.console import Console
from tvm import relax

from bitkiln.pipeline import ops
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.inspect import Row, layer_table
from bitkiln.pipeline.inspect_table import print_table
from bitkiln.pipeline.model import Model, TensorSpec

RNG = np.random.default_rng(3)


def model_of(body, shape=(1, 4, 6, 6)) -> Model:
    """A model whose ``main`` is ``body(emit, x)``."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(body(lambda expr, name: builder.emit(expr, name_hint=name), x), name_hint="y")
        builder.emit_func_output(result)
    module: tvm.IRModule = builder.get()
    return Model("test", module, (TensorSpec("x", shape),), (TensorSpec("y", shape),), "")


def weight(*shape, binary=False):
    values = RNG.choice([-1, 1], shape) * 0.5 if binary else RNG.normal(size=shape)
    return relax.const(values.astype(np.float32))


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
        folded = emit(relax.op.nn.leakyrelu(first, -1.0), "folded")
        moved = emit(relax.op.subtract(folded, relax.const(np.full((1, 8, 1, 1), 2.2, np.float32))), "moved")
        return relax.op.nn.conv2d(relax.op.sign(moved), weight(8, 8, 3, 3, binary=True), padding=1)

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


def test_the_printed_table_and_json():
    rows = [
        Row("a", "conv2d", (1, 2, 3, 4), 1_500_000, True, "signs x +-1"),
        Row("b", "conv2d", (1, 2, 3, 4), 500_000, False, "float weights"),
        Row("c", "conv2d", (1, 2, 3, 4), 500_000, False, "its input is no sign", suspicious=True),
        Row("d[0]", "relu", (1, 2, 3, 4)),
    ]
    text = io.StringIO()
    print_table(rows, Console(file=text, width=120))
    lines = text.getvalue().splitlines()
    assert lines[0].split() == ["layer", "kind", "shape", "MMACs", "weights", "packed", "binary"]
    assert lines[1].split() == ["a", "conv2d", "1x2x3x4", "1.50", "yes:", "signs", "x", "+-1"]
    assert "no: float weights" in lines[2]
    assert "NO: its input is no sign" in lines[3]
    assert lines[4].split() == ["d[0]", "relu", "1x2x3x4"]
    assert json.loads(json.dumps(rows[0].as_json()))["macs"] == 1_500_000


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

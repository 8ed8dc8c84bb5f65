"""Binarised networks as their exporters write them: computed as their runtimes do, their binary layers recognised."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import UnsupportedLayer
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.passes.pipeline import survey

RNG = np.random.default_rng(5)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def signs(*shape):
    return RNG.choice(np.float32([-1, 1]), shape)


class Sketch:
    """An ONNX graph being drawn: every call adds a node and returns the name of its result."""

    def __init__(self):
        self.nodes, self.weights = [], {}

    def __call__(self, kind, *inputs, **attributes):
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        result = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [result], name=f"the_{result}", **attributes))
        return result

    def constant(self, value):
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value, None if isinstance(value, np.ndarray | np.generic) else np.float32)
        return name

    def normalised(self, x, channels):
        params = normal(channels), normal(channels), 3 * normal(channels), np.abs(normal(channels)) * 20 + 5
        return self("BatchNormalization", x, *params)

    def write(self, write_onnx, shape, opset=13):
        self.nodes[-1].output[0] = "y"
        return write_onnx(self.nodes, self.weights, shape, opset)


def check(path, binary, expected=None, tolerance=1e-5):
    """Which layers are binary; and the network on bits computes what onnxruntime, or ``expected(x)``, says."""
    model = load_model(path)
    x = normal(*model.inputs[0].shape)
    if expected is None:
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime says what a model's output should be")
        want = runtime.InferenceSession(str(path)).run(None, {"x": x})[0]
    else:
        want = expected(x)
    found = survey(model.module)
    assert [verdict.binary for verdict in found.verdicts] == binary, found.verdicts
    lowered = found.phases["fold_threshold"]
    got = reference.run(lowered, {lowered["main"].params[0].name: x})[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())
    return found.verdicts


def clip_weights(net, weight):
    """mean(|w|) * sign(w) - clip(w) + clip(w), alive in the file; |w| has rounding noise behind it."""
    w = net.constant(weight)
    mean = net("ReduceMean", net("ReduceMean", net("Abs", w), axes=[3], keepdims=1), axes=[1, 2], keepdims=1)
    clipped = net("Clip", w, np.float32(-1), np.float32(1))
    return net("Add", net("Sub", net("Mul", mean, net("Sign", w)), clipped), clipped)


def polynomial(net, x):
    """The residue of ReActNet's sign: a polynomial in pieces, by masks."""
    masks = [net("Cast", net("Less", x, level), to=TensorProto.FLOAT) for level in (-1.0, 0.0, 1.0)]
    square = net("Mul", x, x)
    pieces = [net("Add", square, net("Mul", x, 2.0)), net("Add", net("Neg", square), net("Mul", x, 2.0))]
    value = net("Mul", masks[0], -1.0)
    for mask, piece in zip(masks, [*pieces, 1.0], strict=True):
        value = value if mask is masks[0] else net("Mul", value, mask)
        value = net("Add", value, net("Mul", piece, net("Sub", 1.0, mask)))
    return net("Add", net("Sub", net("Sign", x), value), value)


def clipped_twice(net, x):
    """clip(x) - clip(x) + sign(x), each clip computed for itself."""
    first, second = (net("Clip", x, np.float32(-1), np.float32(1)) for _ in range(2))
    return net("Add", net("Sub", first, second), net("Sign", x))


def ones_at_zero(net, x):
    return net("Where", net("Equal", x, 0.0), 1.0, net("Sign", x))


def zero_and_one(net, x):
    return net("Cast", net("Greater", x, 0.0), to=TensorProto.FLOAT)


def dorefa(net, x):
    return net("Round", net("Clip", x, np.float32(0), np.float32(1)))


@pytest.mark.parametrize("act", [polynomial, clipped_twice, ones_at_zero, zero_and_one, dorefa])
def test_pytorch(write_onnx, act):
    """Learnable biases, RPReLU and a residual around two binary convolutions."""
    net = Sketch()
    x = net.normalised(net("Conv", "x", normal(16, 3, 3, 3), strides=[2, 2], pads=[1] * 4), 16)
    for groups in (1, 4):
        biased = net("Add", x, 0.1 * normal(1, 16, 1, 1))
        conv = net(
            "Conv",
            act(net, biased),
            clip_weights(net, 0.1 * normal(16, 16 // groups, 3, 3)),
            pads=[1] * 4,
            group=groups,
        )
        x = net("Add", net.normalised(conv, 16), x)
        x = net("PRelu", net("Add", x, normal(1, 16, 1, 1)), np.abs(normal(16, 1, 1)))
        x = net("Add", x, normal(1, 16, 1, 1))
    verdicts = check(net.write(write_onnx, [1, 3, 16, 16]), [False, True, True])
    assert verdicts[1].facts.levels == ((0, 1) if act in (zero_and_one, dorefa) else (-1, 1))


@pytest.mark.parametrize("pad", [0.0, 1.0])
def test_larq_through_tf2onnx(write_onnx, pad):
    """Images in NHWC, Sign -> Add(0.1) -> Sign, transposes, batch norms in the weights, pads to one side, depthwise, dense."""
    net = Sketch()

    def sign(x):
        return net("Sign", net("Add", net("Sign", x), 0.1))

    x = net(
        "Conv",
        net("Transpose", "x", perm=[0, 3, 1, 2]),
        normal(16, 3, 3, 3),
        normal(16),
        strides=[2, 2],
        pads=[0, 0, 1, 1],
    )
    for channels, groups in ((16, 16), (32, 1)):
        x = sign(net("Transpose", x, perm=[0, 2, 3, 1]))
        scaled = signs(channels, 16 // groups, 3, 3) * normal(channels, 1, 1, 1)
        own = [0, 0, 1, 1]
        if pad:
            x, own = net("Pad", x, np.int64([0, 0, 0, 0, 0, 1, 1, 0]), np.float32(pad)), [0, 0, 0, 0]
        x = net("Transpose", x, perm=[0, 3, 1, 2])
        x = net("Conv", x, scaled, normal(channels), strides=[2, 2], pads=own, group=groups)
    x = net("Reshape", net("Transpose", x, perm=[0, 2, 3, 1]), np.int64([1, -1]))
    x = net("Add", net("Mul", net("MatMul", sign(x), signs(32 * 16, 10)), normal(10)), normal(10))
    verdicts = check(net.write(write_onnx, [1, 32, 32, 3]), [False, True, True, True])
    assert verdicts[1].facts.padding == (1 if pad else 0)


def test_xnor_net_with_its_map_of_scales(write_onnx):
    """sign(x) * sign(w), times the mean of |x| around each pixel, times that of |w| in each channel."""
    net = Sketch()
    around = net("Conv", net("ReduceMean", net("Abs", "x"), axes=[1]), np.full((1, 1, 3, 3), 1 / 9, "f"), pads=[1] * 4)
    conv = net("Conv", net("Sign", "x"), signs(8, 16, 3, 3), pads=[1] * 4)
    net("Mul", net("Mul", conv, around), np.abs(normal(1, 8, 1, 1)))
    check(net.write(write_onnx, [1, 16, 6, 6]), [False, True])


def test_dense_layers_of_any_spelling(write_onnx):
    net = Sketch()
    x = net(
        "Sign", net("MatMul", net("Sign", net("Reshape", "x", np.int64([1, 1, -1]))), signs(45, 33) * np.float32(0.5))
    )
    x = net("Gemm", net("Reshape", x, np.int64([1, 33])), signs(7, 33), normal(7), transB=1, alpha=0.5)
    check(net.write(write_onnx, [1, 5, 3, 3]), [True, True])


def test_rows_of_pixels(write_onnx):
    """A dense layer on every pixel."""
    net = Sketch()
    rows = net("Transpose", net("Reshape", net("Sign", "x"), np.int64([1, 16, 20])), perm=[0, 2, 1])
    net("MatMul", rows, signs(16, 8))
    check(net.write(write_onnx, [1, 16, 4, 5]), [True])


def test_one_dimensional_convolutions(write_onnx):
    net = Sketch()
    x = net("Sign", net("Conv", "x", normal(16, 4, 3), normal(16), pads=[1, 0], strides=[2]))
    x = net("Conv", x, signs(16, 8, 3), pads=[2, 2], group=2, dilations=[2])
    x = net("Conv", net("Sign", net.normalised(x, 16)), signs(8, 16, 3), auto_pad="SAME_UPPER")
    check(net.write(write_onnx, [1, 4, 21]), [False, True, True])


def test_transposed_convolutions_say_why_they_are_floats(write_onnx):
    net = Sketch()
    net("ConvTranspose", net("Sign", "x"), signs(8, 4, 3, 3), strides=[2, 2], pads=[1] * 4)
    (verdict,) = check(net.write(write_onnx, [1, 8, 5, 5]), [False])
    assert verdict.reason.startswith("transposed convolutions run in floats; its input and weights are signs")


PADS = {
    "attributes": (10, lambda net, x: net("Pad", x, pads=[0, 0, 1, 0, 0, 0, 2, 1], value=-1.0), True),
    "operands": (11, lambda net, x: net("Pad", x, np.int64([0, 0, 1, 0, 0, 0, 2, 1]), np.float32(-1)), True),
    "axes": (18, lambda net, x: net("Pad", x, np.int64([1, 0, 2, 1]), np.float32(-1), np.int64([2, -1])), True),
    "negative": (13, lambda net, x: net("Pad", x, np.int64([0, 0, -1, 1, 0, 0, 2, -2]), np.float32(1)), True),
    "reflected": (13, lambda net, x: net("Pad", x, np.int64([0, 0, 1, 2, 0, 0, 2, 1]), mode="reflect"), True),
    "edges": (13, lambda net, x: net("Pad", x, np.int64([0, 0, 1, 2, 0, 0, 2, 1]), mode="edge"), True),
    "around": (19, lambda net, x: net("Pad", x, np.int64([0, 0, 1, 2, 0, 0, 2, 1]), mode="wrap"), True),
    "halves": (13, lambda net, x: net("Pad", x, np.int64([0, 0, 1, 2, 0, 0, 2, 1]), np.float32(0.5)), False),
}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", PADS)
def test_pads(write_onnx, name, before):
    """Around the signs, and around what they are signs of."""
    opset, pad, binary = PADS[name]
    net = Sketch()
    padded = net("Sign", pad(net, "x")) if before else pad(net, net("Sign", "x"))
    net("Conv", padded, signs(4, 16, 3, 3))
    check(net.write(write_onnx, [1, 16, 5, 6], opset), [binary or before])


@pytest.mark.parametrize("opset", [9, 13])
def test_slices(write_onnx, opset):
    """Circular padding by slices of signs, and halves that are read backwards."""
    net = Sketch()

    def cut(x, start, end, axis, step=1):
        if opset < 10:
            return net("Slice", x, starts=[start], ends=[end], axes=[axis])
        return net("Slice", x, *(np.int64([value]) for value in (start, end, axis, step)))

    x = net("Sign", "x")
    x = net("Concat", cut(x, -1, 2**63 - 1, 2), x, cut(x, 0, 1, -2), axis=2)
    if opset > 9:
        x = net("Concat", cut(x, -1, -(2**63), 1, -1), cut(x, 0, 100, 1, 2), axis=1)
    channels = 8 if opset < 10 else 12
    net("Conv", x, signs(4, channels, 3, 3))
    check(net.write(write_onnx, [1, 8, 5, 6], opset), [True])


@pytest.mark.parametrize("indices", [np.int64([5, -1, 0, 0, 2]), np.int64([[1, 0], [-2, 4]]), np.int64(3)])
def test_gathered_channels(write_onnx, indices):
    net = Sketch()
    x = net("Gather", net("Sign", "x"), indices, axis=-3)
    x = net("Reshape", x, np.int64([1, indices.size, 5, 6]))
    net("Conv", x, signs(4, indices.size, 3, 3))
    check(net.write(write_onnx, [1, 8, 5, 6]), [True])


def test_channels_by_index(write_onnx):
    """signs[:, indices], as the exporter of PyTorch 2 writes it."""
    net = Sketch()
    x = net("GatherND", net("Transpose", net("Sign", "x"), perm=[1, 0, 2, 3]), np.int64([[5], [-1], [0], [0]]))
    net("Conv", net("Transpose", x, perm=[1, 0, 2, 3]), signs(4, 4, 3, 3))
    check(net.write(write_onnx, [1, 8, 5, 6]), [True])


def test_signs_in_whole_numbers(write_onnx):
    """(x > 0) as int64, times 2, minus 1."""
    net = Sketch()
    whole = net("Mul", net("Cast", net("Greater", "x", 0.0), to=TensorProto.INT64), np.int64(2))
    x = net("Cast", net("Sub", whole, np.int64(1)), to=TensorProto.FLOAT)
    net("Conv", x, signs(4, 8, 3, 3))
    check(net.write(write_onnx, [1, 8, 5, 6]), [True])


def test_least_and_enlarged_signs(write_onnx):
    """The least of signs by negation, beside signs and their negatives, enlarged to the nearest."""
    net = Sketch()
    sign = net("Sign", "x")
    least = net("Neg", net("MaxPool", net("Neg", sign), kernel_shape=[3, 3], pads=[1] * 4))
    joined = net("Concat", sign, net("Neg", net("Neg", sign)), net("Neg", sign), axis=1)
    large = net("Resize", joined, "", np.float32([1, 1, 2, 2]), mode="nearest")
    first = net("Conv", net("Resize", least, "", np.float32([1, 1, 2, 2]), mode="nearest"), signs(4, 8, 3, 3))
    net("Add", first, net("Conv", large, signs(4, 24, 3, 3)))
    check(net.write(write_onnx, [1, 8, 5, 6]), [True, True])


@pytest.mark.parametrize("masks", [["Equal"], ["GreaterOrEqual", "Less"]])
def test_signs_by_assignment(write_onnx, masks):
    """out = sign(x); out[out == 0] = 1, or out[x >= 0] = 1 and out[x < 0] = -1, as torch.export writes them."""
    net = Sketch()
    x = net.normalised(net("Conv", "x", normal(8, 3, 3, 3)), 8)
    signed = net("Sign", x)
    for kind in masks:
        mask = net(kind, signed if kind == "Equal" else x, 0.0)
        indices = net("Transpose", net("NonZero", mask), perm=[1, 0])
        ones = net("Cast", net("Reshape", mask, np.int64([-1])), to=TensorProto.INT64)
        value = net("Expand", -1.0 if kind == "Less" else 1.0, net("ReduceSum", ones, keepdims=1))
        signed = net("ScatterND", signed, indices, net("Reshape", value, np.int64([-1])))
    net("Conv", signed, signs(8, 8, 3, 3))
    verdicts = check(net.write(write_onnx, [1, 3, 8, 8]), [False, True])
    assert verdicts[1].facts.zeros_count_as is None


def test_assignments_through_masks_of_whole_rows(write_onnx):
    """x[0, mask] = 2, whose mask has an index for each of the leading axes."""
    net = Sketch()
    mask = net("Greater", net("ReduceMean", "x", axes=[2, 3], keepdims=0), 0.0)
    indices = net("Transpose", net("NonZero", mask))
    count = net("ReduceSum", net("Cast", mask, to=TensorProto.INT64), keepdims=0)
    shape = net("Concat", net("Reshape", count, np.int64([1])), np.int64([5, 6]), axis=0)
    net("ScatterND", "x", indices, net("Expand", 2.0, shape))
    check(net.write(write_onnx, [1, 8, 5, 6]), [])


def test_several_values_through_a_mask_are_refused(write_onnx):
    net = Sketch()
    indices = net("Transpose", net("NonZero", net("Greater", "x", 0.0)))
    net("ScatterND", "x", indices, net("Expand", np.float32([1, 2]), np.int64([2])))
    with pytest.raises(UnsupportedLayer, match=r"assigns values of \[2\] through a mask of \[4\] to \[4\]"):
        load_model(net.write(write_onnx, [4]))

"""ELL archives of every generation, layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import ModelError, UnsupportedLayer
from bitkiln.pipeline.importers import ImportOptions, load_model
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.model import Model

MIN = 4
RNG = np.random.default_rng(7)


def evaluate(model: Model, x: np.ndarray) -> np.ndarray:
    return reference.run(model.module, {"input": x[None].astype(np.float32)})[0][0]


def operators(model: Model) -> list[str]:
    return [op_name(value) for _, value in bindings(model.module["main"])]


def conv_fields(weights: np.ndarray, stride: int = 1) -> dict:
    filters, kernel, _, depth = weights.shape
    return {
        "receptiveField": kernel,
        "stride": stride,
        "weights_rows": filters * kernel,
        "weights_columns": kernel,
        "weights_channels": depth,
        "weights_values": weights.ravel().tolist(),
    }


def binary_fields(signs: np.ndarray, stride: int = 1) -> dict:
    """Words by the definition: bit (kr*k + kc)*C + c of a filter is its weight's sign."""
    words = []
    for filter_signs in signs.reshape(len(signs), -1):
        bits = [int(sign > 0) for sign in filter_signs]
        for start in range(0, len(bits), 64):
            words.append(sum(bit << place for place, bit in enumerate(bits[start : start + 64])))
    return {
        "receptiveField": signs.shape[1],
        "stride": stride,
        "method": 1,
        "weightsScale": 0,
        "binarizedWeights_numVectors": len(signs),
        "binarizedWeights_values": words,
        "filterMeans": [1.5] * len(signs),
    }


CONV = RNG.normal(size=(4, 3, 3, 3)).round(3)
ALPHA = RNG.uniform(-0.5, 0.5, (6, 6, 4)).round(3)
NETWORK = [
    ("BiasLayer<float>", (6, 6, 3), {"bias": [-1.5, 2, 0.25]}),
    ("ConvolutionalLayer<float>", (6, 6, 4), conv_fields(CONV), 1),
    (
        "ActivationLayer<float,ParametricReLUActivation>",
        (6, 6, 4),
        {"alpha_rows": 6, "alpha_columns": 6, "alpha_channels": 4, "alpha_values": ALPHA.ravel().tolist()},
    ),
    ("PoolingLayer<float,MaxPoolingFunction>", (3, 3, 4), {"poolingSize": 3, "stride": 2}, 1, MIN),
    ("ScalingLayer<float>", (3, 3, 4), {"scales": [1, 2, -1, 0.5]}),
]


@pytest.mark.parametrize("generation", ["A", "B", "C"])
def test_generations_mean_the_same(ell, generation):
    model = load_model(ell.write(generation, (6, 6, 3), NETWORK))
    x = RNG.normal(size=(6, 6, 3)).round(3).astype(np.float32)
    shifted = np.pad(x + np.float32([-1.5, 2, 0.25]), ((1, 1), (1, 1), (0, 0)))
    conv = np.stack([[[(shifted[r : r + 3, c : c + 3] * w).sum() for w in CONV] for c in range(6)] for r in range(6)])
    active = np.pad(np.where(conv > 0, conv, ALPHA * conv), ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    pooled = np.array([[active[2 * r : 2 * r + 3, 2 * c : 2 * c + 3].max((0, 1)) for c in range(3)] for r in range(3)])
    np.testing.assert_allclose(evaluate(model, x), pooled * [1, 2, -1, 0.5], rtol=1e-4, atol=1e-5)
    assert operators(model) == ["add", "nn.conv2d", "bitkiln.prelu", "nn.max_pool2d", "multiply"]
    assert [name for name, _ in bindings(model.module["main"])] == [
        "bias_0",
        "conv_1",
        "activation_2",
        "pool_3",
        "scale_4",
    ]


def test_the_image_is_bgr_and_cut_to_its_centre(ell):
    model = load_model(ell.write("C", (6, 6, 3), NETWORK))
    assert (model.preprocessing.channel_order, model.preprocessing.resize) == ("BGR", "short-side")
    assert model.inputs[0].shape == (1, 6, 6, 3)
    assert (model.name, model.inputs[0].layout, len(model.source_digest)) == ("net", "NHWC", 64)


@pytest.mark.parametrize(("scheme", "pad"), [(0, 0.0), (1, -1.0), (5, 1.0)])
def test_binary_convolution_is_exact(ell, scheme, pad):
    signs = RNG.choice([-1, 1], (5, 3, 3, 11))
    model = (
        load_model(
            ell.write(
                "C", (4, 4, 11), [("BinaryConvolutionalLayer<float>", (4, 4, 5), binary_fields(signs), 1, scheme)]
            )
        )
        if scheme == 0
        else load_model(
            ell.write(
                "C",
                (4, 4, 11),
                [
                    ("ScalingLayer<float>", (4, 4, 11), {"scales": [1] * 11}),
                    ("BinaryConvolutionalLayer<float>", (4, 4, 5), binary_fields(signs), 1, scheme),
                ],
            )
        )
    )
    x = RNG.normal(size=(4, 4, 11)).astype(np.float32)
    x[0, 0, :4] = [0, -0.0, np.nan, 1]
    with np.errstate(invalid="ignore"):
        ones = np.pad(np.where(x > 0, 1.0, -1.0), ((1, 1), (1, 1), (0, 0)), constant_values=pad)
    expected = [[[(ones[r : r + 3, c : c + 3] * w).sum() for w in signs] for c in range(4)] for r in range(4)]
    np.testing.assert_array_equal(evaluate(model, x), expected)


def test_mean_scale_multiplies_the_output(ell):
    signs = RNG.choice([-1, 1], (2, 1, 1, 8))
    plain = ell.write("C", (1, 1, 8), [("BinaryConvolutionalLayer<float>", (1, 1, 2), binary_fields(signs))])
    x = RNG.normal(size=(1, 1, 8))
    expected = evaluate(load_model(plain), x) * 1.5
    fields = binary_fields(signs) | {"weightsScale": 1}
    scaled = ell.write("C", (1, 1, 8), [("BinaryConvolutionalLayer<float>", (1, 1, 2), fields)])
    np.testing.assert_array_equal(evaluate(load_model(scaled), x), expected)


def test_words_keep_all_64_bits(ell):
    signs = -np.ones((1, 1, 1, 64), int)
    signs[..., [0, 63]] = 1
    fields = binary_fields(signs)
    assert fields["binarizedWeights_values"] == [2**63 + 1]
    model = load_model(ell.write("C", (1, 1, 64), [("BinaryConvolutionalLayer<float>", (1, 1, 1), fields)]))
    assert evaluate(model, signs[0].reshape(1, 1, 64)) == 64


def test_depthwise_convolution(ell):
    weights = RNG.normal(size=(3, 3, 3, 1)).round(3)
    model = load_model(ell.write("C", (5, 5, 3), [("ConvolutionalLayer<float>", (3, 3, 3), conv_fields(weights))]))
    x = RNG.normal(size=(5, 5, 3))
    expected = [
        [[(x[r : r + 3, c : c + 3, k] * weights[k, :, :, 0]).sum() for k in range(3)] for c in range(3)]
        for r in range(3)
    ]
    np.testing.assert_allclose(evaluate(model, x), expected, rtol=1e-4, atol=1e-5)


def test_padding_that_is_not_zero_is_written_out(ell):
    weights = np.ones((1, 3, 3, 1))
    layers = [
        ("ScalingLayer<float>", (2, 2, 1), {"scales": [1]}),
        ("ConvolutionalLayer<float>", (2, 2, 1), conv_fields(weights), 1, 1),
    ]
    model = load_model(ell.write("C", (2, 2, 1), layers))
    assert "nn.pad" in operators(model)
    np.testing.assert_array_equal(evaluate(model, np.ones((2, 2, 1))), np.full((2, 2, 1), 4.0 - 5.0))


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("ReLUActivation", {}, [0, 2]),
        ("LeakyReLUActivation", {"leakyFactor": 0.25}, [-0.25, 2]),
        ("LeakyReLUActivation", {}, [-0.1, 2]),
        ("SigmoidActivation", {}, [1 / (1 + np.e), 1 / (1 + np.exp(-2))]),
        ("TanhActivation", {}, np.tanh([-1, 2])),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_activations_of_both_spellings(ell, kind, fields, expected, nested):
    if nested:
        layer = ("ActivationLayer<float>", (1, 1, 2), {"activation": {"_type": f"{kind}<float>", **fields}})
    else:
        layer = (f"ActivationLayer<float,{kind}>", (1, 1, 2), fields)
    model = load_model(ell.write("C", (1, 1, 2), [layer]))
    np.testing.assert_allclose(evaluate(model, np.float32([[[-1, 2]]]))[0, 0], expected, rtol=1e-6)


def test_leaky_factor_can_be_overridden(ell):
    path = ell.write("C", (1, 1, 1), [("ActivationLayer<float,LeakyReLUActivation>", (1, 1, 1), {"leakyFactor": 0.1})])
    model = load_model(path, ImportOptions(leaky_factor=0.5))
    assert evaluate(model, np.float32([[[-2]]])) == -1


def test_dense_and_softmax_run_over_all_elements(ell):
    weights = RNG.normal(size=(3, 8)).round(3)
    dense = {"weights_rows": 3, "weights_columns": 8, "weights_values": weights.ravel().tolist()}
    x = RNG.normal(size=(2, 2, 2))
    model = load_model(ell.write("C", (2, 2, 2), [("FullyConnectedLayer<float>", (1, 1, 3), dense)]))
    np.testing.assert_allclose(evaluate(model, x).ravel(), weights @ x.ravel(), rtol=1e-5)
    model = load_model(ell.write("C", (2, 2, 2), [("SoftmaxLayer<float>", (2, 2, 2), {})]))
    np.testing.assert_allclose(evaluate(model, x), np.exp(x) / np.exp(x).sum(), rtol=1e-5)


def test_pooling_may_read_past_the_end(ell):
    x = RNG.normal(size=(5, 5, 2))
    pooling = ("PoolingLayer<float,MaxPoolingFunction>", (3, 3, 2), {"poolingSize": 2, "stride": 2})
    result = evaluate(load_model(ell.write("C", (5, 5, 2), [pooling])), x)
    np.testing.assert_allclose(result[2, 2], x[4, 4], rtol=1e-6)
    np.testing.assert_allclose(result[0, 2], x[0:2, 4].max(0), rtol=1e-6)


def test_average_pooling(ell):
    x = RNG.normal(size=(4, 4, 2))
    pooling = ("PoolingLayer<float,MeanPoolingFunction>", (2, 2, 2), {"poolingSize": 2, "stride": 2})
    expected = x.reshape(2, 2, 2, 2, 2).mean((1, 3))
    np.testing.assert_allclose(evaluate(load_model(ell.write("C", (4, 4, 2), [pooling])), x), expected, rtol=1e-5)


def test_nodes_of_the_third_generation(ell):
    """A residual: x + 2x, then the constant 3 behind it, then half as many rows."""
    scaling = ell.tables([("ScalingLayer<float>", (1, 1, 2), {"scales": [2, 2]})])[0]
    nodes = [
        {"_type": "OutputNode<float>", "id": "9", "input": ell.port("8")},
        {"_type": "SpliceNode<float>", "id": "7", "inputs": [ell.port("4"), ell.port("5")]},
        {
            "_type": "ReinterpretLayoutNode<float>",
            "id": "8",
            "input": ell.port("7"),
            "outputLayout": ell.layout((2, 1, 2)),
        },
        {"_type": "InputNode<float>", "id": "1", "layout": ell.layout((1, 1, 2))},
        {"_type": "ScalingLayerNode<float>", "id": "3", "input": ell.port("1"), "layer": scaling},
        {
            "_type": "BinaryOperationNode<float>",
            "id": "4",
            "input1": ell.port("1"),
            "input2": ell.port("3"),
            "operation": "add",
        },
        {"_type": "ConstantNode<float>", "id": "5", "values": [3, 4], "layout": ell.layout((1, 1, 2))},
    ]
    model = load_model(ell.dump(ell.document(nodes)))
    np.testing.assert_array_equal(evaluate(model, np.float32([[[1, 10]]])), [[[3, 30]], [[3, 4]]])


@pytest.mark.parametrize("envelope", ["formatA.ell", "formatA.ell.zip", "formatC.ell"])
@pytest.mark.parametrize("network", ["mini_bnn", "mini_leaky"])
def test_layers_equal_ells_own(shared, network, envelope):
    """Binary layers exactly, all others to 1e-4 of the layer's largest value."""
    folder = shared / "models" / "ell"
    golden = read_golden(folder / network)
    model = load_model(folder / f"{network}.{envelope}")
    values = reference.evaluate(model.module, {"input": golden[0][1][None]})
    results = [value[0] for name, value in values.items() if name.count("_") == 1]
    assert len(results) == len(golden) - 2  # the image and ELL's input layer come before
    for (layer, expected), result in zip(golden[2:], results, strict=True):
        border = (expected.shape[0] - result.shape[0]) // 2
        expected = expected[border : expected.shape[0] - border, border : expected.shape[1] - border]
        tolerance = 0 if layer == "BinConv" else 1e-4 * np.abs(expected).max()
        assert np.abs(result - expected).max() <= tolerance, layer


def read_golden(stem: Path) -> list[tuple[str, np.ndarray]]:
    """Name and HWC tensor of each layer, as ELL computed them."""
    raw, offset, tensors = np.fromfile(f"{stem}.golden.bin", np.float32), 0, []
    for line in Path(f"{stem}.golden.txt").read_text().splitlines():
        name, *size = line.split()
        shape = tuple(map(int, size))
        count = int(np.prod(shape))
        tensors.append((name, raw[offset : offset + count].reshape(shape)))
        offset += count
    return tensors


def test_another_kind_of_model_is_refused_by_its_node(shared):
    with pytest.raises(UnsupportedLayer, match="node 3067 has type ProtoNNPredictorNode"):
        load_model(shared / "models" / "ell" / "protonnTestData.ell")


def broken(index: int, **fields) -> list[tuple]:
    """NETWORK with other fields in one layer."""
    kind, size, own, *rest = NETWORK[index]
    return [*NETWORK[:index], (kind, size, {**own, **fields}, *rest), *NETWORK[index + 1 :]]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (broken(0, bias=[1, 2]), r"node 2 \(BiasLayerNode<float>\): bias has 2 numbers, its shape 1x1x1x3 needs 3"),
        (broken(0, bias=[1, float("nan"), 2]), r"node 2 .*non-finite weight in bias"),
        (broken(0, bias=[1, 1e300, 2]), r"node 2 .*non-finite weight in bias"),
        (broken(0, bias=[1, "x", 2]), r"bias holds something else than numbers"),
        (broken(1, weights_values=[0.5] * 107), r"node 3 .*weights_values has 107 numbers"),
        (broken(1, weights_rows=9), r"weights are 9x3x3; 4 filters of 3x3 need 12x3x3"),
        (broken(1, weights_channels=2), r"its filters have 2 channels, its input has 3"),
        (broken(1, receptiveField=-3), r"receptiveField is -3"),
        (broken(1, stride=2), r"3x3 windows at stride 2 give 3 of 6 \(padding 1\), the archive says 6"),
        (broken(1, inputPaddingSize=0), r"wants an input padding of 0, its input has 1"),
        (broken(2, alpha_rows=5), r"alpha is 5x6x4, its input 6x6x4"),
        (broken(4, outputShape=[3, 3, 5]), r"gives 3x3x4, the archive says 3x3x5"),
        (broken(4, outputShape="three"), r"is not a shape"),
        (broken(4, _type="DreamLayer<float>"), r"has type DreamLayerNode<float>"),
        (broken(3, _type="PoolingLayer<float,MedianPoolingFunction>"), r"node 5 .*pooling function is not supported"),
        (broken(3, inputPaddingScheme=3), None),
    ],
)
def test_bad_layers_are_named(ell, layers, message):
    path = ell.write("C", (6, 6, 3), layers)
    if message is None:
        assert load_model(path)  # a max pooling takes its input's border as that was written
        return
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_of_a_predictor_are_named_by_position(ell):
    with pytest.raises(
        ModelError, match=r"node 11 \(NeuralNetworkPredictorNode<float>\), layer 1 \(BiasLayer<float>\)"
    ):
        load_model(ell.write("A", (6, 6, 3), broken(0, bias=[1])))


def test_damaged_fields_never_surprise(ell):
    """Any field of any node replaced by something odd: a model, or one line that says what is wrong."""
    nonsense = [None, -1, 3, float("inf"), "x", [], {}, [1, 2], 2**70, 0.5, "7.output", [1] * 70, ["x"] * 70]
    document = ell.chain((6, 6, 3), ell.tables(NETWORK))
    fields = list(fields_of(document))
    for count in range(300):
        table, key = fields[RNG.integers(len(fields))]
        kept, table[key] = table[key], nonsense[count % len(nonsense)]
        try:
            load_model(ell.dump(document))
        except ModelError as error:
            assert len(str(error).splitlines()) == 1
        table[key] = kept


def fields_of(value):
    """(container, key) of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from fields_of(inner)


def test_a_negative_word_is_refused(ell):
    fields = binary_fields(np.ones((1, 1, 1, 8), int)) | {"binarizedWeights_values": [-1]}
    with pytest.raises(ModelError, match="64-bit words"):
        load_model(ell.write("C", (1, 1, 8), [("BinaryConvolutionalLayer<float>", (1, 1, 1), fields)]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "is not an ELL archive"),
        ("[1, 2]", "no model with nodes"),
        ('{"model": {"nodes": []}}', "no model with nodes"),
        ("[" * 100000, "is not an ELL archive"),
        ('{"nodes": [{"_type": "InputNode<float>", "id": "1"}, {"_type": "InputNode<float>", "id": "1"}]}', "same id"),
    ],
)
def test_text_that_is_no_archive(tmp_path, text, message):
    path = tmp_path / "net.ell"
    path.write_text(text)
    with pytest.raises(ModelError, match=message):
        load_model(path)


def test_nodes_that_depend_on_each_other(ell):
    table = ell.tables([("ScalingLayer<float>", (1, 1, 1), {"scales": [2]})])[0]
    nodes = [
        {"_type": "InputNode<float>", "id": "1", "layout": ell.layout((1, 1, 1))},
        {"_type": "ScalingLayerNode<float>", "id": "2", "input": ell.port("3"), "layer": table},
        {"_type": "ScalingLayerNode<float>", "id": "3", "input": ell.port("2"), "layer": table},
    ]
    with pytest.raises(ModelError, match="depends on itself"):
        load_model(ell.dump(ell.document(nodes)))
    nodes[2]["input"] = ell.port("7")
    with pytest.raises(ModelError, match="node 7, which does not exist"):
        load_model(ell.dump(ell.document(nodes)))


def test_parts_of_outputs_are_refused(ell):
    table = ell.tables([("ScalingLayer<float>", (1, 1, 1), {"scales": [2]})])[0]
    nodes = [
        {"_type": "InputNode<float>", "id": "1", "layout": ell.layout((1, 1, 2))},
        {"_type": "ScalingLayerNode<float>", "id": "2", "input": {"input": "1.output[0:1]"}, "layer": table},
    ]
    with pytest.raises(UnsupportedLayer, match=r"node 2 .*1.output\[0:1\]"):
        load_model(ell.dump(ell.document(nodes)))

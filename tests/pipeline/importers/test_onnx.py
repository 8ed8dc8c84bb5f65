"""ONNX models against onnxruntime, and the normal form they take."""

from __future__ import annotations

import lzma

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from bitkiln.pipeline import reference
from bitkiln.pipeline.importers import ImportOptions, load_model
from bitkiln.pipeline.ir.graph import bindings, op_name

RNG = np.random.default_rng(11)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def node(kind, inputs, outputs=("y",), **attributes):
    return helper.make_node(kind, list(inputs), list(outputs), name=f"{kind}_{outputs[0]}", **attributes)


def check(path, tolerance=1e-5, **options):
    """The imported model gives what onnxruntime gives, for a random input; returns the model."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime says what a model's output should be")
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    model = load_model(path, ImportOptions(**options))
    x = normal(*model.inputs[0].shape)
    session = runtime.InferenceSession(str(path), settings)
    expected = session.run(None, {session.get_inputs()[0].name: x})
    results = reference.run(model.module, {model.module["main"].params[0].name: x})
    for want, got, spec in zip(expected, results, model.outputs, strict=True):
        assert spec.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(np.abs(want).max(), 1))
    return model


def operators(model):
    return [op_name(value) for _, value in bindings(model.module["main"])]


def network(opset):
    """Convolution with bias, batch normalisation, PReLU, both poolings, a residual, a classifier; weights."""
    weights = {
        "w0": normal(8, 3, 3, 3),
        "b0": normal(8),
        "gamma": normal(8),
        "beta": normal(8),
        "mean": normal(8),
        "var": np.abs(normal(8)) + 0.5,
        "slope": np.abs(normal(8, 1, 1)),
        "w1": normal(8, 1, 3, 3),
        "w2": normal(10, 32),
        "b2": normal(10),
    }
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c0", "gamma", "beta", "mean", "var"], ["n0"], epsilon=1e-3),
        node("PRelu", ["n0", "slope"], ["p0"]),
        node("MaxPool", ["p0"], ["m0"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["m0", "w1"], ["c1"], pads=[1, 1, 1, 1], group=8),
        node("Add", ["c1", "m0"], ["a0"]),
        node("Relu", ["a0"], ["r0"]),
        node("AveragePool", ["r0"], ["v0"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["v0"], ["f0"]),
        node("Gemm", ["f0", "w2", "b2"], ["g0"], transB=1),
        node("Softmax", ["g0"], ["y"], **({} if opset >= 13 else {"axis": 1})),
    ]
    return nodes, weights


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 21])
def test_a_network_in_every_opset(write_onnx, opset):
    nodes, weights = network(opset)
    model = check(write_onnx(nodes, weights, [1, 3, 8, 8], opset))
    assert operators(model) == [
        *["nn.conv2d", "add", "multiply", "add", "nn.prelu", "nn.max_pool2d", "nn.conv2d", "add", "nn.relu"],
        *["nn.avg_pool2d", "reshape", "matmul", "add", "nn.softmax"],
    ]
    names = [name for name, _ in bindings(model.module["main"])]
    assert names[:5] == ["c0_conv", "c0", "n0_scaled", "n0", "p0"]
    assert names[-1] == "y"
    assert (model.inputs[0].layout, model.inputs[0].name, model.outputs[0].name) == ("NCHW", "x", "y")
    assert (model.preprocessing.height, model.preprocessing.channel_order, model.preprocessing.layout) == (
        8,
        "RGB",
        "NCHW",
    )


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [0, 1, 2, 0]},
        {"pads": [0, 0, 1, 1], "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
        {"auto_pad": "VALID", "strides": [2, 1]},
        {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
        {"pads": [1, 0, 0, 1], "group": 2},
    ],
)
def test_convolutions(write_onnx, attributes):
    weight = normal(6, 4 // attributes.get("group", 1), 3, 3)
    check(write_onnx([node("Conv", ["x", "w"], **attributes)], {"w": weight}, [1, 4, 8, 9]))


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 2]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "pads": [0, 1, 1, 0], "ceil_mode": 1},
        {"strides": [3, 3], "ceil_mode": 1},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {},
    ],
)
def test_poolings(write_onnx, kind, attributes):
    check(write_onnx([node(kind, ["x"], kernel_shape=[3, 3], **attributes)], {}, [1, 2, 8, 9]))


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 1, 1, 1]},
        {"pads": [1, 1, 1, 1], "strides": [2, 2], "ceil_mode": 1},
        {"pads": [1, 0, 1, 2], "strides": [2, 3], "ceil_mode": 1},
        {"strides": [3, 2], "ceil_mode": 1},
    ],
)
def test_average_pooling_that_counts_its_padding(write_onnx, attributes):
    """Of windows that ceil_mode lets read behind the padding, only what is padding counts."""
    pooling = node("AveragePool", ["x"], kernel_shape=[3, 3], count_include_pad=1, **attributes)
    check(write_onnx([pooling], {}, [1, 2, 6, 8], opset=19))


@pytest.mark.parametrize(
    ("nodes", "weights", "opset"),
    [
        ([node("Clip", ["x"], min=-0.5, max=0.5)], {}, 9),
        ([node("Clip", ["x", "low"])], {"low": np.float32(-0.25)}, 13),
        ([node("Clip", ["x", "", "high"])], {"high": np.float32(np.inf)}, 13),
        ([node("Pad", ["x"], pads=[0, 0, 1, 2, 0, 0, 0, 1], value=2.0)], {}, 9),
        ([node("Pad", ["x", "p", "one"])], {"p": np.int64([0, 0, 1, 1, 0, 0, 2, 0]), "one": np.float32(1)}, 13),
        (
            [node("Pad", ["x", "p", "", "axes"])],
            {"p": np.int64([1, 2, 3, 0]), "axes": np.int64([-1, 2])},
            18,
        ),
        ([node("PRelu", ["x", "s"])], {"s": normal(1)}, 13),
        ([node("PRelu", ["x", "s"])], {"s": normal(2, 4, 5)}, 13),
        ([node("LeakyRelu", ["x"], alpha=0.3)], {}, 13),
        ([node("Dropout", ["x"], ["d"]), node("Identity", ["d"], ["i"]), node("Relu", ["i"])], {}, 9),
        ([node("Reshape", ["x", "s"])], {"s": np.int64([0, -1, 5])}, 13),
        ([node("Transpose", ["x"], perm=[0, 2, 3, 1])], {}, 13),
        ([node("Concat", ["x", "x"], axis=1)], {}, 13),
        ([node("Split", ["x"], ["a", "b"], axis=1), node("Sub", ["a", "b"])], {}, 11),
        ([node("Split", ["x", "s"], ["a", "b"], axis=-1), node("Mul", ["b", "a"])], {"s": np.int64([4, 1])}, 13),
        (
            [node("Split", ["x"], ["a", "b", "c"], axis=3, num_outputs=3), node("Concat", ["c", "a", "b"], axis=3)],
            {},
            18,
        ),
        ([node("ReduceMean", ["x"], axes=[2, 3])], {}, 11),
        ([node("GatherND", ["x", "i"])], {"i": np.int64([[[0, 1], [0, -2]], [[-1, 0], [0, 0]]])}, 13),
        ([node("GatherND", ["x", "i"])], {"i": np.int64([[0, 1, -1, 2], [0, 0, 3, 4]])}, 13),
        ([node("GlobalAveragePool", ["x"])], {}, 13),
        ([node("HardSigmoid", ["x"], alpha=0.2, beta=0.5)], {}, 13),
        ([node("HardSwish", ["x"])], {}, 14),
        ([node("LRN", ["x"], size=3, alpha=0.5, beta=0.6, bias=2.0)], {}, 13),
        ([node("LRN", ["x"], size=1)], {}, 13),
        ([node("Sigmoid", ["x"], ["s"]), node("Mul", ["x", "s"])], {}, 13),
        ([node("Slice", ["x", "a", "b"])], {"a": np.int64([0, 1]), "b": np.int64([1, 2])}, 13),
        ([node("Upsample", ["x", "s"], mode="nearest")], {"s": np.float32([1, 1, 2, 2])}, 9),
        ([node("Resize", ["x", "s"], mode="nearest")], {"s": np.float32([1, 1, 2, 3])}, 10),
        ([node("Resize", ["x", "r", "s"], mode="linear")], {"r": np.float32([]), "s": np.float32([1, 1, 2, 2])}, 11),
        ([node("Resize", ["x", "", "s"], mode="nearest")], {"s": np.float32([1, 1, 2, 2])}, 13),
        (
            [
                node(
                    "Resize",
                    ["x", "", "", "s"],
                    mode="linear",
                    coordinate_transformation_mode="align_corners",
                )
            ],
            {"s": np.int64([1, 2, 7, 3])},
            18,
        ),
        ([node("Max", ["x", "w", "v"])], {"w": normal(1, 2, 1, 1), "v": np.float32(0)}, 13),
        ([node("MatMul", ["x", "w"])], {"w": normal(5, 3)}, 13),
        ([node("Softmax", ["x"], axis=1)], {}, 11),
        ([node("Softmax", ["x"], axis=1)], {}, 13),
        ([node("Sum", ["x", "x", "w"])], {"w": normal(1, 2, 1, 1)}, 13),
    ],
    ids=lambda value: value[0].op_type if isinstance(value, list) else None,
)
def test_other_operators(write_onnx, nodes, weights, opset):
    check(write_onnx(nodes, weights, [1, 2, 4, 5], opset))


def test_gemm_attributes_go_into_the_constants(write_onnx):
    weights = {"w": normal(6, 3), "b": normal(3)}
    model = check(write_onnx([node("Gemm", ["x", "w", "b"], alpha=0.5, beta=2.0)], weights, [1, 6]))
    assert operators(model) == ["matmul", "add"]


def test_shape_arithmetic_is_folded(write_onnx):
    """What PyTorch exports for ``x.view(x.size(0), -1)``, and for a bias that is expanded."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"], axis=0),
        node("Unsqueeze", ["batch", "axes"], ["batch1"]),
        node("Constant", [], ["rest"], value=helper.make_tensor("c", TensorProto.INT64, [1], [-1])),
        node("Concat", ["batch1", "rest"], ["target"], axis=0),
        node("Expand", ["bias", "shape"], ["expanded"]),
        node("Add", ["x", "expanded"], ["a"]),
        node("Reshape", ["a", "target"]),
    ]
    weights = {"zero": np.int64(0), "axes": np.int64([0]), "bias": normal(2, 1, 1)}
    assert operators(check(write_onnx(nodes, weights, [1, 2, 3, 3]))) == ["add", "reshape"]


def test_several_outputs(tmp_path):
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b/c:0"]), node("Abs", ["b/c:0"], ["b_c_0"])]
    spec = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("a", "b/c:0", "b_c_0", "x")]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph([*nodes, node("Identity", ["a"], ["same"])], "g", [entry], spec[:3])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    model = check(path)
    assert [spec.name for spec in model.outputs] == ["a", "b/c:0", "b_c_0"]
    assert len({name for name, _ in bindings(model.module["main"])}) == 3


@pytest.mark.parametrize("domain", ["onnx.brevitas", "qonnx.custom_op.general"])
def test_bipolar_quantisation(write_onnx, domain):
    weight = normal(2, 4)
    nodes = [
        node("BipolarQuant", ["x", "one"], ["s"], domain=domain),
        node("BipolarQuant", ["w", "half"], ["ws"], domain=domain),
        node("Transpose", ["ws"], ["wt"], perm=[1, 0]),
        node("MatMul", ["s", "wt"]),
    ]
    weights = {"w": weight, "one": np.float32(1), "half": np.float32([0.5])}
    model = load_model(write_onnx(nodes, weights, [1, 4]))
    x = np.float32([[0, -0.0, 2, -3]])
    expected = np.float32([[1, 1, 1, -1]]) @ (0.5 * np.where(weight >= 0, 1, -1)).T
    np.testing.assert_array_equal(reference.run(model.module, {"x": x})[0], expected)
    assert operators(model) == ["greater_equal", "where", "matmul"]


def test_local_functions_are_inlined(tmp_path):
    inner = helper.make_function(
        "local", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 13)]
    )
    entry, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Double", ["x"], ["y"], domain="local")], "g", [entry], [out])
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("local", 1)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, functions=[inner], ir_version=8), path)
    check(path)


def test_external_data(write_onnx):
    nodes, weights = network(13)
    path = write_onnx(
        nodes, weights, [1, 3, 8, 8], save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    assert (path.parent / "weights.bin").stat().st_size > 4 * weights["w0"].size
    check(path)


def test_xz(write_onnx, tmp_path):
    plain = write_onnx([node("Relu", ["x"])], {}, [1, 4])
    packed = tmp_path / "small.onnx.xz"
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    model = load_model(packed)
    assert (model.name, operators(model)) == ("small", ["nn.relu"])


def test_a_dynamic_batch_is_one(write_onnx):
    model = load_model(write_onnx([node("Relu", ["x"])], {}, ["N", 3, 4, 4]))
    assert model.inputs[0].shape == (1, 3, 4, 4)


def test_given_shapes(write_onnx):
    path = write_onnx([node("GlobalAveragePool", ["x"])], {}, ["N", 3, "H", "W"])
    model = check(path, shapes={"x": (1, 3, 6, 5)})
    assert model.inputs[0].shape == (1, 3, 6, 5)
    unranked = write_onnx([node("Relu", ["x"])], {}, None)
    assert load_model(unranked, ImportOptions(shapes={"x": (1, 7)})).inputs[0].shape == (1, 7)


def test_a_stated_batch_can_be_replaced(write_onnx):
    path = write_onnx([node("Relu", ["x"])], {}, [8, 3])
    assert load_model(path, ImportOptions(shapes={"x": (1, 3)})).inputs[0].shape == (1, 3)


def test_image_metadata(write_onnx):
    notes = {"Image.BitmapPixelFormat": "Bgr8", "Image.NominalPixelRange": "Normalized_0_1"}
    preprocessing = load_model(write_onnx([node("Relu", ["x"])], {}, [1, 3, 4, 4], notes=notes)).preprocessing
    assert preprocessing.channel_order == "BGR"
    assert preprocessing.scale == pytest.approx((1 / 255,) * 3)


def test_channels_last(write_onnx):
    model = load_model(write_onnx([node("Relu", ["x"])], {}, [1, 16, 12, 3]))
    assert model.inputs[0].layout == model.preprocessing.layout == "NHWC"
    assert (model.preprocessing.height, model.preprocessing.width) == (16, 12)


def test_a_block_as_pytorch_exports_it(shared):
    model = check(shared / "models" / "onnx" / "pt_reactnet_block.onnx", 1e-4)
    assert "astype" in operators(model)


def test_a_trained_binary_network_layer_by_layer(shared):
    """Each tensor from onnxruntime's own tensors before it: sums of signs exactly, the rest to 1e-4.

    From end to end the two differ: a rounding in the float stem may turn a sign.
    """
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime says what each layer gives")
    path = shared / "models" / "onnx" / "cifar10_resnet18_w1a1.onnx.xz"
    proto = onnx.load_model_from_string(lzma.decompress(path.read_bytes()))
    names = [made.output[0] for made in proto.graph.node]
    proto.graph.ClearField("output")
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    x = normal(1, 3, 28, 28) * 50
    tensors = dict(zip(names, runtime.InferenceSession(proto.SerializeToString()).run(None, {"data": x}), strict=True))
    tensors["data"] = x
    model = load_model(path)
    defined = [name for name, _ in bindings(model.module["main"])]
    compared = [name for name in defined if name in tensors]
    assert len(compared) == len(names)
    for name in compared:
        known = {other: tensor for other, tensor in tensors.items() if other != name}
        result = reference.evaluate(model.module, known, [name])[name]
        tolerance = 0 if name.endswith("_d") else 1e-4 * np.abs(tensors[name]).max()
        assert np.abs(result - tensors[name]).max() <= tolerance, name


def test_a_trained_qonnx_network(shared):
    """TFC_1W1A: its bits go through plain operators; QONNX's own semantics by hand."""
    model = load_model(shared / "models" / "onnx" / "TFC_1W1A.onnx")
    assert operators(model).count("where") == 4
    assert operators(model).count("matmul") == 4
    weights = [value.args[1].value.numpy() for _, value in bindings(model.module["main"]) if op_name(value) == "matmul"]
    assert all(set(np.unique(weight)) == {-1, 1} for weight in weights)


@pytest.mark.parametrize(
    ("photo", "expected", "score"), [("elephant.jpg", "African elephant", 0.94), ("coffee.png", "espresso", 0.99)]
)
def test_a_trained_network_knows_photos(shared, photo, expected, score):
    """Preprocessing stated as for MXNet's ImageNet models; the scores are onnxruntime's."""
    options = ImportOptions(
        labels=shared / "models" / "synset.txt", mean=(123.68, 116.779, 103.939), resize="short-side", resize_to=256
    )
    model = load_model(shared / "models" / "onnx" / "imagenet_resnet18_w1a1.onnx.xz", options)
    how = model.preprocessing
    image = Image.open(shared / "models" / "photos" / photo).convert("RGB")
    ratio = how.resize_to / min(image.size)
    image = image.resize([round(side * ratio) for side in image.size], Image.Resampling.BILINEAR)
    left, top = (image.width - how.width) // 2, (image.height - how.height) // 2
    pixels = np.asarray(image.crop((left, top, left + how.width, top + how.height)), np.float32)
    x = (pixels - np.float32(how.mean)) * np.float32(how.scale)
    scores = reference.run(model.module, {"data": x.transpose(2, 0, 1)[None]})[0][0]
    assert expected in model.labels[scores.argmax()]
    assert abs(scores.max() - score) < 0.1


@pytest.mark.parametrize(
    ("scale", "zero", "scales", "said"),
    [
        (1 / 255, np.uint8(0), (1 / 255,) * 3, "quantiser"),
        (2 / 255, np.uint8(128), (1 / 127.5,) * 3, "quantiser"),
        (0.0187, np.int8(-14), (1 / 58.395, 1 / 57.12, 1 / 57.375), "quantiser"),
        (0.5, np.uint8(7), (1.0,) * 3, ""),
    ],
)
def test_the_first_quantiser_tells_the_range_of_pixels(write_onnx, scale, zero, scales, said):
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"])]
    model = load_model(write_onnx(nodes, {"s": np.float32(scale), "z": zero}, [1, 3, 8, 8]))
    np.testing.assert_allclose(model.preprocessing.scale, scales, rtol=1e-5)
    assert said in model.origins.get("range", "")

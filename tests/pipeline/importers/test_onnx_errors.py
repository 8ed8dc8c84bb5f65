"""ONNX files that cannot be used: one line that names the file and the node."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bitkiln.pipeline.errors import ModelError, ShapeNeeded, UnsupportedLayer
from bitkiln.pipeline.importers import ImportOptions, load_model


def node(kind, inputs, outputs=("y",), **attributes):
    return helper.make_node(kind, list(inputs), list(outputs), name=f"the_{kind.lower()}", **attributes)


def refused(path, error=ModelError, match="", **options):
    with pytest.raises(error, match=match) as caught:
        load_model(path, ImportOptions(**options))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unsupported_operators(write_onnx):
    refused(
        write_onnx(
            [node("Relu", ["x"], ["r"]), node("LSTM", ["r", "w", "w"], ["y"])],
            {"w": np.ones((1, 4, 2), "f")},
            [1, 1, 2],
        ),
        UnsupportedLayer,
        r"node 'the_lstm' \(LSTM\)",
    )
    refused(
        write_onnx([node("Secret", ["x"])], {}, [1, 4]),
        UnsupportedLayer,
        r"node 'the_secret' \(Secret\).*not supported",
    )
    refused(
        write_onnx([node("Fancy", ["x"], domain="com.example")], {}, [1, 4]),
        UnsupportedLayer,
        r"node 'the_fancy' \(Fancy\) is of the domain 'com.example'",
    )


def test_a_node_without_a_name_is_named_by_its_output(write_onnx):
    nameless = helper.make_node("Secret", ["x"], ["y"])
    refused(write_onnx([nameless], {}, [1, 4]), UnsupportedLayer, r"node 'y' \(Secret\)")


def test_weights_that_are_computed(write_onnx):
    nodes = [node("Abs", ["x"], ["w"]), node("Conv", ["x", "w"])]
    refused(
        write_onnx(nodes, {}, [1, 1, 3, 3]), UnsupportedLayer, r"node 'the_conv' \(Conv\): its weight is not constant"
    )


def test_shapes_that_do_not_fit(write_onnx):
    refused(
        write_onnx([node("Conv", ["x", "w"])], {"w": np.ones((2, 5, 3, 3), "f")}, [1, 4, 8, 8]),
        match=r"node 'the_conv' \(Conv\): weight \(2, 5, 3, 3\) does not fit",
    )
    refused(write_onnx([node("Add", ["x", "w"])], {"w": np.ones(3, "f")}, [1, 4]), match=r"node 'the_add' \(Add\)")
    refused(
        write_onnx([node("Reshape", ["x", "s"])], {"s": np.int64([1, 5])}, [1, 4]),
        match=r"node 'the_reshape' \(Reshape\)",
    )


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("Conv", {"strides": [0, 1]}, "strides .* make no sense"),
        ("Conv", {"pads": [0, 0, -1, 0]}, "pads .* make no sense"),
        ("Conv", {"dilations": [1]}, "not those of two dimensions"),
        ("Conv", {"dilations": [4, 4]}, "gives an empty tensor"),
        ("Conv", {"group": 3}, "does not fit its input"),
        ("MaxPool", {}, "attribute 'kernel_shape' is missing"),
        ("MaxPool", {"kernel_shape": [9, 9]}, "gives an empty tensor"),
    ],
)
def test_windows_that_make_no_sense(write_onnx, kind, attributes, message):
    inputs, weights = (["x", "w"], {"w": np.ones((2, 4, 3, 3), "f")}) if kind == "Conv" else (["x"], {})
    path = write_onnx([node(kind, inputs, **attributes)], weights, [1, 4, 5, 5])
    refused(path, UnsupportedLayer, rf"node 'the_{kind.lower()}' \({kind}\).*{message}")


def test_reasons_are_free_of_internals(write_onnx):
    path = write_onnx([node("Add", ["x", "w"])], {"w": np.ones(3, "f")}, [1, 4])
    refused(path, UnsupportedLayer, r"cannot be converted: the first input shape at dim 1 is 4 and the second .* is 3")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_weights(write_onnx, value):
    weight = np.ones((2, 1, 3, 3), np.float32)
    weight[1, 0, 2, 2] = value
    refused(
        write_onnx([node("Conv", ["x", "bad_weight"])], {"bad_weight": weight}, [1, 1, 4, 4]),
        match="non-finite weight in bad_weight",
    )


def test_non_finite_weights_in_constant_nodes(write_onnx):
    tensor = helper.make_tensor("c", TensorProto.FLOAT, [2, 1, 1, 1], [1.0, float("nan")])
    nodes = [node("Constant", [], ["kernel"], value=tensor), node("Conv", ["x", "kernel"])]
    refused(write_onnx(nodes, {}, [1, 1, 4, 4]), match="non-finite weight in kernel")


def test_batch_normalisation_for_training(write_onnx):
    ones = np.ones(2, np.float32)
    nodes = [node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y", "", ""], training_mode=1)]
    path = write_onnx(nodes, {"g": ones, "b": ones, "m": ones, "v": ones}, [1, 2, 3, 3], 15)
    refused(path, UnsupportedLayer, "training mode")


def test_dynamic_shapes(write_onnx):
    path = write_onnx([node("Relu", ["x"])], {}, ["N", 3, "H", "W"])
    refused(path, ShapeNeeded, r"input 'x' has a dynamic shape; give it with --shape x=1,3,\?,\?")
    refused(path, ModelError, r"--shape z: the model's inputs are x", shapes={"z": (1, 3, 4, 4)})
    refused(path, ModelError, r"--shape x=1,4,4,4 does not fit the model's \?,3,\?,\?", shapes={"x": (1, 4, 4, 4)})
    refused(path, ModelError, r"does not fit", shapes={"x": (1, 3, 4)})
    refused(write_onnx([node("Relu", ["x"])], {}, None), ShapeNeeded, r"--shape x=1,3,224,224")


def test_several_images_at_once(write_onnx):
    """They are compiled as they are, in general kernels, and the user is told."""
    weights = {"w": np.ones((2, 3, 3, 3), np.float32)}
    model = load_model(write_onnx([node("Conv", ["x", "w"])], weights, [4, 3, 8, 8]))
    assert model.outputs[0].shape == (4, 2, 6, 6)
    assert model.preprocessing is None
    (warning,) = model.warnings
    assert "4 images" in warning
    assert "--shape x=1,3,8,8" in warning
    assert not load_model(write_onnx([node("Relu", ["x"])], {}, [4, 3])).warnings


def test_batches_that_the_file_fixes_within(write_onnx):
    path = write_onnx([node("Reshape", ["x", "s"])], {"s": np.int64([4, -1])}, [4, 16])
    model = load_model(path, ImportOptions(shapes={"x": (1, 16)}))
    assert model.outputs[0].shape == (4, 4)
    assert "still has 4 rows" in model.warnings[0]


def test_unsorted_nodes(write_onnx):
    nodes = [node("Relu", ["b"], ["y"]), node("Neg", ["a"], ["b"]), node("Abs", ["x"], ["a"])]
    assert load_model(write_onnx(nodes, {}, [1, 3])).outputs[0].shape == (1, 3)
    circle = [node("Add", ["x", "b"], ["y"]), node("Neg", ["y"], ["b"])]
    refused(write_onnx(circle, {}, [1, 3]), match="depends on its own result")


@pytest.mark.parametrize(("condition", "expected"), [(True, "abs"), (False, "negative")])
def test_constant_conditions_take_their_branch(write_onnx, condition, expected):
    branches = {}
    for name, kind in (("then_branch", "Abs"), ("else_branch", "Neg")):
        made = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        branches[name] = helper.make_graph([node(kind, ["x"], [f"{name}_y"])], name, [], [made])
    nodes = [node("If", ["c"], ["z"], **branches), node("Identity", ["z"], ["y"])]
    model = load_model(write_onnx(nodes, {"c": np.array(condition)}, [1, 3]))
    assert f"R.{expected}(" in str(model.module)


def test_conditions_that_depend_on_the_input(write_onnx):
    made = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branch = helper.make_graph([node("Abs", ["x"], ["z"])], "branch", [], [made])
    nodes = [node("ReduceSum", ["x"], ["s"], keepdims=0), node("Cast", ["s"], ["c"], to=TensorProto.BOOL)]
    nodes.append(node("If", ["c"], then_branch=branch, else_branch=branch))
    refused(write_onnx(nodes, {}, [1, 3]), UnsupportedLayer, "its condition depends on the input")


def test_inputs_of_other_types(write_onnx):
    path = write_onnx([node("Cast", ["x"], to=1)], {}, [1, 4], dtype=TensorProto.UINT16)
    refused(path, UnsupportedLayer, "input 'x' is uint16")


def test_old_opsets(write_onnx):
    refused(write_onnx([node("Relu", ["x"])], {}, [1, 4], opset=6), match="is of opset 6; export it again with opset 7")


def test_files_that_are_no_models(tmp_path, write_onnx):
    path = tmp_path / "text.onnx"
    path.write_text("certainly not a model, but text of some length")
    refused(path, match="is not an ONNX model")
    whole = write_onnx([node("Conv", ["x", "w"])], {"w": np.ones((8, 4, 3, 3), "f")}, [1, 4, 8, 8])
    whole.write_bytes(whole.read_bytes()[:-400])
    refused(whole, match="is not an ONNX model, or is truncated")
    packed = tmp_path / "net.onnx.xz"
    packed.write_bytes(b"\xfd7zXZ\0 and then nonsense")
    refused(packed, match="is not a readable xz file")


def test_tensors_that_nothing_makes(write_onnx):
    refused(write_onnx([node("Relu", ["z"])], {}, [1, 4]), match=r"node 'the_relu' \(Relu\) uses 'z'")
    refused(write_onnx([node("Relu", ["x"], ["r"])], {}, [1, 4]), match="output 'y' is made by no node")


def test_weights_that_do_not_fill_their_shape(write_onnx):
    path = write_onnx([node("Add", ["x", "w"])], {"w": np.ones(4, "f")}, [1, 4])
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 5
    onnx.save(model, path)
    refused(path, match="weight 'w' does not fill its shape")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../secret.bin"}, "is not inside the model's folder"),
        ({"location": "/etc/passwd"}, "is not inside the model's folder"),
        ({"location": "link.bin"}, "is not inside the model's folder"),
        ({"location": ""}, "is not inside the model's folder"),
        ({"location": "missing.bin"}, "missing.bin: No such file"),
        ({"location": "short.bin"}, "short.bin ends before byte 16"),
        ({"location": "short.bin", "offset": "-4"}, "bytes at -4"),
        ({"location": "short.bin", "offset": "many"}, "is no number"),
        ({"location": "short.bin", "length": "8"}, "8 bytes at 0 given"),
        ({"location": "short.bin", "offset": str(2**63)}, "bytes at 9223372036854775808"),
        ({"location": "short.bin", "offset": "9" * 5000}, "is no number"),
        ({"location": "short.bin\0x"}, "is not inside the model's folder"),
        ({"location": "pipe"}, "pipe: is not a file"),
        ({"location": "folder"}, "folder: is a folder"),
    ],
    ids=range(14),
)
def test_external_data_is_checked(write_onnx, entries, message):
    path = write_onnx([node("Add", ["x", "w"])], {"w": np.ones(4, "f")}, [1, 4])
    (path.parent / "short.bin").write_bytes(b"\0" * 8)
    (path.parent / "link.bin").symlink_to("/etc/passwd")
    os.mkfifo(path.parent / "pipe")
    (path.parent / "folder").mkdir()
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    refused(path, match=message)


def test_damaged_bytes_never_surprise(write_onnx):
    """Random bytes of a file changed: a model, or one line that says what is wrong."""
    weights = {"w": np.ones((2, 1, 3, 3), "f"), "s": np.int64([1, -1])}
    nodes = [node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), node("Reshape", ["c", "s"])]
    path = write_onnx(nodes, weights, [1, 1, 6, 6])
    content = path.read_bytes()
    rng = np.random.default_rng(2)
    for _ in range(300):
        damaged = bytearray(content)
        for at in rng.integers(len(damaged), size=2):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            load_model(path)
        except ModelError as error:
            assert len(str(error).splitlines()) == 1


def test_operands_that_are_left_out_and_needed(write_onnx):
    nodes = [node("Einsum", ["", "x"], equation="ij,jk->ik")]
    refused(write_onnx(nodes, {}, [1, 4]), ModelError, r"node 'the_einsum' \(Einsum\): lacks operand 0")


def test_transposed_convolutions_that_runtimes_make_of_other_sizes(write_onnx):
    """SAME asks for twice the size where windows of one pixel reach one less: onnxruntime gives what they reach."""
    weights = {"w": np.ones((3, 2, 1, 1), "f")}
    path = write_onnx([node("ConvTranspose", ["x", "w"], strides=[2, 2], auto_pad="SAME_UPPER")], weights, [1, 3, 4, 4])
    refused(path, UnsupportedLayer, "auto_pad=SAME_UPPER asks for")

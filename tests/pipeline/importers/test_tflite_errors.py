"""TensorFlow Lite files that are refused: damaged, quantised, unknown; and what a user may leave open."""

from __future__ import annotations

import random
import struct
import zipfile

import numpy as np
import pytest

from benchmarks.tflite_file import TfliteFile
from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import BitkilnError, ModelError, ShapeNeeded, UnsupportedLayer
from bitkiln.pipeline.importers import ImportOptions, load_model
from tests.pipeline.importers.test_tflite_layers import VALID, ints, normal
from tests.pipeline.importers.test_tflite_lce import small


@pytest.fixture
def write(tmp_path):
    """``write(file, source, result)``: the path of the model; or of these bytes."""

    def write_model(file, source=0, result=0):
        path = tmp_path / "network.tflite"
        path.write_bytes(file if isinstance(file, bytes) else file.write(source, result))
        return path

    return write_model


def refused(path, error=ModelError, **options):
    with pytest.raises(error) as refusal:
        load_model(path, ImportOptions(**options))
    message = str(refusal.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def network(shape=(1, 4, 4, 3), **details):
    file = TfliteFile()
    source = file.tensor(shape, name="image", **details)
    weight = file.constant(normal(8, 3, 3, 3))
    window = {"Padding": VALID, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
    conv = file.operator("CONV_2D", [source, weight, file.constant(normal(8))], (1, 2, 2, 8), "Conv2DOptions", **window)
    flat = file.operator("RESHAPE", [conv, file.constant(ints(-1, 32))], (1, 32), "ReshapeOptions")
    return file, source, file.operator("SOFTMAX", [flat], (1, 32), "SoftmaxOptions", Beta=1.0)


def test_files_that_are_none(write):
    assert "its identifier is not TFL3" in refused(write(b"no model at all"))
    assert "the file is empty" in refused(write(b""))
    assert "its identifier is not TFL3" in refused(write(b"TFL3TFL1" + bytes(100)))
    assert "is damaged" in refused(write(struct.pack("<I", 1 << 31) + b"TFL3" + bytes(100)))
    whole = network()[0].write(0, 5)
    for length in range(8, len(whole), 7):
        try:
            load_model(write(whole[:length]))
        except ModelError as error:
            assert "\n" not in str(error)


def test_damaged_files_end_in_one_line(write):
    """Bits turned and words replaced anywhere: read all the same, or refused in one line."""
    source = random.Random(7)
    files = [bytearray(network()[0].write(0, 5))]
    binary = TfliteFile()
    files.append(bytearray(binary.write(*small(binary))))
    for _ in range(300):
        damaged = bytearray(source.choice(files))
        for _ in range(source.choice([1, 1, 2, 5])):
            at = source.randrange(8, len(damaged) - 4)
            words = [b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", bytes(4), damaged[at - 4 : at]]
            damaged[at : at + 4] = source.choice(words)
        try:
            load_model(write(bytes(damaged)))
        except BitkilnError as error:
            assert "\n" not in str(error)
            assert "internal error" not in str(error)


def test_vectors_that_claim_too_much(write):
    """A vector of tables is walked only as far as the file can hold it."""
    content = network()[0].write(0, 5)
    at = content.index(struct.pack("<4i", 1, 4, 4, 3)) - 4
    claimed = content[:at] + struct.pack("<I", 1 << 28) + content[at + 4 :]
    assert "it claims more than its" in refused(write(claimed))


def test_unknown_operators_are_named(write):
    file, source, result = network()
    unknown = file.operator("SVDF", [result], (1, 32))
    message = refused(write(file, source, unknown), UnsupportedLayer)
    assert "operator 3 (SVDF) making 'tensor_" in message
    assert "operators of this type are not supported" in message
    custom = file.custom("My\nop", [result], (1, 32))
    message = refused(write(file, source, custom), UnsupportedLayer)
    assert "operator 4 ('My\\nop')" in message
    assert "custom operators of this type" in message


def test_operators_that_nothing_needs_are_left_out(write):
    file, source, result = network()
    file.operator("SVDF", [result], (1, 32))
    assert load_model(write(file, source, result)).outputs[0].shape == (1, 32)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_quantised_networks_are_refused_by_tensor(write, dtype):
    file = TfliteFile()
    source = file.tensor((1, 4), name="x")
    quantised = file.operator("QUANTIZE", [source], (1, 4), dtype=dtype)
    result = file.operator("DEQUANTIZE", [quantised], (1, 4))
    message = refused(write(file, source, result), UnsupportedLayer)
    assert f"(QUANTIZE) making 'tensor_1': tensor 1 'tensor_1' is {dtype}; quantised networks" in message


def test_weights_of_eight_bits_for_floats_count_as_floats(write):
    file = TfliteFile()
    source = file.tensor((1, 4))
    weight = file.constant(np.arange(8, dtype=np.int8).reshape(2, 4), scale=0.5)
    result = file.operator("FULLY_CONNECTED", [source, weight], (1, 2), "FullyConnectedOptions")
    model = load_model(write(file, source, result))
    x = np.float32([[1, 2, 3, 4]])
    (got,) = reference.run(model.module, {model.module["main"].params[0].name: x})
    np.testing.assert_allclose(got, x @ (0.5 * np.arange(8).reshape(2, 4).T))
    assert "computed in floats" in model.warnings[0]


def test_inputs_must_be_floats_or_words(write):
    file = TfliteFile()
    source = file.tensor((1, 4), "int32", name="x")
    result = file.operator("CAST", [source], (1, 4), "CastOptions")
    assert "input 'x' is int32; inputs of float32" in refused(write(file, source, result), UnsupportedLayer)


def test_outputs_must_depend_on_the_input(write):
    file, source, _ = network()
    constant = file.operator("SQRT", [file.constant(np.ones((1, 4), np.float32))], (1, 4))
    assert "does not depend on the input" in refused(write(file, source, constant), UnsupportedLayer)


def test_tensors_used_before_they_are_made(write):
    file, source, result = network()
    file.operators.reverse()
    assert "which nothing before it makes" in refused(write(file, source, result))


def test_weights_that_are_no_numbers(write):
    file, source, result = network()
    file.tensors[1].values[0, 0, 0, 0] = np.nan
    assert "non-finite weight in tensor 1" in refused(write(file, source, result))


def test_weights_that_do_not_fill_their_shape(write):
    file, source, result = network()
    content = file.write(source, result)
    at = content.index(struct.pack("<4i", 8, 3, 3, 3))
    shorter = content[:at] + struct.pack("<4i", 8, 3, 3, 2) + content[at + 16 :]
    assert "has 864 bytes, its shape [8, 3, 3, 2] needs 576" in refused(write(shorter))
    absurd = content[:at] + struct.pack("<4i", 1 << 30, 1 << 30, 3, 3) + content[at + 16 :]
    assert "has the absurd shape" in refused(write(absurd))


def test_an_open_batch_is_one(write):
    model = load_model(write(*network((1, 4, 4, 3), signature=(-1, 4, 4, 3))))
    assert (model.inputs[0].name, model.inputs[0].shape, model.inputs[0].layout) == ("image", (1, 4, 4, 3), "NHWC")
    assert (model.preprocessing.height, model.preprocessing.channel_order, model.preprocessing.layout) == (
        4,
        "RGB",
        "NHWC",
    )


def test_open_sizes_are_asked_for(write):
    path = write(*network((1, 1, 1, 3), signature=(-1, -1, -1, 3)))
    assert "give it with --shape image=1,?,?,3" in refused(path, ShapeNeeded)
    assert load_model(path, ImportOptions(shapes={"image": (1, 4, 4, 3)})).inputs[0].shape == (1, 4, 4, 3)
    assert "does not fit the model's ?,?,?,3" in refused(path, shapes={"image": (1, 4, 4, 5)})
    assert "the model's inputs are image" in refused(path, shapes={"other": (1, 4, 4, 3)})
    assert "has a batch of 2; give --shape image=1,4,4,3" in refused(path, shapes={"image": (2, 4, 4, 3)})


def test_a_fixed_batch_can_be_made_one(write):
    path = write(*network((2, 4, 4, 3)))
    assert "has a batch of 2" in refused(path)
    assert load_model(path, ImportOptions(shapes={"image": (1, 4, 4, 3)})).outputs[0].shape == (1, 32)


def test_labels_of_the_metadata(write, tmp_path):
    """A zip archive behind the model, as TensorFlow Lite's metadata writer makes it."""
    path = write(*network())
    names = [f"class {index}" for index in range(32)]
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme.txt", "one line")
        archive.writestr("labels.txt", "\n".join(names) + "\n")
    assert load_model(path).labels == tuple(names)
    content = bytearray(path.read_bytes())
    content[-200:-150] = bytes(50)
    path.write_bytes(content)
    assert load_model(path).labels in ((), tuple(names))


def test_labels_that_unpack_to_too_much(write):
    path = write(*network())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", "\n" * (3 << 20))
    assert load_model(path).labels == ()

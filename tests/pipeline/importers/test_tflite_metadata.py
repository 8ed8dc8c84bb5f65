"""TensorFlow Lite's metadata says how photos are prepared."""

from __future__ import annotations

import flatbuffers
import pytest

from bitkiln.pipeline.importers.tflite.metadata import Normalization, normalization


def _offsets(build, values):
    build.StartVector(4, len(values), 4)
    for value in reversed(values):
        build.PrependUOffsetTRelative(value)
    return build.EndVector()


def _floats(build, values):
    build.StartVector(4, len(values), 4)
    for value in reversed(values):
        build.PrependFloat32(value)
    return build.EndVector()


def _table(build, fields, byte=None):
    """Offsets by the number of their field, and one field of a byte."""
    build.StartObject(8)
    for number, value in fields.items():
        build.PrependUOffsetTRelativeSlot(number, value, 0)
    if byte:
        build.PrependUint8Slot(byte[0], byte[1], 0)
    return build.EndObject()


def metadata(mean, std, kind=1):
    """The bytes of a ModelMetadata with one process unit."""
    build = flatbuffers.Builder()
    means, stds = _floats(build, mean), _floats(build, std)
    unit = _table(build, {1: _table(build, {0: means, 1: stds})}, byte=(0, kind))
    tensor = _table(build, {4: _offsets(build, [unit])})
    subgraph = _table(build, {2: _offsets(build, [tensor])})
    build.Finish(_table(build, {3: _offsets(build, [subgraph])}), file_identifier=b"M001")
    return bytes(build.Output())


def test_mean_and_deviation():
    assert normalization(metadata([127.5], [128.0])) == Normalization((127.5,), (128.0,))
    three = normalization(metadata([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]))
    assert three == Normalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        metadata([1.0], [0.0]),
        metadata([float("nan")], [1.0]),
        metadata([], []),
        metadata([1.0], [1.0], 2),
    ],
)
def test_what_is_no_normalisation_is_passed_over(content):
    assert normalization(content) is None


def test_damaged_bytes_are_passed_over():
    content = bytearray(metadata([127.5], [127.5]))
    for at in range(8, len(content)):
        damaged = bytearray(content)
        damaged[at] = 0xFF
        normalization(bytes(damaged))
        normalization(bytes(content[:at]))

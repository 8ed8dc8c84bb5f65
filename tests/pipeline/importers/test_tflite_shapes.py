"""TensorFlow Lite's operators that move data or speak of shapes, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln.pipeline.errors import ModelError
from tests.pipeline.importers.test_tflite_layers import check, ints, normal

X = normal(1, 3, 4, 8)


def one(operator, table="", *constants, **options):
    """A network of one operator of X and these constants."""

    def draw(shape):
        def add(file, source):
            return file.operator(operator, [source, *map(file.constant, constants)], shape, table, **options)

        return add

    return draw


CASES = {
    "reshape by an operand": (one("RESHAPE", "", ints(1, 2, 48)), X.reshape(1, 2, 48)),
    "reshape by an option": (one("RESHAPE", "ReshapeOptions", NewShape=[4, -1, 3]), X.reshape(4, 8, 3)),
    "squeeze": (one("SQUEEZE", "SqueezeOptions", SqueezeDims=[-4]), X[0]),
    "squeeze all": (one("SQUEEZE", "SqueezeOptions"), X[0]),
    "expand": (one("EXPAND_DIMS", "ExpandDimsOptions", ints(-2)), X[:, :, :, None]),
    "pad": (
        one("PAD", "PadOptions", ints(0, 0, 1, 2, 0, 3, 0, 0).reshape(4, 2)),
        np.pad(X, ((0, 0), (1, 2), (0, 3), (0, 0))),
    ),
    "pad with a value": (
        one("PADV2", "PadV2Options", ints(0, 0, 1, 0, 2, 0, 0, 1).reshape(4, 2), np.float32(-1.5)),
        np.pad(X, ((0, 0), (1, 0), (2, 0), (0, 1)), constant_values=-1.5),
    ),
    "reflect": (
        one("MIRROR_PAD", "MirrorPadOptions", ints(0, 0, 1, 2, 3, 1, 0, 0).reshape(4, 2), Mode=0),
        np.pad(X, ((0, 0), (1, 2), (3, 1), (0, 0)), mode="reflect"),
    ),
    "symmetric": (
        one("MIRROR_PAD", "MirrorPadOptions", ints(0, 0, 3, 1, 0, 0, 0, 2).reshape(4, 2), Mode=1),
        np.pad(X, ((0, 0), (3, 1), (0, 0), (0, 2)), mode="symmetric"),
    ),
    "transpose": (one("TRANSPOSE", "TransposeOptions", ints(0, 3, 1, 2)), X.transpose(0, 3, 1, 2)),
    "slice": (one("SLICE", "SliceOptions", ints(0, 1, 0, 2), ints(-1, 2, -1, 3)), X[:, 1:3, :, 2:5]),
    "strided slice": (
        one(
            "STRIDED_SLICE",
            "StridedSliceOptions",
            ints(0, 9, 1, 0),
            ints(0, 9, 4, 7),
            ints(1, 1, 2, 3),
            BeginMask=2,
            EndMask=3,
        ),
        X[:, :, 1:4:2, 0:7:3],
    ),
    "strided slice that drops an axis": (
        one(
            "STRIDED_SLICE",
            "StridedSliceOptions",
            ints(0, -1, 0),
            ints(0, 0, 0),
            ints(1, 1, 1),
            EndMask=5,
            ShrinkAxisMask=2,
        ),
        X[:, -1],
    ),
    "strided slice backwards": (
        one(
            "STRIDED_SLICE",
            "StridedSliceOptions",
            ints(0, 2, 0),
            ints(1, 0, 0),
            ints(1, -1, -2),
            BeginMask=4,
            EndMask=6,
        ),
        X[:, ::-1, ::-2],
    ),
    "depth to space": (
        one("DEPTH_TO_SPACE", "DepthToSpaceOptions", BlockSize=2),
        X.reshape(1, 3, 4, 2, 2, 2).transpose(0, 1, 3, 2, 4, 5).reshape(1, 6, 8, 2),
    ),
    "tile": (one("TILE", "", ints(1, 2, 1, 3)), np.tile(X, (1, 2, 1, 3))),
    "broadcast": (one("BROADCAST_TO", "", ints(2, 3, 4, 8)), np.broadcast_to(X, (2, 3, 4, 8))),
    "gather": (
        one("GATHER", "GatherOptions", ints(3, 0, 3, 1).reshape(2, 2), Axis=2),
        X.take([[3, 0], [3, 1]], axis=2),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operators(tmp_path, name):
    draw, expected = CASES[name]
    check(tmp_path, X, draw(expected.shape), expected, tolerance=0)


def test_space_to_depth(tmp_path):
    x = normal(1, 4, 6, 3)
    expected = x.reshape(1, 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(1, 2, 3, 12)
    check(tmp_path, x, one("SPACE_TO_DEPTH", "SpaceToDepthOptions", BlockSize=2)(expected.shape), expected, 0)


def test_joining_and_parting(tmp_path):
    def draw(file, source):
        halves = file.operator_of_many(
            "SPLIT", [file.constant(ints(-1)), source], [(1, 3, 4, 4)] * 2, "SplitOptions", NumSplits=2
        )
        parts = file.operator_of_many(
            "SPLIT_V",
            [source, file.constant(ints(1, -1)), file.constant(ints(2))],
            [(1, 3, 1, 8), (1, 3, 3, 8)],
            "SplitVOptions",
            NumSplits=2,
        )
        rows = file.operator_of_many("UNPACK", [source], [(1, 4, 8)] * 3, "UnpackOptions", Num=3, Axis=1)
        packed = file.operator("PACK", rows[::-1], (1, 4, 3, 8), "PackOptions", ValuesCount=3, Axis=-2)
        joined = file.operator("CONCATENATION", parts[::-1], X.shape, "ConcatenationOptions", Axis=-2)
        return [*halves, joined, packed]

    expected = [X[..., :4], X[..., 4:], np.roll(X, -1, axis=2), X[:, ::-1].transpose(0, 2, 1, 3)]
    check(tmp_path, X, draw, expected, tolerance=0)


def test_shapes_computed_by_the_file(tmp_path):
    """How exporters flatten with an open batch: [shape(x)[0], -1]."""

    def draw(file, source):
        shape = file.operator("SHAPE", [source], (4,), "ShapeOptions", dtype="int32", OutType=2)
        bounds = [file.constant(ints(at)) for at in (0, 1, 1)]
        batch = file.operator(
            "STRIDED_SLICE", [shape, *bounds], (), "StridedSliceOptions", dtype="int32", ShrinkAxisMask=1
        )
        rest = file.constant(np.array(-1, np.int32))
        target = file.operator("PACK", [batch, rest], (2,), "PackOptions", dtype="int32", ValuesCount=2)
        filled = file.operator("FILL", [file.constant(ints(1, 96)), file.constant(np.float32(0.5))], (1, 96))
        flat = file.operator("RESHAPE", [source, target], (1, 96), "ReshapeOptions")
        zeros = file.operator("ZEROS_LIKE", [filled], (1, 96))
        level = file.operator("ADD", [filled, zeros], (1, 96), "AddOptions")
        return file.operator("ADD", [flat, level], (1, 96), "AddOptions")

    check(tmp_path, X, draw, X.reshape(1, -1) + np.float32(0.5), tolerance=0)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (one("RESHAPE", "", ints(5, -1)), r"makes \[5, 19\] of \[1, 3, 4, 8\]"),
        (one("RESHAPE", "", ints(0, 96)), r"makes \[0, 96\]"),
        (one("SQUEEZE", "SqueezeOptions", SqueezeDims=[1]), r"removes the axes \[1\]"),
        (one("TRANSPOSE", "", ints(0, 1, 2, 2)), "permutes 4 axes"),
        (one("SLICE", "", ints(0, 2, 0, 0), ints(1, 2, 4, 8)), r"takes \[1, 2, 4, 8\] at"),
        (one("PAD", "", ints(0, -1, 0, 0, 0, 0, 0, 0).reshape(4, 2)), r"pads \[1, 3, 4, 8\] by"),
        (one("MIRROR_PAD", "MirrorPadOptions", ints(0, 0, 3, 0, 0, 0, 0, 0).reshape(4, 2)), "mirrors 3 of 3"),
        (one("TILE", "", ints(1, 1 << 20, 1 << 20, 1)), "repeats"),
        (one("BROADCAST_TO", "", ints(1 << 24, 3, 4, 8)), "absurd shape"),
        (one("GATHER", "GatherOptions", ints(4), Axis=2), "outside of the 4 elements"),
        (one("EXPAND_DIMS", "", ints(9)), "axis 9 of 5"),
        (one("CONCATENATION", "ConcatenationOptions", normal(1, 3, 5, 8), Axis=3), "cannot be converted"),
    ],
)
def test_nonsense_is_refused(tmp_path, draw, message):
    with pytest.raises(ModelError, match=message) as refusal:
        check(tmp_path, X, draw((1,)), X)
    assert "\n" not in str(refusal.value)
    assert "operator 0 (" in str(refusal.value)

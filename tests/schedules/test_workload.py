"""Workloads: shapes, identity, JSON."""

from dataclasses import fields, replace

import pytest

from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import (
    Binarize,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Pool,
    Pool2d,
    QConv2d,
    Resize,
    Signs,
    from_json,
    to_json,
)

EXAMPLES = (
    Conv2d(56, 56, 64, 64, (3, 3), padding=(1, 1, 1, 1)),
    Conv2d(
        7,
        9,
        20,
        40,
        (3, 1),
        (2, 1),
        (1, 0, 0, 0),
        (1, 1),
        2,
        binary=True,
        pad_value=1,
        epilogue=(Step("mul", "channel"),),
    ),
    Conv2d(14, 14, 12, 16, (3, 3), binary=True, out="bits", threshold="element"),
    Conv2d(14, 14, 12, 16, (3, 3), binary=True, out="bits", threshold="element", thresholds=2),
    Conv2d(
        224, 224, 3, 16, (3, 3), epilogue=(Step("add", "channel"), Step("relu")), pool=Pool((2, 2), (2, 2)), out="bits"
    ),
    Binarize(4, 4, 12, (Step("clip", values=(0.0, 6.0)),), sign_zero=-1),
    Pool2d(8, 8, 12, Pool((3, 3), (2, 2), (1, 1, 1, 1)), bits=True, invert=True),
    Conv2d(56, 56, 64, 64, (3, 3), padding=(1, 1, 1, 1), shift=True),
    Conv2d(56, 56, 64, 64, (3, 3), padding=(1, 1, 1, 1), layout="NCHW"),
    QConv2d(56, 56, 64, 64, (1, 1), zero=-3, out_zero=4, segment=4, segments=16),
)


@pytest.mark.parametrize("workload", EXAMPLES, ids=lambda workload: workload.key())
def test_json_round_trip(workload):
    assert from_json(to_json(workload)) == workload


def test_keys_tell_workloads_apart():
    assert len({workload.key() for workload in EXAMPLES}) == len(EXAMPLES)


#: Another value of each field. A binary convolution's pad value, and thresholds, are told by keys of such alone.
OTHERS = {
    "int": lambda value: value + 1,
    "bool": lambda value: not value,
    "tuple[int, int]": lambda value: (value[0], value[1] + 1),
    "tuple[int, int, int, int]": lambda value: (*value[:3], value[3] + 1),
    "tuple[int, ...]": lambda value: (*value[:-1], value[-1] + 1) if value else (4, 4),
    "tuple[Step, ...]": lambda value: (*value, Step("round")),
    "tuple[Signs, ...]": lambda value: (*value, Signs((Step("relu"),), -1)),
    "Pool": lambda value: replace(value, count_include_pad=not value.count_include_pad),
    "Pool | None": lambda value: Pool((2, 2), (2, 2)) if value is None else None,
    "str": lambda value: {"float32": "bits", "bits": "float32", "NHWC": "NCHW", "channel": "element"}.get(
        value, "other"
    ),
}
#: Where a convolution finds its data is no part of what it computes.
WHERE = ("parts", "begins", "widths")
#: Workloads for which every field says something; those that it cannot say anything in are left out.
FULL = [
    (Conv2d(9, 9, 8, 8, (3, 3), out="bits"), {"pad_value", "thresholds", *WHERE}),
    (
        Conv2d(9, 9, 8, 8, (3, 3), binary=True, out="bits", threshold="channel", thresholds=2),
        {"out", "sign_zero", *WHERE},
    ),
    (ConvTranspose2d(9, 9, 8, 8, (3, 3)), set()),
    (QConv2d(9, 9, 8, 8, (3, 3), segment=4, segments=18), set()),
    (Binarize(9, 9, 8, signs=(Signs(),)), set()),
    (Pool2d(9, 9, 8, Pool((3, 3), (2, 2)), out="bits"), set()),
    (Concat(9, 9, (8, 8), begins=(0, 8), widths=(16, 24)), set()),
    (Resize(9, 9, 8, (18, 18), "linear", "half_pixel"), set()),
]


@pytest.mark.parametrize(("workload", "silent"), FULL, ids=lambda value: getattr(value, "tag", ""))
def test_keys_tell_every_field(workload, silent):
    changed = {
        each.name: replace(workload, **{each.name: OTHERS[each.type](getattr(workload, each.name))})
        for each in fields(workload)
    }
    assert {name for name, other in changed.items() if other.key() == workload.key()} == silent


def test_shapes_of_a_binary_convolution_with_element_thresholds():
    data, weight, thresholds, out = EXAMPLES[2].shapes
    assert data == ((1, 14, 14, 2), "uint8")
    assert weight == ((16, 3, 3, 2), "uint8")
    assert thresholds == ((12, 12, 16), "int32")
    assert EXAMPLES[3].shapes[2] == ((2, 12, 12, 16), "int32")
    assert EXAMPLES[3].key().endswith("threshold:elementx2")
    assert out == ((1, 12, 12, 2), "uint8")


def test_operands_have_the_size_before_pooling():
    workload = Conv2d(
        8, 8, 3, 16, (3, 3), padding=(1, 1, 1, 1), epilogue=(Step("prelu", "element"),), pool=Pool((2, 2), (2, 2))
    )
    assert workload.shapes[2] == ((8, 8, 16), "float32")
    assert workload.shapes[-1] == ((1, 4, 4, 16), "float32")


def test_macs_and_sizes_with_stride_and_groups():
    workload = EXAMPLES[1]
    assert workload.conv_size == ((7 + 1 - 3) // 2 + 1, 9)
    assert workload.macs == 3 * 9 * 40 * 3 * 10


def test_a_step_that_needs_an_operand_is_refused_without():
    with pytest.raises(ValueError, match="prelu"):
        Step("prelu")
    with pytest.raises(ValueError, match="unknown epilogue step"):
        Step("frobnicate")

"""Which module implements a workload."""

from __future__ import annotations

from bitkiln.schedules import bconv2d as binary_conv2d
from bitkiln.schedules import (
    binarize,
    concat,
    conv2d,
    conv2d_transpose,
    depth_first,
    generic,
    lookup,
    normalize,
    pool2d,
    product,
    qconv2d,
    resize2d,
    softmax,
)
from bitkiln.schedules.kernel import Operator
from bitkiln.schedules.workload import (
    Attention,
    Binarize,
    Concat,
    Conv2d,
    ConvTranspose2d,
    DepthFirst,
    Generic,
    Lookup,
    Normalize,
    Pool2d,
    Product,
    QConv2d,
    Resize,
    Softmax,
    Tunable,
)

#: Part of a tuning record's identity: records of another version are kept but not used.
SCHEDULE_VERSION = 1


_OPERATORS: dict[type[Tunable], Operator] = {
    QConv2d: qconv2d,
    ConvTranspose2d: conv2d_transpose,
    Concat: concat,
    DepthFirst: depth_first,
    Generic: generic,
    Resize: resize2d,
    Lookup: lookup,
    Binarize: binarize,
    Pool2d: pool2d,
    Product: product,
    Attention: product,
    Softmax: softmax,
    Normalize: normalize,
}


def operator_for(workload: Tunable) -> Operator:
    """The operator module that computes ``workload``."""
    if isinstance(workload, Conv2d):
        return binary_conv2d if workload.binary else conv2d
    return _OPERATORS[type(workload)]

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
    pool2d,
    qconv2d,
    resize2d,
)
from bitkiln.schedules.kernel import Operator
from bitkiln.schedules.workload import (
    Binarize,
    Concat,
    Conv2d,
    ConvTranspose2d,
    DepthFirst,
    Generic,
    Lookup,
    QConv2d,
    Resize,
    Tunable,
)

#: Part of a tuning record's identity: records of another version are kept but not used.
SCHEDULE_VERSION = 1


def operator_for(workload: Tunable) -> Operator:
    """The operator module that computes ``workload``."""
    if isinstance(workload, Conv2d):
        return binary_conv2d if workload.binary else conv2d
    if isinstance(workload, QConv2d):
        return qconv2d
    if isinstance(workload, Lookup):
        return lookup
    if isinstance(workload, ConvTranspose2d):
        return conv2d_transpose
    if isinstance(workload, DepthFirst):
        return depth_first
    if isinstance(workload, Concat):
        return concat
    if isinstance(workload, Generic):
        return generic
    if isinstance(workload, Resize):
        return resize2d
    return binarize if isinstance(workload, Binarize) else pool2d

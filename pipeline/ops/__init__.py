"""Our Relax operators. Importing this package registers them; the constructors make calls of them."""

from bitkiln.pipeline.ops.activations import hardswish, prelu
from bitkiln.pipeline.ops.binarize import binarize
from bitkiln.pipeline.ops.bits import pack_bits, unpack_bits
from bitkiln.pipeline.ops.concat import concat
from bitkiln.pipeline.ops.conv2d import bconv2d, bdense, conv2d, conv2d_transpose
from bitkiln.pipeline.ops.depth_first import depth_first
from bitkiln.pipeline.ops.lookup import lookup
from bitkiln.pipeline.ops.matrices import attention, product
from bitkiln.pipeline.ops.pool2d import bmaxpool2d, pool2d
from bitkiln.pipeline.ops.qconv2d import qconv2d
from bitkiln.pipeline.ops.register import WORKLOAD_ATTR, call_of, has_workload, workload_of
from bitkiln.pipeline.ops.resize2d import resize2d
from bitkiln.pipeline.ops.rows import normalize, softmax

__all__ = [
    "WORKLOAD_ATTR",
    "attention",
    "bconv2d",
    "bdense",
    "binarize",
    "bmaxpool2d",
    "call_of",
    "concat",
    "conv2d",
    "conv2d_transpose",
    "depth_first",
    "hardswish",
    "has_workload",
    "lookup",
    "normalize",
    "pack_bits",
    "pool2d",
    "prelu",
    "product",
    "qconv2d",
    "resize2d",
    "softmax",
    "unpack_bits",
    "workload_of",
]

"""Products of two stacks of matrices that are both computed while the network runs, alone or with a softmax between two.

The second matrix is packed into panels of a tile's columns, whatever its strides; rows of the first are read where they lie or
copied, a block of tiles at a time. Products are the register tiles of convolutions. What transposes, reshapes and slices would
have moved is strides of the matrices here (``workload.Matrices``).
"""

from __future__ import annotations

from tvm import tirx

from bitkiln.schedules.conv2d import tiles
from bitkiln.schedules.kernel import Kernel, Knobs, size_of, size_text
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.product import definition
from bitkiln.schedules.product.attention import emit_attention
from bitkiln.schedules.product.plain import emit_product
from bitkiln.schedules.workload import Attention, Product
from bitkiln.targets import Target

#: Rows of a matrix that a tile of all rows would leave a large part of empty.
_FEW = 4


def reference(workload: Product | Attention) -> tirx.PrimFunc:
    """The plain definition: arguments as ``workload.shapes`` lists them, the output last."""
    return definition.attention(workload) if isinstance(workload, Attention) else definition.product(workload)


def space(workload: Product | Attention, target: Target) -> dict[str, list[int | str]]:
    """The register tile (rows x columns), and tiles of a block, which meet all panels before the next ones do."""
    return {"tile": tiles.sizes(target), "block": [1, 2, 4, 8]}


def default(workload: Product | Attention, target: Target, threads: int = 1) -> dict[str, int | str]:
    """The largest tile; blocks of a few tiles where panels come from memory."""
    kernels = kernel_set(target)
    tile = kernels.sgemm_few if workload.rows <= _FEW else kernels.sgemm[0]
    panels = 4 * workload.inner * workload.columns
    streams = isinstance(workload, Product) and panels > target.cpu["l2_kib"] * 1024 // 2
    return {"tile": size_text(tile), "block": 4 if streams else 1}


def emit(workload: Product | Attention, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """The implementation at one point of the space."""
    tile, block, kernels = size_of(knobs["tile"]), int(knobs["block"]), kernel_set(target)
    if isinstance(workload, Attention):
        return emit_attention(workload, tile, block, kernels)
    return emit_product(workload, tile, block, kernels)

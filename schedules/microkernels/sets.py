"""What a set of micro-kernels is to the schedules that choose among its sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Pixels x output channels, or rows x columns of pixels.
Size = tuple[int, int]


@dataclass(frozen=True)
class BinaryKernels:
    """The micro-kernels of a binary product, with the arguments and the C calls of those of ``a53.bpack`` and ``a53.bgemm``."""

    pack: Callable[..., Any]
    counts: Callable[..., Any]
    bits: Callable[..., Any]
    #: What ``bits`` takes: the numbers of rows of bounds, and the most thresholds.
    rows: tuple[str, ...]
    thresholds: int
    #: Whether there is a product with an epilogue of floats (``a53.bgemm_float``).
    floats: bool = False


@dataclass(frozen=True)
class KernelSet:
    """The micro-kernels of a CPU; of what is empty or false there are none, and plain loops do the work.

    The first of several sizes is the default. ``name``: what targets call it, "" for plain loops alone.
    """

    name: str
    #: Float products: register tiles of pixels x channels; then those for at most 4 pixels, and for multiples of 7.
    sgemm: tuple[Size, ...]
    sgemm_few: Size
    sgemm_sevens: Size
    #: Those that read weights in halves, bfloat16.
    sgemm_halves: tuple[Size, ...] = ()
    #: The micro-kernel of a float product, with the arguments and the C call of ``a53.sgemm.Sgemm``; without it ``sgemm`` are
    #: tiles of loops that LLVM vectorises.
    product: Callable[..., Any] | None = None
    #: Whether it applies a ``Finish`` to its sums.
    finishes: bool = False
    #: Vector registers.
    registers: int = 32
    #: Channels that the size of every panel is a multiple of.
    channels: int = 4
    #: Distances between the images that a float product reads, with the C call of ``a53.offsets.Offset``; without it images
    #: are copied side by side first.
    offsets: type[Any] | None = None
    #: Whether it has the product of a stack of tiles (``a53.sgemm_stack``).
    stacks: bool = False
    #: The product of packed pixels, with the arguments and the C call of ``a53_32.panels.Panels``: Winograd's algorithm and
    #: direct convolution take it where there is one.
    panels: type[Any] | None = None
    #: What packs pixels for it, from rows of taps, with the C call of ``a53_32.pack.PackPixels``.
    pack_pixels: Callable[[], Any] | None = None
    #: Winograd's transform of the image, with the arguments and the C call of ``a53_32.transform.DataTransform``.
    data_transform: type[Any] | None = None
    #: Winograd's transform of products, with the arguments and the C call of ``a53_32.transform.ResultTransform``.
    transform: type[Any] | None = None
    #: Outputs of a tile of Winograd's algorithm.
    winograd: tuple[Size, ...] = ()
    #: First layers, read from the image as it comes: the micro-kernel, with the arguments and the C call of ``a53.stem.Stem``.
    stem: Callable[..., Any] | None = None
    #: Depthwise convolution: rows x columns of output pixels; its micro-kernel and what gathers blocks for it, with the
    #: arguments and the C calls of ``a53.depthwise``.
    depthwise: tuple[Size, ...] = ()
    depthwise_tile: type[Any] | None = None
    gather: type[Any] | None = None
    #: Whether there is one that reads the image in place (``a53.depthwise_in_place``).
    in_place: bool = False
    #: Whether that micro-kernel finds rows of the image by a table, as ``schedules.depth_first`` has them.
    strips: bool = False
    #: Products of bits: pixels x output channels.
    bgemm: tuple[Size, ...] = ()
    binary: BinaryKernels | None = None
    #: Products and depthwise convolutions of whole numbers of 8 bits.
    whole: bool = False
    #: Signs of floats to bits: the micro-kernel, with the arguments and the C call of ``a53.binarize.Binarize``.
    binarize: type[Any] | None = None
    #: Pooling by lines of channels: the micro-kernel, with the arguments and the C call of ``a53.pool.PoolRow``.
    pool: Callable[..., Any] | None = None
    #: Exponentials of a row: the micro-kernel, with the C call of ``a53.decay.Decay``.
    decay: Callable[[], Any] | None = None

    #: Functions made of exponentials, over floats in place: the micro-kernel, of the name of one of the steps ``curves``, with
    #: the C call of ``a53.curve.Curve``.
    curve: Callable[[str], Any] | None = None
    curves: frozenset[str] = frozenset()

    @property
    def assembly(self) -> bool:
        """Whether float products are micro-kernels."""
        return self.product is not None


#: For CPUs that nobody has written micro-kernels for.
PLAIN = KernelSet("", sgemm=((4, 8), (2, 8), (4, 4)), sgemm_few=(4, 8), sgemm_sevens=(4, 8))

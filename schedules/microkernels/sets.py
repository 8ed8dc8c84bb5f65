"""What a set of micro-kernels is to the schedules that choose among its sizes."""

from __future__ import annotations

from dataclasses import dataclass

#: Pixels x output channels, or rows x columns of pixels.
Size = tuple[int, int]


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
    #: Whether ``sgemm`` are micro-kernels, rather than tiles of loops that LLVM vectorises.
    assembly: bool = False
    #: Outputs of a tile of Winograd's algorithm.
    winograd: tuple[Size, ...] = ()
    #: First layers, read from the image as it comes.
    stem: bool = False
    #: Depthwise convolution: rows x columns of output pixels.
    depthwise: tuple[Size, ...] = ()
    #: Products of bits: pixels x output channels.
    bgemm: tuple[Size, ...] = ()
    #: Signs of floats to bits.
    binarize: bool = False
    #: Pooling by lines of channels.
    pool: bool = False


#: For CPUs that nobody has written micro-kernels for.
PLAIN = KernelSet("", sgemm=((4, 8), (2, 8), (4, 4)), sgemm_few=(4, 8), sgemm_sevens=(4, 8))

"""``relax.bitkiln.binarize``: the signs of an activation as packed bits; and what is the sign of what.

This holds for every operator that ends in signs: ``binarize`` with and without an epilogue, and float convolutions and
poolings that give bits.

- A set bit is +1, a clear one -1. Bits behind the last channel are clear.
- Zero, of either sign, has the sign ``sign_zero``. Dialects where the sign of zero is 0 (ONNX Sign) become +1.
- Infinities and denormals have their own sign. (The vector unit of 32-bit ARM takes denormals for zeros in arithmetic, so that
  on such boards they are zeros after a float convolution, a pooling or an epilogue.)
- NaN is -1. That is also what x > 0 and x >= 0 make of it (ELL, darknet, QONNX); it is +1 in files that ask x < 0 (LCE, Where
  of Less) and NaN in those that have Sign, and -1 here nevertheless. No attribute says otherwise, since no operator that ends
  in signs could keep it: what clamps, rectifiers and maxima make of NaN is left to the kernel (numpy and ONNX pass it on,
  compilers and ARM's vector maximum need not), and so is the bit, where NaN goes into them or comes of them, as infinity
  minus or times zero does.
- Where ``fold_threshold`` replaces steps by a threshold, no whole sum makes NaN: steps that would are not replaced.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import image_size, register
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Binarize, Signs


class BinarizeAttributes(TypedDict, total=False):
    """``sign_zero`` (+1 or -1) is the sign of an exact zero."""

    epilogue: tuple[Step, ...]
    sign_zero: int
    signs: tuple[Signs, ...]


def binarize(x: relax.Expr, *operands: relax.Expr, **attributes: Unpack[BinarizeAttributes]) -> Call:
    """x float32 [1, H, W, C] -> uint8 [1, H, W, ceil(C/8)]."""
    return _BINARIZE.call([x, *operands], attributes)


_BINARIZE = register(
    "binarize", "Signs of an activation as packed bits.", ("data",), Binarize, BinarizeAttributes, image_size
)

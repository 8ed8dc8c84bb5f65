"""``relax.bitkiln.pool2d`` and ``relax.bitkiln.bmaxpool2d``: pooling of floats and of bits."""

from __future__ import annotations

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import attributes, epilogue_of, pool_of, register, shape_of
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Pool, Pool2d


def pool2d(
    x: relax.Expr,
    *operands: relax.Expr,
    pool: Pool,
    epilogue: tuple[Step, ...] = (),
    out: str = "float32",
    sign_zero: int = 1,
) -> Call:
    """x float32 [1, H, W, C] -> float32 [1, H', W', C], or its signs as bits; the epilogue follows the pooling."""
    return Call(_POOL2D, [x, *operands], attributes(pool=pool, epilogue=epilogue, out=out, sign_zero=sign_zero))


def bmaxpool2d(bits: relax.Expr, *invert: relax.Expr, channels: int, pool: Pool) -> Call:
    """The bitwise OR over each window: bits uint8 [1, H, W, ceil(channels/8)] -> uint8 [1, H', W', ceil(channels/8)].

    ``invert``, if given, is uint8 [ceil(channels/8)]: the result's bits are exclusive-ored with it.
    """
    return Call(_BMAXPOOL2D, [bits, *invert], attributes(channels=channels, pool=pool))


def _window_of(call: Call) -> Pool:
    pool = pool_of(call)
    if pool is None:
        raise ValueError(f"{call.op.name} has no window")
    return pool


def _describe_float(call: Call) -> Pool2d:
    _, height, width, channels = shape_of(call.args[0])
    attrs = call.attrs
    return Pool2d(
        height,
        width,
        channels,
        _window_of(call),
        epilogue=epilogue_of(call),
        out=str(attrs["out"]),
        sign_zero=int(attrs["sign_zero"]),
    )


def _describe_bits(call: Call) -> Pool2d:
    _, height, width, _ = shape_of(call.args[0])
    channels = int(call.attrs["channels"])
    return Pool2d(height, width, channels, _window_of(call), bits=True, invert=len(call.args) > 1, out="bits")


_POOL2D = register("pool2d", "Maximum or average pooling.", ("data",), _describe_float)
_BMAXPOOL2D = register("bmaxpool2d", "Maximum pooling of packed bits.", ("data",), _describe_bits)

"""Packed bits as other runtimes keep them: 32-bit words, or floats of +1 and -1.

``to_words`` and ``from_words`` change between our bytes of bits (see ``bitkiln.schedules.workload``) and int32 words: channel c
is bit c%32 (least significant first) of word c//32. ``set_bit`` says what a set bit of a word stands for, +1 or -1; the tail
bits of the last word are clear either way. ``from_words`` ignores tail bits. ``unpack`` gives the values themselves.

They stand where bits meet the world around a network and have no kernel of their own: they are legalized to plain
elementwise TIR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.ir import Call, Op
from tvm.ir import _ffi_api as ir_ffi

from bitkiln.pipeline.ir.graph import shape_of
from bitkiln.pipeline.ops.bits import pack_bits, unpack_bits
from bitkiln.schedules.workload import packed

BITS_PER_WORD = 32


def words_for(channels: int) -> int:
    """32-bit words that hold the bits of ``channels``."""
    return -(-channels // BITS_PER_WORD)


def to_words(bits: relax.Expr, *, channels: int, set_bit: int = 1) -> Call:
    """bits uint8 [..., ceil(channels/8)] -> int32 [..., ceil(channels/32)]."""
    return Call(_TO_WORDS, [bits], tvm.ir.make_node("ir.DictAttrs", channels=channels, set_bit=set_bit))


def from_words(words: relax.Expr, *, channels: int, set_bit: int = 1) -> Call:
    """words int32 [..., ceil(channels/32)] -> uint8 [..., ceil(channels/8)]."""
    return Call(_FROM_WORDS, [words], tvm.ir.make_node("ir.DictAttrs", channels=channels, set_bit=set_bit))


def unpack(bits: relax.Expr, *, channels: int) -> Call:
    """bits uint8 [..., ceil(channels/8)] -> float32 [..., channels] of +1 and -1."""
    return Call(_UNPACK, [bits], tvm.ir.make_node("ir.DictAttrs", channels=channels))


def bytes_of_words(words: np.ndarray, channels: int, set_bit: int) -> np.ndarray:
    """``from_words`` of an array."""
    plain = np.ascontiguousarray(words, "<i4").view(np.uint8)[..., : packed(channels)]
    return (plain if set_bit > 0 else ~plain) & _masks(channels)


def words_of_bytes(bits: np.ndarray, channels: int, set_bit: int) -> np.ndarray:
    """``to_words`` of an array."""
    plain = np.zeros((*bits.shape[:-1], 4 * words_for(channels)), np.uint8)
    plain[..., : packed(channels)] = (bits if set_bit > 0 else ~bits) & _masks(channels)
    return plain.view("<i4").astype(np.int32, copy=False)


def evaluate_words(call: Call, data: np.ndarray) -> np.ndarray:
    """What a call of one of these operators gives for ``data``."""
    channels = int(call.attrs["channels"])
    if call.op.name == "relax.bitkiln.unpack":
        return unpack_bits(data, channels).astype(np.float32)
    change = words_of_bytes if call.op.name == "relax.bitkiln.to_words" else bytes_of_words
    return change(data, channels, int(call.attrs["set_bit"]))


def _masks(channels: int) -> np.ndarray:
    """uint8 [ceil(channels/8)]: the bits that belong to a channel."""
    return pack_bits(np.ones(channels))


def _tail(channels: int) -> int:
    """The bits of the last byte that belong to a channel."""
    return int(_masks(channels)[-1])


def _to_words_tir(bits: te.Tensor, channels: int, set_bit: int) -> te.Tensor:
    def byte(*at: tirx.PrimExpr) -> tirx.PrimExpr:
        inside = at[-1] < packed(channels)
        value = bits(*at[:-1], tirx.min(at[-1], packed(channels) - 1))
        return tirx.Select(inside, _flipped(value, at[-1], channels, set_bit), tirx.const(0, "uint8")).astype("uint32")

    def word(*at: tirx.Var) -> tirx.PrimExpr:
        *row, index = at
        parts = [byte(*row, 4 * index + k) << tirx.const(8 * k, "uint32") for k in range(4)]
        return tirx.reinterpret("int32", parts[0] | parts[1] | parts[2] | parts[3])

    return te.compute((*bits.shape[:-1], words_for(channels)), word, name="to_words")


def _from_words_tir(words: te.Tensor, channels: int, set_bit: int) -> te.Tensor:
    def byte(*at: tirx.Var) -> tirx.PrimExpr:
        *row, index = at
        word = tirx.reinterpret("uint32", words(*row, index // 4))
        value = (word >> (8 * (index % 4)).astype("uint32")).astype("uint8")
        return _flipped(value, index, channels, set_bit)

    return te.compute((*words.shape[:-1], packed(channels)), byte, name="from_words")


def _flipped(value: tirx.PrimExpr, index: tirx.PrimExpr, channels: int, set_bit: int) -> tirx.PrimExpr:
    """Byte ``index`` with the other meaning of a set bit where ``set_bit`` is -1, its tail bits clear."""
    mask = tirx.Select(index == packed(channels) - 1, tirx.const(_tail(channels), "uint8"), tirx.const(0xFF, "uint8"))
    return (value if set_bit > 0 else value ^ tirx.const(0xFF, "uint8")) & mask


def _unpack_tir(bits: te.Tensor, channels: int) -> te.Tensor:
    def value(*at: tirx.Var) -> tirx.PrimExpr:
        *row, channel = at
        bit = (bits(*row, channel // 8) >> (channel % 8).astype("uint8")) & tirx.const(1, "uint8")
        return tirx.Select(bit != 0, tirx.const(1, "float32"), tirx.const(-1, "float32"))

    return te.compute((*bits.shape[:-1], channels), value, name="unpack")


def _register(
    name: str, doc: str, dtype: str, sizes: Callable[[int], tuple[int, int]], result: str, compute: Callable
) -> Op:
    """``sizes`` gives the last extent of argument and result for a number of channels."""
    full_name = f"relax.bitkiln.{name}"
    ir_ffi.RegisterOp(full_name, doc)
    op = Op.get(full_name)
    op.set_num_inputs(1)
    op.add_argument("data", "Tensor", "")

    def infer(call: Call, _builder: relax.BlockBuilder) -> relax.TensorType:
        shape, (last, made) = shape_of(call.args[0]), sizes(int(call.attrs["channels"]))
        if shape[-1:] != (last,) or str(call.args[0].ty.dtype) != dtype:
            raise ValueError(f"{full_name} takes {dtype} [..., {last}], got {call.args[0].ty.dtype} {list(shape)}")
        return relax.TensorType((*shape[:-1], made), result)

    def legalize(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
        names = [key for key in ("channels", "set_bit") if key in call.attrs.keys()]  # noqa: SIM118  TVM's dicts
        values: Sequence[int] = [int(call.attrs[key]) for key in names]
        return builder.call_te(compute, call.args[0], *values, primfunc_name_hint=name)

    op.set_attr("FPurity", True)
    op.set_attr("FInferType", infer)
    op.set_attr("FLegalize", legalize)
    return op


_TO_WORDS = _register(
    "to_words", "Packed bits as words.", "uint8", lambda c: (packed(c), words_for(c)), "int32", _to_words_tir
)
_FROM_WORDS = _register(
    "from_words", "Words as packed bits.", "int32", lambda c: (words_for(c), packed(c)), "uint8", _from_words_tir
)
_UNPACK = _register("unpack", "Packed bits as floats.", "uint8", lambda c: (packed(c), c), "float32", _unpack_tir)

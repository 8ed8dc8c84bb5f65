"""Bits as words and as floats: what is compiled and what the reference computes, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from bitkiln.pipeline import ops, reference
from bitkiln.pipeline.ops import words

RNG = np.random.default_rng(32)
CHANNELS = [1, 7, 8, 9, 31, 32, 33, 40, 64, 130]


def definition(signs, set_bit):
    """Channel c is bit c%32 of word c//32, set where the sign is ``set_bit``."""
    channels = signs.shape[-1]
    result = np.zeros((*signs.shape[:-1], -(-channels // 32)), np.uint32)
    for channel in range(channels):
        bit = (signs[..., channel] == set_bit).astype(np.uint32)
        result[..., channel // 32] |= bit << np.uint32(channel % 32)
    return result.view(np.int32)


def both(make, data, dtype):
    """What a call gives compiled on this machine, and in the reference, which must agree."""
    var = relax.Var("x", relax.TensorType(data.shape, dtype))
    builder = relax.BlockBuilder()
    with builder.function("main", [var]):
        with builder.dataflow():
            result = builder.emit_output(make(var))
        builder.emit_func_output(result)
    module = builder.get()
    (expected,) = reference.run(module, {"x": data})
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    got = machine["main"](tvm.runtime.tensor(data)).numpy()
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    return got


@pytest.mark.parametrize("set_bit", [1, -1])
@pytest.mark.parametrize("channels", CHANNELS)
def test_there_and_back(channels, set_bit):
    signs = RNG.choice([-1, 1], (1, 3, 2, channels))
    bits, plain = ops.pack_bits(signs), definition(signs, set_bit)
    made = both(lambda x: words.to_words(x, channels=channels, set_bit=set_bit), bits, "uint8")
    np.testing.assert_array_equal(made, plain)
    dirty = plain.copy()
    if channels % 32:
        dirty[..., -1] |= np.int32(-1 << channels % 32)
    back = both(lambda x: words.from_words(x, channels=channels, set_bit=set_bit), dirty, "int32")
    np.testing.assert_array_equal(back, bits)


@pytest.mark.parametrize("channels", CHANNELS)
def test_values(channels):
    signs = RNG.choice([-1, 1], (1, 2, 3, channels))
    got = both(lambda x: words.unpack(x, channels=channels), ops.pack_bits(signs), "uint8")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, signs)


@pytest.mark.parametrize(
    ("make", "shape", "dtype"),
    [
        (lambda x: words.to_words(x, channels=40), (1, 2, 2, 4), "uint8"),
        (lambda x: words.from_words(x, channels=40), (1, 2, 2, 1), "int32"),
        (lambda x: words.from_words(x, channels=32), (1, 2, 2, 1), "float32"),
        (lambda x: words.unpack(x, channels=9), (1, 2, 2, 1), "uint8"),
    ],
)
def test_other_tensors_are_refused(make, shape, dtype):
    with pytest.raises(ValueError, match="takes"):
        relax.BlockBuilder().normalize(make(relax.Var("x", relax.TensorType(shape, dtype))))

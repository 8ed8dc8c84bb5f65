"""Random chains of binary layers as Larq Compute Engine stores them, bit for bit against numpy, imported and lowered.

Multipliers are powers of two and sums of few bits, so that float32 is exact and no rounding can decide a sign.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.tflite_file import TfliteFile
from bitkiln import targets
from bitkiln.pipeline import reference
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.passes.pipeline import lower
from tests.pipeline.importers.test_tflite_layers import ACTIVATIONS, SAME, VALID, pooled, same_pads
from tests.pipeline.importers.test_tflite_lce import bconv, convolved, words

#: Values at which a sign could go wrong.
SPECIAL = np.float32([0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45])


class Chain:
    """A network being drawn, beside what numpy makes of its input."""

    def __init__(self, random):
        self.random, self.file = random, TfliteFile()
        rows, columns = random.integers(4, 12, 2)
        self.value = random.normal(size=(1, rows, columns, self.channels())).astype(np.float32)
        self.value.flat[: len(SPECIAL)] = random.permutation(SPECIAL)[: self.value.size]
        self.x = self.value
        self.tensor = self.source = self.file.tensor(self.value.shape)

    def channels(self):
        return int(self.random.choice([1, 2, 7, 8, 15, 31, 32, 33, 64, 65, 96, 130]))

    def steps_of(self, low, high, size):
        """Multiples of a quarter; float32."""
        return (self.random.integers(4 * low, 4 * high + 1, size) / 4).astype(np.float32)

    def affine(self):
        count = self.value.shape[3]
        factor = self.random.choice(np.float32([-2, -1, -0.5, 0.5, 1, 2]), count)
        shift = self.steps_of(-4, 4, count)
        scaled = self.file.operator("MUL", [self.tensor, self.file.constant(factor)], self.value.shape, "MulOptions")
        self.tensor = self.file.operator("ADD", [scaled, self.file.constant(shift)], self.value.shape, "AddOptions")
        with np.errstate(invalid="ignore"):
            self.value = self.value * factor + shift

    def pad(self):
        widths = self.random.integers(0, 3, 4)
        table = np.int32([[0, 0], widths[:2], widths[2:], [0, 0]])
        fill = np.float32(self.random.choice([-1, 0, 1]))
        self.value = np.pad(self.value, table, constant_values=fill)
        operands = [self.tensor, self.file.constant(table), self.file.constant(fill)]
        self.tensor = self.file.operator("PADV2", operands, self.value.shape, "PadV2Options")

    def pool(self):
        kernel = tuple(int(min(size, self.random.integers(1, 4))) for size in self.value.shape[1:3])
        strides, padding = tuple(map(int, self.random.integers(1, 3, 2))), int(self.random.choice([SAME, VALID]))
        self.value = pooled(self.value, kernel, strides, padding, np.max)
        names = ("FilterHeight", "FilterWidth", "StrideH", "StrideW")
        options = dict(zip(names, (*kernel, *strides), strict=True)) | {"Padding": padding}
        self.tensor = self.file.operator("MAX_POOL_2D", [self.tensor], self.value.shape, "Pool2DOptions", **options)

    def quantize(self):
        self.tensor = self.file.custom("LceQuantize", [self.tensor], words(self.value).shape, "int32")
        self.value = np.where(self.value < 0, np.float32(-1), np.float32(1))

    def convolve(self, *, packed):
        channels, filters = self.value.shape[3], self.channels()
        kernel = tuple(int(min(size, self.random.integers(1, 4))) for size in self.value.shape[1:3])
        strides = tuple(map(int, self.random.integers(1, 3, 2)))
        dilation = tuple(
            int(self.random.integers(1, max(1, (size - 1) // max(k - 1, 1)) + 1)) if k > 1 else 1
            for size, k in zip(self.value.shape[1:3], kernel, strict=True)
        )
        padding, pad = int(self.random.choice([SAME, VALID])), int(self.random.integers(0, 2))
        weight = self.random.choice(np.float32([-1, 1]), (filters, *kernel, channels))
        fields = {"channels": channels, "strides": strides, "dilation": dilation, "padding": padding, "pad": pad}
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        pads = same_pads(self.value.shape[1:3], reach, strides)
        if padding == SAME and any(p >= r for p, r in zip(pads, (*reach, *reach), strict=True)):
            fields["padding"] = padding = VALID
        sums = convolved(self.value, weight, strides, dilation, padding, pad)
        terms = kernel[0] * kernel[1] * channels
        if packed:
            threshold = self.random.integers(-1, terms + 2, filters).astype(np.int32)
            self.value = np.where((terms - sums) / 2 > threshold, np.float32(-1), np.float32(1))
            self.tensor = bconv(self.file, self.tensor, weight, sums.shape, threshold=threshold, **fields)
            return
        activation = int(self.random.integers(0, 4))
        multiplier = self.random.choice(np.float32([-1, -0.5, 0, 0.25, 1, 2]), filters)
        bias = self.steps_of(-6, 6, filters)
        self.value = ACTIVATIONS[activation](sums) * multiplier + bias
        extra = {"multiplier": multiplier, "bias": bias, "activation": activation}
        self.tensor = bconv(self.file, self.tensor, weight, sums.shape, **extra, **fields)


def draw(random):
    """[affine] [pad] sign, one to three convolutions with what may stand between them; ends in floats or bits."""
    chain = Chain(random)
    for _ in range(random.integers(1, 4)):
        for step in (chain.affine, chain.pad):
            if random.random() < 0.4:
                step()
        chain.quantize()
        for _ in range(random.integers(0, 2)):
            chain.convolve(packed=True)
        chain.convolve(packed=False)
        if random.random() < 0.4:
            chain.pool()
    if random.random() < 0.5:
        chain.affine()
        chain.quantize()
    return chain


@pytest.mark.parametrize("seed", range(60))
def test_random_chains(tmp_path, seed):
    chain = draw(np.random.default_rng(seed))
    path = tmp_path / "network.tflite"
    path.write_bytes(chain.file.write(chain.source, chain.tensor))
    model = load_model(path)
    entry = model.module["main"].params[0].name
    lowered = lower(model, targets.load("rasp3b"))
    for module in (model.module, lowered.phases["fold_threshold"]):
        (got,) = reference.run(module, {entry: chain.x})
        expected = words(chain.value) if got.dtype == np.int32 else chain.value
        np.testing.assert_array_equal(got, expected)

"""The built-in networks: the layers of ELL's two gallery networks, exactly, with seeded synthetic weights.

Both are written as ELL archives into the cache on first use and read back through the ELL importer. The weights are random
but behave like trained ones: each batch normalisation is calibrated on synthetic images, so that about half of the bits of
every binary layer are set, and the logits are spread enough for a decided top 5.

Binary layers of independent random weights would be chaotic: a single flipped bit would spread to a different answer. The
binary network's filters therefore share a few patterns, which agree about whole groups of channels. Their sums are spread
widely compared with what one bit adds, so that rounding in the float layers does not change the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from bitkiln.pipeline.errors import SetupError
from bitkiln.pipeline.importers.ell.writer import MIN, ZEROS, LayerRecord, numbers, write_archive
from bitkiln.pipeline.support.files import cache_directory

#: Raise it when the synthetic weights change: it is part of the cached file's name.
REVISION = 3

_SEED = 21
_CLASSES = 1000
_CALIBRATION_IMAGES = 12

#: Standard deviation of the logits over the classes of the float network, and of the typical class of the binary one.
_LOGIT_SPREAD = 3.0
_CLASS_SPREAD = 1.0

#: Standard deviation of the logarithm of a class's scale: some classes speak up more than others, which parts the top 5.
_CLASS_UNEVENNESS = 0.6

#: How many patterns the filters of a layer share: the fewer, the wider the sums are spread.
_PATTERNS = 4

#: How much a pattern changes from the centre of the filter to its border, relative to its centre.
_TILT = 0.25

#: Share of a binary filter's weights that differ from its pattern, and scale of a float filter's difference.
_BINARY_DEVIATION = 0.02
_FLOAT_DEVIATION = 0.3

#: Standard deviation of the thresholds of channels with the same pattern, relative to that of their values.
_THRESHOLD_SPREAD = 0.8


def archive_path(name: str) -> Path:
    """The archive of the built-in network ``name`` in the cache, generated if it is not there yet."""
    path = cache_directory() / "models" / f"{name}-{REVISION}.ell.zip"
    if not path.exists():
        try:
            write(name, path)
        except OSError as error:
            raise SetupError(
                f"{path}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to another folder"
            ) from None
    return path


def write(name: str, path: Path) -> None:
    """Generate the built-in network ``name`` as an ELL archive (.ell.zip) at ``path``."""
    size, build = _NETWORKS[name]
    network = _Network(size, np.random.Generator(np.random.PCG64(_SEED)))
    build(network)
    write_archive(path, (size, size, 3), network.layers)


def labels() -> tuple[str, ...]:
    """Names of the synthetic classes."""
    return tuple(f"class {index:03d}" for index in range(_CLASSES))


def _card_binary(net: _Network) -> None:
    """Float stem of two convolutions, five binary ones, a 1x1 classifier."""
    net.bias(np.full(3, -114.0))
    for filters, patterns in ((16, 16), (64, _PATTERNS)):
        net.patterned_convolution(filters, 3, patterns)
        net.small_bias()
        net.relu()
        net.batch_normalization(_THRESHOLD_SPREAD)
        net.max_pooling(2, 0)
    for filters in (64, 128, 256, 512, 1024):
        net.binary_convolution(filters)
        net.small_bias()
        net.parametric_relu()
        net.max_pooling(3, 1)
        net.batch_normalization(_THRESHOLD_SPREAD)
    net.classifier(_CLASSES, _PATTERNS)
    net.bias(-net.x.mean(axis=(0, 1, 2)))
    net.average_pooling()
    net.scaling(_CLASS_SPREAD / net.x.std() * np.exp(net.rng.normal(0, _CLASS_UNEVENNESS, _CLASSES)))
    net.softmax()


def _card_float(net: _Network) -> None:
    """Seven convolutions with leaky ReLU, a 1x1 classifier."""
    for filters in (16, 32, 64, 128, 256, 512, 1024):
        net.convolution(filters, 3)
        net.batch_normalization()
        net.leaky_relu()
        net.max_pooling(2, 0)
    net.convolution(_CLASSES, 1, spread=_LOGIT_SPREAD)
    net.small_bias()
    net.leaky_relu()
    net.average_pooling()
    net.softmax()


_NETWORKS: dict[str, tuple[int, Callable[[_Network], None]]] = {
    "card-binary": (224, _card_binary),
    "card-float": (256, _card_float),
}
NAMES = tuple(_NETWORKS)


class _Network:
    """A chain of layers under construction; ``x`` float64 [images, rows, columns, channels] flows along for calibration.

    ``groups`` int [channels] says which channels of ``x`` stem from one pattern. Every weight is rounded before it is used,
    and rounded to few enough digits to keep the archive small.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.layers: list[LayerRecord] = []
        self.rng = rng
        self.x = _photographs(_CALIBRATION_IMAGES, size, rng)
        self.groups = np.arange(3)

    def bias(self, values: ArrayLike) -> None:
        values = np.asarray(values).round(4)
        self.x = self.x + values
        self._add("BiasLayer<float>", bias=numbers(values))

    def small_bias(self) -> None:
        self.bias(self.rng.normal(0, 0.05, self.x.shape[3]))

    def scaling(self, values: ArrayLike) -> None:
        values = np.asarray(values).round(4)
        self.x = self.x * values
        self._add("ScalingLayer<float>", scales=numbers(values))

    def batch_normalization(self, beta: float = 0.1) -> None:
        """One trained batch normalisation is three ELL layers: statistics, gamma, beta (of standard deviation ``beta``).

        The centre is the median, which a sign splits into halves whatever the distribution's shape.
        """
        flat = self.x.reshape(-1, self.x.shape[3])
        multiplier = _significant(1 / np.maximum(flat.std(axis=0), 1e-3), 4)
        addition = (-np.median(flat, axis=0) * multiplier).round(4)
        self.x = self.x * multiplier + addition
        self._add(
            "BatchNormalizationLayer<float>",
            multiplicationValues=numbers(multiplier),
            additionValues=numbers(addition),
            epsilon=1e-05,
            epsilonSummand=0,
        )
        self.scaling(self.rng.uniform(0.7, 1.4, self.x.shape[3]))
        self.bias(self.rng.normal(0, beta, self.x.shape[3]))

    def convolution(self, filters: int, kernel: int, spread: float = 0.0) -> None:
        """Weights of variance 2/fan-in; with ``spread``, scaled so that the outputs have that standard deviation."""
        shape = (filters, kernel, kernel, self.x.shape[3])
        weights = self.rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        if spread:
            weights *= spread / _convolve(self.x, weights, (kernel - 1) // 2).std()
        self._convolution(weights.round(4))

    def patterned_convolution(self, filters: int, kernel: int, patterns: int) -> None:
        """Filters that are one of so many patterns, and a little more."""
        weights = self._patterns(filters, kernel, patterns)
        weights += self.rng.normal(0, _FLOAT_DEVIATION, weights.shape)
        self._convolution((weights * np.sqrt(2 / weights[0].size)).round(4))

    def classifier(self, classes: int, directions: int) -> None:
        """A 1x1 convolution: each class a random mixture of the features' principal ones, all of equal weight."""
        features = self.x.reshape(-1, self.x.shape[3])
        _, lengths, axes = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
        deviations = lengths[:directions] / np.sqrt(len(features))
        weights = self.rng.normal(size=(classes, directions)) / deviations @ axes[:directions]
        self._convolution(weights.round(5)[:, None, None, :])

    def _convolution(self, weights: np.ndarray) -> None:
        """``weights`` [filters, kernel, kernel, channels]."""
        filters, kernel, _, channels = weights.shape
        padding = (kernel - 1) // 2
        self.x = _convolve(self.x, weights, padding)
        self._add(
            "ConvolutionalLayer<float>",
            padding,
            receptiveField=kernel,
            stride=1,
            method=0,
            numFiltersAtATime=filters,
            weights_rows=filters * kernel,
            weights_columns=kernel,
            weights_channels=channels,
            weights_values=numbers(weights),
        )

    def _patterns(self, filters: int, kernel: int, patterns: int) -> np.ndarray:
        """Filters [filters, kernel, kernel, channels] of ``patterns`` kinds, alike in all channels of a group.

        Within the kernel a pattern is a plane, whose values at the centre have standard deviation 1.
        """
        groups = np.arange(filters) % patterns
        centre, down, right = self.rng.normal(size=(3, patterns, 1, 1, self.groups.max() + 1))
        offset = _TILT * np.linspace(-1, 1, kernel)
        planes = centre + down * offset[:, None, None] + right * offset[:, None]
        weights = planes[groups][..., self.groups]
        self.groups = groups
        return weights

    def binary_convolution(self, filters: int, kernel: int = 3) -> None:
        """3x3 at stride 1 on signs; what is padded contributes nothing."""
        shape = (filters, kernel, kernel, self.x.shape[3])
        deviates = self.rng.random(shape) < _BINARY_DEVIATION
        bits = ((self._patterns(filters, kernel, _PATTERNS) > 0) ^ deviates).astype(np.uint8)
        self.x = _convolve(np.where(self.x > 0, 1.0, -1.0), 2.0 * bits - 1, (kernel - 1) // 2)
        stream = bits.reshape(filters, -1)
        stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 64)))
        self._add(
            "BinaryConvolutionalLayer<float>",
            (kernel - 1) // 2,
            receptiveField=kernel,
            stride=1,
            method=1,
            weightsScale=0,
            binarizedWeights_numVectors=filters,
            binarizedWeights_values=numbers(np.packbits(stream, axis=1, bitorder="little").view("<u8")),
            filterMeans=numbers(np.ones(filters)),
        )

    def relu(self) -> None:
        self.x = np.maximum(self.x, 0)
        self._activation("ReLUActivation")

    def leaky_relu(self, slope: float = 0.1) -> None:
        self.x = np.where(self.x > 0, self.x, slope * self.x)
        self._activation("LeakyReLUActivation", leakyFactor=slope)

    def parametric_relu(self) -> None:
        """A slope for each element, as ELL's importer of CNTK models wrote them."""
        shape = self.x.shape[1:]
        alpha = self.rng.uniform(0.05, 0.4, shape).round(3)
        self.x = np.where(self.x > 0, self.x, alpha * self.x)
        axes = dict(zip(("alpha_rows", "alpha_columns", "alpha_channels"), shape, strict=True))
        self._activation("ParametricReLUActivation", **axes, alpha_values=numbers(alpha))

    def max_pooling(self, size: int, padding: int) -> None:
        """Stride 2; what is padded never wins."""
        border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        self.x = _windows(np.pad(self.x, border, constant_values=-np.inf), size, 2).max(axis=(-2, -1))
        self._add("PoolingLayer<float,MaxPoolingFunction>", padding, MIN, poolingSize=size, stride=2)

    def average_pooling(self) -> None:
        self.x = _windows(self.x, 2, 1).mean(axis=(-2, -1))
        self._add("PoolingLayer<float,MeanPoolingFunction>", poolingSize=2, stride=1)

    def softmax(self) -> None:
        self._add("SoftmaxLayer<float>")

    def _activation(self, kind: str, **fields: object) -> None:
        activation = {"_type": f"{kind}<float>", "_version": "0", **fields}
        self._add("ActivationLayer<float>", activation=activation)

    def _add(self, layer_type: str, padding: int = 0, scheme: int = ZEROS, **fields: object) -> None:
        self.layers.append(LayerRecord(layer_type, self.x.shape[1:], fields, padding, scheme))


def _photographs(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Images [count, size, size, 3] of 0..255 with a spectrum like that of photographs, brightness and contrast varied.

    Amplitudes of photographs fall about as 1/f; the scaled-down ones that networks see, somewhat faster.
    """
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    falloff = np.maximum(frequency, 1 / size) ** -1.4
    noise = rng.normal(size=(count, size, size, 3))
    # Channels of a photograph are alike: two thirds of the signal is common to all three.
    noise = noise + 2 * noise.mean(axis=3, keepdims=True)
    image = np.fft.ifft2(np.fft.fft2(noise, axes=(1, 2)) * falloff[None, :, :, None], axes=(1, 2)).real
    image /= image.std(axis=(1, 2, 3), keepdims=True)
    contrast, brightness = rng.uniform(25, 80, (count, 1, 1, 1)), rng.uniform(60, 190, (count, 1, 1, 1))
    return np.clip(image * contrast + brightness, 0, 255).round()


def _convolve(x: np.ndarray, weights: np.ndarray, padding: int) -> np.ndarray:
    """Cross-correlation at stride 1, as one matrix product."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    taps = _windows(x, weights.shape[1], 1).transpose(0, 1, 2, 4, 5, 3)
    product = taps.reshape(-1, weights[0].size) @ weights.reshape(len(weights), -1).T
    return product.reshape(*taps.shape[:3], len(weights))


def _windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Views [images, rows, columns, channels, size, size] of the pooling windows."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]


def _significant(values: np.ndarray, digits: int) -> np.ndarray:
    """``values`` to so many significant digits."""
    magnitude = 10.0 ** (np.floor(np.log10(values)) + 1 - digits)
    return (values / magnitude).round() * magnitude

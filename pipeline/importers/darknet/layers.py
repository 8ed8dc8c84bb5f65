"""What darknet's own layers compute, as Relax in darknet's layout, NCHW.

Semantics follow the original darknet's inference on a CPU, with these exceptions:

- ``binary=1`` convolutions use weights of +-mean, as darknet does on a GPU, where it trains them; its CPU code forgets to.
- 1x1 convolutions with a stride or a padding are what they say (the CPU code takes the wrong pixels).

``xnor=1``: the input's signs (0 and NaN count as -1) against the weights' signs, times each filter's mean magnitude; padded
taps contribute nothing. It is written as ``where(x > 0, 1, -1)`` and a convolution with weights of +-mean, which the passes
recognise as binary. darknet's GPU code takes an exact 0 as +1. AlexeyAB's fork has a bitwise kernel for inference on a CPU
too, which takes padded taps as -1, unlike the code that trains.
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.common.building import per_channel, scalar
from bitkiln.pipeline.importers.darknet.detectors import Detection, Region, Yolo
from bitkiln.pipeline.importers.darknet.joins import Crop, Reorg, Route, Scaled, Shortcut, Upsample
from bitkiln.pipeline.importers.darknet.layer import (
    MAX_ELEMENTS,
    MAX_WINDOW,
    Layer,
    Size,
    Tensors,
    activate,
    constant,
)
from bitkiln.pipeline.ir.graph import shape_of

#: Largest window of ``[local]``, each tap of which is a step of its own, and of ``[normalization]``.
_MAX_LOCAL_WINDOW = 16

#: Least temperature of a softmax; those people use are between 0.1 and 10.
_COLDEST = 1e-6


def normalized(layer: Layer, tensors: Tensors, x: relax.Var) -> relax.Var:
    """(x - mean) / deviation * scale + bias, as one product and one sum whose constants are made in double precision.

    The original darknet divides by sqrt(variance) + 1e-6 on a CPU; AlexeyAB's fork, and every GPU, by
    sqrt(variance + 1e-5). The difference is below 1e-5 relative unless a variance is below 0.5.
    """
    names = ("scales", "mean", "variance")
    scales, mean, variance = (tensors.arrays[name].astype(np.float64) for name in names)
    if (variance < 0).any():
        raise layer.section.error("a variance in the weights file is negative")
    deviation = np.sqrt(variance + np.float32(1e-5)) if tensors.header.fork else np.sqrt(variance) + np.float32(1e-6)
    multiplier = scales / deviation
    biases = tensors.arrays.get("biases", 0.0)
    offset = biases - mean * multiplier
    if max(np.abs(multiplier).max(), np.abs(offset).max()) > np.finfo(np.float32).max:
        raise layer.section.error("its batch normalisation overflows float32")
    rank = len(shape_of(x))
    scaled = tensors.emit(relax.op.multiply(x, per_channel(multiplier, rank)), "scaled")
    return tensors.emit(relax.op.add(scaled, per_channel(offset, rank)), "shifted")


def _finished(layer: Layer, tensors: Tensors, x: relax.Var, normalize: bool, activation: str) -> relax.Var:
    """Sums of a convolution or dense layer with their batch normalisation or bias, and activation."""
    if normalize:
        x = normalized(layer, tensors, x)
    else:
        x = tensors.emit(relax.op.add(x, per_channel(tensors.arrays["biases"], len(shape_of(x)))), "biased")
    return activate(tensors, x, activation)


def _binarized(weights: np.ndarray) -> np.ndarray:
    """+-mean magnitude of each filter (w > 0 is +), the mean as darknet sums it: one after the other, in float32."""
    flat = np.abs(weights.reshape(len(weights), -1))
    with np.errstate(over="ignore"):
        mean = np.cumsum(flat, axis=1, dtype=np.float32)[:, -1] / np.float32(flat.shape[1])
    mean = mean.reshape((-1,) + (1,) * (weights.ndim - 1))
    return np.where(weights > 0, mean, -mean)


class Convolutional(Layer):
    """``[convolutional]``: padding=size/2 where pad=1; batch_normalize replaces the bias; flipped weights are [k, filters]."""

    name = "conv"

    def plan(self) -> None:
        """Weights [filters, C/groups, size, size]; biases first, the weights last in the file."""
        section, source = self.section, self.source
        filters = section.whole("filters", 1, 1)
        self.kernel = section.whole("size", 1, 1, MAX_WINDOW)
        self.stride = self.strides()
        self.dilation = section.whole("dilation", 1, 1, MAX_WINDOW) if self.kernel > 1 else 1
        padding = section.whole("padding", 0, 0, MAX_WINDOW)
        self.padding = (self.kernel // 2 if section.flag("pad") else padding) * self.dilation
        self.groups = section.whole("groups", 1, 1)
        if source.channels % self.groups or filters % self.groups:
            raise section.error(f"{source.channels} channels and {filters} filters do not make {self.groups} groups")
        self.normalize = section.flag("batch_normalize") | section.flag("cbn")
        self.binary, self.xnor = section.flag("binary"), section.flag("xnor")
        self.flipped = section.flag("flipped")
        self.activation_name = self.activation("logistic")
        self.size = Size(filters, *self._extents())
        statistics = {"scales": filters, "mean": filters, "variance": filters} if self.normalize else {}
        count = filters * (source.channels // self.groups) * self.kernel**2
        self.parameters = {"biases": filters, **statistics, "weights": count}

    def _extents(self) -> list[int]:
        reach = self.dilation * (self.kernel - 1) + 1
        extents = []
        for extent, stride in zip(self.source[1:], self.stride, strict=True):
            out = (extent + 2 * self.padding - reach) // stride + 1
            # darknet computes the size of the result without the dilation.
            if out < 1 or out != (extent + 2 * self.padding // self.dilation - self.kernel) // stride + 1:
                raise self.section.error(
                    f"windows of {reach} with padding {self.padding} do not fit the input {self.source}"
                )
            extents.append(out)
        return extents

    def emit(self, tensors: Tensors) -> relax.Var:
        """Signs, convolution, batch normalisation or bias, activation."""
        shape = (self.size.channels, self.source.channels // self.groups, self.kernel, self.kernel)
        weights = tensors.arrays["weights"]
        weights = (weights.reshape(-1, shape[0]).T if self.flipped else weights).reshape(shape)
        x = tensors.source
        if self.xnor:
            positive = tensors.emit(relax.op.greater(x, scalar(0)), "positive")
            x = tensors.emit(relax.op.where(positive, scalar(1), scalar(-1)), "signs")
        if self.xnor or self.binary:
            weights = _binarized(weights)
            if not np.isfinite(weights).all():
                raise self.section.error("the mean magnitude of a filter overflows float32")
        sums = relax.op.nn.conv2d(
            x,
            constant(weights),
            strides=self.stride,
            padding=(self.padding,) * 4,
            dilation=(self.dilation,) * 2,
            groups=self.groups,
        )
        return _finished(self, tensors, tensors.emit(sums, ""), self.normalize, self.activation_name)


class Connected(Layer):
    """``[connected]``: dense over the flattened input, channel by channel."""

    name = "dense"

    def plan(self) -> None:
        """Weights [outputs, inputs]; the statistics come after them in the file."""
        outputs = self.section.whole("output", 1, 1)
        self.normalize = self.section.flag("batch_normalize")
        self.activation_name = self.activation("logistic")
        self.size = Size(outputs, 1, 1)
        statistics = {"scales": outputs, "mean": outputs, "variance": outputs} if self.normalize else {}
        self.parameters = {"biases": outputs, "weights": outputs * self.source.elements, **statistics}

    def emit(self, tensors: Tensors) -> relax.Var:
        """Product, batch normalisation or bias, activation, all on rows."""
        inputs, weights = self.source.elements, tensors.arrays["weights"]
        columns = weights.reshape(inputs, -1) if tensors.header.transposed else weights.reshape(-1, inputs).T
        product = tensors.emit(relax.op.matmul(tensors.row(), constant(columns)), "")
        return tensors.image(_finished(self, tensors, product, self.normalize, self.activation_name), self.size)


class Local(Layer):
    """``[local]``: a convolution whose weights differ from place to place."""

    name = "local"

    def plan(self) -> None:
        """Biases [filters, H', W'], weights [H'*W', filters, C*size*size]."""
        section, source = self.section, self.source
        filters = section.whole("filters", 1, 1)
        self.kernel = section.whole("size", 1, 1, _MAX_LOCAL_WINDOW)
        self.stride = section.whole("stride", 1, 1, MAX_WINDOW)
        self.padding = section.whole("pad", 0, 0, 1)
        self.activation_name = self.activation("logistic")
        extents = [(extent + 2 * self.padding - self.kernel) // self.stride + 1 for extent in source[1:]]
        said = [(extent - (1 if self.padding else self.kernel)) // self.stride + 1 for extent in source[1:]]
        if extents != said or min(extents) < 1:
            raise section.error(f"windows of {self.kernel} with padding {self.padding} do not fit the input {source}")
        self.size = Size(filters, *extents)
        inputs = source.channels * self.kernel**2
        if inputs * extents[0] * extents[1] > MAX_ELEMENTS:
            raise section.unsupported(f"its windows together have more than {MAX_ELEMENTS} elements")
        self.parameters = {"biases": self.size.elements, "weights": self.size.elements * inputs}

    def emit(self, tensors: Tensors) -> relax.Var:
        """The windows as [H'*W', 1, size*size*C], multiplied place by place."""
        channels, (filters, rows, columns) = self.source.channels, self.size
        places, taps = rows * columns, self.kernel**2
        x, border = tensors.source, self.padding
        if border:
            x = tensors.emit(relax.op.nn.pad(x, [0, 0, 0, 0, border, border, border, border]), "padded")
        reach = [(extent - 1) * self.stride + 1 for extent in (rows, columns)]
        shifted = [
            tensors.emit(
                relax.op.strided_slice(
                    x, [2, 3], [r, c], [r + reach[0], c + reach[1]], [self.stride, self.stride], assume_inbound=True
                ),
                f"tap_{r}_{c}",
            )
            for r in range(self.kernel)
            for c in range(self.kernel)
        ]
        windows = tensors.emit(relax.op.concat(shifted, 1), "taps")
        flat = tensors.emit(relax.op.reshape(windows, (taps * channels, places)), "flat")
        placed = tensors.emit(relax.op.permute_dims(flat, [1, 0]), "windows")
        placed = tensors.emit(relax.op.reshape(placed, (places, 1, taps * channels)), "places")
        weights = tensors.arrays["weights"].reshape(places, filters, channels, taps)
        matrices = weights.transpose(0, 3, 2, 1).reshape(places, taps * channels, filters)
        sums = tensors.emit(relax.op.matmul(placed, constant(matrices)), "sums")
        sums = tensors.emit(relax.op.reshape(sums, (places, filters)), "matrix")
        sums = tensors.emit(relax.op.permute_dims(sums, [1, 0]), "filters")
        image = tensors.emit(relax.op.reshape(sums, (1, *self.size)), "")
        biases = constant(tensors.arrays["biases"].reshape(1, *self.size))
        return activate(tensors, tensors.emit(relax.op.add(image, biases), "biased"), self.activation_name)


class BatchNorm(Layer):
    """``[batchnorm]``: the original darknet stores no biases for it, AlexeyAB's fork does; the file's length tells."""

    name = "bn"

    def plan(self) -> None:
        """As the fork stores it."""
        self.parameters = dict.fromkeys(("biases", "scales", "mean", "variance"), self.source.channels)

    def emit(self, tensors: Tensors) -> relax.Var:
        """One product and one sum."""
        return normalized(self, tensors, tensors.source)


class MaxPool(Layer):
    """``[maxpool]``: ``padding`` (size - 1 unless given) is that of both sides together, the smaller half before."""

    name = "maxpool"

    def plan(self) -> None:
        """Windows, with an explicit padding on each side."""
        section = self.section
        self.stride = self.strides()
        self.kernel = section.whole("size", section.whole("stride", 1, 1, MAX_WINDOW), 1, MAX_WINDOW)
        padding = section.whole("padding", self.kernel - 1, 0, MAX_WINDOW)
        before = padding // 2
        ends, extents = [], []
        for extent, stride in zip(self.source[1:], self.stride, strict=True):
            out = (extent + padding - self.kernel) // stride + 1
            after = max((out - 1) * stride + self.kernel - before - extent, 0)
            if out < 1 or max(before, after) >= self.kernel:
                raise section.error(
                    f"windows of {self.kernel} with padding {padding} do not fit the input {self.source}"
                )
            extents.append(out)
            ends.append(after)
        self.padding = (before, before, *ends)
        self.size = Size(self.source.channels, *extents)

    def emit(self, tensors: Tensors) -> relax.Var:
        """The maximum; what lies outside never wins."""
        window = (self.kernel, self.kernel)
        return tensors.emit(relax.op.nn.max_pool2d(tensors.source, window, self.stride, self.padding), "")


class LocalAvgPool(MaxPool):
    """``[local_avgpool]``: windows as those of ``[maxpool]``; the mean of what lies inside the image."""

    name = "avgpool"

    def emit(self, tensors: Tensors) -> relax.Var:
        """The mean."""
        window = (self.kernel, self.kernel)
        pooled = relax.op.nn.avg_pool2d(tensors.source, window, self.stride, self.padding, count_include_pad=False)
        return tensors.emit(pooled, "")


class AvgPool(Layer):
    """``[avgpool]``: the mean of each channel."""

    name = "avgpool"

    def plan(self) -> None:
        """One pixel."""
        self.size = Size(self.source.channels, 1, 1)

    def emit(self, tensors: Tensors) -> relax.Var:
        """One window over the whole image."""
        return tensors.emit(relax.op.nn.avg_pool2d(tensors.source, self.source[1:]), "")


class Softmax(Layer):
    """``[softmax]`` over the flattened input in ``groups`` parts; with ``temperature``."""

    name = "softmax"

    def plan(self) -> None:
        """The size stays."""
        section = self.section
        self.groups = section.whole("groups", 1, 1)
        if self.source.elements % self.groups:
            raise section.error(f"{self.source.elements} inputs do not make {self.groups} groups", "groups")
        self.temperature = section.number("temperature", 1.0)
        if abs(self.temperature) < _COLDEST:
            raise section.error(f"temperature is {self.temperature:g}", "temperature")
        if section.text("tree"):
            raise section.unsupported("class hierarchies (tree=) are not supported", "tree")
        if section.number("spatial", 0) and self.source[1:] != (1, 1):
            raise section.unsupported(
                "spatial=1 is not supported: darknet's CPU and GPU code disagree on it", "spatial"
            )

    def emit(self, tensors: Tensors) -> relax.Var:
        """On rows."""
        x = tensors.row()
        if self.temperature != 1:
            x = tensors.emit(relax.op.multiply(x, scalar(1 / self.temperature)), "tempered")
        if self.groups == 1:
            return tensors.image(tensors.emit(relax.op.nn.softmax(x, 1), ""), self.size)
        parts = tensors.emit(relax.op.reshape(x, (self.groups, self.source.elements // self.groups)), "groups")
        result = tensors.emit(relax.op.nn.softmax(parts, 1), "each")
        return tensors.image(tensors.emit(relax.op.reshape(result, (1, self.source.elements)), ""), self.size)


class Activation(Layer):
    """``[activation]``."""

    name = "activation"

    def plan(self) -> None:
        """The size stays."""
        self.activation_name = self.activation("linear")

    def emit(self, tensors: Tensors) -> relax.Var:
        """One activation."""
        return activate(tensors, tensors.source, self.activation_name)


class Logistic(Layer):
    """``[logistic]``."""

    name = "logistic"

    def plan(self) -> None:
        """The size stays."""

    def emit(self, tensors: Tensors) -> relax.Var:
        """A sigmoid."""
        return tensors.emit(relax.op.sigmoid(tensors.source), "")


class Idle(Layer):
    """Layers that do nothing at inference: ``[dropout]``, ``[cost]``, ``[empty]``."""

    name = "idle"

    def plan(self) -> None:
        """The size stays."""

    def emit(self, tensors: Tensors) -> relax.Var:
        """The input."""
        return tensors.source


class Normalization(Layer):
    """``[normalization]``: x / (kappa + alpha * sum of squares of neighbouring channels) ** beta.

    darknet slides its sum along the channels and forgets one term, the square of channel size/2, which is therefore missing in
    every sum, and subtracted from those whose window does not reach it.
    """

    name = "lrn"

    def plan(self) -> None:
        """The size stays."""
        section = self.section
        self.alpha = section.number("alpha", 1e-4)
        self.beta = section.number("beta", 0.75)
        self.kappa = section.number("kappa", 1.0)
        self.window = section.whole("size", 5, 1, _MAX_LOCAL_WINDOW)
        if self.window // 2 > self.source.channels:
            raise section.unsupported(f"size={self.window} on {self.source.channels} channels is not supported")

    def emit(self, tensors: Tensors) -> relax.Var:
        """The sums by an average pooling over the channels of the image seen as [1, 1, C, H*W]."""
        channels, height, width = self.source
        before, after = (self.window - 1) // 2, self.window // 2
        squares = tensors.emit(relax.op.multiply(tensors.source, tensors.source), "squares")
        squares = tensors.emit(relax.op.multiply(squares, scalar(self.alpha)), "weighted")
        rows = tensors.emit(relax.op.reshape(squares, (1, 1, channels, height * width)), "rows")
        window = (self.window, 1)
        means = relax.op.nn.avg_pool2d(rows, window, padding=(before, 0, after, 0), count_include_pad=True)
        sums = tensors.emit(relax.op.multiply(tensors.emit(means, "means"), scalar(self.window)), "windows")
        sums = tensors.emit(relax.op.reshape(sums, (1, *self.source)), "sums")
        if after < channels:
            forgotten = relax.op.strided_slice(squares, [1], [after], [after + 1], assume_inbound=True)
            sums = tensors.emit(relax.op.subtract(sums, tensors.emit(forgotten, "forgotten")), "slid")
        base = tensors.emit(relax.op.add(sums, scalar(self.kappa)), "base")
        power = tensors.emit(relax.op.power(base, scalar(-self.beta)), "power")
        return tensors.emit(relax.op.multiply(tensors.source, power), "")


class L2Norm(Layer):
    """``[l2norm]``: each pixel divided by the norm of its channels."""

    name = "l2norm"

    def plan(self) -> None:
        """The size stays."""

    def emit(self, tensors: Tensors) -> relax.Var:
        """x / sqrt(sum of squares)."""
        squares = tensors.emit(relax.op.multiply(tensors.source, tensors.source), "squares")
        sums = tensors.emit(relax.op.sum(squares, [1], keepdims=True), "sums")
        return tensors.emit(relax.op.divide(tensors.source, tensors.emit(relax.op.sqrt(sums), "norm")), "")


#: Kind of a section -> its layer.
LAYERS: dict[str, type[Layer]] = {
    "activation": Activation,
    "avg": AvgPool,
    "avgpool": AvgPool,
    "batchnorm": BatchNorm,
    "conn": Connected,
    "connected": Connected,
    "conv": Convolutional,
    "convolutional": Convolutional,
    "cost": Idle,
    "crop": Crop,
    "detection": Detection,
    "dropout": Idle,
    "empty": Idle,
    "l2norm": L2Norm,
    "local": Local,
    "local_avg": LocalAvgPool,
    "local_avgpool": LocalAvgPool,
    "logistic": Logistic,
    "lrn": Normalization,
    "max": MaxPool,
    "maxpool": MaxPool,
    "normalization": Normalization,
    "region": Region,
    "reorg": Reorg,
    "reorg3d": Reorg,
    "route": Route,
    "sam": Scaled,
    "scale_channels": Scaled,
    "shortcut": Shortcut,
    "soft": Softmax,
    "softmax": Softmax,
    "upsample": Upsample,
    "yolo": Yolo,
}

"""darknet's layers that join, slice, resize and rearrange what others have made."""

from __future__ import annotations

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.common.building import per_channel, scalar
from bitkiln.pipeline.importers.darknet.layer import MAX_WINDOW, Layer, Size, Tensors, activate


class Crop(Layer):
    """``[crop]``: at inference the centre, and 2x - 1 unless ``noadjust``."""

    name = "crop"

    def plan(self) -> None:
        """The size of the part."""
        height, width = (self.section.whole(f"crop_{side}", 1, 1) for side in ("height", "width"))
        if height > self.source.height or width > self.source.width:
            raise self.section.error(f"a {height}x{width} part does not fit the input {self.source}")
        self.size = Size(self.source.channels, height, width)
        self.adjust = not self.section.flag("noadjust")

    def emit(self, tensors: Tensors) -> relax.Var:
        """A slice, scaled."""
        x = tensors.source
        if self.size != self.source:
            begin = [(whole - part) // 2 for whole, part in zip(self.source[1:], self.size[1:], strict=True)]
            end = [first + part for first, part in zip(begin, self.size[1:], strict=True)]
            x = tensors.emit(relax.op.strided_slice(x, [2, 3], begin, end, assume_inbound=True), "centre")
        if self.adjust:
            x = tensors.emit(relax.op.multiply(x, scalar(2)), "twice")
            x = tensors.emit(relax.op.subtract(x, scalar(1)), "")
        return x


class Route(Layer):
    """``[route]``: the channels of other layers one behind the other; with ``groups``, part ``group_id`` of each."""

    name = "route"

    def plan(self) -> None:
        """All sources have one height and width, or are put together as pixels."""
        section = self.section
        self.sources = self.other("layers")
        self.groups = section.whole("groups", 1, 1)
        self.group = section.whole("group_id", 0, 0, self.groups - 1)
        sizes = [self.sizes[source] for source in self.sources]
        if len({size[1:] for size in sizes}) != 1:
            raise section.error(
                f"puts together {', '.join(map(str, sizes))}, which differ in height or width", "layers"
            )
        if any(size.channels % self.groups for size in sizes):
            raise section.error(f"does not divide {', '.join(map(str, sizes))} into {self.groups} groups", "groups")
        self.size = Size(sum(size.channels for size in sizes) // self.groups, *sizes[0][1:])

    def emit(self, tensors: Tensors) -> relax.Var:
        """Slices, and their concatenation."""
        parts = [self._part(tensors, position, source) for position, source in enumerate(self.sources)]
        return parts[0] if len(parts) == 1 else tensors.emit(relax.op.concat(parts, 1), "")

    def _part(self, tensors: Tensors, position: int, source: int) -> relax.Var:
        x, channels = tensors.values[source], self.sizes[source].channels // self.groups
        if self.groups == 1:
            return x
        begin = channels * self.group
        part = relax.op.strided_slice(x, [1], [begin], [begin + channels], assume_inbound=True)
        return tensors.emit(part, f"part_{position}")


class Shortcut(Layer):
    """``[shortcut]``: alpha * x + beta * other, where they overlap; outside, x.

    A larger other is sampled at whole strides, and takes its first channels.
    """

    name = "add"

    def plan(self) -> None:
        """The size stays."""
        section = self.section
        self.sources = self.other("from")
        self.alpha, self.beta = section.number("alpha", 1.0), section.number("beta", 1.0)
        self.activation_name = self.activation("linear")
        if section.text("weights_type", "none") != "none":
            raise section.unsupported("learned weights (weights_type=) are not supported", "weights_type")
        for source in self.sources:
            other = self.sizes[source]
            self._step(other)
            if self.alpha != 1 and (other.height < self.source.height or other.width < self.source.width):
                raise section.unsupported(f"alpha={self.alpha:g} with a smaller {other} is not supported", "alpha")

    def _step(self, other: Size) -> int:
        """Stride at which ``other`` is sampled."""
        steps = {theirs // own for theirs, own in zip(other[1:], self.source[1:], strict=True)}
        samples = {own // theirs for theirs, own in zip(other[1:], self.source[1:], strict=True)}
        if len(steps) != 1 or len(samples) != 1 or max(samples) > 1:
            raise self.section.unsupported(f"adding {other} to {self.source} is not supported", "from")
        return max(*steps, 1)

    def emit(self, tensors: Tensors) -> relax.Var:
        """One sum for each other layer."""
        x = tensors.source
        for position, source in enumerate(self.sources):
            x = self._sum(tensors, x, tensors.values[source], self.sizes[source], f"{position}_" if position else "")
        return activate(tensors, x, self.activation_name)

    def _sum(self, tensors: Tensors, x: relax.Var, other: relax.Var, size: Size, part: str) -> relax.Var:
        step = self._step(size)
        shared = Size(*(min(own, theirs) for own, theirs in zip(self.source, size, strict=True)))
        if self.alpha != 1:
            factor = np.where(np.arange(self.source.channels) < shared.channels, self.alpha, 1)
            x = tensors.emit(relax.op.multiply(x, per_channel(factor)), f"{part}alpha")
        if shared != size or step > 1:
            end = [shared.channels, *((extent - 1) * step + 1 for extent in shared[1:])]
            sampled = relax.op.strided_slice(other, [1, 2, 3], [0] * 3, end, [1, step, step], assume_inbound=True)
            other = tensors.emit(sampled, f"{part}sampled")
        if self.beta != 1:
            other = tensors.emit(relax.op.multiply(other, scalar(self.beta)), f"{part}beta")
        if shared != self.source:
            missing = [own - have for own, have in zip(self.source, shared, strict=True)]
            widths = [0, 0, *(width for pair in missing for width in (0, pair))]
            other = tensors.emit(relax.op.nn.pad(other, widths), f"{part}padded")
        return tensors.emit(relax.op.add(x, other), part.rstrip("_"))


class Scaled(Layer):
    """``[scale_channels]`` and ``[sam]``: another layer times this one's input, per channel, pixel (scale_wh) or element."""

    name = "scale"

    def plan(self) -> None:
        """The size of the other layer."""
        section = self.section
        positions = self.other("from")
        if len(positions) != 1:
            raise section.error("takes one layer", "from")
        self.position = positions[0]
        self.size = self.sizes[self.position]
        shared = Size(1, *self.size[1:]) if section.flag("scale_wh") else Size(self.size.channels, 1, 1)
        if self.source not in (self.size, shared):
            raise section.error(f"does not multiply {self.size} by {self.source}", "from")
        self.activation_name = self.activation("linear")

    def emit(self, tensors: Tensors) -> relax.Var:
        """One product."""
        product = relax.op.multiply(tensors.values[self.position], tensors.source)
        return activate(tensors, tensors.emit(product, ""), self.activation_name)


class Upsample(Layer):
    """``[upsample]``: every pixel ``stride`` times each way, times ``scale``; a negative stride sums squares of pixels."""

    name = "upsample"

    def plan(self) -> None:
        """Larger by the stride, or smaller."""
        section = self.section
        stride = section.whole("stride", 2, -MAX_WINDOW, MAX_WINDOW)
        self.stride, self.reverse = abs(stride), stride < 0
        self.scale = section.number("scale", 1.0)
        channels, height, width = self.source
        if not stride or (self.reverse and (height % self.stride or width % self.stride)):
            raise section.error(f"stride {stride} does not fit the input {self.source}", "stride")
        self.size = Size(
            channels, *(side // self.stride if self.reverse else side * self.stride for side in (height, width))
        )

    def emit(self, tensors: Tensors) -> relax.Var:
        """A resize or a pooling, and a product."""
        scale = self.scale
        if self.reverse:
            result = relax.op.nn.avg_pool2d(tensors.source, (self.stride,) * 2, (self.stride,) * 2)
            scale *= self.stride**2
        else:
            result = relax.op.image.resize2d(
                tensors.source,
                self.size[1:],
                layout="NCHW",
                method="nearest_neighbor",
                coordinate_transformation_mode="asymmetric",
                rounding_method="floor",
            )
        result = tensors.emit(result, "")
        return result if scale == 1 else tensors.emit(relax.op.multiply(result, scalar(scale)), "scaled")


class Reorg(Layer):
    """``[reorg]``, which moves elements between pixels and channels in darknet's own order.

    The elements are read as an image of C/stride^2 channels, whatever the input is; its squares of pixels become channels, and
    the result is read again as C*stride^2 channels. AlexeyAB's ``[reorg3d]`` is the usual space-to-depth.
    """

    name = "reorg"

    def plan(self) -> None:
        """stride^2 times the channels, or the other way."""
        section = self.section
        self.stride = section.whole("stride", 1, 1, MAX_WINDOW)
        self.reverse = section.flag("reverse")
        self.plain = section.kind == "reorg3d"
        for key in ("flatten", "extra"):
            if section.flag(key):
                raise section.unsupported(f"{key}= is not supported", key)
        square = self.stride**2
        channels, height, width = self.source
        if (self.reverse or not self.plain) and channels % square:
            raise section.error(f"{channels} channels are no multiple of {square}")
        if not self.reverse and (height % self.stride or width % self.stride):
            raise section.error(f"{height}x{width} pixels are no multiple of {self.stride}")
        grown = (channels // square, height * self.stride, width * self.stride)
        self.size = Size(*(grown if self.reverse else (channels * square, height // self.stride, width // self.stride)))

    def emit(self, tensors: Tensors) -> relax.Var:
        """Reshape, transpose, reshape."""
        s = self.stride
        if self.reverse:
            channels, height, width = self.size.channels, self.size.height // s, self.size.width // s
            split, order = (s, s, channels, height, width), [2, 3, 0, 4, 1]
        else:
            channels, height, width = (
                (self.source.channels, *self.size[1:])
                if self.plain
                else (self.source.channels // s**2, *self.source[1:])
            )
            split, order = (channels, height, s, width, s), [2, 4, 0, 1, 3]
        parts = tensors.emit(relax.op.reshape(tensors.source, split), "split")
        moved = tensors.emit(relax.op.permute_dims(parts, order), "moved")
        return tensors.emit(relax.op.reshape(moved, (1, *self.size)), "")

"""Numbers that people state for their pixels: presets by name, means and deviations of pixels of 0..1 or of 0..255.

A pixel value v of 0..255 becomes ``(v - mean) * scale``. Recipes give means and deviations for pixels of 0..1 as often
(torchvision's 0.485, 0.456, 0.406) as for pixels of 0..255. Which is meant is taken from the numbers where they leave no
doubt, and asked for where they do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bitkiln.pipeline.errors import ModelError

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Range:
    """What a pixel value becomes, for each channel in the network's order; ``order`` is that of the channels, if it is part.

    ``unit``: the numbers it was made of were those of pixels of 0..1.
    """

    mean: Numbers
    scale: Numbers
    order: str | None = None
    unit: bool = False


_IMAGENET_MEAN = (123.675, 116.28, 103.53)  # 0.485, 0.456, 0.406 of 255
_IMAGENET_STD = (58.395, 57.12, 57.375)  # 0.229, 0.224, 0.225 of 255

#: Name -> (mean, deviation, order of the channels they are in and that goes with them), for pixels of 0..255.
PRESETS: dict[str, tuple[Numbers, Numbers, str | None]] = {
    "imagenet": (_IMAGENET_MEAN, _IMAGENET_STD, None),
    "0..1": ((0.0,), (255.0,), None),
    "-1..1": ((127.5,), (127.5,), None),
    "caffe": ((103.939, 116.779, 123.68), (1.0,), "BGR"),
}

#: What the presets' results are called.
TITLES = {
    "imagenet": "ImageNet's mean and deviation",
    "0..1": "0..1",
    "-1..1": "-1..1",
    "caffe": "0..255 less Caffe's ImageNet means",
}

#: Beyond these no mean of pixels and no factor makes sense.
_LARGEST_MEAN, _LARGEST_SCALE = 255.0, 1000.0


def preset(where: str, name: str, channels: int, order: str | None) -> Range:
    """The preset ``name`` for images of ``channels``; ``order`` is the one that the user states."""
    mean, deviation, own_order = PRESETS[name]
    if channels == 1 and max(len(mean), len(deviation)) > 1:
        raise ModelError(f"{where}: --normalize {name} is for three channels, the image has one; give --mean and --std")
    if own_order is not None and order not in (None, own_order):
        raise ModelError(f"{where}: --normalize {name} goes with --channel-order {own_order}, not {order}")
    values = [tuple(each * (channels if len(each) == 1 else 1)) for each in (mean, deviation)]
    if own_order is None and order == "BGR":  # the preset's values are those of red, green, blue
        values = [each[::-1] for each in values]
    return Range(values[0], tuple(1 / each for each in values[1]), own_order)


def stated(where: str, mean: Numbers | None, std: Numbers | None, scale: Numbers | None, channels: int) -> Range:
    """What ``--mean``, ``--std`` and ``--scale`` say together; those that are None are left out."""
    for name, values in (("mean", mean), ("std", std), ("scale", scale)):
        _check(where, name, values, channels)
    if std is not None and scale is not None:
        raise ModelError(f"{where}: --std and --scale both say what pixels are multiplied by; give one of them")
    unit = _is_unit(where, mean, std)
    if unit and scale is not None:
        raise ModelError(
            f"{where}: --mean {_text(mean)} is of pixels of 0..1, --scale multiplies pixels of 0..255; give --std instead"
        )
    factor = 255.0 if unit else 1.0
    means = tuple(each * factor for each in mean or (0.0,))
    scales = scale or (1 / factor,)
    if std is not None:
        scales = tuple(1 / (each * factor) for each in std)
    return Range(_spread(means, channels), _spread(scales, channels), unit=unit)


def _is_unit(where: str, mean: Numbers | None, std: Numbers | None) -> bool:
    """Are the numbers those of pixels of 0..1? ModelError where they may be of either range, or contradict each other."""
    found = {}
    for name, values, neutral in (("mean", mean, 0.0), ("std", std, 1.0)):
        if values is None or all(each == neutral for each in values):
            continue
        sizes = [abs(each) for each in values if each != neutral]
        if max(sizes) < 1:
            found[name] = True
        elif min(sizes) >= (2.0 if name == "mean" else 4.0):
            found[name] = False
        else:
            raise ModelError(
                f"{where}: --{name} {_text(values)} may be of pixels of 0..1 or of 0..255; give it as one of 0..255, "
                f"{_text(tuple(each * 255 for each in values))} if it is the first"
            )
    if len(set(found.values())) == 2:
        raise ModelError(
            f"{where}: --mean {_text(mean)} and --std {_text(std)} are of different ranges, 0..1 and 0..255; give both of one"
        )
    if not found and std is not None:
        raise ModelError(
            f"{where}: --std {_text(std)} may be of pixels of 0..1 or of 0..255; give --normalize 0..1 for the first, or "
            "nothing for the second"
        )
    return next(iter(found.values()), False)


def _check(where: str, name: str, values: Numbers | None, channels: int) -> None:
    if values is None:
        return
    if len(values) not in (1, channels):
        raise ModelError(
            f"{where}: --{name} has {len(values)} values, the image {channels} channel{'s' * (channels > 1)}"
        )
    if not all(math.isfinite(each) for each in values):
        raise ModelError(f"{where}: --{name} {_text(values)} is not finite")
    if name == "mean" and not all(0 <= each <= _LARGEST_MEAN for each in values):
        raise ModelError(
            f"{where}: --mean {_text(values)} is no mean of pixel values, which are 0..255; it is subtracted"
        )
    if name == "std" and not all(0 < each <= _LARGEST_MEAN for each in values):
        raise ModelError(f"{where}: --std {_text(values)} is no deviation of pixel values, which are 0..255")
    if name == "scale" and not all(1 / _LARGEST_SCALE**2 <= abs(each) <= _LARGEST_SCALE for each in values):
        raise ModelError(f"{where}: --scale {_text(values)} leaves nothing of pixel values, which are 0..255")


def _spread(values: Sequence[float], channels: int) -> Numbers:
    return tuple(float(each) for each in values) * (channels // len(values))


def named(mean: Sequence[float], scale: Sequence[float]) -> str:
    """In words, what a mean and a scale make of pixels."""
    if all(each == 0 for each in mean) and all(each == 1 for each in scale):
        return "0..255 as they are"
    for name, (means, deviations, _) in PRESETS.items():
        ours = [tuple(each * (len(mean) // len(each))) for each in (means, deviations) if len(mean) % len(each) == 0]
        for turn in (1, -1):
            if (
                len(ours) == 2
                and _close(mean, ours[0][::turn])
                and _close(scale, [1 / each for each in ours[1][::turn]])
            ):
                return TITLES[name]
    one = len(set(mean)) == len(set(scale)) == 1
    shown = [_text(tuple(each[:1] if one else each)) for each in (mean, scale)]
    return f"(value - {shown[0]}) * {shown[1]}" if one else f"(value - ({shown[0]})) * ({shown[1]})"


def _close(values: Sequence[float], others: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) for a, b in zip(values, others, strict=True))


def _text(values: Sequence[float] | None) -> str:
    return ",".join(f"{each:.6g}" for each in values or ())

"""The windows of ONNX convolutions and poolings, with every implicit padding made explicit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """Window geometry of a 2-d operator; ``padding`` is top, left, bottom, right.

    ``overruns``: how many rows and columns behind the padded input ceil_mode made windows read; ``padding`` has them.
    """

    kernel: _Pair
    strides: _Pair
    dilations: _Pair
    padding: tuple[int, int, int, int]
    overruns: _Pair = (0, 0)

    @classmethod
    def of(cls, attributes: Mapping[str, Any], size: _Pair, kernel: _Pair) -> Windows:
        """From a node's attributes and its input's rows and columns; ValueError for what is no window."""
        strides = tuple(attributes.get("strides", (1, 1)))
        dilations = tuple(attributes.get("dilations", (1, 1)))
        pads = list(attributes.get("pads", (0, 0, 0, 0)))
        if not len(kernel) == len(strides) == len(dilations) == 2 or len(pads) != 4:
            raise ValueError("kernel, strides, dilations and pads are not those of two dimensions")
        if min(*kernel, *strides, *dilations) < 1 or min(pads) < 0:
            raise ValueError(f"kernel {kernel}, strides {strides}, dilations {dilations}, pads {pads} make no sense")
        reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
        auto = attributes.get("auto_pad", b"NOTSET").decode()
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            pads = _same_pads(size, reach, strides, lower=auto == "SAME_LOWER")
        elif auto == "VALID":
            pads = [0, 0, 0, 0]
        extra = [0, 0]
        if attributes.get("ceil_mode", 0):
            extra = [_overrun(size[i] + pads[i] + pads[i + 2], reach[i], strides[i], size[i] + pads[i]) for i in (0, 1)]
        padding = (pads[0], pads[1], pads[2] + extra[0], pads[3] + extra[1])
        return cls(kernel, strides, dilations, padding, (extra[0], extra[1]))


def of_lines(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a 1-d operator as those of the same on images of one line."""
    pads = list(attributes.get("pads", (0, 0)))
    twice = {name: [1, *attributes[name]] for name in ("strides", "dilations", "kernel_shape") if name in attributes}
    return {**attributes, **twice, "pads": [0, *pads[:1], 0, *pads[1:]]}


def _same_pads(size: _Pair, reach: _Pair, strides: _Pair, *, lower: bool) -> list[int]:
    """Padding with which ceil(size / stride) windows fit; an odd one goes to the end, or with ``lower`` to the start."""
    totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in zip(size, reach, strides, strict=True)]
    starts = [total - total // 2 if lower else total // 2 for total in totals]
    return [*starts, *(total - start for total, start in zip(totals, starts, strict=True))]


def _overrun(padded: int, reach: int, stride: int, behind: int) -> int:
    """How far the last window of ceil_mode reads behind ``padded``; a window must start before ``behind``."""
    count = -(-(padded - reach) // stride) + 1
    if (count - 1) * stride >= behind:
        count -= 1
    return max((count - 1) * stride + reach - padded, 0)

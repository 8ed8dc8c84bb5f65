"""Windows over images in NHWC: convolution and pooling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitkiln.schedules.workload import Pool


def convolve(
    value: np.ndarray,
    weight: np.ndarray,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad_value: float = 0,
) -> np.ndarray:
    """Cross-correlation of float32 (or float64) [N, H, W, C] with OHWI weights -> [N, H', W', O]; exact for small integers."""
    out_channels, height, width, per_group = weight.shape
    dtype = np.result_type(value, weight)
    taps = windows(pad(value, padding, pad_value), (height, width), strides, dilation)
    batch, out_height, out_width = taps.shape[:3]
    if per_group == 1 and groups == value.shape[3] == out_channels:
        return np.einsum("nhwyxc,cyx->nhwc", taps, weight[..., 0], optimize=True).astype(dtype)
    result = np.empty((batch, out_height, out_width, out_channels), dtype)
    outs = out_channels // groups
    for group in range(groups):
        part = taps[..., group * per_group : (group + 1) * per_group].reshape(batch * out_height * out_width, -1)
        filters = weight[group * outs : (group + 1) * outs].reshape(outs, -1)
        result[..., group * outs : (group + 1) * outs] = (part @ filters.T).reshape(batch, out_height, out_width, outs)
    return result


def spread(
    value: np.ndarray,
    weight: np.ndarray,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    extra: Sequence[int],
) -> np.ndarray:
    """Transposed convolution: every pixel of [N, H, W, C] adds its window, OHWI, to the result, which padding then crops.

    ``extra`` (bottom, right) pixels behind the last window are part of the result.
    """
    outs, height, width, per_group = weight.shape
    share, (rows, columns) = outs // groups, value.shape[1:3]
    size = [
        (extent - 1) * stride + (kernel - 1) * step + 1 + more
        for extent, stride, kernel, step, more in zip(
            (rows, columns), strides, (height, width), dilation, extra, strict=True
        )
    ]
    result = np.zeros((len(value), *size, outs), np.result_type(value, weight))
    for group in range(groups):
        data = value[..., group * per_group : (group + 1) * per_group]
        own = slice(group * share, (group + 1) * share)
        for ky in range(height):
            for kx in range(width):
                place = result[:, ky * dilation[0] :, kx * dilation[1] :, own]
                taps = data @ weight[own, ky, kx].T
                place[:, : rows * strides[0] : strides[0], : columns * strides[1] : strides[1]] += taps
    top, left, bottom, right = padding
    return result[:, top : result.shape[1] - bottom, left : result.shape[2] - right]


def pool(value: np.ndarray, window: Pool) -> np.ndarray:
    """Maximum or average pooling of [1, H, W, C]."""
    fill = lowest(value.dtype) if window.kind == "max" else 0
    taps = windows(pad(value, window.padding, fill), window.kernel, window.strides, (1, 1))
    if window.kind == "max":
        return taps.max(axis=(3, 4))
    if window.count_include_pad:
        return taps.sum(axis=(3, 4)) / value.dtype.type(window.kernel[0] * window.kernel[1])
    inside = windows(pad(np.ones_like(value), window.padding, 0), window.kernel, window.strides, (1, 1))
    return taps.sum(axis=(3, 4)) / inside.sum(axis=(3, 4))


def lowest(dtype: np.dtype) -> float:
    """The least number of a type, which wins no maximum."""
    return float(np.finfo(dtype).min) if dtype.kind == "f" else int(np.iinfo(dtype).min)


def pad(value: np.ndarray, padding: Sequence[int], fill: float) -> np.ndarray:
    """[N, H, W, C] with ``padding`` (top, left, bottom, right) pixels of ``fill`` around."""
    top, left, bottom, right = padding
    return np.pad(value, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)


def windows(value: np.ndarray, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> np.ndarray:
    """[N, H, W, C] -> [N, H', W', kh, kw, C], a view."""
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    taps = np.lib.stride_tricks.sliding_window_view(value, reach, axis=(1, 2))
    taps = taps[:, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]
    return taps.transpose(0, 1, 2, 4, 5, 3)


def to_layout(value: np.ndarray, source: str, target: str) -> np.ndarray:
    """``value`` of layout ``source`` in layout ``target``, a view: both are the same letters, one for each axis."""
    return value.transpose([source.index(letter) for letter in target])

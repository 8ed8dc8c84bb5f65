"""Writing small darknet networks, and darknet's layers stated in numpy from their definitions, on [C, H, W]."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

#: The headers of the original darknet, of its first version, and of AlexeyAB's fork.
ORIGINAL, FIRST, FORK, TRANSPOSED = (0, 2, 0), (0, 1, 0), (0, 2, 5), (1001, 0, 0)


class Darknet:
    """Writes networks into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self,
        layers: str,
        arrays: Sequence[np.ndarray] = (),
        size: tuple[int, int, int] = (3, 6, 5),
        header: tuple[int, int, int] = ORIGINAL,
        name: str = "net",
        extra: bytes = b"",
    ) -> Path:
        """A cfg of ``layers`` behind a [net] of ``size`` (C, H, W), and its weights; the cfg's path."""
        cfg = self.folder / f"{name}.cfg"
        channels, height, width = size
        cfg.write_text(f"[net]\nbatch=1\nchannels={channels}\nheight={height}\nwidth={width}\n{layers}\n")
        wide = header[0] * 10 + header[1] >= 2 and max(header) < 1000
        start = struct.pack("<3i", *header) + struct.pack("<q" if wide else "<i", 12800)
        values = b"".join(np.asarray(array, "<f4").tobytes() for array in arrays)
        cfg.with_suffix(".weights").write_bytes(start + values + extra)
        return cfg


def windows(
    x: np.ndarray, kernel: int, stride: tuple[int, int], pads: Sequence[int], fill: float, dilation: int = 1
) -> np.ndarray:
    """[H', W', C, k, k] of [C, H, W] padded by (top, left, bottom, right)."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right)), constant_values=fill)
    reach = dilation * (kernel - 1) + 1
    rows = range(0, padded.shape[1] - reach + 1, stride[0])
    columns = range(0, padded.shape[2] - reach + 1, stride[1])
    return np.stack(
        [np.stack([padded[:, r : r + reach : dilation, c : c + reach : dilation] for c in columns]) for r in rows]
    )


def convolution(
    x: np.ndarray,
    weights: np.ndarray,
    stride: tuple[int, int] = (1, 1),
    pad: int = 0,
    groups: int = 1,
    dilation: int = 1,
) -> np.ndarray:
    """[O, H', W'] in double precision, of weights [O, C/groups, k, k] and zero padding."""
    taps = windows(x.astype(np.float64), weights.shape[2], stride, (pad,) * 4, 0, dilation)
    inside, outside = x.shape[0] // groups, len(weights) // groups
    result = [
        np.tensordot(taps[:, :, o // outside * inside : (o // outside + 1) * inside], weights[o], 3)
        for o in range(len(weights))
    ]
    return np.stack(result)


def normalized(x: np.ndarray, biases, scales, mean, variance, fork: bool = False) -> np.ndarray:
    """Batch normalisation of [C, ...] as the original darknet's CPU code has it, or as the fork does."""
    columns = [np.asarray(v, np.float64).reshape((-1,) + (1,) * (x.ndim - 1)) for v in (biases, scales, mean, variance)]
    biases, scales, mean, variance = columns
    deviation = np.sqrt(variance + 1e-5) if fork else np.sqrt(variance) + 1e-6
    return (x - mean) / deviation * scales + biases


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _stair(x: float) -> float:
    n = int(np.floor(x))
    return np.floor(x / 2) if n % 2 == 0 else (x - n) + np.floor(x / 2)


def _plse(x: float) -> float:
    if x < -4:
        return 0.01 * (x + 4)
    return 0.01 * (x - 4) + 1 if x > 4 else 0.125 * x + 0.5


def _lhtan(x: float) -> float:
    if x < 0:
        return 0.001 * x
    return 0.001 * (x - 1) + 1 if x > 1 else x


#: Activations of one number, as darknet's header defines them.
SCALAR_ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "logistic": sigmoid,
    "loggy": lambda x: 2 * sigmoid(x) - 1,
    "relu": lambda x: max(x, 0),
    "relu6": lambda x: min(max(x, 0), 6),
    "elu": lambda x: x if x >= 0 else np.exp(x) - 1,
    "selu": lambda x: 1.0507 * x if x >= 0 else 1.0507 * 1.6732 * (np.exp(x) - 1),
    "relie": lambda x: x if x > 0 else 0.01 * x,
    "leaky": lambda x: x if x > 0 else 0.1 * x,
    "ramp": lambda x: x * (x > 0) + 0.1 * x,
    "plse": _plse,
    "hardtan": lambda x: min(max(x, -1), 1),
    "lhtan": _lhtan,
    "stair": _stair,
    "tanh": np.tanh,
    "swish": lambda x: x * sigmoid(x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "hard_mish": lambda x: x if x > 0 else (x * x / 2 + x if x > -2 else 0),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(0.797885 * x + 0.035677 * x**3)),
}

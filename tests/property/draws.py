"""What property tests draw: shapes and choices by hypothesis, so that failures shrink; numbers by a drawn seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from bitkiln.pipeline import ops
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Pool
from tests.pipeline.passes.conftest import Network, constant

__all__ = ["ODD", "ODDER", "Dice", "Draw", "Network", "constant", "draws"]

#: Numbers that comparisons may stumble over. Sums of them and of small ones are the same in any order.
ODD = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0])
#: Numbers that elementwise arithmetic may stumble over.
ODDER = np.float32([*ODD, 1e-45, -1e-45, 1e-39, 3e38, -3e38, 1e-20])


_EDGES = (15, 16, 17, 24, 31, 32, 33, 64, 65, 128)


@dataclass(frozen=True)
class Draw:
    """Choices that hypothesis makes, and numbers."""

    draw: Any
    rng: np.random.Generator

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high."""
        return self.draw(st.integers(low, high))

    def pick(self, choices: Sequence[Any]) -> Any:
        """One of ``choices``."""
        return self.draw(st.sampled_from(list(choices)))

    def chance(self) -> bool:
        """Heads or tails."""
        return self.draw(st.booleans())

    def channels(self) -> int:
        """From 1 to 130, small ones and those around multiples of eight more often."""
        return self.draw(st.one_of(st.integers(1, 9), st.sampled_from(_EDGES), st.integers(1, 130)))

    def numbers(self, *shape: int, odd: np.ndarray | None = None) -> np.ndarray:
        """Multiples of 1/8 from -4 to 4, whose sums of products are exact in any order, and some that are ``odd``."""
        values = np.where(self.rng.random(shape) < 0.1, -0.0, self.rng.integers(-32, 33, shape) / 8)
        if odd is not None:
            values = np.where(self.rng.random(shape) < 0.3, self.rng.choice(odd, shape), values)
        return values.astype("float32")

    def floats(self, *shape: int, sizes: Sequence[float] = (1, 1, 10, 1e-3, 1e-38, 1e38)) -> np.ndarray:
        """Factors and offsets as networks have them, and some as only broken ones do; all finite."""
        size = self.pick(sizes)
        values = self.rng.standard_normal(shape) * size
        if self.chance():
            values = np.abs(values)
        if self.chance():
            values = np.where(self.rng.random(shape) < 0.3, self.rng.choice([0.0, -0.0, 1.0, 0.5, -3.0], shape), values)
        return values.astype("float32")

    def signs(self, *shape: int) -> np.ndarray:
        """+1 and -1."""
        return self.rng.choice([-1.0, 1.0], shape).astype("float32")

    def bits(self, *shape: int) -> np.ndarray:
        """Packed signs; the last of ``shape`` counts channels."""
        return ops.pack_bits(self.signs(*shape))

    def window(self, size: Sequence[int], pads: bool = True) -> dict[str, Any]:
        """Kernel, strides, padding and dilation of a convolution of an image of ``size``, with a result."""
        kernel, strides, dilation, padding = [], [], [], [0] * 4
        for axis in (0, 1):
            before, after = (self.whole(0, 2) * self.chance() for _ in range(2)) if pads else (0, 0)
            room = size[axis] + before + after
            kernel.append(self.whole(1, min(3, room)))
            dilation.append(self.whole(1, min(3, (room - 1) // (kernel[axis] - 1))) if kernel[axis] > 1 else 1)
            strides.append(self.whole(1, 3))
            padding[axis], padding[axis + 2] = before, after
        return {
            "kernel": tuple(kernel),
            "strides": tuple(strides),
            "padding": tuple(padding),
            "dilation": tuple(dilation),
        }

    def pool(self, size: Sequence[int], kinds: Sequence[str] = ("max", "avg")) -> Pool | None:
        """A pooling that fits an image of ``size``; None where it is too small."""
        kernel = self.pick([(2, 2), (3, 3), (2, 3), (1, 2)])
        padding = tuple(self.whole(0, kernel[i % 2] - 1) for i in range(4)) if self.chance() else (0, 0, 0, 0)
        if any(size[i] + padding[i] + padding[i + 2] < kernel[i] for i in (0, 1)):
            return None
        strides = self.whole(1, 3), self.whole(1, 3)
        return Pool(kernel, strides, padding, self.pick(kinds), self.chance())

    def steps(
        self,
        size: tuple[int, int, int],
        most: int = 5,
        numbers: Callable[..., np.ndarray] | None = None,
        tensors: bool = False,
    ) -> list[tuple[Step, np.ndarray | None]]:
        """Steps of an epilogue for a result of ``size`` (H, W, C), with their operands, which ``numbers`` makes."""
        steps = []
        for _ in range(self.whole(0, most)):
            op = self.pick(["mul", "add", "prelu", "relu", "clip", "leaky", "tanh", "silu", "hardswish"])
            if op not in ("mul", "add", "prelu"):
                low, high = sorted(self.rng.normal(0, 5, 2))
                values = {"clip": (low, high), "leaky": (self.rng.normal(),)}
                steps.append((Step(op, "", tuple(map(float, values.get(op, ())))), None))
                continue
            kind = self.pick(["channel", "channel", "element", *(["tensor"] * tensors)])
            shape = {"channel": size[2:], "element": size, "tensor": (1, *size)}[kind]
            steps.append((Step(op, kind), (numbers or self.floats)(*shape)))
        return steps


class Dice(Draw):
    """Choices by the seed alone, for tests that look at many examples at once."""

    def __init__(self, seed: int) -> None:
        super().__init__(None, np.random.default_rng(seed))

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, choices: Sequence[Any]) -> Any:
        """One of ``choices``."""
        return list(choices)[self.whole(0, len(choices) - 1)]

    def chance(self) -> bool:
        """Heads or tails."""
        return bool(self.rng.random() < 0.5)

    def channels(self) -> int:
        """From 1 to 130, small ones and those around multiples of eight more often."""
        return self.pick([self.whole(1, 9), self.pick(_EDGES), self.whole(1, 130)])


@st.composite
def draws(draw: Any) -> Draw:
    """A source of choices and numbers."""
    return Draw(draw, np.random.default_rng(draw(st.integers(0, 2**32 - 1))))

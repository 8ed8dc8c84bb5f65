"""What the reference computes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]
Value = np.ndarray | tuple[np.ndarray, ...]

#: What a Relax operator computes: the call (for its attributes) and its arguments, evaluated -> the result.
Operator = Callable[..., Value]

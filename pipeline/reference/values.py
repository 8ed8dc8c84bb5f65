"""What the reference computes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Tensors = Mapping[str, np.ndarray]
#: A tensor, or several that one operator gives.
Value = Any

#: What a Relax operator computes: the call (for its attributes) and its arguments, evaluated -> the result.
Operator = Callable[..., Value]

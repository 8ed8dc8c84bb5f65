"""What a network has to compute, in numpy, evaluated binding by binding.

Operators that are not listed here (no common layer of a CNN) are run as TVM defines them, on this machine.

Binary convolutions are integer-exact. Float arithmetic is float32, one operation after another as the graph states them;
only convolutions and means sum in an order of numpy's choosing.
"""

from __future__ import annotations

from bitkiln.pipeline.reference.network import (
    Instead,
    evaluate,
    evaluate_call,
    needed,
    output_names,
    outputs,
    outputs_of,
    run,
)
from bitkiln.pipeline.reference.operators import OPERATORS
from bitkiln.pipeline.reference.values import Tensors, Value
from bitkiln.pipeline.reference.windows import convolve, pool
from bitkiln.pipeline.reference.workloads import accumulate, compute, sign_bits

__all__ = [
    "OPERATORS",
    "Instead",
    "Tensors",
    "Value",
    "accumulate",
    "compute",
    "convolve",
    "evaluate",
    "evaluate_call",
    "needed",
    "output_names",
    "outputs",
    "outputs_of",
    "pool",
    "run",
    "sign_bits",
]

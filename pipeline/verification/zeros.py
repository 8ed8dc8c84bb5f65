"""Exact zeros before a sign: the file's Sign gives 0 for them, a bit has no such value and stands for +1."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from bitkiln.pipeline import reference
from bitkiln.pipeline.passes.graph import bindings, op_name, variables
from bitkiln.pipeline.passes.lower import Lowered
from bitkiln.pipeline.verification.compare import Tensors

#: How a verdict says that zeros take another value in the bundle than in the file.
_MARK = "zeros count as"


@dataclass(frozen=True)
class ExactZeros:
    """``count`` of the ``elements`` before the signs that ``layer`` reads are exact zeros."""

    layer: str
    count: int
    elements: int


def exact_zeros(lowered: Lowered, values: Tensors) -> list[ExactZeros]:
    """The layers that meet zeros to which the file gives the sign 0; ``values`` holds the tensors before the signs."""
    layers = _layers(lowered)
    found = []
    for source, layer in _sources(lowered.graph, layers).items():
        count = int((values[source] == 0).sum())
        if count:
            found.append(ExactZeros(layer, count, values[source].size))
    return found


def sources(lowered: Lowered) -> list[str]:
    """The tensors that ``exact_zeros`` looks at."""
    return list(_sources(lowered.graph, _layers(lowered)))


def count_as_positive(lowered: Lowered) -> reference.Instead:
    """Evaluates the signs that binary convolutions of the imported network read with zeros as +1, as the bundle does."""
    signs = _signs_before(lowered.phases["imported"], _layers(lowered))

    def instead(name: str, expr: relax.Expr, values: Mapping[str, reference.Value]) -> reference.Value | None:
        if name not in signs:
            return None
        value = reference.evaluate_call(lowered.phases["imported"], expr.args[0], values)
        assert isinstance(value, np.ndarray)
        return np.where(value >= 0, value.dtype.type(1), value.dtype.type(-1))

    return instead


def _layers(lowered: Lowered) -> set[str]:
    return {verdict.name for verdict in lowered.verdicts if verdict.binary and _MARK in verdict.reason}


def _sources(graph: tvm.IRModule, layers: Collection[str]) -> dict[str, str]:
    """Each tensor whose signs one of ``layers`` reads, and the first layer that does."""
    defined = dict(bindings(graph["main"]))
    found: dict[str, str] = {}
    for name, value in defined.items():
        layer = name.removesuffix(".sums")
        if op_name(value) != "bitkiln.bconv2d" or layer not in layers:
            continue
        call = defined.get(value.args[0].name)
        if op_name(call) == "reshape":
            call = defined.get(call.args[0].name)
        if op_name(call) == "bitkiln.binarize":
            found.setdefault(call.args[0].name, layer)
    return found


def _signs_before(imported: tvm.IRModule, layers: Collection[str]) -> set[str]:
    """The nearest operators "sign" before the convolutions called ``layers``."""
    defined = dict(bindings(imported["main"]))
    pending = [var.name for layer in layers if layer in defined for var in variables(defined[layer])]
    seen: set[str] = set()
    signs = set()
    while pending:
        name = pending.pop()
        if name in seen or name not in defined:
            continue
        seen.add(name)
        if op_name(defined[name]) == "sign":
            signs.add(name)
        else:
            pending.extend(var.name for var in variables(defined[name]))
    return signs

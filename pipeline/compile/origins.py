"""The layers of the model's file that each step of a lowered network was made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import tvm
from tvm import relax

from bitkiln.pipeline import reference
from bitkiln.pipeline.ir.graph import bindings, variables
from bitkiln.pipeline.passes.pipeline import Lowered


class Origins:
    """Which layers of the imported network each step covers; a layer belongs to the first step that needs it."""

    def __init__(self, lowered: Lowered) -> None:
        self.graph: tvm.IRModule = lowered.graph
        self.imported: Mapping[str, relax.Expr] = dict(bindings(lowered.phases["imported"]["main"]))
        self.order = {name: at for at, name in enumerate(self.imported)}
        self.claimed: set[str] = set()

    def between(self, known: Collection[str], name: str) -> tuple[str, ...]:
        """The layers that lie between ``known`` tensors and ``name``."""
        pending = [each for each in reference.needed(self.graph, known, [name]) if each in self.imported]
        found: set[str] = set()
        while pending:
            layer = pending.pop()
            if layer in self.imported and layer not in self.claimed:
                self.claimed.add(layer)
                found.add(layer)
                pending.extend(var.name for var in variables(self.imported[layer]))
        return tuple(sorted(found, key=self.order.__getitem__))


def layers_of(lowered: Lowered, steps: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The layers of each of ``steps``, in execution order; a step that is only a part of a later one has none."""
    graph = dict(bindings(lowered.graph["main"]))
    origins = Origins(lowered)
    known = [param.name for param in lowered.graph["main"].params]
    found: dict[str, tuple[str, ...]] = {}
    for name in steps:
        if name in graph:
            found[name] = origins.between(known, name)
            known.append(name)
    return found

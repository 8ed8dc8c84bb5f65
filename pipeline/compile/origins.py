"""The layers of the model's file that each step of a lowered network was made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import tvm
from tvm import relax

from bitkiln.pipeline import reference
from bitkiln.pipeline.ir.graph import bindings, file_names, op_name, variables
from bitkiln.pipeline.passes.pipeline import Lowered


class Origins:
    """Which layers of the imported network each step covers; a layer belongs to the first step that needs it."""

    def __init__(self, lowered: Lowered) -> None:
        self.graph: tvm.IRModule = lowered.graph
        self.imported: Mapping[str, relax.Expr] = dict(bindings(lowered.phases["imported"]["main"]))
        self.order = {name: at for at, name in enumerate(self.imported)}
        self.claimed: set[str] = set()
        self._names = file_names(lowered.phases["imported"]["main"])

    def named(self, layers: Iterable[str]) -> tuple[str, ...]:
        """What the file calls ``layers``."""
        return tuple(self._names.get(layer, layer) for layer in layers)

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

    def main(self, layers: Iterable[str]) -> str:
        """The one of ``layers`` that a step is known by: what multiplies, else the last; "" of none."""
        last = ""
        for last in layers:
            operator = op_name(self.imported[last]).removeprefix("nn.").removeprefix("bitkiln.")
            if operator.startswith(("conv", "bconv")) or operator == "matmul":
                return last
        return last


def layers_of(lowered: Lowered, steps: Iterable[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The layer that each of ``steps`` is known by, and all its layers in execution order.

    Where several steps together compute a tensor of the network, the first of them is known by what multiplies, the last by
    what comes after it, and those between are left out. Of steps that each compute some channels the first has the layers.
    """
    graph = dict(bindings(lowered.graph["main"]))
    origins = Origins(lowered)
    known = [param.name for param in lowered.graph["main"].params]
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    parts: list[str] = []
    steps = list(steps)
    for name in steps:
        whole = name.rpartition(".part")[0]
        if whole in graph and whole not in steps:
            layers = origins.between(known, whole)
            found[name] = "".join(origins.named([origins.main(layers)])), origins.named(layers)
            known.append(whole)
            continue
        if name not in graph:
            parts.append(name)
            continue
        layers = origins.between(known, name)
        if parts and layers:
            end = layers.index(origins.main(layers)) + 1
            found[parts[0]] = origins.named(layers[end - 1 : end])[0], origins.named(layers[:end])
            layers = layers[end:]
        found[name] = "".join(origins.named([origins.main(layers)])), origins.named(layers)
        known.append(name)
        parts = []
    return found

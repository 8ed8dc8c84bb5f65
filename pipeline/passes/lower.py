"""All passes in order: from the network as an importer gives it to a straight line of kernels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import tvm
from tvm import relax

from bitkiln.pipeline.model import Model
from bitkiln.pipeline.passes.absorb_image import absorb_image
from bitkiln.pipeline.passes.canonicalize import canonicalize
from bitkiln.pipeline.passes.dense_to_conv import dense_to_conv
from bitkiln.pipeline.passes.fold_affine import fold_affine
from bitkiln.pipeline.passes.fold_threshold import Note, fold_threshold
from bitkiln.pipeline.passes.fuse_epilogue import fuse_epilogue, to_operators
from bitkiln.pipeline.passes.graph import bindings, variables
from bitkiln.pipeline.passes.legalize import legalize
from bitkiln.pipeline.passes.recognise_binary import Verdict, recognise
from bitkiln.pipeline.passes.to_nhwc import to_nhwc
from bitkiln.targets import Target


@dataclass(frozen=True)
class Lowered:
    """A network ready to be planned and compiled, and how it came about.

    ``module``: ``main`` is a straight line of call_tir, reshapes and constants; PrimFuncs with attribute "bitkiln.workload"
    are to be replaced by what the schedules emit for that workload, the others are complete.
    ``graph`` is the NHWC network before anything was fused: what ``module`` has to compute, tensor by tensor. Variables of
    ``module`` that compute a tensor of ``graph`` have its name.
    ``verdicts`` has one entry for each convolution, ``notes`` one for each binary convolution that keeps floats before the
    next sign. ``phases`` holds the module after each named phase.
    """

    module: tvm.IRModule
    graph: tvm.IRModule
    verdicts: tuple[Verdict, ...]
    notes: tuple[Note, ...]
    phases: dict[str, tvm.IRModule]

    def warnings(self) -> list[str]:
        """What the user should know: convolutions that look as if they were meant to be binary, and are not."""
        return [
            f"{verdict.name} runs in floats, not in bits: {verdict.reason}"
            for verdict in self.verdicts
            if verdict.suspicious
        ]


def binary_layers(module: tvm.IRModule) -> tuple[list[Verdict], dict[str, str]]:
    """A verdict for each convolution, and for each binary one that keeps floats before the next sign why it does."""
    module, verdicts = recognise(dense_to_conv(to_nhwc(canonicalize(module))))
    _, notes = fold_threshold(fuse_epilogue(to_operators(fold_affine(module))))
    defined, convolutions = dict(bindings(module["main"])), {verdict.name for verdict in verdicts}
    return verdicts, {_origin(note.name, defined, convolutions): note.reason for note in notes}


def _origin(name: str, defined: Mapping[str, relax.Expr], convolutions: Collection[str]) -> str:
    """The nearest of ``convolutions`` before the tensor ``name``."""
    level = [name]
    while not (found := [each for each in level if each in convolutions]):
        level = [var.name for each in level if each in defined for var in variables(defined[each])]
        if not level:
            return name
    return found[0]


def lower(model: Model, target: Target) -> Lowered:
    """Lower ``model`` for ``target``. Raises ModelError."""
    phases: dict[str, tvm.IRModule] = {"imported": model.module}
    module = model.module

    def phase(name: str, rewritten: tvm.IRModule) -> tvm.IRModule:
        phases[name] = rewritten
        return rewritten

    module = phase("canonical", canonicalize(module))
    module = phase("nhwc", to_nhwc(module))
    module = phase("convolutions", dense_to_conv(module))
    module, verdicts = recognise(module)
    module = phase("recognised", module)
    graph = phase("graph", fold_affine(module))
    module = phase("operators", to_operators(graph))
    module = phase("fused", fuse_epilogue(module))
    module = phase("first layer", absorb_image(module, target))
    module, notes = fold_threshold(module)
    module = phase("thresholds", module)
    module = phase("legal", legalize(module, target))
    return Lowered(module, graph, tuple(verdicts), tuple(notes), phases)

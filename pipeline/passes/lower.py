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
    verdicts, phases = _until_fused(module)
    _, notes = fold_threshold(phases["fused"])
    defined, convolutions = dict(bindings(phases["recognised"]["main"])), {verdict.name for verdict in verdicts}
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
    verdicts, phases = _until_fused(model.module)
    phases["first layer"] = absorb_image(phases["fused"], target)
    phases["thresholds"], notes = fold_threshold(phases["first layer"])
    phases["legal"] = legalize(phases["thresholds"], target)
    return Lowered(phases["legal"], phases["graph"], tuple(verdicts), tuple(notes), phases)


def _until_fused(module: tvm.IRModule) -> tuple[list[Verdict], dict[str, tvm.IRModule]]:
    """The passes that no target decides: a verdict for each convolution, and the module after each phase."""
    phases = {"imported": module}
    phases["canonical"] = canonicalize(module)
    phases["nhwc"] = to_nhwc(phases["canonical"])
    phases["convolutions"] = dense_to_conv(phases["nhwc"])
    phases["recognised"], verdicts = recognise(phases["convolutions"])
    phases["graph"] = fold_affine(phases["recognised"])
    phases["operators"] = to_operators(phases["graph"])
    phases["fused"] = fuse_epilogue(phases["operators"])
    return verdicts, phases

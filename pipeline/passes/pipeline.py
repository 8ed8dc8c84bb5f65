"""All passes in order: from the network as an importer gives it to a straight line of kernels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import relax

from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.ir.graph import bindings, op_name, variables
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.passes.absorb_image import absorb_image
from bitkiln.pipeline.passes.binary.recognise import Verdict, recognise
from bitkiln.pipeline.passes.canonicalize import canonicalize
from bitkiln.pipeline.passes.dense_to_conv import dense_to_conv
from bitkiln.pipeline.passes.fold_affine import fold_affine, fold_steps
from bitkiln.pipeline.passes.fold_threshold import Note, fold_threshold
from bitkiln.pipeline.passes.fuse_epilogue import fuse_epilogue, to_operators
from bitkiln.pipeline.passes.layout import to_nhwc
from bitkiln.pipeline.passes.legalize import legalize
from bitkiln.pipeline.passes.merge_padding import merge_padding
from bitkiln.pipeline.passes.split_groups import split_groups
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


@dataclass(frozen=True)
class Survey:
    """What the passes that need no target find in a network, as far as they get.

    ``phases`` ends with "thresholds", or earlier where a pass refused the network: ``problem`` is what it said.
    """

    phases: dict[str, tvm.IRModule]
    verdicts: tuple[Verdict, ...]
    notes: tuple[Note, ...] = ()
    problem: str = ""

    def defined(self, phase: str) -> dict[str, relax.Expr]:
        """The operations of the network after ``phase``, by name."""
        return dict(bindings(self.phases[phase]["main"]))

    def binary_operators(self) -> dict[str, list[str]]:
        """For each binary convolution the names, in the recognised network, of the operators that sum its bits.

        There are two or four where zeros of the activation or of the weights have to count as 0: their sums are those
        with zeros as +1 and as -1.
        """
        if "recognised" not in self.phases:
            return {}
        defined = self.defined("recognised")
        ours = {name for name, value in defined.items() if op_name(value) == "bitkiln.bconv2d"}
        binary = [verdict.name for verdict in self.verdicts if verdict.binary and verdict.name in defined]
        found = {name: _operators(name, defined, ours) for name in binary}
        return {name: operators for name, operators in found.items() if operators}


def survey(module: tvm.IRModule) -> Survey:
    """Look at a network without compiling it; what compiling would refuse is no error here."""
    verdicts: list[Verdict] = []
    phases: dict[str, tvm.IRModule] = {}
    try:
        _until_fused(module, verdicts, phases)
        phases["thresholds"], notes = fold_threshold(phases["fused"])
    except BitkilnError as error:
        return Survey(phases, tuple(verdicts), problem=str(error))
    return Survey(phases, tuple(verdicts), tuple(notes))


def origin(name: str, defined: Mapping[str, relax.Expr], wanted: Collection[str]) -> str:
    """The nearest of ``wanted`` before the tensor ``name``, or ``name`` where there is none."""
    seen, level = {name}, [name]
    while level:
        found = next((each for each in level if each in wanted), None)
        if found is not None:
            return found
        before = [var.name for each in level if each in defined for var in variables(defined[each])]
        level = [each for each in dict.fromkeys(before) if each not in seen]
        seen.update(level)
    return name


def _operators(name: str, defined: Mapping[str, relax.Expr], ours: Collection[str]) -> list[str]:
    """Those of ``ours`` that the convolution ``name`` was recognised as, in order; their sums are called after it."""
    found, pending = set(), [name]
    while pending:
        each = pending.pop()
        if each in ours:
            found.add(each)
        else:
            pending += [var.name for var in variables(defined[each]) if var.name.startswith(f"{name}.sums")]
    return [each for each in defined if each in found]


def lower(model: Model, target: Target) -> Lowered:
    """Lower ``model`` for ``target``. Raises ModelError."""
    verdicts: list[Verdict] = []
    phases: dict[str, tvm.IRModule] = {}
    _until_fused(model.module, verdicts, phases)
    return _finished(verdicts, phases, target)


def finish(found: Survey, target: Target) -> Lowered:
    """What ``lower`` gives for the network that ``found`` is of. Raises ModelError."""
    return _finished(found.verdicts, dict(found.phases), target)


def _finished(verdicts: Sequence[Verdict], phases: dict[str, tvm.IRModule], target: Target) -> Lowered:
    """The passes from "fused" on, as the target wants them."""
    phases["first layer"] = absorb_image(phases["fused"], target)
    phases["thresholds"], notes = fold_threshold(phases["first layer"])
    phases["merged"] = fold_steps(phases["thresholds"])
    phases["groups"] = split_groups(phases["merged"])
    phases["legal"] = legalize(phases["groups"], target)
    return Lowered(phases["legal"], phases["graph"], tuple(verdicts), tuple(notes), phases)


def _until_fused(module: tvm.IRModule, verdicts: list[Verdict], phases: dict[str, tvm.IRModule]) -> None:
    """The passes that no target decides: adds a verdict for each convolution, and the module after each phase."""
    phases["imported"] = module
    phases["canonical"] = canonicalize(module)
    phases["nhwc"] = to_nhwc(phases["canonical"])
    phases["convolutions"] = dense_to_conv(phases["nhwc"])
    phases["padding"] = merge_padding(phases["convolutions"])
    phases["recognised"], found = recognise(phases["padding"])
    verdicts.extend(found)
    phases["graph"] = fold_affine(phases["recognised"])
    phases["operators"] = to_operators(phases["graph"])
    phases["fused"] = fuse_epilogue(phases["operators"])

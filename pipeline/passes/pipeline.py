"""All passes in order: from the network as an importer gives it to a straight line of kernels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import tvm
from tvm import relax

from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.ir.graph import bindings, file_names, op_name, variables
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.passes.absorb_image import absorb_image
from bitkiln.pipeline.passes.binary.recognise import recognise
from bitkiln.pipeline.passes.binary.verdict import Verdict
from bitkiln.pipeline.passes.canonicalize import canonicalize
from bitkiln.pipeline.passes.channel_views import channel_views
from bitkiln.pipeline.passes.dense_to_conv import dense_to_conv
from bitkiln.pipeline.passes.depth_first import depth_first
from bitkiln.pipeline.passes.fold_affine import fold_affine
from bitkiln.pipeline.passes.fold_steps import fold_steps
from bitkiln.pipeline.passes.fold_threshold import Note, fold_threshold
from bitkiln.pipeline.passes.fuse_epilogue import fuse_epilogue
from bitkiln.pipeline.passes.halves import halves
from bitkiln.pipeline.passes.join_products import join_products
from bitkiln.pipeline.passes.layout import layout
from bitkiln.pipeline.passes.legalize import legalize
from bitkiln.pipeline.passes.merge_padding import merge_padding
from bitkiln.pipeline.passes.quantized import quantized
from bitkiln.pipeline.passes.read_parts import read_parts
from bitkiln.pipeline.passes.round_weights import round_weights
from bitkiln.pipeline.passes.signs_beside import signs_beside
from bitkiln.pipeline.passes.split_groups import split_groups
from bitkiln.pipeline.passes.to_operators import to_operators
from bitkiln.targets import Target

#: The phase before the first pass: the network as the importer gave it.
IMPORTED = "imported"


@dataclass
class Progress:
    """A network between two passes.

    ``phases`` holds the module after each pass, by the pass's name. ``verdicts`` has one entry for each convolution,
    ``notes`` one for each binary convolution that keeps floats before the next sign. With ``bf16`` large weights are rounded.
    """

    phases: dict[str, tvm.IRModule]
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    target: Target | None = None
    bf16: bool = False


class Pass(NamedTuple):
    """A step of lowering. Its ``name`` is that of its file or folder beside this one, and of the phase that it ends.

    ``run`` takes the module and what is known so far. One with ``for_target`` needs to know the board.
    """

    name: str
    run: Callable[[tvm.IRModule, Progress], tvm.IRModule]
    for_target: bool = False


def _binary(module: tvm.IRModule, progress: Progress) -> tvm.IRModule:
    module, progress.verdicts = recognise(module)
    return module


def _round_weights(module: tvm.IRModule, progress: Progress) -> tvm.IRModule:
    return round_weights(module, _known(progress.target)) if progress.bf16 else module


def _fold_threshold(module: tvm.IRModule, progress: Progress) -> tvm.IRModule:
    module, progress.notes = fold_threshold(module)
    return module


def _plain(rewrite: Callable[[tvm.IRModule], tvm.IRModule]) -> Callable[[tvm.IRModule, Progress], tvm.IRModule]:
    return lambda module, _progress: rewrite(module)


def _for_target(
    rewrite: Callable[[tvm.IRModule, Target], tvm.IRModule],
) -> Callable[[tvm.IRModule, Progress], tvm.IRModule]:
    return lambda module, progress: rewrite(module, _known(progress.target))


def _known(target: Target | None) -> Target:
    assert target is not None, "a pass for a target runs only where the target is known"
    return target


PASSES = (
    Pass("canonicalize", _plain(canonicalize)),
    Pass("layout", _plain(layout)),
    Pass("dense_to_conv", _plain(dense_to_conv)),
    Pass("merge_padding", _plain(merge_padding)),
    Pass("binary", _binary),
    Pass("quantized", _for_target(quantized), for_target=True),
    Pass("fold_affine", _plain(fold_affine)),
    Pass("round_weights", _round_weights, for_target=True),
    Pass("channel_views", _plain(channel_views)),
    Pass("to_operators", _plain(to_operators)),
    Pass("fuse_epilogue", _plain(fuse_epilogue)),
    Pass("join_products", _plain(join_products)),
    Pass("absorb_image", _for_target(absorb_image), for_target=True),
    Pass("fold_threshold", _fold_threshold),
    Pass("fold_steps", _plain(fold_steps)),
    Pass("split_groups", _plain(split_groups)),
    Pass("signs_beside", _for_target(signs_beside), for_target=True),
    Pass("read_parts", _plain(read_parts)),
    Pass("depth_first", _for_target(depth_first), for_target=True),
    Pass("halves", _for_target(halves), for_target=True),
    Pass("legalize", _for_target(legalize), for_target=True),
)

#: The last pass that ``survey`` runs: what comes after it makes kernels of what was found.
LAST_SURVEYED = "fold_threshold"
#: The last pass before the first one that a target decides.
LAST_COMMON = "binary"

_NAMES = [each.name for each in PASSES]


@dataclass(frozen=True)
class Lowered:
    """A network ready to be planned and compiled, and how it came about.

    ``module``: ``main`` is a straight line of call_tir, reshapes and constants; PrimFuncs with attribute "bitkiln.workload"
    are to be replaced by what the schedules emit for that workload, the others are complete.
    ``graph`` is the NHWC network before anything was fused: what ``module`` has to compute, tensor by tensor. Variables of
    ``module`` that compute a tensor of ``graph`` have its name.
    ``verdicts``, ``notes``, ``phases`` and ``bf16`` as in ``Progress``; with ``bf16`` the weights of ``graph`` are rounded.
    """

    module: tvm.IRModule
    graph: tvm.IRModule
    verdicts: tuple[Verdict, ...]
    notes: tuple[Note, ...]
    phases: dict[str, tvm.IRModule]
    bf16: bool = False

    def warnings(self) -> list[str]:
        """What the user should know: convolutions that look as if they were meant to be binary, and are not."""
        names = file_names(self.phases[IMPORTED]["main"])
        return [
            f"{names.get(verdict.name, verdict.name)} runs in floats, not in bits: {verdict.reason}"
            for verdict in self.verdicts
            if verdict.suspicious
        ]


@dataclass(frozen=True)
class Survey:
    """What the passes that need no target find in a network, as far as they get.

    ``phases`` ends with ``LAST_SURVEYED``, or earlier where a pass refused the network: ``problem`` is what it said.
    """

    phases: dict[str, tvm.IRModule]
    verdicts: tuple[Verdict, ...]
    notes: tuple[Note, ...] = ()
    problem: str = ""

    def defined(self, phase: str) -> dict[str, relax.Expr]:
        """The operations of the network after ``phase``, by name."""
        return dict(bindings(self.phases[phase]["main"]))

    def binary_operators(self) -> dict[str, list[str]]:
        """For each binary convolution the names, in the network after "binary", of the operators that sum its bits.

        There are two or four where zeros of the activation or of the weights have to count as 0: their sums are those
        with zeros as +1 and as -1.
        """
        if "binary" not in self.phases:
            return {}
        defined = self.defined("binary")
        ours = {name for name, value in defined.items() if op_name(value) == "bitkiln.bconv2d"}
        binary = [verdict.name for verdict in self.verdicts if verdict.binary and verdict.name in defined]
        found = {name: _operators(name, defined, ours) for name in binary}
        return {name: operators for name, operators in found.items() if operators}


def survey(module: tvm.IRModule) -> Survey:
    """Look at a network without compiling it; what compiling would refuse is no error here."""
    progress, problem = Progress({IMPORTED: module}), ""
    try:
        _run(progress, _NAMES[0], LAST_SURVEYED)
    except BitkilnError as error:
        problem = str(error)
    return Survey(progress.phases, tuple(progress.verdicts), tuple(progress.notes), problem)


def lower(model: Model, target: Target, bf16: bool = False) -> Lowered:
    """Lower ``model`` for ``target``, with large weights rounded to bfloat16 if asked for. Raises ModelError."""
    progress = Progress({IMPORTED: model.module}, target=target, bf16=bf16)
    _run(progress, _NAMES[0], _NAMES[-1])
    return _lowered(progress)


def finish(found: Survey, target: Target) -> Lowered:
    """What ``lower`` gives for the network that ``found`` is of. Raises ModelError."""
    common = (IMPORTED, *_NAMES[: _NAMES.index(LAST_COMMON) + 1])
    progress = Progress({name: found.phases[name] for name in common}, list(found.verdicts), target=target)
    _run(progress, _NAMES[len(common) - 1], _NAMES[-1])
    return _lowered(progress)


def _run(progress: Progress, first: str, last: str) -> None:
    """Run the passes ``first`` to ``last`` on the latest phase; those for a target only where one is known."""
    module = list(progress.phases.values())[-1]
    for each in PASSES[_NAMES.index(first) : _NAMES.index(last) + 1]:
        if progress.target is None and each.for_target:
            continue
        module = progress.phases[each.name] = each.run(module, progress)


def _lowered(progress: Progress) -> Lowered:
    phases, verdicts, notes = progress.phases, tuple(progress.verdicts), tuple(progress.notes)
    return Lowered(phases[_NAMES[-1]], phases["round_weights"], verdicts, notes, phases, progress.bf16)


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

"""Turns a network into a bundle: a kernel for each step, packed weights, a plan, a library, a golden answer.

``kernels`` chooses, ``arguments`` packs weights, ``plan`` places tensors in memory, ``link`` makes ``model.so``, ``manifest``
describes it, ``golden`` asks the emulated board for its answer. ``single`` does the same for one kernel that is tuned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tvm
from rich.console import Console

from bitkiln.pipeline import bundle
from bitkiln.pipeline.compile import golden
from bitkiln.pipeline.compile.arguments import plan_network
from bitkiln.pipeline.compile.kernels import RecordSource, choose_kernels, where_they_differ
from bitkiln.pipeline.compile.link import link_library
from bitkiln.pipeline.compile.manifest import add_layers, describe, report
from bitkiln.pipeline.compile.memory import argument_bytes, check_memory, constant_bytes
from bitkiln.pipeline.compile.plan import read_network
from bitkiln.pipeline.errors import InputError, ModelError
from bitkiln.pipeline.importers.common.preprocessing import preparation
from bitkiln.pipeline.meaning.recognise import hint
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.support.threads import counts_for
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.targets import Target

if TYPE_CHECKING:
    from bitkiln.pipeline.passes.pipeline import Lowered


def compile_model(
    model: Model,
    target: Target,
    records: RecordSource,
    out: Path,
    console: Console | None = None,
    threads: Sequence[int] | None = None,
    bf16: bool = False,
) -> Path:
    """Compile ``model`` for ``target`` into the bundle ``out``, with the best kernels that ``records`` know.

    ``threads``: the number that they are to be best for, the board's cores unless given; or 1 and another, for a bundle with
    a plan for one thread and one for several. ``bf16``: large weights are rounded to bfloat16.
    Raises BitkilnError; ``out`` is replaced only when everything has succeeded.
    """
    # Processes that only build kernels for tuning do without.
    from bitkiln.pipeline.passes.costs import hidden_costs
    from bitkiln.pipeline.passes.pipeline import Survey, lower

    bundle.refuse_foreign(out)
    if bf16 and not kernel_set(target).sgemm_halves:
        raise ModelError(f"{target.name} has no kernels that read weights in bfloat16: compile without --bf16-weights")
    lowered = lower(model, target, bf16)
    costs = hidden_costs(Survey(lowered.phases, lowered.verdicts))
    priced = (f"{each.name} {each.priced(target)}" for each in costs)
    warnings = (*model.warnings, *lowered.warnings(), *priced, *_missing_kernels(target))
    if console:
        for warning in warnings:
            console.print(f"warning: {warning}", highlight=False, markup=False)
    return compile_lowered(model, lowered.module, target, records, out, console, lowered, warnings, threads)


def compile_lowered(
    model: Model,
    module: tvm.IRModule,
    target: Target,
    records: RecordSource,
    out: Path,
    console: Console | None = None,
    lowered: Lowered | None = None,
    warnings: Sequence[str] = (),
    threads: Sequence[int] | None = None,
) -> Path:
    """As ``compile_model``, for a network already lowered to ``module``.

    The manifest says of which of the file's layers each step was made where ``lowered`` is known, and what was warned of.
    """
    console = console or Console(quiet=True)
    network = read_network(module)
    check_memory(model, network, target, constant_bytes(network))
    least, *more = _plans_for(target, threads)
    chosen = choose_kernels(module, network, target, records, least)
    several = where_they_differ(choose_kernels(module, network, target, records, more[-1]), chosen) if more else {}
    check_memory(
        model, network, target, max(argument_bytes(network, kernels) for kernels in (chosen, chosen | several))
    )
    plan = plan_network(model, network, chosen, several)
    kernels = (*chosen.values(), *several.values())
    functions = {kernel.symbol: kernel.func for kernel in kernels}
    microkernels = [micro for kernel in kernels if kernel.kernel for micro in kernel.kernel.microkernels]
    with bundle.writing(out) as folder:
        facts = link_library(functions, microkernels, plan, target, folder / "model.so")
        manifest = describe(model, target, network, chosen, several, plan, facts)
        manifest |= {
            "threads": [least, *more],
            "warnings": list(warnings),
            "bf16_weights": bool(lowered and lowered.bf16),
        }
        add_layers(manifest, lowered)
        bundle.add_files(folder, model, manifest)
        manifest["golden"], manifest["memory"]["running"] = golden.make(folder, target, plan, console)
        bundle.finish(folder, manifest)
    report(out, manifest, console)
    for line in (*preparation(model), *filter(None, [hint(model)])):
        console.print(line, highlight=False, markup=False)
    return out


def _plans_for(target: Target, threads: Sequence[int] | None) -> tuple[int, ...]:
    """The numbers of threads that kernels are chosen for. Raises InputError for more plans than a library has."""
    counts = counts_for(target, threads)
    if len(counts) > 2 or (len(counts) == 2 and counts[0] != 1):
        raise InputError(
            f"{', '.join(map(str, counts))} threads: a bundle has one plan, or one for 1 thread and one for several; "
            "give --threads N or 1,N"
        )
    return counts


def _missing_kernels(target: Target) -> list[str]:
    """What to say of a CPU that nobody has written micro-kernels for."""
    if kernel_set(target).assembly:
        return []
    return [
        f"there are no micro-kernels for {target.name} ({target.cpu_name}, {target.architecture}): its kernels are plain loops"
    ]

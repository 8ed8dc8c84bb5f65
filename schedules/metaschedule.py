"""MetaSchedule without its slow start, and its rules for a Cortex-A53."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import tvm
from tvm import tirx
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule import _ffi_api
from tvm.s_tir.meta_schedule.logging import get_logging_func
from tvm.s_tir.meta_schedule.tune_context import _normalize_mod
from tvm.s_tir.schedule import Schedule
from tvm.target import Target as TvmTarget

from bitkiln.targets import Target

__all__ = ["TuneContext", "derive", "ms", "own_space", "postprocs", "quiet"]

#: Floats that loops run over at a time: the 16 quad registers that a tile may fill leave as many for its operands.
_MOST_INNERMOST = 64
#: Parts of a parallel loop for each core: enough for the last to end soon after the first.
_PARTS_PER_CORE = 4
#: Iterations of a loop's body that are unrolled.
_UNROLLED = (0, 16, 64, 256)


class TuneContext(ms.TuneContext):
    """MetaSchedule's state of one search, which runs in one thread.

    TVM's own constructor imports ``tvm.s_tir.tensor_intrin`` first, which parses hundreds of intrinsics of other processors:
    15 seconds that we have no use for.
    """

    def __init__(
        self,
        function: tirx.PrimFunc | tvm.IRModule,
        target: TvmTarget,
        space_generator: ms.SpaceGenerator,
        search_strategy: ms.SearchStrategy,
        task_name: str,
        seed: int,
        logger: logging.Logger,
    ) -> None:
        self.__init_handle_by_constructor__(
            _ffi_api.TuneContext,
            _normalize_mod(function),
            target,
            space_generator,
            search_strategy,
            task_name,
            1,
            seed,
            get_logging_func(logger),
        )
        _ffi_api.TuneContextInitialize(self)


def own_space() -> ms.SpaceGenerator:
    """MetaSchedule's space, by its rules for CPUs: loops tiled for registers and caches, results kept near, loops fused."""
    mutators = {ms.mutator.MutateTileSize(): 0.9, ms.mutator.MutateUnroll(): 0.1}
    return ms.space_generator.PostOrderApply(sch_rules=_rules(), postprocs=_postprocs(), mutator_probs=mutators)


def derive(module: tvm.IRModule, target: Target) -> Sequence[Schedule]:
    """The programs that MetaSchedule derives of a module of one function."""
    space = own_space()
    context = TuneContext(module, target.tvm_target(), space, ms.search_strategy.ReplayTrace(), "sketches", 1, quiet())
    return list(space.generate_design_space(context.mod))


def postprocs(module: tvm.IRModule, target: Target) -> Sequence[ms.Postproc]:
    """What is done to a derived program once all is decided: vectors, threads, unrolled loops, initial values set apart."""
    rules = _postprocs()
    context = TuneContext(
        module, target.tvm_target(), own_space(), ms.search_strategy.ReplayTrace(), "postprocs", 1, quiet()
    )
    for rule in rules:
        rule._initialize_with_tune_context(context)
    return rules


def quiet() -> logging.Logger:
    """Silences MetaSchedule's logger."""
    logger = logging.getLogger("bitkiln.metaschedule")
    logger.setLevel(logging.CRITICAL)
    logger.propagate = False
    return logger


def _rules() -> list[ms.ScheduleRule]:
    rule = ms.schedule_rule
    return [
        rule.InlineConstantScalars(),
        rule.AutoInline(
            into_producer=False,
            into_consumer=True,
            inline_const_tensor=True,
            disallow_if_then_else=True,
            require_injective=True,
            require_ordered=True,
            disallow_op=["tirx.exp"],
        ),
        rule.AddRFactor(max_jobs_per_core=_PARTS_PER_CORE, max_innermost_factor=_MOST_INNERMOST),
        rule.MultiLevelTiling(
            structure="SSRSRS",
            tile_binds=None,
            max_innermost_factor=_MOST_INNERMOST,
            vector_load_lens=None,
            reuse_read=None,
            reuse_write=rule.ReuseType(req="may", levels=[1, 2], scope="global"),
        ),
        rule.ParallelizeVectorizeUnroll(
            max_jobs_per_core=_PARTS_PER_CORE,
            max_vectorize_extent=_MOST_INNERMOST,
            unroll_max_steps=list(_UNROLLED),
            unroll_explicit=True,
        ),
    ]


def _postprocs() -> list[ms.Postproc]:
    rule = ms.postproc
    return [rule.DisallowDynamicLoop(), rule.RewriteParallelVectorizeUnroll(), rule.RewriteReductionBlock()]

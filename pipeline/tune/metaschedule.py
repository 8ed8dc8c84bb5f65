"""MetaSchedule without its slow start."""

from __future__ import annotations

import logging

from tvm import tirx
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule import _ffi_api
from tvm.s_tir.meta_schedule.logging import get_logging_func
from tvm.s_tir.meta_schedule.tune_context import _normalize_mod
from tvm.target import Target

__all__ = ["TuneContext", "ms"]


class TuneContext(ms.TuneContext):
    """MetaSchedule's state of one search, which runs in one thread.

    TVM's own constructor imports ``tvm.s_tir.tensor_intrin`` first, which parses hundreds of intrinsics of other processors:
    15 seconds that we have no use for.
    """

    def __init__(
        self,
        function: tirx.PrimFunc,
        target: Target,
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

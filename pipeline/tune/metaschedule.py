"""MetaSchedule without its slow start.

Making a ``TuneContext`` imports ``tvm.s_tir.tensor_intrin``, which parses hundreds of intrinsics of other processors: 15
seconds that we have no use for. An empty package of that name, in place before anything asks for it, avoids it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import tvm.s_tir

_NAME = "tvm.s_tir.tensor_intrin"

if _NAME not in sys.modules:
    _package = ModuleType(_NAME)
    # Its modules can still be imported one by one.
    _package.__path__ = [str(Path(tvm.s_tir.__file__).parent / "tensor_intrin")]
    sys.modules[_NAME] = _package
    tvm.s_tir.tensor_intrin = _package

from tvm.s_tir import meta_schedule as ms  # noqa: E402

__all__ = ["ms"]

"""The parallel loops of a kernel, in the order in which it starts them: what the runtime divides among threads."""

from __future__ import annotations

from tvm import tirx

from bitkiln.schedules.loops import ONE_BY_ONE

#: A kernel that starts more gets no list: nobody waits long for a loop that is one of so many.
_MOST = 256


def launches(func: tirx.PrimFunc) -> tuple[int, ...]:
    """Extents of the parallel loops that ``func`` starts one after the other; empty where that depends on data.

    They are negative where each round is to be a task of its own.
    """
    try:
        return tuple(_of(func.body))
    except _Unknown:
        return ()


class _Unknown(Exception):
    """A loop or a branch that only running tells."""


def _of(statement: tirx.Stmt) -> list[int]:
    if isinstance(statement, tirx.SeqStmt):
        return _bounded([extent for part in statement.seq for extent in _of(part)])
    if isinstance(statement, tirx.For):
        return _of_loop(statement)
    inner = [getattr(statement, name) for name in ("body", "block") if getattr(statement, name, None) is not None]
    branches = [
        getattr(statement, name) for name in ("then_case", "else_case") if getattr(statement, name, None) is not None
    ]
    if any(_of(branch) for branch in branches):
        raise _Unknown
    return [extent for part in inner for extent in _of(part)]


def _of_loop(loop: tirx.For) -> list[int]:
    extent = int(loop.extent) if isinstance(loop.extent, tirx.IntImm) else None
    # TVM leaves no loop of a single round.
    if loop.kind == tirx.ForKind.PARALLEL and extent != 1:
        return [-extent if extent and ONE_BY_ONE in loop.annotations else extent or 0]
    each = _of(loop.body)
    if not each:
        return []
    if extent is None or extent > _MOST:
        raise _Unknown
    return _bounded(each * extent)


def _bounded(extents: list[int]) -> list[int]:
    if len(extents) > _MOST:
        raise _Unknown
    return extents

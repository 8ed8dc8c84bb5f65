"""What is known of a kernel's parallel loops."""

from __future__ import annotations

import pytest
from tvm import tirx
from tvm.script import tirx as T

from bitkiln.pipeline.compile.launches import launches


@T.prim_func(s_tir=True)
def in_a_row(x: T.Buffer((64,), "float32")):
    """One loop after the other; one of a single round, which is none; one within another, which is no launch."""
    T.func_attr({"tirx.noalias": True})
    for i in T.parallel(64):
        x[i] = T.float32(1)
    for i in T.parallel(1):
        x[i] = T.float32(2)
    for i in T.parallel(7):
        for j in T.parallel(9):
            x[i + j] = T.float32(3)


@T.prim_func(s_tir=True)
def repeated(x: T.Buffer((64,), "float32")):
    """Two loops, three times; and a loop in series."""
    T.func_attr({"tirx.noalias": True})
    for k in T.serial(3):
        for i in T.parallel(8):
            x[i] = T.float32(1)
        for i in T.parallel(5):
            x[i + k] = T.float32(2)
    for i in T.serial(64):
        x[i] = T.float32(3)


@T.prim_func(s_tir=True)
def one_by_one(x: T.Buffer((64,), "float32")):
    """A loop whose rounds are handed out one by one."""
    T.func_attr({"tirx.noalias": True})
    for i in T.parallel(64, annotations={"bitkiln.one_by_one": 1}):
        x[i] = T.float32(1)


@T.prim_func(s_tir=True)
def depends(x: T.Buffer((64,), "float32")):
    """A loop that runs or does not."""
    T.func_attr({"tirx.noalias": True})
    if x[0] > T.float32(0):
        for i in T.parallel(64):
            x[i] = T.float32(1)


@T.prim_func(s_tir=True)
def too_many(x: T.Buffer((64,), "float32")):
    """Hundreds of launches."""
    T.func_attr({"tirx.noalias": True})
    for k in T.serial(300):
        for i in T.parallel(8):
            x[i] = T.Cast("float32", k)


@pytest.mark.parametrize(
    ("func", "expected"),
    [(in_a_row, (64, 7)), (repeated, (8, 5, 8, 5, 8, 5)), (one_by_one, (-64,)), (depends, ()), (too_many, ())],
    ids=["in a row", "repeated", "one by one", "depends", "too many"],
)
def test_extents_in_the_order_of_launches(func: tirx.PrimFunc, expected: tuple[int, ...]) -> None:
    assert launches(func) == expected

"""``relax.bitkiln.product`` and ``relax.bitkiln.attention``: products of matrices that are computed while the network runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Required, TypedDict, Unpack

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import register
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Attention, Matrices, Product


class ProductAttributes(TypedDict, total=False):
    """As in ``bitkiln.schedules.workload.Product``."""

    stack: Required[tuple[int, ...]]
    rows: Required[int]
    inner: Required[int]
    columns: Required[int]
    first: Required[Matrices]
    second: Required[Matrices]
    result: Required[Matrices]
    factor: float
    epilogue: tuple[Step, ...]


class AttentionAttributes(ProductAttributes, total=False):
    """As in ``bitkiln.schedules.workload.Attention``."""

    width: Required[int]
    third: Required[Matrices]


def product(tensors: Sequence[relax.Expr], *operands: relax.Expr, **attributes: Unpack[ProductAttributes]) -> Call:
    """The two tensors that hold the matrices -> float32 of ``result.shape``."""
    return _PRODUCT.call([*tensors, *operands], attributes)


def attention(tensors: Sequence[relax.Expr], *operands: relax.Expr, **attributes: Unpack[AttentionAttributes]) -> Call:
    """The three tensors that hold the matrices -> float32 of ``result.shape``."""
    return _ATTENTION.call([*tensors, *operands], attributes)


_PRODUCT = register(
    "product", "Products of two stacks of matrices.", ("first", "second"), Product, ProductAttributes, lambda _: {}
)
_ATTENTION = register(
    "attention",
    "Products of matrices with a softmax between them.",
    ("first", "second", "third"),
    Attention,
    AttentionAttributes,
    lambda _: {},
)

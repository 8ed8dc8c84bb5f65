"""The order in which each tensor's axes are stored, and the converter that keeps it beside the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from tvm import relax
from tvm.ir import Call, GenericConst
from tvm.relax import TupleGetItem

from bitkiln.pipeline.ir.graph import (
    Graph,
    array_of,
    constant,
    op_name,
    shape_of,
    substitute,
    variables,
)


@dataclass(frozen=True)
class Order:
    """How a tensor is stored: axis i of what is stored is axis ``axes[i]`` of ``shape``, the tensor as the file means it.

    With ``flat`` the file means the one-row matrix [1, n] that flattening ``shape`` gives.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    flat: bool = False

    @property
    def plain(self) -> bool:
        """Is it stored as the file means it? Axes of size one may move freely in a flat tensor."""
        axes = [axis for axis in self.axes if self.shape[axis] != 1] if self.flat else self.axes
        return list(axes) == sorted(axes)

    def permutation(self) -> np.ndarray:
        """For a flat tensor: position in the file's order of each stored element."""
        return np.arange(prod(self.shape)).reshape(self.shape).transpose(self.axes).reshape(-1)


class Converter:
    """Orders of the tensors so far; every method takes expressions of the network before the rewrite."""

    def __init__(self, graph: Graph, rules: Mapping[str, Rule]) -> None:
        self.graph = graph
        self._rules = rules
        self._orders: dict[str, Order | list[Order]] = {}
        self._made: dict[tuple[str, tuple[int, ...]], relax.Expr] = {}

    def convert(self, name: str, value: relax.Expr) -> None:
        if isinstance(value, TupleGetItem):
            self._tuple_item(name, value)
            return
        rule = self._rules.get(op_name(value))
        if rule is None or not rule(self, name, value):
            self._keep(name, value)

    def transpose_input(self, param: relax.Var) -> None:
        """Store an NCHW parameter as NHWC from the start, so that signs and the like right behind it are NHWC too."""
        self._orders[param.name] = Order(shape_of(param), (0, 2, 3, 1))
        self.graph.alias(param.name, self._moved(param, param, Order(shape_of(param), (0, 1, 2, 3)), (0, 2, 3, 1)))
        self._made[param.name, (0, 1, 2, 3)] = param

    def order(self, expr: relax.Expr) -> Order:
        """How ``expr`` is stored."""
        order = self._orders.get(expr.name) if isinstance(expr, relax.Var) else None
        if isinstance(order, Order):
            return order
        shape = shape_of(expr)
        return Order(shape, tuple(range(len(shape))))

    def stored(self, expr: relax.Expr, axes: tuple[int, ...]) -> relax.Expr:
        """``expr`` (not flat) stored with ``axes``."""
        array = array_of(expr)
        if array is not None:
            return constant(array.transpose(axes), str(array.dtype)) if axes != tuple(sorted(axes)) else expr
        order, var = self.order(expr), self.graph.remap(expr)
        if order.axes == axes:
            return var
        key = (expr.name, axes)
        if key not in self._made:
            self._made[key] = self._moved(expr, var, order, axes)
        return self._made[key]

    def _moved(self, expr: relax.Var, var: relax.Expr, order: Order, axes: tuple[int, ...]) -> relax.Expr:
        shape = shape_of(var)
        moves = [order.axes.index(axis) for axis in axes]
        same_data = [move for move in moves if shape[move] != 1] == [i for i, size in enumerate(shape) if size != 1]
        letters = "nhwc" if axes == (0, 2, 3, 1) else "nchw" if len(axes) == 4 else "plain"
        moved = relax.op.reshape(var, [shape[i] for i in moves]) if same_data else relax.op.permute_dims(var, moves)
        return self.graph.emit(moved, f"{expr.name}.{letters}")

    def plain(self, expr: relax.Expr) -> relax.Expr:
        """``expr`` as the file means it."""
        if not is_tensor(expr) or not isinstance(expr, relax.Var):
            return self.graph.remap(expr)
        order = self.order(expr)
        if isinstance(order, list) or order.plain:
            return self.graph.remap(expr)
        if not order.flat:
            return self.stored(expr, tuple(range(len(order.shape))))
        key = (expr.name, ())
        if key not in self._made:
            image = relax.op.reshape(self.graph.remap(expr), [order.shape[axis] for axis in order.axes])
            image = self.graph.emit(image, f"{expr.name}.image")
            back = [order.axes.index(axis) for axis in range(len(order.axes))]
            image = self.graph.emit(relax.op.permute_dims(image, back), f"{expr.name}.nchw")
            self._made[key] = self.graph.emit(relax.op.reshape(image, (1, prod(order.shape))), f"{expr.name}.plain")
        return self._made[key]

    def bind(self, name: str, value: relax.Expr, order: Order | list[Order]) -> bool:
        """Store ``value`` under ``name``."""
        self.graph.bind(name, value)
        self._orders[name] = order
        return True

    def _keep(self, name: str, value: relax.Expr) -> None:
        self.graph.bind(name, substitute(value, {var.name: self.plain(var) for var in variables(value)}))

    def _tuple_item(self, name: str, value: TupleGetItem) -> None:
        self.graph.bind(name, self.graph.remap(value))
        orders = self._orders.get(value.tuple_value.name)
        if isinstance(orders, list):
            self._orders[name] = orders[value.index]


def is_tensor(arg: relax.Expr) -> bool:
    return isinstance(arg, (relax.Var, GenericConst)) and isinstance(arg.ty, relax.TensorType)


#: Converts one operator under a name; False where it does not apply.
Rule = Callable[[Converter, str, Call], bool]

"""ONNX's LSTM, GRU and RNN of sequences of known length, unrolled: a few operators for each step, in both directions.

What the inputs contribute to the gates is one product for the whole sequence; each step adds the product of its state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.common.limits import MAX_STEPS
from bitkiln.pipeline.importers.onnx.operands import Operands

#: Operators of one step, at most.
_PER_STEP = 20

#: Operator -> gates, and the activations of a direction.
_KINDS: dict[str, tuple[int, list[bytes]]] = {
    "GRU": (3, [b"Sigmoid", b"Tanh"]),
    "LSTM": (4, [b"Sigmoid", b"Tanh", b"Tanh"]),
    "RNN": (1, [b"Tanh"]),
}


@dataclass
class _Direction:
    """One direction's weights, [H or I, gates * H], biases of the inputs' side and of the state's, and its first states."""

    node: Operands
    name: str
    hidden: int
    inputs: np.ndarray
    states: np.ndarray
    input_bias: np.ndarray
    state_bias: np.ndarray
    h: relax.Expr
    c: relax.Expr | None

    def emit(self, expr: relax.Expr, step: int, what: str) -> relax.Var:
        """Bind a part of a step."""
        return self.node.step(expr, f"{self.name}{step}_{what}")

    def gate(self, gates: relax.Expr, at: int, step: int, what: str) -> relax.Var:
        """The numbers of one gate."""
        part = relax.op.strided_slice(gates, [1], [at * self.hidden], [(at + 1) * self.hidden])
        return self.emit(part, step, what)


def unrolled(node: Operands) -> relax.Expr:
    """The states of all steps, and the last ones: [T, directions, N, H], [directions, N, H] and, of LSTM, the last cells."""
    kind = node.node.op_type
    names = _check(node, kind)
    batch_first = bool(node.attributes.get("layout", 0))
    x, shape = node.value(0), node.shape()
    if batch_first:
        x = node.step(relax.op.permute_dims(x, [1, 0, 2]), "sequence")
        shape = (shape[1], shape[0], shape[2])
    steps, batch, size = shape
    if steps * len(names) * _PER_STEP > MAX_STEPS:
        raise node.unsupported(f"has {steps} steps; {MAX_STEPS // _PER_STEP // len(names)} at most are unrolled")
    flat = node.step(relax.op.reshape(x, (steps * batch, size)), "rows")
    sequences, last_h, last_c = [], [], []
    for at, name in enumerate(names):
        direction = _direction(node, kind, at, name, batch, batch_first)
        bias = relax.const(direction.input_bias)
        product = node.step(relax.op.matmul(flat, relax.const(direction.inputs)), f"{name}_products")
        gates = node.step(relax.op.add(product, bias), f"{name}_gates")
        states: list[relax.Expr] = [direction.h] * steps
        for step in reversed(range(steps)) if name == "reverse" else range(steps):
            part = relax.op.strided_slice(gates, [0], [step * batch], [(step + 1) * batch])
            _STEPS[kind](direction, direction.emit(part, step, "inputs"), step, node)
            states[step] = direction.h
        rows = [
            node.step(relax.op.reshape(each, (1, 1, batch, direction.hidden)), f"{name}{t}_row")
            for t, each in enumerate(states)
        ]
        sequences.append(node.step(relax.op.concat(rows, 0), f"{name}_states") if steps > 1 else rows[0])
        last_h.append(node.step(relax.op.reshape(direction.h, (1, batch, direction.hidden)), f"{name}_last"))
        if direction.c is not None:
            last_c.append(node.step(relax.op.reshape(direction.c, (1, batch, direction.hidden)), f"{name}_last_cell"))
    results = [_joined(node, sequences, 1, "states", [2, 0, 1, 3] if batch_first else None)]
    results += [
        _joined(node, each, 0, what, [1, 0, 2] if batch_first else None)
        for each, what in ((last_h, "last"), (last_c, "last_cells"))
        if each
    ]
    return relax.Tuple(results)


def _joined(node: Operands, parts: list[relax.Expr], axis: int, what: str, order: list[int] | None) -> relax.Expr:
    result = parts[0] if len(parts) == 1 else node.step(relax.op.concat(parts, axis), what)
    return result if order is None else node.step(relax.op.permute_dims(result, order), f"{what}_turned")


def _check(node: Operands, kind: str) -> list[str]:
    """The directions; UnsupportedLayer for what is not done."""
    direction = node.text("direction", "forward")
    names = {"forward": ["forward"], "reverse": ["reverse"], "bidirectional": ["forward", "reverse"]}.get(direction)
    if names is None:
        raise node.unsupported(f"its attribute direction={direction} is not known")
    usual = _KINDS[kind][1] * len(names)
    stated = list(node.attributes.get("activations", usual))
    if [each.lower() for each in stated] != [each.lower() for each in usual]:
        raise node.unsupported("its attribute activations has others than the usual ones")
    if len(node.shape()) != 3:
        raise node.unsupported(f"takes sequences of shape {list(node.shape())}")
    steps = node.shape()[1 if node.attributes.get("layout", 0) else 0]
    if node.has(4) and not (node.is_constant(4) and np.all(node.array(4, "lengths") == steps)):
        raise node.unsupported("takes sequences of other lengths than its input's")
    if kind == "LSTM" and node.has(7) and not (node.is_constant(7) and not np.any(node.array(7, "peepholes"))):
        raise node.unsupported("has peepholes")
    return names


def _direction(node: Operands, kind: str, at: int, name: str, batch: int, batch_first: bool) -> _Direction:
    gates, _ = _KINDS[kind]
    weights, states = node.weight(1, "weight")[at], node.weight(2, "recurrent weight")[at]
    hidden = states.shape[-1]
    if (
        node.attributes.get("hidden_size", hidden) != hidden
        or len(states) != gates * hidden
        or len(weights) != len(states)
    ):
        raise node.unsupported(f"its weights {list(weights.shape)} and {list(states.shape)} do not fit each other")
    biases = node.weight(3, "bias")[at] if node.has(3) else np.zeros(2 * gates * hidden, np.float32)
    input_bias, state_bias = biases[: gates * hidden], biases[gates * hidden :]
    first = [_first(node, index, at, name, (batch, hidden), batch_first) for index in (5, 6)]
    return _Direction(
        node,
        name,
        hidden,
        np.ascontiguousarray(weights.T),
        np.ascontiguousarray(states.T),
        input_bias,
        state_bias,
        first[0],
        first[1] if kind == "LSTM" else None,
    )


def _first(node: Operands, index: int, at: int, name: str, shape: tuple[int, int], batch_first: bool) -> relax.Expr:
    """The first state of a direction; zeros unless given."""
    if not node.has(index):
        return relax.const(np.zeros(shape, np.float32))
    part = relax.op.strided_slice(node.value(index), [1 if batch_first else 0], [at], [at + 1])
    return node.step(relax.op.reshape(node.step(part, f"{name}_part{index}"), shape), f"{name}_first{index}")


def _recurrent(one: _Direction, step: int, columns: slice = slice(None)) -> relax.Var:
    """What the state contributes to the gates of ``columns``."""
    product = one.emit(
        relax.op.matmul(one.h, relax.const(np.ascontiguousarray(one.states[:, columns]))), step, "product"
    )
    return one.emit(relax.op.add(product, relax.const(one.state_bias[columns])), step, "recurrent")


def _lstm(one: _Direction, gates: relax.Expr, step: int, _node: Operands) -> None:
    """Gates in the order input, output, forget, cell."""
    total = one.emit(relax.op.add(gates, _recurrent(one, step)), step, "gates")
    opened = [
        one.emit(relax.op.sigmoid(one.gate(total, at, step, f"{what}_sum")), step, what)
        for at, what in enumerate(("input", "output", "forget"))
    ]
    cell = one.emit(relax.op.tanh(one.gate(total, 3, step, "cell_sum")), step, "cell")
    kept = one.emit(relax.op.multiply(opened[2], one.c), step, "kept")
    added = one.emit(relax.op.multiply(opened[0], cell), step, "added")
    one.c = one.emit(relax.op.add(kept, added), step, "c")
    one.h = one.emit(relax.op.multiply(opened[1], one.emit(relax.op.tanh(one.c), step, "tanh")), step, "h")


def _gru(one: _Direction, gates: relax.Expr, step: int, node: Operands) -> None:
    """Gates in the order update, reset, hidden."""
    size = one.hidden
    sums = _recurrent(one, step)
    both = [
        one.emit(
            relax.op.sigmoid(
                one.emit(
                    relax.op.add(one.gate(gates, at, step, f"{what}_in"), one.gate(sums, at, step, f"{what}_state")),
                    step,
                    f"{what}_sum",
                )
            ),
            step,
            what,
        )
        for at, what in enumerate(("update", "reset"))
    ]
    if node.attributes.get("linear_before_reset", 0):
        hidden = one.emit(relax.op.multiply(both[1], one.gate(sums, 2, step, "hidden_state")), step, "hidden_reset")
    else:
        reset = one.emit(relax.op.multiply(both[1], one.h), step, "reset_h")
        columns = slice(2 * size, 3 * size)
        weight = relax.const(np.ascontiguousarray(one.states[:, columns]))
        product = one.emit(relax.op.matmul(reset, weight), step, "hidden_product")
        hidden = one.emit(relax.op.add(product, relax.const(one.state_bias[columns])), step, "hidden_reset")
    total = one.emit(relax.op.add(one.gate(gates, 2, step, "hidden_in"), hidden), step, "hidden_sum")
    candidate = one.emit(relax.op.tanh(total), step, "candidate")
    # (1 - update) * candidate + update * h
    change = one.emit(relax.op.subtract(one.h, candidate), step, "change")
    kept = one.emit(relax.op.multiply(both[0], change), step, "kept")
    one.h = one.emit(relax.op.add(candidate, kept), step, "h")


def _rnn(one: _Direction, gates: relax.Expr, step: int, _node: Operands) -> None:
    total = one.emit(relax.op.add(gates, _recurrent(one, step)), step, "sum")
    one.h = one.emit(relax.op.tanh(total), step, "h")


_STEPS: dict[str, Callable[[_Direction, relax.Expr, int, Operands], None]] = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}

"""Quantisers of QONNX and Brevitas, written out in ONNX's own operators before anything else looks at them.

``scale * quantise(x / scale + zero_point)`` becomes Div, Add, Max, Min, Round, Sub and Mul, and one bit of it a comparison, so
that weights fold and activations convert as in any other network, in the order of operations that QONNX's own executor has.
FINN's MultiThreshold of one threshold is a comparison too, but needs to know its input's rank: see ``layers``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bitkiln.pipeline.errors import UnsupportedLayer
from bitkiln.pipeline.importers.onnx.graph import QUANTIZER_DOMAINS, OnnxGraph, node_label

#: Bits of a quantiser beyond which whole numbers are not exact in float32.
_MOST_BITS = 24


def expand(graph: OnnxGraph) -> OnnxGraph:
    """Write the quantisers of ``graph`` out, in place; UnsupportedLayer for one that has no meaning."""
    nodes: list[onnx.NodeProto] = []
    names = {name for node in graph.nodes for name in (*node.input, *node.output)} | set(graph.constants)
    fixed = _constants(graph)
    for node in graph.nodes:
        expander = _EXPANDERS.get((node.op_type, len(node.input)))
        if expander is None or node.domain not in QUANTIZER_DOMAINS or len(node.output) != 1:
            nodes.append(node)
            continue
        writer = _Writer(graph, node, names, fixed)
        expander(writer)
        nodes.extend(writer.nodes)
    graph.nodes = nodes
    return graph


def _constants(graph: OnnxGraph) -> dict[str, np.ndarray]:
    """Weights, and the values of Constant nodes that are tensors or numbers."""
    made = {}
    for node in graph.nodes:
        if node.op_type == "Constant" and not node.domain and node.attribute and node.output:
            try:
                value = helper.get_attribute_value(node.attribute[0])
                array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
            except (ValueError, TypeError, KeyError):  # whoever needs it says so
                continue
            made[node.output[0]] = array
    return made | graph.constants


class _Writer:
    """The nodes that stand for one quantiser."""

    def __init__(self, graph: OnnxGraph, node: onnx.NodeProto, names: set[str], fixed: dict[str, np.ndarray]) -> None:
        self.node = node
        self.nodes: list[onnx.NodeProto] = []
        self._graph = graph
        self._names = names
        self._fixed = fixed
        known = [a for a in node.attribute if a.name in ("signed", "narrow", "rounding_mode")]
        self._attributes = {a.name: helper.get_attribute_value(a) for a in known}

    def number(self, index: int, what: str) -> float:
        """An operand that has to be one constant number."""
        array = self._fixed.get(self.node.input[index])
        if array is None or array.size != 1 or array.dtype.kind not in "fiub":
            raise self.unsupported(f"its {what} is not a constant number")
        return float(array.reshape(-1)[0])

    def bits(self, index: int) -> int:
        """An operand that is a number of bits."""
        bits = self.number(index, "bit width")
        if bits not in range(1, _MOST_BITS + 1):
            raise self.unsupported(f"its bit width is {bits:g}; 1 to {_MOST_BITS} are supported")
        return int(bits)

    def is_one(self, name: str) -> bool:
        """Is an operand the constant 1, without axes to give to others?"""
        array = self._fixed.get(name)
        return array is not None and array.ndim < 2 and array.size == 1 and bool(array.reshape(-1)[0] == 1)

    def flag(self, name: str, default: int) -> bool:
        return bool(self._attributes.get(name, default))

    def rounding(self, default: str) -> str:
        mode = self._attributes.get("rounding_mode", default.encode())
        return mode.decode(errors="replace").upper() if isinstance(mode, bytes) else repr(mode)

    def add(self, kind: str, *inputs: str | float) -> str:
        """Add a node on tensors and numbers; the name of its result."""
        names = [name if isinstance(name, str) else self._constant(name) for name in inputs]
        result = self._unique(kind.lower())
        label = self.node.name or self.node.output[0]
        self.nodes.append(helper.make_node(kind, names, [result], name=f"{label}/{kind}"))
        return result

    def finish(self) -> None:
        """Let the last node make the quantiser's result."""
        self.nodes[-1].output[0] = self.node.output[0]

    def unsupported(self, reason: str) -> UnsupportedLayer:
        return UnsupportedLayer(f"{self._graph.path}: {node_label(self.node)}: {reason}")

    def _constant(self, value: float) -> str:
        name = self._unique(f"{value:g}")
        self._graph.constants[name] = np.asarray(value, np.float32).reshape(())
        return name

    def _unique(self, suffix: str) -> str:
        base = name = f"{self.node.output[0]}_{suffix}"
        count = 1
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name


def _bipolar(write: _Writer) -> None:
    """scale * (x >= 0 ? 1 : -1)."""
    x, scale = write.node.input
    sign = write.add("Where", write.add("GreaterOrEqual", x, 0.0), 1.0, -1.0)
    if not write.is_one(scale):
        write.add("Mul", sign, scale)
    write.finish()


def _quant(write: _Writer) -> None:
    """Quant and IntQuant: x, scale, zero point, bit width."""
    x, scale, zero, _ = write.node.input
    bits, signed = write.bits(3), write.flag("signed", 1)
    whole = write.add("Add", write.add("Div", x, scale), zero)
    if bits == 1 and signed:
        whole = write.add("Where", write.add("GreaterOrEqual", whole, 0.0), 1.0, -1.0)
    else:
        whole = _rounded(write, _clamped(write, whole, bits, signed, write.flag("narrow", 1)), write.rounding("ROUND"))
    write.add("Mul", write.add("Sub", whole, zero), scale)
    write.finish()


def _truncated(write: _Writer) -> None:
    """Trunc of version 1: x, scale, zero point, bits before, bits after."""
    x, scale, zero, *_ = write.node.input
    dropped = 2.0 ** (write.bits(3) - write.bits(4))
    whole = write.add("Round", write.add("Add", write.add("Div", x, scale), zero))
    whole = _rounded(write, write.add("Div", whole, dropped), write.rounding("FLOOR"))
    write.add("Mul", write.add("Sub", whole, zero), scale)
    write.finish()


def _rescaled(write: _Writer) -> None:
    """Trunc of version 2: x, scale, zero point, bits before, scale after, zero point after, bits after."""
    x, scale, zero, _, new_scale, *_ = write.node.input
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.float32(write.number(4, "output scale")) / np.float32(write.number(1, "scale"))
    if not 0 < ratio < np.inf:
        raise write.unsupported("its scales are not positive numbers")
    dropped = float(2.0 ** np.round(np.log2(ratio)))
    whole = write.add("Round", write.add("Add", write.add("Div", x, scale), zero))
    shorter = write.add("Div", whole, dropped)
    shorter = _clamped(write, shorter, write.bits(6), write.flag("signed", 1), write.flag("narrow", 0))
    shorter = _rounded(write, shorter, write.rounding("FLOOR"))
    write.add("Mul", write.add("Sub", shorter, write.add("Div", zero, dropped)), new_scale)
    write.finish()


def _clamped(write: _Writer, x: str, bits: int, signed: bool, narrow: bool) -> str:
    """``x`` within the whole numbers of ``bits``; a narrow range leaves out one."""
    low = -(2 ** (bits - 1)) + narrow if signed else 0
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
    return write.add("Min", write.add("Max", x, float(low)), float(high))


def _rounded(write: _Writer, x: str, mode: str) -> str:
    if mode in _ROUNDINGS:
        return write.add(_ROUNDINGS[mode], x)
    if mode not in _BY_MAGNITUDE:
        raise write.unsupported(f"rounds by {mode!r}, which is not known")
    kind, shift = _BY_MAGNITUDE[mode]
    size = write.add("Abs", x)
    return write.add("Mul", write.add("Sign", x), write.add(kind, write.add("Add", size, shift) if shift else size))


_ROUNDINGS = {"ROUND": "Round", "HALF_EVEN": "Round", "CEIL": "Ceil", "FLOOR": "Floor"}

#: Rounding of the magnitude: the operator, and what is added before it.
_BY_MAGNITUDE = {"UP": ("Ceil", 0.0), "DOWN": ("Floor", 0.0), "HALF_UP": ("Floor", 0.5), "HALF_DOWN": ("Ceil", -0.5)}

#: Operator and number of operands -> what writes it out.
_EXPANDERS: dict[tuple[str, int], Callable[[_Writer], None]] = {
    ("BipolarQuant", 2): _bipolar,
    ("Quant", 4): _quant,
    ("IntQuant", 4): _quant,
    ("Trunc", 5): _truncated,
    ("Trunc", 7): _rescaled,
}

"""What the layers of a darknet network have in common: how one is read, planned and emitted.

A layer is read in two steps: made from its section it knows the size of its result and how many weights of each name the
file holds for it, so that the whole cfg is held against the length of the weights file before anything is allocated;
``emit`` then writes its computation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.darknet.activations import ACTIVATIONS
from bitkiln.pipeline.importers.darknet.cfg import Section, shown
from bitkiln.pipeline.importers.darknet.weights import Header
from bitkiln.pipeline.ir.graph import shape_of

#: The most elements of a tensor: 256 MiB of floats, several times what the largest networks need.
MAX_ELEMENTS = 1 << 26
MAX_WINDOW = 1 << 10
_MAX_CHANNELS = 1 << 20


class Size(NamedTuple):
    """The size of a layer's result."""

    channels: int
    height: int
    width: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self)

    def __str__(self) -> str:
        return "x".join(map(str, self))


@dataclass
class Tensors:
    """What a layer being emitted reads and writes with.

    ``values`` are the network's input and the results of all layers before, each [1, C, H, W]; ``arrays`` the layer's weights,
    flat. ``emit(expr, part)`` binds a value as ``<layer>_<part>``; the part "" is the layer's own name. ``rows`` has the [1, n]
    behind (or made of) an image, by the image's name.
    """

    values: Sequence[relax.Var]
    arrays: Mapping[str, np.ndarray]
    emit: Callable[[relax.Expr, str], relax.Var]
    header: Header
    rows: dict[str, relax.Var]

    @property
    def source(self) -> relax.Var:
        """The result of the layer before, [1, C, H, W]."""
        return self.values[-1]

    def row(self) -> relax.Var:
        """The source as [1, C*H*W]; the row it was made of where it was one."""
        source = self.source
        if source.name not in self.rows:
            count = math.prod(shape_of(source))
            self.rows[source.name] = self.emit(relax.op.reshape(source, (1, count)), "row")
        return self.rows[source.name]

    def image(self, row: relax.Var, size: Size) -> relax.Var:
        """``row`` [1, n] as an image of ``size``."""
        image = self.emit(relax.op.reshape(row, (1, *size)), "image")
        self.rows[image.name] = row
        return image


class Layer:
    """One section of a cfg. ``sizes`` are those of the network's input and of the results of all layers before."""

    #: Short name of the layer's kind, for variables.
    name = ""

    def __init__(self, section: Section, sizes: Sequence[Size]) -> None:
        self.section = section
        self.index = section.index
        self.sizes = sizes
        self.source = sizes[-1]
        self.size = self.source
        self.parameters: dict[str, int] = {}
        self.plan()
        if min(self.size) < 1 or self.size.elements > MAX_ELEMENTS or self.size.channels > _MAX_CHANNELS:
            raise section.error(
                f"makes {self.size} of {self.source}: more than {_MAX_CHANNELS} channels or {MAX_ELEMENTS} elements"
            )

    def plan(self) -> None:
        """Read the section: set ``size`` and ``parameters``. Raises ModelError."""
        raise NotImplementedError

    def emit(self, tensors: Tensors) -> relax.Var:
        """Write the computation; the result is [1, C, H, W]."""
        raise NotImplementedError

    @property
    def is_output(self) -> bool:
        """Is the result one of the network's, wherever the layer stands?"""
        return False

    def other(self, key: str) -> list[int]:
        """The layers that ``key`` names, as positions in ``sizes``: absolute numbers, or negative ones from here."""
        section = self.section
        if key not in section.options:
            raise section.error(f"has no {key}")
        positions = []
        for number in section.wholes(key, -(1 << 20), 1 << 20):
            index = number if number >= 0 else self.index + number
            if not 0 <= index < self.index:
                raise section.error(f"{key}={number} is no layer before this one", key)
            positions.append(index + 1)
        return positions

    def activation(self, default: str) -> str:
        """The activation's name."""
        name = self.section.text("activation", default)
        if name not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise self.section.unsupported(f"activation {shown(name)} is not supported; known: {known}", "activation")
        return name

    def strides(self, default: int = 1) -> tuple[int, int]:
        """Strides over rows and columns."""
        stride = self.section.whole("stride", default, 1, MAX_WINDOW)
        across, down = (self.section.whole(key, stride, 1, MAX_WINDOW) for key in ("stride_x", "stride_y"))
        return down, across


def activate(tensors: Tensors, x: relax.Var, name: str) -> relax.Var:
    """``x`` after the activation ``name``."""
    function = ACTIVATIONS[name]
    if function is None:
        return x
    return tensors.emit(function(x, lambda expr, part: tensors.emit(expr, f"{name}_{part}")), name)


def constant(array: np.ndarray) -> relax.Expr:
    return relax.const(np.ascontiguousarray(array, np.float32))

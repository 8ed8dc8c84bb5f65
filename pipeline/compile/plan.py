"""The execution plan of a network: a straight line of kernel calls on memory that is laid out beforehand.

A plan names tensors, places them and lists the steps; runtime.c executes it. Activations that live at different times
share the bytes of one arena. Inputs and outputs of the network have bytes of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst, GlobalVar, Tuple
from tvm.relax import TupleGetItem

from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.model import Head, Preprocessing

#: Kernels assume it of every buffer, and it is the length of a cache line.
ALIGNMENT = 64

#: The kernel of a step that copies its one input; it is part of the runtime.
COPY = "bk_copy"

Place = Literal["arena", "boundary", "constant"]


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor of the plan; ``offset`` counts in bytes from the start of its ``place``."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    place: Place
    offset: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return nbytes(self.shape, self.dtype)


@dataclass(frozen=True)
class PlacedStep:
    """One kernel call. ``arguments`` are positions in the plan's tensors, the last ``outputs`` of them written.

    ``name`` is the variable that holds the result in the lowered network, ``kind`` what the kernel computes.
    """

    name: str
    kind: str
    kernel: str
    arguments: tuple[int, ...]
    outputs: int = 1


@dataclass(frozen=True)
class ExecutionPlan:
    """Everything the runtime has to know. ``constants`` is the memory that constant tensors point into.

    ``several`` are the steps as more than one thread runs them, with kernels that are better then; empty: as ``steps``.
    ``preprocessing`` and ``head`` say what the first input and the outputs mean, ``image`` is the input's height and width
    where it is an image.
    """

    tensors: tuple[PlacedTensor, ...]
    steps: tuple[PlacedStep, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arena_bytes: int
    boundary_bytes: int
    constants: bytes = field(repr=False)
    preprocessing: Preprocessing | None = None
    head: Head | None = None
    image: tuple[int, int] | None = None
    several: tuple[PlacedStep, ...] = ()


@dataclass(frozen=True, eq=False)
class Storage:
    """Bytes that one kernel writes, or that come from outside (``boundary``); tensors of several shapes may view them."""

    nbytes: int
    constant: np.ndarray | None = None
    boundary: bool = False


@dataclass(frozen=True)
class View:
    """A tensor before it is placed: a shape and type over a storage."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: Storage


@dataclass(frozen=True)
class PlannedCall:
    """A step before its tensors are placed."""

    name: str
    kind: str
    kernel: str
    inputs: tuple[View, ...]
    outputs: tuple[View, ...]


@dataclass(frozen=True)
class Network:
    """A lowered network as a straight line of calls; ``kernel`` of a call is the name of a PrimFunc of its module."""

    inputs: tuple[View, ...]
    outputs: tuple[View, ...]
    calls: tuple[PlannedCall, ...]


def nbytes(shape: Sequence[int], dtype: str) -> int:
    """Size of a dense tensor."""
    return prod(shape) * np.dtype(dtype).itemsize


def new_view(name: str, shape: Sequence[int], dtype: str, boundary: bool = False) -> View:
    """A view of a new storage of its own size."""
    shape = tuple(map(int, shape))
    return View(name, shape, dtype, Storage(nbytes(shape, dtype), boundary=boundary))


def constant_view(name: str, array: np.ndarray) -> View:
    """A view of a constant."""
    array = np.asarray(array, order="C")  # ascontiguousarray would make a vector of a scalar
    return View(name, array.shape, str(array.dtype), Storage(array.nbytes, constant=array))


def read_network(module: tvm.IRModule) -> Network:
    """The calls of ``main``, a lowered Relax function: call_tir on named variables, and reshapes, which are views."""
    return _Reader(module).network()


def make_plan(
    calls: Sequence[PlannedCall], inputs: Sequence[View], outputs: Sequence[View], several: Sequence[PlannedCall] = ()
) -> ExecutionPlan:
    """Place all tensors. Storages of ``inputs`` are boundary memory; each of ``outputs`` gets boundary memory too.

    A storage that an output views is written there directly. Where that cannot be (an input handed through, a constant,
    one value returned twice), a copying step is added. ``several`` are the calls as more than one thread makes them, which
    write the same views; none where they are no others.
    """
    own = len(calls)
    calls, outputs, written_out = _settle_outputs(calls, outputs)
    several = [*several, *calls[own:]] if several else []
    both = (*calls, *several)
    views = _distinct([*inputs, *(view for call in both for view in (*call.inputs, *call.outputs)), *outputs])
    arena, arena_bytes = place_by_lifetime(_lifetimes(calls, written_out))
    outside = (view.storage for view in views if view.storage.boundary or view.storage in written_out)
    boundary, boundary_bytes = _place_in_row(outside)
    constant_offsets, constants = _gather_constants(view.storage for view in views if view.storage.constant is not None)

    def placed(view: View) -> PlacedTensor:
        if id(view.storage) in boundary:
            return PlacedTensor(view.name, view.shape, view.dtype, "boundary", boundary[id(view.storage)])
        if view.storage.constant is not None:
            return PlacedTensor(view.name, view.shape, view.dtype, "constant", constant_offsets[id(view.storage)])
        return PlacedTensor(view.name, view.shape, view.dtype, "arena", arena[id(view.storage)])

    position = {id(view): index for index, view in enumerate(views)}

    def step(call: PlannedCall) -> PlacedStep:
        arguments = tuple(position[id(view)] for view in (*call.inputs, *call.outputs))
        return PlacedStep(call.name, call.kind, call.kernel, arguments, len(call.outputs))

    return ExecutionPlan(
        tensors=tuple(map(placed, views)),
        steps=tuple(map(step, calls)),
        several=tuple(map(step, several)),
        inputs=tuple(position[id(view)] for view in inputs),
        outputs=tuple(position[id(view)] for view in outputs),
        arena_bytes=arena_bytes,
        boundary_bytes=boundary_bytes,
        constants=constants,
    )


def activation_bytes(network: Network) -> int:
    """Bytes of the arena that the activations of ``network`` share, each as its PrimFunc writes it."""
    calls, _, written_out = _settle_outputs(network.calls, network.outputs)
    return place_by_lifetime(_lifetimes(calls, written_out))[1]


def place_by_lifetime(lifetimes: Sequence[tuple[Storage, int, int]]) -> tuple[dict[int, int], int]:
    """Offsets of storages by ``id``, and the bytes needed; (storage, first step, last step) each, both inclusive.

    The largest storage is placed first, each at the lowest offset that is free for its whole life. No two that live in
    the same step overlap, so a kernel never writes over what it reads.
    """
    placed: list[tuple[int, int, int, int]] = []
    offsets: dict[int, int] = {}
    order = sorted(range(len(lifetimes)), key=lambda index: (-lifetimes[index][0].nbytes, index))
    for index in order:
        storage, first, last = lifetimes[index]
        size = _aligned(max(storage.nbytes, 1))
        offset = 0
        for start, end, other_first, other_last in sorted(placed):
            if other_first <= last and first <= other_last and start < offset + size and offset < end:
                offset = end
        offsets[id(storage)] = offset
        placed.append((offset, offset + size, first, last))
    return offsets, max((end for _, end, _, _ in placed), default=0)


class _Reader:
    """Walks the bindings of a lowered ``main`` and knows what each variable stands for."""

    #: Operators that give their first argument's elements in the same order.
    reshapes = frozenset({"relax.reshape", "relax.flatten", "relax.expand_dims", "relax.squeeze"})

    def __init__(self, module: tvm.IRModule) -> None:
        self.module = module
        self.known: dict[relax.Var, View | tuple[View, ...]] = {}
        #: What the parts of a tuple are called, by its name and their numbers.
        self.parts: dict[tuple[str, int], str] = {}
        self.calls: list[PlannedCall] = []

    def network(self) -> Network:
        main = self.module["main"]
        inputs = tuple(new_view(param.name, *_type_of(param.ty), boundary=True) for param in main.params)
        self.known.update(zip(main.params, inputs, strict=True))
        for block in main.body.blocks:
            for binding in block.bindings:
                if isinstance(binding.value, TupleGetItem) and isinstance(binding.value.tuple_value, relax.Var):
                    part = binding.value.tuple_value.name, binding.value.index
                    self.parts.setdefault(part, binding.var.name)
        for block in main.body.blocks:
            for binding in block.bindings:
                self.known[binding.var] = self._value(binding.var, binding.value)
        result = self._value(None, main.body.body)
        return Network(inputs, result if isinstance(result, tuple) else (result,), tuple(self.calls))

    def _value(self, var: relax.Var | None, expr: relax.Expr) -> View | tuple[View, ...]:
        name = var.name if var is not None else "out"
        if isinstance(expr, relax.Var):
            return self.known[expr]
        if isinstance(expr, GenericConst):
            return constant_view(name, expr.value.numpy())
        if isinstance(expr, Tuple):
            return tuple(view for field in expr.fields for view in _as_tuple(self._value(var, field)))
        if isinstance(expr, TupleGetItem):
            return _as_tuple(self._value(None, expr.tuple_value))[expr.index]
        if isinstance(expr, Call) and isinstance(expr.op, tvm.ir.Op):
            if expr.op.name == "relax.call_tir":
                return self._call(name, expr)
            if expr.op.name in self.reshapes:
                return self._reshape(name, expr.args[0], *_type_of(expr.ty))
        what = expr.op if isinstance(expr, Call) else type(expr).__name__
        raise BitkilnError(f"{name}: lowering left {getattr(what, 'name', what)} in the network, which is no kernel")

    def _call(self, name: str, expr: Call) -> View | tuple[View, ...]:
        function, arguments = expr.args[0], _as_tuple(self._value(None, expr.args[1]))
        assert isinstance(function, GlobalVar)
        types = [_type_of(ty) for ty in getattr(expr.ty_args[0], "fields", expr.ty_args)]
        if len(arguments) == 1 and len(types) == 1 and relax.analysis.has_reshape_pattern(self.module[function]):
            return self._reshape(name, expr.args[1].fields[0], *types[0])
        names = [name]
        if len(types) > 1:
            names = [self.parts.get((name, index), f"{name}.{index}") for index in range(len(types))]
        outputs = tuple(new_view(label, *of) for label, of in zip(names, types, strict=True))
        self.calls.append(PlannedCall(names[0], function.name_hint, function.name_hint, arguments, outputs))
        return outputs[0] if len(outputs) == 1 else outputs

    def _reshape(self, name: str, source: relax.Expr, shape: tuple[int, ...], dtype: str) -> View:
        viewed = self._value(None, source)
        assert isinstance(viewed, View)
        return View(name, shape, dtype, viewed.storage)


def _type_of(ty: relax.TensorType) -> tuple[tuple[int, ...], str]:
    return tuple(int(extent) for extent in ty.shape), str(ty.dtype)


def _as_tuple(value: View | tuple[View, ...]) -> tuple[View, ...]:
    return value if isinstance(value, tuple) else (value,)


def _settle_outputs(
    calls: Sequence[PlannedCall], outputs: Sequence[View]
) -> tuple[list[PlannedCall], list[View], set[Storage]]:
    """All calls, copies to outputs among them; the views that are the outputs; those storages of them that kernels write."""
    written = {view.storage for call in calls for view in call.outputs}
    calls, settled = list(calls), []
    written_out: set[Storage] = set()
    for view in outputs:
        if view.storage in written - written_out and not view.storage.boundary:
            written_out.add(view.storage)
            settled.append(view)
            continue
        copy = new_view(view.name, view.shape, view.dtype, boundary=True)
        calls.append(PlannedCall(view.name, "copy", COPY, (view,), (copy,)))
        settled.append(copy)
    return calls, settled, written_out


def _lifetimes(calls: Sequence[PlannedCall], written_out: Collection[Storage]) -> list[tuple[Storage, int, int]]:
    """First and last step of every storage in the arena, in order of first use."""
    spans: dict[int, tuple[Storage, int, int]] = {}
    for step, call in enumerate(calls):
        for view in (*call.inputs, *call.outputs):
            storage = view.storage
            if not storage.boundary and storage.constant is None and storage not in written_out:
                _, first, _ = spans.get(id(storage), (storage, step, step))
                spans[id(storage)] = (storage, first, step)
    return list(spans.values())


def _place_in_row(storages: Iterable[Storage]) -> tuple[dict[int, int], int]:
    offsets: dict[int, int] = {}
    end = 0
    for storage in storages:
        if id(storage) not in offsets:
            offsets[id(storage)] = end
            end += _aligned(max(storage.nbytes, 1))
    return offsets, end


def _gather_constants(storages: Iterable[Storage]) -> tuple[dict[int, int], bytes]:
    """Offsets of constants by ``id`` of their storage, and their bytes; equal constants are kept once."""
    offsets: dict[int, int] = {}
    by_content: dict[bytes, int] = {}
    memory = bytearray()
    for storage in storages:
        if id(storage) in offsets:
            continue
        assert storage.constant is not None
        content = storage.constant.tobytes()
        if content not in by_content:
            by_content[content] = len(memory)
            memory += content
            memory += bytes(_aligned(len(memory)) - len(memory))
        offsets[id(storage)] = by_content[content]
    return offsets, bytes(memory)


def _distinct(views: Sequence[View]) -> list[View]:
    return list({id(view): view for view in views}.values())


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT

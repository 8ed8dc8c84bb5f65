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
from bitkiln.schedules.conv2d.packing import Packing

#: Kernels assume it of every buffer, and it is the length of a cache line.
ALIGNMENT = 64

#: The kernel of a step that copies its one input; it is part of the runtime.
COPY = "bk_copy"

#: Weights that are packed on the board begin on a page of the system, so that theirs can be given back.
PAGE = 4096

Place = Literal["arena", "boundary", "constant", "made"]


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
class PlacedPacking:
    """Weights that the board packs: ``nbytes`` from ``offset`` on in the place "made", of ``source``, a constant.

    ``one`` and ``several`` say which plans read them.
    """

    packing: Packing
    source: PlacedTensor
    offset: int
    nbytes: int
    one: bool
    several: bool


@dataclass(frozen=True)
class ExecutionPlan:
    """Everything the runtime has to know. ``constants`` is the memory that constant tensors point into.

    ``packings`` fill the ``made_bytes`` of the place "made" when the library is opened, from the weights that are the constants
    from ``raw_from`` on.
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
    packings: tuple[PlacedPacking, ...] = ()
    made_bytes: int = 0
    raw_from: int = 0
    preprocessing: Preprocessing | None = None
    head: Head | None = None
    image: tuple[int, int] | None = None
    several: tuple[PlacedStep, ...] = ()


def packed_on_board(plan: ExecutionPlan) -> list[int]:
    """Bytes of weights that the board packs: for one thread, and for several where they have a plan of their own."""
    one = sum(packed.nbytes for packed in plan.packings if packed.one)
    return [one, sum(packed.nbytes for packed in plan.packings if packed.several)] if plan.several else [one]


def unread_bytes(plan: ExecutionPlan) -> list[int]:
    """Bytes of constants that no run reads, once weights are packed, as ``packed_on_board`` lists them."""
    unread = []
    for steps in (plan.steps, plan.several) if plan.several else (plan.steps,):
        tensors = [plan.tensors[index] for step in steps for index in step.arguments]
        read = {tensor.offset: _aligned(tensor.nbytes) for tensor in tensors if tensor.place == "constant"}
        unread.append(len(plan.constants) - sum(read.values()))
    return unread


@dataclass(frozen=True, eq=False)
class Storage:
    """Bytes that one kernel writes, or that come from outside (``boundary``); tensors of several shapes may view them.

    ``made``: the board makes them of a constant.
    """

    nbytes: int
    constant: np.ndarray | None = None
    boundary: bool = False
    made: Made | None = None


@dataclass(frozen=True)
class Made:
    """What is packed on the board, and of what."""

    packing: Packing
    source: Storage


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
    made, made_bytes = _place_in_row(view.storage for view in views if view.storage.made)
    constant_offsets, constants, raw_from = _gather_constants(
        [view.storage for view in views if view.storage.constant is not None],
        [view.storage.made.source for view in views if view.storage.made],
    )

    def placed(view: View) -> PlacedTensor:
        if id(view.storage) in boundary:
            return PlacedTensor(view.name, view.shape, view.dtype, "boundary", boundary[id(view.storage)])
        if view.storage.constant is not None:
            return PlacedTensor(view.name, view.shape, view.dtype, "constant", constant_offsets[id(view.storage)])
        if view.storage.made:
            return PlacedTensor(view.name, view.shape, view.dtype, "made", made[id(view.storage)])
        return PlacedTensor(view.name, view.shape, view.dtype, "arena", arena[id(view.storage)])

    position = {id(view): index for index, view in enumerate(views)}

    def step(call: PlannedCall) -> PlacedStep:
        arguments = tuple(position[id(view)] for view in (*call.inputs, *call.outputs))
        return PlacedStep(call.name, call.kind, call.kernel, arguments, len(call.outputs))

    readers = [{id(view.storage) for call in steps for view in call.inputs} for steps in (calls, several or calls)]
    packings = [
        PlacedPacking(
            storage.made.packing,
            PlacedTensor(
                "weights",
                (storage.made.source.nbytes // 4,),
                "float32",
                "constant",
                constant_offsets[id(storage.made.source)],
            ),
            made[id(storage)],
            storage.nbytes,
            *(id(storage) in reads for reads in readers),
        )
        for storage in {id(view.storage): view.storage for view in views}.values()
        if storage.made
    ]
    return ExecutionPlan(
        tensors=tuple(map(placed, views)),
        steps=tuple(map(step, calls)),
        several=tuple(map(step, several)),
        inputs=tuple(position[id(view)] for view in inputs),
        outputs=tuple(position[id(view)] for view in outputs),
        arena_bytes=arena_bytes,
        boundary_bytes=boundary_bytes,
        constants=constants,
        packings=tuple(packings),
        made_bytes=made_bytes,
        raw_from=raw_from,
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
            outside = storage.boundary or storage.constant is not None or storage.made or storage in written_out
            if not outside:
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


def _gather_constants(storages: Sequence[Storage], raw: Sequence[Storage]) -> tuple[dict[int, int], bytes, int]:
    """Offsets of constants by ``id`` of their storage, their bytes, and where those of ``raw`` begin.

    Equal ones are kept once.
    """
    offsets: dict[int, int] = {}
    by_content: dict[bytes, int] = {}
    memory = bytearray()
    raw_from = 0
    for index, storage in enumerate((*storages, *raw)):
        if index == len(storages):
            memory += bytes(-len(memory) % PAGE)
            raw_from = len(memory)
        if id(storage) in offsets:
            continue
        assert storage.constant is not None
        content = storage.constant.tobytes()
        if content not in by_content:
            by_content[content] = len(memory)
            memory += content
            memory += bytes(_aligned(len(memory)) - len(memory))
        offsets[id(storage)] = by_content[content]
    return offsets, bytes(memory), raw_from or len(memory)


def _distinct(views: Sequence[View]) -> list[View]:
    return list({id(view): view for view in views}.values())


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT

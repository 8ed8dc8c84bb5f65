"""Turns a network into a bundle: a kernel for each step, packed weights, a plan, a library, a golden answer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tvm
from rich.console import Console
from tvm import tirx

from bitkiln.pipeline import bundle, golden
from bitkiln.pipeline.errors import BitkilnError, ModelError
from bitkiln.pipeline.link import LibraryFacts, link_library
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.plan import (
    ExecutionPlan,
    Network,
    PlannedCall,
    View,
    constant_view,
    make_plan,
    new_view,
    read_network,
)
from bitkiln.schedules import generic
from bitkiln.schedules.kernel import Argument, Constant, Kernel, Knobs
from bitkiln.schedules.registry import operator_for
from bitkiln.schedules.workload import Workload, from_json
from bitkiln.targets import Target

#: Bytes of memory that a network may take: boards have 1 GiB, of which the system and Python want the rest.
MOST_MEMORY = 768 << 20

#: How often inputs and outputs lie in memory while they are read or written: the network's own bytes, an array, the
#: array's bytes, and the file they are part of.
COPIES = 4

#: The attribute by which a reference PrimFunc says what it computes.
WORKLOAD = "bitkiln.workload"


class Record(Protocol):
    """A tuning record, as far as compiling looks at it."""

    @property
    def knobs(self) -> Knobs:
        """The values of the workload's tuning space."""

    def as_json(self) -> dict[str, Any]:
        """The record as plain data: what measured it, and how fast it was."""


class RecordSource(Protocol):
    """Where the best known knobs come from."""

    def best(self, workload: str, target: Target) -> Record | None:
        """The fastest record of the workload with that key, for a board of this kind."""


@dataclass(frozen=True)
class ChosenKernel:
    """The kernel of one workload, or a generic one, under its name in the library.

    ``source`` says who chose its knobs: "tuned", "default", or "generic" for kernels that have none.
    """

    symbol: str
    kind: str
    func: tirx.PrimFunc
    source: str
    kernel: Kernel | None = None
    workload: Workload | None = None
    knobs: Knobs = field(default_factory=dict)
    record: Mapping[str, Any] | None = None


def compile_model(
    model: Model, target: Target, records: RecordSource, out: Path, console: Console | None = None
) -> Path:
    """Compile ``model`` for ``target`` into the bundle ``out``, with the best kernels that ``records`` know.

    Raises BitkilnError; ``out`` is replaced only when everything has succeeded.
    """
    from bitkiln.pipeline.passes.lower import lower  # Processes that only build kernels for tuning do without.

    bundle.refuse_foreign(out)
    lowered = lower(model, target)
    for warning in (*model.warnings, *lowered.warnings()) if console else ():
        console.print(f"warning: {warning}", highlight=False)
    return compile_lowered(model, lowered.module, target, records, out, console)


def compile_lowered(
    model: Model,
    module: tvm.IRModule,
    target: Target,
    records: RecordSource,
    out: Path,
    console: Console | None = None,
) -> Path:
    """As ``compile_model``, for a network already lowered to ``module``."""
    console = console or Console(quiet=True)
    network = read_network(module)
    chosen = choose_kernels(module, network, target, records)
    plan = plan_network(model, network, chosen)
    _check_memory(model, plan)
    functions = {kernel.symbol: kernel.func for kernel in chosen.values()}
    microkernels = [micro for kernel in chosen.values() if kernel.kernel for micro in kernel.kernel.microkernels]
    with bundle.writing(out) as folder:
        facts = link_library(functions, microkernels, plan, target, folder / "model.so")
        manifest = describe(model, target, network, chosen, plan, facts)
        bundle.add_files(folder, model, manifest)
        manifest["golden"] = golden.make(folder, target, plan, console)
        bundle.finish(folder, manifest)
    report(out, manifest, console)
    return out


def _check_memory(model: Model, plan: ExecutionPlan) -> None:
    """Raise ModelError where a board of 1 GiB could not run the network and hand over its outputs."""
    needed = plan.arena_bytes + COPIES * plan.boundary_bytes
    if needed <= MOST_MEMORY:
        return
    ends = [("input", index) for index in plan.inputs] + [("output", index) for index in plan.outputs]
    kind, tensor = max(((kind, plan.tensors[index]) for kind, index in ends), key=lambda end: end[1].nbytes)
    what = f"{kind} {tensor.name} has {tensor.nbytes / 1e6:.0f} MB ({tensor.dtype} {list(tensor.shape)})"
    if plan.arena_bytes > COPIES * tensor.nbytes:
        what = f"what its layers pass on takes {plan.arena_bytes / 1e6:.0f} MB"
    raise ModelError(
        f"{model.name}: {what}; the network and copies of its inputs and outputs take {needed / 1e6:.0f} MB of a board's "
        f"memory, {MOST_MEMORY / 1e6:.0f} MB at most are supported: make its input smaller, or let it return less"
    )


def build_kernel_library(workload: Workload, knobs: Knobs, target: Target, out: Path) -> Kernel:
    """Link one kernel as a network of one step whose arguments, as packed, are all inputs: the unit of tuning.

    Inputs are called ``arg0``, ``arg1``, ... and the output ``out``. Tables the kernel needs are embedded.
    """
    kernel = operator_for(workload).emit(workload, knobs, target)
    link_kernel(kernel, target, out, kind=workload.key().split()[0])
    return kernel


def link_kernel(kernel: Kernel, target: Target, out: Path, kind: str = "kernel") -> LibraryFacts:
    """As ``build_kernel_library``, for a kernel already emitted."""
    views: list[View] = []
    for index, argument in enumerate(kernel.arguments):
        if isinstance(argument, Constant):
            views.append(constant_view(f"table{index}", argument.array))
        else:
            views.append(new_view(f"arg{index}", argument.shape, argument.dtype, boundary=True))
    written = kernel.func.params[-1]
    result = new_view("out", [int(extent) for extent in written.shape], str(written.dtype))
    call = PlannedCall("out", kind, "kernel0", tuple(views), (result,))
    plan = make_plan([call], [view for view in views if view.storage.constant is None], [result])
    return link_library({"kernel0": kernel.func}, kernel.microkernels, plan, target, out)


def choose_kernels(
    module: tvm.IRModule, network: Network, target: Target, records: RecordSource
) -> dict[str, ChosenKernel]:
    """The kernel of every PrimFunc that ``network`` calls, by the PrimFunc's name; equal ones share a symbol."""
    chosen: dict[str, ChosenKernel] = {}
    known: dict[str, ChosenKernel] = {}
    for name in dict.fromkeys(call.kernel for call in network.calls):
        func = module[name]
        identity = _identity(func)
        if identity not in known:
            known[identity] = _choose(f"kernel{len(known)}", name, func, target, records)
        chosen[name] = known[identity]
    return chosen


def _identity(func: tirx.PrimFunc) -> str:
    """Equal for functions that may share a kernel. A workload's key would not do: it rounds numbers."""
    if func.attrs and WORKLOAD in func.attrs:
        return str(func.attrs[WORKLOAD])
    return tvm.ir.save_json(func.without_attr("global_symbol"))


def _choose(symbol: str, name: str, func: tirx.PrimFunc, target: Target, records: RecordSource) -> ChosenKernel:
    if not (func.attrs and WORKLOAD in func.attrs):
        return ChosenKernel(symbol, name, generic.schedule(func), "generic")
    workload = from_json(str(func.attrs[WORKLOAD]))
    knobs, record = choose_knobs(workload, target, records)
    kernel = operator_for(workload).emit(workload, knobs, target)
    source, proof = ("tuned", record.as_json()) if record else ("default", None)
    kind = workload.key().split()[0]
    return ChosenKernel(symbol, kind, kernel.func, source, kernel, workload, dict(knobs), proof)


def choose_knobs(workload: Workload, target: Target, records: RecordSource) -> tuple[Knobs, Record | None]:
    """The best recorded knobs and their record; the untuned default where no record fits the tuning space."""
    operator = operator_for(workload)
    record = records.best(workload.key(), target)
    if record is not None and _within(record.knobs, operator.space(workload, target)):
        return record.knobs, record
    return operator.default(workload, target), None


def _within(knobs: Knobs, space: Mapping[str, Sequence[int | str]]) -> bool:
    """Records of another kind of board, or of older schedules, may lie outside of the space."""
    return knobs.keys() == space.keys() and all(value in space[name] for name, value in knobs.items())


def plan_network(model: Model, network: Network, chosen: Mapping[str, ChosenKernel]) -> ExecutionPlan:
    """The execution plan: each call's arguments as its kernel wants them, weights packed, tensors placed."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        calls = list(pool.map(lambda call: _kernel_call(call, chosen[call.kernel]), network.calls))
    outputs = list(network.outputs)
    if len(outputs) == len(model.outputs):
        names = [spec.name for spec in model.outputs]
        outputs = [View(name, v.shape, v.dtype, v.storage) for name, v in zip(names, outputs, strict=True)]
    return make_plan(calls, network.inputs, outputs)


def _kernel_call(call: PlannedCall, chosen: ChosenKernel) -> PlannedCall:
    inputs = call.inputs
    if chosen.kernel is not None:
        inputs = tuple(
            _argument(f"{call.name}.{index}", argument, call) for index, argument in enumerate(chosen.kernel.arguments)
        )
    return PlannedCall(call.name, chosen.kind, chosen.symbol, inputs, call.outputs)


def _argument(name: str, argument: Argument | Constant, call: PlannedCall) -> View:
    """One argument of the emitted kernel, made from the arguments of the call."""
    if isinstance(argument, Constant):
        return constant_view(name, argument.array)
    sources = [call.inputs[index] for index in argument.sources]
    if argument.pack is None:
        (source,) = sources
        return View(source.name, tuple(argument.shape), argument.dtype, source.storage)
    arrays = []
    for source in sources:
        if source.storage.constant is None:
            raise BitkilnError(f"{call.name}: the operand {source.name} must be a constant, it is computed")
        arrays.append(source.storage.constant.reshape(source.shape))
    packed = np.ascontiguousarray(argument.pack(arrays), dtype=argument.dtype)
    if packed.shape != tuple(argument.shape):
        raise BitkilnError(f"{call.name}: packing gave shape {packed.shape}, the kernel takes {argument.shape}")
    return constant_view(name, packed)


def describe(
    model: Model,
    target: Target,
    network: Network,
    chosen: Mapping[str, ChosenKernel],
    plan: ExecutionPlan,
    facts: LibraryFacts,
) -> dict[str, Any]:
    """The manifest, but for the list of files and the golden answer."""
    weights = {call.name: _constant_bytes(call) for call in network.calls}
    kernels = {call.name: chosen[call.kernel] for call in network.calls}
    steps = []
    for step in plan.steps:
        row: dict[str, Any] = {"name": step.name, "kind": step.kind, "macs": 0, "binary": False, "weight_bytes": 0}
        if step.name in kernels and step.kind != "copy":
            row |= _describe_kernel(kernels[step.name]) | {"weight_bytes": weights[step.name]}
        steps.append(row)
    return {
        "format": bundle.FORMAT_VERSION,
        "model": {"name": model.name, "sha256": model.source_digest},
        "target": target.name,
        "requires": {
            "cpu": "aarch64" if target.bits == 64 else "armv7l",
            "glibc": facts.glibc,
            "libraries": list(facts.needed),
        },
        "inputs": [_describe_tensor(plan, index, model.inputs, at) for at, index in enumerate(plan.inputs)],
        "outputs": [_describe_tensor(plan, index, model.outputs, at) for at, index in enumerate(plan.outputs)],
        "memory": {
            "activations": plan.arena_bytes,
            "boundary": plan.boundary_bytes,
            "constants": len(plan.constants),
        },
        "steps": steps,
    }


def _describe_kernel(kernel: ChosenKernel) -> dict[str, Any]:
    if kernel.workload is None or kernel.kernel is None:
        return {"chosen": kernel.source}
    return {
        "macs": kernel.workload.macs,
        "binary": bool(getattr(kernel.workload, "binary", False)),
        "workload": kernel.workload.key(),
        "chosen": kernel.source,
        "knobs": dict(kernel.knobs),
        "record": kernel.record,
        "notes": kernel.kernel.notes,
    }


def _constant_bytes(call: PlannedCall) -> int:
    """Bytes of weights that the step reads, before packing."""
    return sum(view.storage.nbytes for view in call.inputs if view.storage.constant is not None)


def _describe_tensor(plan: ExecutionPlan, index: int, specs: Sequence[Any], at: int) -> dict[str, Any]:
    tensor = plan.tensors[index]
    layout = specs[at].layout if len(specs) > at else ""
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "layout": layout}


def report(out: Path, manifest: Mapping[str, Any], console: Console) -> None:
    """Say in a few lines what was made."""
    counts = dict.fromkeys(("tuned", "default", "generic"), 0)
    for step in manifest["steps"]:
        if "chosen" in step:
            counts[step["chosen"]] += 1
    size = sum(file["size"] for file in manifest["files"].values())
    memory = manifest["memory"]["activations"] + manifest["memory"]["boundary"]
    console.print(
        f"{out}: {manifest['model']['name']} for {manifest['target']}, {len(manifest['steps'])} steps "
        f"({counts['tuned']} tuned, {counts['default']} by default, {counts['generic']} generic), "
        f"{size / 1e6:.1f} MB, {memory / 1e6:.1f} MB of activations",
        highlight=False,
    )

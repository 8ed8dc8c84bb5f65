"""The steps of a bundle beside what they have to compute, and the layers of the model's file that each was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import relax
from tvm.relax import TupleGetItem

from bitkiln.pipeline import reference
from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.compile.origins import Origins
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.ops import WORKLOAD_ATTR
from bitkiln.pipeline.passes.pipeline import Lowered
from bitkiln.schedules.workload import Workload, from_json


@dataclass(frozen=True)
class BundleStep:
    """A step whose result is a tensor of the network before fusion, named ``name`` there.

    ``kind`` lists what ran to get there, the step's own kind last. ``layers`` are names of the imported network.
    ``compiled_as`` is the key of the workload that the bundle was compiled with, where the model asks for another now.
    """

    name: str
    kind: str
    layers: tuple[str, ...] = ()
    workload: Workload | None = None
    compiled_as: str = ""


def listed_steps(bundle: Bundle) -> list[tuple[str, str]]:
    """Name and kind of the bundle's steps but for copies; a step of several results is there with the name of each."""
    rows = (row for row in bundle.manifest["steps"] if row["kind"] != "copy")
    return [(name, row["kind"]) for row in rows for name in row.get("results", [row["name"]])]


def named_steps(lowered: Lowered, listed: Sequence[tuple[str, str]], bundle: Bundle | None = None) -> list[BundleStep]:
    """The steps to compare. Those between, like the bits before a bitwise pooling, are part of the next that is."""
    graph = dict(bindings(lowered.graph["main"]))
    workloads, layers = workloads_of(lowered), Origins(lowered)
    keys = {row["name"]: row.get("workload", "") for row in bundle.manifest["steps"]} if bundle else {}
    steps: list[BundleStep] = []
    kinds: list[str] = []
    known = [param.name for param in lowered.graph["main"].params]
    for name, kind in listed:
        kinds.append(kind)
        if name not in graph:
            continue
        workload, key = workloads.get(name), keys.get(name, "")
        other = key if workload is not None and key and key != workload.key() else ""
        steps.append(BundleStep(name, " + ".join(kinds), layers.named(layers.between(known, name)), workload, other))
        known.append(name)
        kinds = []
    return steps


def workloads_of(lowered: Lowered) -> dict[str, Workload]:
    """The workload of each step that has one, by the names of its results."""
    found: dict[str, Workload] = {}
    for name, value in bindings(lowered.module["main"]):
        if isinstance(value, TupleGetItem) and isinstance(value.tuple_value, relax.Var):
            found |= {name: found[value.tuple_value.name]} if value.tuple_value.name in found else {}
        elif op_name(value) == "call_tir":
            attrs = lowered.module[value.args[0]].attrs
            if attrs and WORKLOAD_ATTR in attrs:
                found[name] = from_json(str(attrs[WORKLOAD_ATTR]))
    return found


def output_steps(model: Model, lowered: Lowered) -> list[tuple[str, str]]:
    """Name of each output, and of the step that computes it ("" for a constant): reshapes are no steps."""
    defined = dict(bindings(lowered.module["main"]))
    names = []
    for output in reference.outputs(lowered.module):
        while isinstance(output, relax.Var) and op_name(defined.get(output.name)) == "reshape":
            output = defined[output.name].args[0]
        names.append(output.name if isinstance(output, relax.Var) else "")
    specs = [spec.name for spec in model.outputs] if len(model.outputs) == len(names) else names
    return list(zip(specs, names, strict=True))

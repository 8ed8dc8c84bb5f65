"""The bundle's manifest, and the lines that report it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bitkiln.pipeline import bundle, schema
from bitkiln.pipeline.compile.kernels import ChosenKernel
from bitkiln.pipeline.compile.library import LibraryFacts
from bitkiln.pipeline.compile.plan import (
    ExecutionPlan,
    Network,
    PlannedCall,
    packed_on_board,
    unread_bytes,
)
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.records import superseded
from bitkiln.schedules.workload import Generic
from bitkiln.targets import Target

if TYPE_CHECKING:
    from bitkiln.pipeline.passes.pipeline import Lowered


def describe(
    model: Model,
    target: Target,
    network: Network,
    chosen: Mapping[str, ChosenKernel],
    several: Mapping[str, ChosenKernel],
    plan: ExecutionPlan,
    facts: LibraryFacts,
) -> dict[str, Any]:
    """The manifest, but for the list of files and the golden answer; ``several`` has kernels that only several threads use."""
    weights = {call.name: _constant_bytes(call) for call in network.calls}
    kernels = {call.name: chosen[call.kernel] for call in network.calls}
    others = {call.name: several[call.kernel] for call in network.calls if call.kernel in several}
    steps = []
    for step in plan.steps:
        row: dict[str, Any] = {"name": step.name, "kind": step.kind, "macs": 0, "binary": False, "weight_bytes": 0}
        if step.name in kernels and step.kind != "copy":
            row |= _describe_kernel(kernels[step.name]) | {"weight_bytes": weights[step.name]}
        if step.outputs > 1:
            row["results"] = [plan.tensors[index].name for index in step.arguments[-step.outputs :]]
        if step.name in others:
            row["several"] = _describe_choice(others[step.name])
        steps.append(row)
    return {
        "format": bundle.FORMAT_VERSION,
        "model": {"name": model.name, "sha256": model.source_digest},
        "target": target.name,
        "requires": {
            "cpu": target.architecture,
            "glibc": facts.glibc,
            "libraries": list(facts.needed),
        },
        "inputs": [_describe_tensor(plan, index, model.inputs, at) for at, index in enumerate(plan.inputs)],
        "outputs": [_describe_tensor(plan, index, model.outputs, at) for at, index in enumerate(plan.outputs)],
        "memory": {
            "activations": plan.arena_bytes,
            "boundary": plan.boundary_bytes,
            "constants": len(plan.constants),
            "packed_on_board": packed_on_board(plan),
            "unread": unread_bytes(plan),
        },
        "steps": steps,
    }


def add_layers(manifest: dict[str, Any], lowered: Lowered | None) -> None:
    """Say of each step which of the file's layers it was made of: none where it is a part of the next step that has some."""
    from bitkiln.pipeline.compile.origins import (
        layers_of,  # Brings the reference, which building one kernel does without.
    )

    steps = manifest["steps"]
    layers = layers_of(lowered, [step["name"] for step in steps]) if lowered else {}
    for step in steps:
        main, whole = layers.get(step["name"], ("", ()))
        step |= {"layer": main, "layers": list(whole)}


def as_json(made: bundle.Bundle) -> schema.Compile:
    """A bundle as plain values."""
    manifest = made.manifest
    memory = manifest["memory"]
    return {
        "schema": "bitkiln.compile/1",
        "bundle": str(made.folder),
        "model": manifest["model"]["name"],
        "sha256": manifest["model"]["sha256"],
        "target": manifest["target"],
        "threads": manifest.get("threads", [1]),
        "inputs": manifest["inputs"],
        "outputs": manifest["outputs"],
        "preprocessing": manifest.get("preprocessing"),
        "labels": len(made.labels),
        "file_bytes": sum(file["size"] for file in manifest["files"].values()),
        "activation_bytes": memory["activations"] + memory["boundary"],
        "memory_bytes": memory.get("running"),
        "steps": [
            schema.CompiledStep(
                name=step["name"],
                kind=step["kind"],
                macs=step["macs"],
                binary=step["binary"],
                weight_bytes=step["weight_bytes"],
                layer=step.get("layer", ""),
                layers=step.get("layers", []),
                chosen=step.get("chosen", "copy"),
            )
            for step in manifest["steps"]
        ],
        "warnings": manifest.get("warnings", []),
    }


def _describe_kernel(kernel: ChosenKernel) -> dict[str, Any]:
    if kernel.workload is None or kernel.kernel is None:
        return {"chosen": kernel.source}
    return {
        # Of general kernels the iterations of a sum may be no products: a softmax has none.
        "macs": 0 if isinstance(kernel.workload, Generic) else kernel.workload.macs,
        "binary": bool(getattr(kernel.workload, "binary", False)),
        "workload": kernel.workload.key(),
        **_describe_choice(kernel),
    }


def _describe_choice(kernel: ChosenKernel) -> dict[str, Any]:
    assert kernel.kernel is not None
    return {
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
    described = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "layout": layout}
    stands_for = specs[at].quantization if len(specs) > at else None
    return described | ({"scale": stands_for[0], "zero_point": stands_for[1]} if stands_for else {})


def on_most_threads(step: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a manifest's step says of its kernel in the plan for the most threads: where it has another one, of that."""
    return step.get("several", step)


def report(out: Path, manifest: Mapping[str, Any], console: Console) -> None:
    """Say in a few lines what was made."""
    counts = dict.fromkeys(("tuned", "default", "generic"), 0)
    steps = [on_most_threads(step) for step in manifest["steps"]]
    for step in steps:
        if "chosen" in step:
            counts[step["chosen"]] += 1
    records = [step["record"] for step in steps if step.get("record")]
    older = sum(superseded(record.get("kind", ""), record.get("measured_by", "")) for record in records)
    tuned = f"{counts['tuned']} tuned" + (f", {older} of them by another timing model" if older else "")
    size = sum(file["size"] for file in manifest["files"].values())
    memory = manifest["memory"]["activations"] + manifest["memory"]["boundary"]
    taken = manifest["memory"].get("running")
    running = f"; takes {taken / 1e6:.1f} MB of memory" if taken else ""
    console.print(
        f"{out}: {manifest['model']['name']} for {manifest['target']} on {tuned_for(manifest)}, {len(manifest['steps'])} steps "
        f"({tuned}, {counts['default']} by default, {counts['generic']} generic), "
        f"{size / 1e6:.1f} MB, {memory / 1e6:.1f} MB of activations{running}",
        highlight=False,
    )
    if manifest.get("head"):
        console.print(
            f"outputs: {describe_head(manifest['head'])}; --head says otherwise (docs/heads.md)", highlight=False
        )


def tuned_for(manifest: Mapping[str, Any]) -> str:
    """The numbers of threads that a bundle's kernels were chosen for: "4 threads", "1 and 4 threads"."""
    counts = manifest.get("threads", [1])
    return f"{' and '.join(map(str, counts))} thread{'' if counts == [1] else 's'}"


def describe_head(head: Mapping[str, Any]) -> str:
    """What the outputs mean, in a few words."""
    if head["task"] == "segment":
        return f"a mask ({head['kind']}) of {head['output']}"
    classes = head["classes"] - (head["background"] >= 0)
    return f"boxes of {classes} classes ({head['kind']}), from a score of {head['threshold']:g} on"

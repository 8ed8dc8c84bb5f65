"""Hold a compiled network against the reference: every step on the inputs it really had, then the decision.

Each step is compared with the reference evaluated from the outputs of the steps before it, as the bundle computed them:
so an error does not hide in, nor spread through, what follows. Bits must be equal. Floats may differ by ``TOLERANCE``
relative to the largest value of the tensor. Bits that are signs of floats may differ only where the float is that close
to zero; they are counted as undecided.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tvm.ir import Call

from bitkiln.pipeline import reference
from bitkiln.pipeline.bundle import Bundle, open_bundle
from bitkiln.pipeline.errors import VerifyError
from bitkiln.pipeline.model import Model, Preprocessing
from bitkiln.pipeline.ops import WORKLOAD_ATTR
from bitkiln.pipeline.passes.graph import bindings, op_name
from bitkiln.pipeline.passes.lower import Lowered, lower
from bitkiln.schedules.workload import Binarize, Conv2d, Workload, from_json

#: How much a float may differ, relative to the largest magnitude of its tensor.
TOLERANCE = 1e-4

SEED = 53

Tensors = Mapping[str, np.ndarray]

#: Name and values of an output; None where no step computes it, as when the network hands an input through.
Output = tuple[str, np.ndarray | None]

#: Runs a bundle on inputs: what every step gave, by the step's name.
Tracer = Callable[[Path, Tensors], Tensors]


@dataclass(frozen=True)
class Row:
    """One step. ``error`` is the largest difference of floats, relative to the tensor's largest magnitude.

    ``wrong`` counts bits that differ, ``undecided`` those of them that are signs of floats too close to zero to tell.
    """

    name: str
    kind: str
    exact: bool
    error: float = 0.0
    wrong: int = 0
    undecided: int = 0

    @property
    def passed(self) -> bool:
        """Does the step compute what the model says?"""
        return self.wrong == self.undecided if self.wrong else self.error <= (0 if self.exact else TOLERANCE)


@dataclass(frozen=True)
class Decision:
    """An output of the whole network against another engine that ran the model from the same input."""

    output: str
    against: str
    error: float
    top: tuple[int, ...]
    expected_top: tuple[int, ...]

    @property
    def passed(self) -> bool:
        """Equal numbers, or else a first choice that is among the other's best.

        Where a float next to zero decides a sign, two right engines may differ in all that follows.
        """
        return self.error <= TOLERANCE or self.top[0] in self.expected_top


@dataclass(frozen=True)
class Report:
    """What was compared."""

    rows: tuple[Row, ...]
    decisions: tuple[Decision, ...]

    @property
    def passed(self) -> bool:
        """Did everything agree?"""
        return all(row.passed for row in self.rows) and all(decision.passed for decision in self.decisions)

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "passed": self.passed,
            "steps": [asdict(row) | {"passed": row.passed} for row in self.rows],
            "decisions": [asdict(decision) | {"passed": decision.passed} for decision in self.decisions],
        }


def verify_bundle(
    folder: Path,
    model: Model,
    tracer: Tracer | None = None,
    inputs: Tensors | None = None,
    source: Path | None = None,
) -> Report:
    """Compare the bundle in ``folder`` with ``model``, on the emulated board unless ``tracer`` says otherwise.

    ``inputs`` default to seeded ones of plausible range. ``source`` is the model's file: an ONNX file is run by
    onnxruntime too, where that is installed. Raises VerifyError where bundle and model do not belong together.
    """
    from bitkiln.pipeline import run  # Compilers and tests bring their own tracer and need no board.

    bundle = open_bundle(folder)
    _check_same(bundle, model)
    lowered = lower(model, bundle.target)
    steps = _steps(bundle, lowered)
    inputs = inputs if inputs is not None else make_inputs(model)
    trace = {**inputs, **(tracer or run.trace)(folder, inputs)}
    outputs = [(name, trace.get(step)) for name, step in _outputs(model, lowered)]
    decisions = compare_outputs(lowered, inputs, outputs)
    if source is not None:
        decisions += _against_onnxruntime(source, inputs, outputs)
    return Report(tuple(compare_steps(lowered, steps, trace)), tuple(decisions))


def make_inputs(model: Model) -> dict[str, np.ndarray]:
    """Seeded inputs for every parameter: random pixels, preprocessed, or where the model says nothing, normal numbers."""
    rng = np.random.default_rng(SEED)
    inputs = {}
    for param in model.module["main"].params:
        shape = tuple(int(size) for size in param.ty.shape.values)
        inputs[param.name] = _random(rng, shape, model.preprocessing)
    return inputs


def compare_steps(lowered: Lowered, steps: Sequence[tuple[str, str]], trace: Tensors) -> list[Row]:
    """One row for each step (name, kind) whose result is a tensor of the network before fusion.

    The others, like the bits before a bitwise pooling, are checked together with the next step that is.
    """
    defined = dict(bindings(lowered.graph["main"]))
    known = {name: values for name, values in trace.items() if name in defined or _is_input(lowered, name)}
    workloads = _workloads(lowered)
    rows: list[Row] = []
    kinds: list[str] = []
    for name, kind in steps:
        kinds.append(kind)
        if name in defined:
            rows.append(_compare(lowered, name, " + ".join(kinds), workloads.get(name), known))
            kinds = []
    return rows


def compare_outputs(lowered: Lowered, inputs: Tensors, outputs: Sequence[Output]) -> list[Decision]:
    """The network's outputs against the reference run from the inputs."""
    expected = reference.run(lowered.graph, inputs)
    return [
        _decision(name, "reference", actual, wanted)
        for (name, actual), wanted in zip(outputs, expected, strict=True)
        if actual is not None
    ]


def print_report(report: Report, console: Console) -> None:
    """Print the steps, the decisions and the verdict."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("step", "kind", "compared", "difference", ""):
        table.add_column(column)
    for row in report.rows:
        found = f"{row.wrong} bits" if row.wrong else f"{row.error:.1e}" if row.error else "none"
        found += f" ({row.undecided} undecided)" if row.undecided else ""
        table.add_row(row.name, row.kind, "exactly" if row.exact else "1e-4", found, "ok" if row.passed else "WRONG")
    console.print(table)
    for decision in report.decisions:
        verdict = "ok" if decision.passed else "WRONG"
        console.print(
            f"{decision.output} against {decision.against}: first choice {decision.top[0]}, expected "
            f"{decision.expected_top[0]}; largest difference {decision.error:.1e}: {verdict}",
            highlight=False,
        )
    wrong = [row.name for row in report.rows if not row.passed]
    console.print(
        "the bundle computes what the model says"
        if report.passed
        else f"the bundle disagrees with the model, first in {wrong[0] if wrong else 'its decision'}",
        highlight=False,
    )


def _check_same(bundle: Bundle, model: Model) -> None:
    made_from = bundle.manifest["model"]
    if made_from["sha256"] != model.source_digest:
        raise VerifyError(
            f"{bundle.folder}: was compiled from another file than {model.name} ({made_from['name']}, "
            f"{made_from['sha256'][:12]}...); give the file it was compiled from"
        )


def _steps(bundle: Bundle, lowered: Lowered) -> list[tuple[str, str]]:
    """Name and kind of the bundle's steps, which must be those that the model gives today."""
    steps = [(row["name"], row["kind"]) for row in bundle.manifest["steps"] if row["kind"] != "copy"]
    expected = [name for name, value in bindings(lowered.module["main"]) if op_name(value) == "call_tir"]
    # Those that only move axes of size one are views of the plan, no steps.
    names = {name for name, _ in steps}
    if [name for name, _ in steps] != [name for name in expected if name in names]:
        raise VerifyError(f"{bundle.folder}: its steps are not those of this version of bitkiln; compile it again")
    return steps


def _random(rng: np.random.Generator, shape: tuple[int, ...], how: Preprocessing | None) -> np.ndarray:
    if how is None or len(shape) != 4:
        return rng.standard_normal(shape, dtype=np.float32)
    channels_last = how.layout == "NHWC"
    pixels = rng.integers(0, 256, shape).astype(np.float32)
    per_channel = (1, 1, 1, -1) if channels_last else (1, -1, 1, 1)
    mean, scale = (np.asarray(values, np.float32).reshape(per_channel) for values in (how.mean, how.scale))
    return (pixels - mean) * scale


def _compare(lowered: Lowered, name: str, kind: str, workload: Workload | None, known: Tensors) -> Row:
    others = {key: values for key, values in known.items() if key != name}
    actual = known[name]
    if actual.dtype == np.uint8:
        return _compare_bits(lowered, name, kind, workload, others, actual)
    expected = reference.evaluate(lowered.graph, others, [name])[name]
    exact = isinstance(workload, Conv2d) and workload.binary and not workload.epilogue
    return Row(name, kind, exact, error=_error(actual.reshape(expected.shape), expected))


def _compare_bits(
    lowered: Lowered, name: str, kind: str, workload: Workload | None, known: Tensors, actual: np.ndarray
) -> Row:
    call = dict(bindings(lowered.graph["main"]))[name]
    signed = call.args[0].name if op_name(call) == "bitkiln.binarize" else None
    wanted = [name, signed] if signed else [name]
    values = reference.evaluate(lowered.graph, known, wanted)
    different = np.unpackbits(actual.reshape(values[name].shape) ^ values[name], axis=-1, bitorder="little")
    wrong = int(different.sum())
    if not wrong or signed is None or _from_whole_numbers(workload):
        return Row(name, kind, exact=True, wrong=wrong)
    floats = values[signed]
    close = np.abs(floats) <= TOLERANCE * np.abs(floats).max()
    undecided = int((different[..., : floats.shape[-1]].astype(bool) & close).sum())
    return Row(name, kind, exact=True, wrong=wrong, undecided=undecided)


def _from_whole_numbers(workload: Workload | None) -> bool:
    """Are the bits those of whole numbers, or of floats as they stand in memory, where rounding plays no part?"""
    if isinstance(workload, Conv2d):
        return workload.binary
    return isinstance(workload, Binarize) and not workload.epilogue


def _error(actual: np.ndarray, expected: np.ndarray) -> float:
    if not np.array_equal(np.isfinite(actual), np.isfinite(expected)):
        return float("inf")
    finite = np.isfinite(expected)
    difference = np.abs(actual[finite].astype(np.float64) - expected[finite]).max(initial=0.0)
    return float(difference / (np.abs(expected[finite]).max(initial=0.0) or 1.0)) if difference else 0.0


def _decision(output: str, against: str, actual: np.ndarray, expected: np.ndarray) -> Decision:
    actual = actual.reshape(expected.shape)
    count = min(5, max(1, expected.size // 4))
    best = [np.argsort(-values.reshape(-1), kind="stable")[:count] for values in (actual, expected)]
    tops = [tuple(int(index) for index in indices) for indices in best]
    return Decision(output, against, _error(actual, expected), tops[0], tops[1])


def _workloads(lowered: Lowered) -> dict[str, Workload]:
    """The workload of each step that has one, by name."""
    found = {}
    for name, value in bindings(lowered.module["main"]):
        if op_name(value) == "call_tir":
            attrs = lowered.module[value.args[0]].attrs
            if attrs and WORKLOAD_ATTR in attrs:
                found[name] = from_json(str(attrs[WORKLOAD_ATTR]))
    return found


def _is_input(lowered: Lowered, name: str) -> bool:
    return any(param.name == name for param in lowered.graph["main"].params)


def _outputs(model: Model, lowered: Lowered) -> list[tuple[str, str]]:
    """Name of each output, and of the step that computes it: reshapes are no steps."""
    defined = dict(bindings(lowered.module["main"]))
    names = []
    for name in reference.output_names(lowered.module):
        step = name
        while isinstance(defined.get(step), Call) and op_name(defined[step]) == "reshape":
            step = defined[step].args[0].name
        names.append(step)
    specs = [spec.name for spec in model.outputs] if len(model.outputs) == len(names) else names
    return list(zip(specs, names, strict=True))


def _against_onnxruntime(source: Path, inputs: Tensors, outputs: Sequence[Output]) -> list[Decision]:
    """The same against onnxruntime; nothing where it is not installed or the file is not ONNX."""
    if not source.name.endswith((".onnx", ".onnx.xz")):
        return []
    try:
        import onnxruntime
    except ImportError:
        return []
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors; its warnings are about what exporters leave behind.
    try:
        model = lzma.decompress(source.read_bytes()) if source.suffix == ".xz" else str(source)
        session = onnxruntime.InferenceSession(model, options)
    except Exception:
        # It refuses what it has no operator for, such as QONNX's; then there is nothing to compare with.
        return []
    names = [entry.name for entry in session.get_inputs()]
    expected = session.run(None, dict(zip(names, inputs.values(), strict=True)))
    return [
        _decision(name, "onnxruntime", actual, wanted)
        for (name, actual), wanted in zip(outputs, expected, strict=True)
        if actual is not None
    ]

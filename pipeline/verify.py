"""Hold a compiled network against the reference: every step on the inputs it really had, then the outputs.

Each step is compared with the reference evaluated from the outputs of the steps before it, as the bundle computed them:
so an error does not hide in, nor spread through, what follows. A second run of the reference, from the network's inputs,
says what the differences became from step to step. Where something differs, ``verification.explain`` says why.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from bitkiln.pipeline import reference, run
from bitkiln.pipeline.bundle import Bundle, open_bundle
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.errors import BitkilnError, VerifyError
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.passes.lower import Lowered, lower
from bitkiln.pipeline.verification.belonging import Belonging, Mismatch, check, check_steps
from bitkiln.pipeline.verification.compare import Tensors, compare_step, relative_error, unpack
from bitkiln.pipeline.verification.constants import Damage, find_damage
from bitkiln.pipeline.verification.explain import explain, worst
from bitkiln.pipeline.verification.outputs import (
    EXPECTED,
    IMPORTED,
    REFERENCE,
    Decision,
    Judge,
    Output,
    Rival,
    as_imported,
)
from bitkiln.pipeline.verification.report import Report, Row, print_report
from bitkiln.pipeline.verification.samples import Sample, make_inputs
from bitkiln.pipeline.verification.steps import Step, listed_steps, named_steps, output_steps
from bitkiln.pipeline.verification.zeros import ZeroSigns

__all__ = ["Report", "Tracer", "make_inputs", "print_report", "verify_bundle"]

#: Runs a bundle on inputs: its outputs, and what every step gave, by the step's name.
Tracer = Callable[[Bundle, Tensors], run.Answer]

#: What to do with a bundle whose constants were altered.
DAMAGED = "its library was altered since it was compiled, or another version compiled it: copy or compile it again"

#: How much the golden outputs may differ between processors, relative to the largest; as runner.py has it.
GOLDEN = 1e-4


def verify_bundle(
    folder: Path,
    model: Model,
    samples: Sequence[Sample] = (),
    source: Path | None = None,
    tracer: Tracer | None = None,
    stated: Collection[str] = (),
) -> Report:
    """Compare the bundle in ``folder`` with ``model``, on the emulated board unless ``tracer`` says otherwise.

    ``samples`` default to a seeded one of plausible range; the report's rows are those of the first that has wrong ones.
    ``source`` is the model's file: an ONNX file is run by onnxruntime too, where that is installed. ``stated`` names the
    options of the import that the user gave. Raises BundleError for a damaged bundle, VerifyError for one that another
    version compiled, BoardError.
    """
    bundle = open_bundle(folder)
    tracer = tracer or _emulated
    try:
        belongs = check(bundle, model, stated)
        lowered = lower(model, bundle.target)
        listed = listed_steps(bundle)
        check_steps(bundle, lowered, listed, belongs.same_file)
        steps = named_steps(lowered, listed, bundle)
        samples = samples or [Sample(make_inputs(model), "random numbers")]
        examined = [_Examination(bundle, model, lowered, steps, sample, tracer) for sample in samples]
    except Mismatch as reason:
        return Report(model.name, mismatch=str(reason), same_file=_made_from(bundle, model))
    damage = find_damage(bundle, model, lowered) if belongs.same_file else []
    return _report(bundle, belongs, examined, damage, source, tracer)


def _emulated(bundle: Bundle, inputs: Tensors) -> run.Answer:
    return run.trace_on("sim", bundle, inputs)


def _made_from(bundle: Bundle, model: Model) -> bool:
    return bool(bundle.manifest["model"]["sha256"] == model.source_digest)


class _Examination:
    """One sample: what the bundle gave for it, and each step beside the reference."""

    def __init__(
        self,
        bundle: Bundle,
        model: Model,
        lowered: Lowered,
        steps: Sequence[Step],
        sample: Sample,
        tracer: Tracer,
    ) -> None:
        self.model, self.lowered, self.sample = model, lowered, sample
        answer = tracer(bundle, sample.inputs)
        self.measured_by = answer.measured_by
        trace = {**sample.inputs, **(answer.trace or {})}
        self.outputs: list[Output] = [(name, trace.get(step)) for name, step in output_steps(model, lowered)]
        self.notes = _whole_run(answer, self.outputs)
        self.zero_signs = ZeroSigns(lowered)
        names = [step.name for step in steps] + list(self.zero_signs.sources.values())
        ends = reference.evaluate(lowered.graph, sample.inputs, [*names, *reference.output_names(lowered.graph)])
        self.zeros = self.zero_signs.met(ends)
        self.reference = [ends[name] for name in reference.output_names(lowered.graph)]
        self.rows = tuple(compare_steps(lowered, steps, trace, ends))

    def decisions(self, source: Path | None) -> list[Decision]:
        """The outputs against all other engines."""
        flips = sum(row.undecided for row in self.rows)
        faithful = all(row.passed for row in self.rows)
        judge = Judge(
            self.lowered, self.sample.inputs, self.sample.source, self.zero_signs, self.zeros, flips, faithful
        )
        rivals = [Rival(REFERENCE, self.reference, by_file=False)]
        imported = as_imported(self.lowered, self.sample.inputs)
        rivals += [Rival(IMPORTED, imported)] if imported is not None else []
        theirs = _onnxruntime(source, self.sample.inputs)
        rivals += [Rival("onnxruntime", theirs)] if theirs is not None else []
        rivals += [Rival(EXPECTED, self.sample.expected)] if self.sample.expected else []
        return [decision for rival in rivals for decision in judge.decide(self.outputs, rival)]


def compare_steps(lowered: Lowered, steps: Sequence[Step], trace: Tensors, ends: Tensors | None = None) -> list[Row]:
    """One row for each step; ``trace`` holds the network's inputs and what the bundle's steps gave.

    ``ends`` is what the reference gives for the steps from the network's inputs.
    """
    params = {param.name for param in lowered.graph["main"].params}
    wanted = params | {step.name for step in steps}
    known = {name: values for name, values in trace.items() if name in wanted}
    return [_row(lowered, step, known, (ends or {}).get(step.name)) for step in steps]


def _row(lowered: Lowered, step: Step, known: Tensors, end: np.ndarray | None) -> Row:
    if step.name not in known:
        raise VerifyError(f"the board gave no result of step {step.name}; compile the bundle again")
    compared = compare_step(lowered, step, known)
    found = explain(lowered, compared, known)
    return Row(
        step.name,
        step.kind,
        step.layers,
        compared.exact,
        compared.passed,
        compared.bits,
        compared.elements,
        int(compared.wrong.sum()),
        int(compared.undecided.sum()),
        compared.error,
        _drift(known[step.name], end) if end is not None else 0.0,
        found.cause,
        found.text,
        worst(compared) if compared.wrong.any() else None,
        step.compiled_as,
        step.workload.key() if step.workload is not None and step.compiled_as else "",
    )


def _drift(actual: np.ndarray, end: np.ndarray) -> float:
    if actual.dtype != np.uint8:
        return relative_error(actual, end)
    return float(unpack(actual.reshape(end.shape) ^ end).mean())


def _whole_run(answer: run.Answer, outputs: Sequence[Output]) -> list[str]:
    """What differs between running the network as a whole and step by step."""
    found = []
    for name, values in outputs:
        whole = answer.outputs.get(name)
        if values is not None and whole is not None and values.tobytes() != whole.tobytes():
            found.append(f"output {name} is another when the network runs as a whole than step by step")
    return found


def _report(
    bundle: Bundle,
    belongs: Belonging,
    examined: Sequence[_Examination],
    damage: Sequence[Damage],
    source: Path | None,
    tracer: Tracer,
) -> Report:
    shown = next((each for each in examined if not all(row.passed for row in each.rows)), examined[0])
    decisions = [decision for each in examined for decision in each.decisions(source)]
    whole = tuple(dict.fromkeys(text for each in examined for text in each.notes))
    failed = not all(row.passed for row in shown.rows)
    return Report(
        examined[0].model.name,
        shown.rows,
        tuple(decisions),
        tuple(shown.zeros),
        shown.sample.source if len(examined) == 1 else f"{len(examined)} inputs, shown for {shown.sample.source}",
        shown.measured_by,
        labels=bundle.labels,
        same_file=belongs.same_file,
        notes=belongs.notes,
        disagreements=(*belongs.disagreements, *whole),
        damage=tuple(damage),
        advice=DAMAGED if damage else _advice(bundle, belongs, tracer) if failed else "",
    )


def _advice(bundle: Bundle, belongs: Belonging, tracer: Tracer) -> str:
    """What to do about a wrong step: the golden answer tells a damaged bundle from one that was compiled wrongly."""
    if not belongs.same_file:
        return "give the file it was compiled from, or compile this one"
    golden = bundle.manifest.get("golden")
    if not golden:
        return "the bundle has no golden answer to tell damage from an error of the compiler; compile it again"
    try:
        kept = _golden_answer(bundle, golden, tracer)
    except BitkilnError as error:
        return f"its golden answer cannot be checked: {error}"
    if kept:
        return (
            "it still gives its golden answer: it was compiled like this (with other options, by another version, or by an "
            "error of bitkiln), or a damage shows on few inputs; compile it again, and report it if that does not help"
        )
    return (
        "it no longer gives its golden answer: it was altered since it was compiled, or this board computes otherwise"
    )


def _golden_answer(bundle: Bundle, golden: Mapping[str, list[str]], tracer: Tracer) -> bool:
    """Does the bundle still give the answer that was kept when it was compiled?"""
    tensors = {
        kind: [next(iter(runner.read_tensors(str(bundle.folder / name)).values())) for name in golden[kind]]
        for kind in ("inputs", "outputs")
    }
    names = {kind: [row["name"] for row in bundle.manifest[kind]] for kind in tensors}
    answer = tracer(bundle, dict(zip(names["inputs"], tensors["inputs"], strict=True)))
    pairs = zip(names["outputs"], tensors["outputs"], strict=True)
    return all(relative_error(answer.outputs[name], np.asarray(wanted)) <= GOLDEN for name, wanted in pairs)


def _onnxruntime(source: Path | None, inputs: Tensors) -> list[np.ndarray] | None:
    """The model's outputs by onnxruntime; None where it is not installed or cannot run the file."""
    if source is None or not source.name.lower().endswith((".onnx", ".onnx.xz")):
        return None
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors; its warnings are about what exporters leave behind.
    try:
        model = lzma.decompress(source.read_bytes()) if source.name.endswith(".xz") else str(source)
        session = onnxruntime.InferenceSession(model, options)
        names = [entry.name for entry in session.get_inputs()]
        return session.run(None, dict(zip(names, inputs.values(), strict=True)))
    except Exception:
        # It refuses what it has no operator for, such as QONNX's; then there is nothing to compare with.
        return None

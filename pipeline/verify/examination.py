"""One sample run through a bundle: every step beside the reference on the inputs it really had.

Each step is compared with the reference evaluated from the outputs of the steps before it, as the bundle computed them:
so an error does not hide in, nor spread through, what follows. A second run of the reference, from the network's inputs,
says what the differences became from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bitkiln.pipeline import reference, run
from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.errors import VerifyError
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.passes.pipeline import Lowered
from bitkiln.pipeline.verify.compare import Tensors, compare_step, relative_error, unpack
from bitkiln.pipeline.verify.explain import explain, worst
from bitkiln.pipeline.verify.outputs import Decision, Judge, Output
from bitkiln.pipeline.verify.report import StepReport
from bitkiln.pipeline.verify.rivals import (
    EXPECTED,
    IMPORTED,
    ONNXRUNTIME,
    REFERENCE,
    Rival,
    Unchecked,
    as_imported,
    by_onnxruntime,
)
from bitkiln.pipeline.verify.samples import Sample
from bitkiln.pipeline.verify.steps import BundleStep, output_steps
from bitkiln.pipeline.verify.zeros import ZeroSigns

#: Runs a bundle on inputs: its outputs, and what every step gave, by the step's name.
Tracer = Callable[[Bundle, Tensors], run.Answer]


class Examination:
    """One sample: what the bundle gave for it, and each step beside the reference."""

    def __init__(
        self,
        bundle: Bundle,
        model: Model,
        lowered: Lowered,
        steps: Sequence[BundleStep],
        sample: Sample,
        tracer: Tracer,
    ) -> None:
        self.model, self.lowered, self.sample = model, lowered, sample
        answer = tracer(bundle, sample.inputs)
        self.measured_by = answer.measured_by
        trace = {**sample.inputs, **(answer.trace or {})}
        self.outputs: list[Output] = [
            (name, trace.get(step, answer.outputs.get(name))) for name, step in output_steps(model, lowered)
        ]
        #: Why another engine was not asked, where it could have been.
        self.unchecked = ""
        self.notes = _whole_run(answer, self.outputs)
        self.zero_signs = ZeroSigns(lowered)
        names = [step.name for step in steps] + list(self.zero_signs.sources.values())
        ends = reference.evaluate(lowered.graph, sample.inputs, [*names, *reference.output_names(lowered.graph)])
        self.zeros = self.zero_signs.met(ends)
        self.reference = reference.outputs_of(lowered.graph, ends)
        self.rows = tuple(compare_steps(lowered, steps, trace, ends))

    def decisions(self, source: Path | None) -> list[Decision]:
        """The outputs against all other engines."""
        flips = sum(row.undecided for row in self.rows)
        faithful = all(row.passed for row in self.rows)
        judge = Judge(
            self.lowered, self.sample.inputs, self.sample.source, self.zero_signs, self.zeros, flips, faithful
        )
        rivals = [Rival(REFERENCE, self.reference, by_file=False)]
        try:
            imported = as_imported(self.lowered, self.sample.inputs)
        except Unchecked as reason:
            self.unchecked, imported = str(reason), None
        rivals += [Rival(IMPORTED, imported)] if imported is not None else []
        try:
            theirs = by_onnxruntime(source, self.sample.inputs, self.model.fixed)
        except Unchecked as reason:
            self.unchecked, theirs = str(reason), None
        rivals += [Rival(ONNXRUNTIME, theirs)] if theirs is not None else []
        rivals += [Rival(EXPECTED, self.sample.expected)] if self.sample.expected else []
        return [decision for rival in rivals for decision in judge.decide(self.outputs, rival)]


def compare_steps(
    lowered: Lowered, steps: Sequence[BundleStep], trace: Tensors, ends: Tensors | None = None
) -> list[StepReport]:
    """One row for each step; ``trace`` holds the network's inputs and what the bundle's steps gave.

    ``ends`` is what the reference gives for the steps from the network's inputs.
    """
    params = {param.name for param in lowered.graph["main"].params}
    wanted = params | {step.name for step in steps}
    known = {name: values for name, values in trace.items() if name in wanted}
    return [_row(lowered, step, known, (ends or {}).get(step.name)) for step in steps]


def _row(lowered: Lowered, step: BundleStep, known: Tensors, end: np.ndarray | None) -> StepReport:
    if step.name not in known:
        raise VerifyError(f"the board gave no result of step {step.name}; compile the bundle again")
    compared = compare_step(lowered, step, known)
    found = explain(lowered, compared, known)
    return StepReport(
        name=step.name,
        kind=step.kind,
        layers=step.layers,
        exact=compared.exact,
        passed=compared.passed,
        bits=compared.bits,
        elements=compared.elements,
        differing=int(compared.wrong.sum()),
        undecided=int(compared.undecided.sum()),
        error=compared.error,
        drift=_drift(known[step.name], end) if end is not None else 0.0,
        cause=found.cause,
        reason=found.text,
        worst=worst(compared) if compared.wrong.any() else None,
        compiled_as=step.compiled_as,
        model_asks=step.workload.key() if step.workload is not None and step.compiled_as else "",
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

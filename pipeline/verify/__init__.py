"""Hold a compiled network against the reference: every step on the inputs it really had, then the outputs; and say why."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from bitkiln.pipeline import run
from bitkiln.pipeline.boards.emulated import Answer
from bitkiln.pipeline.bundle import Bundle, open_bundle
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.passes.pipeline import lower
from bitkiln.pipeline.verify.belonging import Belonging, Mismatch, check, check_steps
from bitkiln.pipeline.verify.compare import Tensors
from bitkiln.pipeline.verify.constants import Damage, find_damage
from bitkiln.pipeline.verify.examination import Examination, Tracer
from bitkiln.pipeline.verify.printing import print_report
from bitkiln.pipeline.verify.remedy import DAMAGED, advise
from bitkiln.pipeline.verify.report import Report
from bitkiln.pipeline.verify.samples import Sample, make_inputs
from bitkiln.pipeline.verify.steps import listed_steps, named_steps

__all__ = ["Report", "Tracer", "make_inputs", "print_report", "verify_bundle"]


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
        lowered = lower(model, bundle.target, bool(bundle.manifest.get("bf16_weights")))
        listed = listed_steps(bundle)
        check_steps(bundle, lowered, listed, belongs.same_file)
        steps = named_steps(lowered, listed, bundle)
        samples = samples or [Sample(make_inputs(model), "random numbers")]
        examined = [Examination(bundle, model, lowered, steps, sample, tracer) for sample in samples]
    except Mismatch as reason:
        return Report(model.name, mismatch=str(reason), same_file=_made_from(bundle, model))
    damage = find_damage(bundle, model, lowered) if belongs.same_file else []
    return _report(bundle, belongs, examined, damage, source, tracer)


def _emulated(bundle: Bundle, inputs: Tensors) -> Answer:
    return run.trace_on("sim", bundle, inputs)


def _made_from(bundle: Bundle, model: Model) -> bool:
    return bool(bundle.manifest["model"]["sha256"] == model.source_digest)


def _report(
    bundle: Bundle,
    belongs: Belonging,
    examined: Sequence[Examination],
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
        notes=(*belongs.notes, *dict.fromkeys(each.unchecked for each in examined if each.unchecked)),
        disagreements=(*belongs.disagreements, *whole),
        damage=tuple(damage),
        advice=DAMAGED if damage else advise(bundle, belongs.same_file, tracer) if failed else "",
    )

"""What to do about a bundle that computes something else than its model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.verify.compare import relative_error
from bitkiln.pipeline.verify.examination import Tracer

#: What to do with a bundle whose constants were altered.
DAMAGED = "its library was altered since it was compiled, or another version compiled it: copy or compile it again"

#: How much the golden outputs may differ between processors, relative to the largest; as runner.py has it.
GOLDEN = 1e-4


def advise(bundle: Bundle, same_file: bool, tracer: Tracer) -> str:
    """What to do about a wrong step: the golden answer tells a damaged bundle from one that was compiled wrongly."""
    if not same_file:
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

"""Is this a bundle of this model? What the manifest says, held against the model file and the options it is read with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.compile.plan import read_network
from bitkiln.pipeline.errors import VerifyError
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.passes.pipeline import Lowered


class Mismatch(Exception):
    """The bundle cannot be of this model; the message says what is other."""


@dataclass(frozen=True)
class Belonging:
    """``same_file``: the model file is, byte by byte, the one that was compiled. ``notes`` are differences that do not
    change what the network computes; ``disagreements`` are those with what the user states in so many words.
    """

    same_file: bool
    notes: tuple[str, ...] = ()
    disagreements: tuple[str, ...] = ()


def check(bundle: Bundle, model: Model, stated: Collection[str] = ()) -> Belonging:
    """Compare files, inputs, preprocessing and labels; ``stated`` names the options the user gave. Raises Mismatch."""
    made_from = bundle.manifest.get("model") or {}
    same = made_from.get("sha256") == model.source_digest
    if not same and not made_from.get("sha256"):
        raise VerifyError(f"{bundle.folder}: its manifest does not say what it was compiled from; compile it again")
    for kind, rows, specs in (
        ("input", bundle.manifest["inputs"], model.inputs),
        ("output", bundle.manifest["outputs"], model.outputs),
    ):
        theirs, ours = [tuple(row["shape"]) for row in rows], [tuple(spec.shape) for spec in specs]
        if theirs != ours:
            hint = "; the file is the same, so give the --shape it was compiled with" if same else ""
            raise Mismatch(f"{kind}s of the bundle are {_shapes(theirs)}, the model's {_shapes(ours)}{hint}")
    differing = _presentation(bundle, model)
    notes = [] if same else [_other_file(made_from, model)]
    silent = [flag for option, flag, _ in differing if option not in stated]
    if silent:
        notes.append(f"the bundle was compiled with {', '.join(silent)}, and is checked as it is")
    return Belonging(same, tuple(notes), tuple(text for option, _, text in differing if option in stated))


def check_steps(bundle: Bundle, lowered: Lowered, listed: Sequence[tuple[str, str]], same_file: bool) -> None:
    """The bundle's steps must be those that the model gives. Raises Mismatch, or VerifyError where the file is the same."""
    names = [name for name, _ in listed]
    present = [view.name for call in read_network(lowered.module).calls for view in call.outputs]
    if names == present:
        return
    if same_file:
        raise VerifyError(
            f"{bundle.folder}: its steps are not those of this version of bitkiln or of these options; compile it again"
        )
    other = next((name for name, wanted in zip(names, [*present, ""], strict=False) if name != wanted), names[-1])
    raise Mismatch(f"the bundle has a step {other!r} where the model has none of that name: another network")


def _other_file(made_from: Mapping[str, Any], model: Model) -> str:
    return (
        f"the bundle was compiled from another file ({made_from.get('name', '?')}, {made_from['sha256'][:12]}...) "
        f"than this one ({model.name}, {model.source_digest[:12]}...)"
    )


def _presentation(bundle: Bundle, model: Model) -> list[tuple[str, str, str]]:
    """Whatever the bundle says otherwise of images and classes: option, how it was given for the bundle, a sentence."""
    found = []
    theirs, ours = (
        bundle.manifest.get("preprocessing") or {},
        asdict(model.preprocessing) if model.preprocessing else {},
    )
    for option in ("channel_order", "mean", "scale", "resize", "resize_to"):
        values = _plain(theirs.get(option)), _plain(ours.get(option))
        if theirs and ours and values[0] != values[1]:
            flag = "--" + option.replace("_", "-")
            text = f"the bundle prepares images with {flag} {values[0]}, the model as given here with {values[1]}"
            found.append((option, f"{flag} {values[0]}", text))
    if bundle.labels != model.labels and model.labels:
        found.append(("labels", "other --labels", _labels(bundle.labels, model.labels)))
    return found


def _labels(theirs: Sequence[str], ours: Sequence[str]) -> str:
    if len(theirs) != len(ours):
        return f"the bundle names {len(theirs)} classes, the labels given here {len(ours)}"
    at = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"class {at} is {theirs[at]!r} in the bundle, {ours[at]!r} in the labels given here"


def _plain(value: Any) -> str:
    """As on the command line: one number where all channels have the same."""
    if not isinstance(value, (list, tuple)):
        return str(value)
    texts = [f"{float(each):g}" for each in value]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)

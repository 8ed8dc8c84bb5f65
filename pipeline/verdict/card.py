"""A model card: what a network is, how fast and how right it is, and what measured that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitkiln import targets
from bitkiln.pipeline import bundle as bundles
from bitkiln.pipeline import schema
from bitkiln.pipeline.errors import InputError
from bitkiln.pipeline.inspect.result import Row
from bitkiln.pipeline.inspect.wording import image, logical, operation
from bitkiln.pipeline.support.checked import decode, table
from bitkiln.pipeline.support.files import MOST_BYTES, atomic_write, read_file
from bitkiln.pipeline.support.templating import render
from bitkiln.pipeline.support.text import count, printable, size
from bitkiln.pipeline.verdict.evaluate import measures
from bitkiln.pipeline.verdict.printing import preparation, timed
from bitkiln.pipeline.verdict.references import ORIGINALS, SYNTHETIC

#: Names of a card's files.
MARKDOWN, PAGE, DATA = "card.md", "card.html", "card.json"


def make_card(folders: Sequence[Path], download: str = "", notes: Sequence[str] = ()) -> schema.Card:
    """The card of a bundle, or of builds of one model for several boards, the first of which it describes.

    ``download`` says where the model can be had, ``notes`` are shown as they are. Raises BundleError, and InputError where
    the folders are not of one model.
    """
    opened = [bundles.open_bundle(_bundle(folder)) for folder in folders]
    first = opened[0].manifest
    for folder, other in zip(folders, opened, strict=True):
        if other.manifest["model"] != first["model"]:
            raise InputError(f"{folder}: is of {other.manifest['model']['name']}, not of {first['model']['name']}")
    steps = first["steps"]
    macs = sum(step["macs"] for step in steps)
    name = str(first["model"]["name"])
    said = [*([SYNTHETIC] if name in ORIGINALS else []), *first.get("warnings", []), *notes]
    accuracy = _accuracy(opened[0])
    speeds = [speed for folder, made in zip(folders, opened, strict=True) for speed in _speeds(folder, made)]
    file_bytes = sum(file["size"] for file in first["files"].values())
    return {
        "schema": "bitkiln.card/1",
        "model": name,
        "sha256": first["model"]["sha256"],
        "task": first["head"]["task"] if first.get("head") else "classify",
        "download": download,
        "accuracy": accuracy,
        "speeds": speeds,
        "published": _published(name, accuracy, speeds, file_bytes),
        "file_bytes": file_bytes,
        "weight_bytes": int(sum(step["weight_bytes"] for step in steps)),
        "activation_bytes": first["memory"]["activations"] + first["memory"]["boundary"],
        "macs": macs,
        "binary_macs": sum(step["macs"] for step in steps if step["binary"]),
        "inputs": first["inputs"],
        "preprocessing": first.get("preprocessing"),
        "architecture": _architecture(folders[0], steps),
        "labels": list(opened[0].labels),
        "notes": said,
    }


def _bundle(folder: Path) -> Path:
    """A build's bundle, or the folder itself."""
    inner = folder / "bundle"
    return inner if (inner / bundles.MANIFEST).is_file() else folder


def _read(path: Path, name: str) -> Any:
    """The object of the schema ``name`` in a file; None where there is none."""
    try:
        found = table(read_file(path), MOST_BYTES)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("schema") == name else None


def _accuracy(bundle: bundles.Bundle) -> schema.Evaluate | None:
    """What ``evaluate`` found, if it was of this very network."""
    found = _read(bundle.folder.parent / f"{bundle.folder.name}-evaluation.json", "bitkiln.evaluate/1")
    same = found is not None and found.get("network_sha256") == bundle.manifest["files"]["model.so"]["sha256"]
    return found if same else None


def _speeds(folder: Path, bundle: bundles.Bundle) -> list[schema.Speed]:
    """What a build measured."""
    found = _read(folder / "build.json", "bitkiln.build/1")
    same = found is not None and found.get("sha256") == bundle.manifest["model"]["sha256"]
    return found["speeds"] if same else []


def _architecture(folder: Path, steps: Sequence[dict[str, Any]]) -> list[schema.ArchitectureRow]:
    """The file's layers where a build has looked at them, else the bundle's steps."""
    try:
        layers = decode(read_file(folder / "layers.json"), list[Any], MOST_BYTES)
        return [_layer_row(layer) for layer in layers if not layer["absorbed"]]
    except (OSError, ValueError, KeyError, TypeError):
        return [
            {
                "name": step.get("layer") or step["name"],
                "operation": step.get("workload") or step["kind"],
                "input_shape": [],
                "shape": [],
                "padding": [],
                "binary": step["binary"] if step["macs"] else None,
                "macs": step["macs"],
            }
            for step in steps
        ]


def _layer_row(layer: dict[str, Any]) -> schema.ArchitectureRow:
    row = Row(**{name: layer[name] for name in Row.__dataclass_fields__})
    return {
        "name": row.name,
        "operation": operation(row),
        "input_shape": list(logical(row.input_shape, row.input_bits)),
        "shape": list(logical(row.shape, row.bits)),
        "padding": list(row.padding),
        "binary": row.binary,
        "macs": row.macs,
    }


def _published(
    name: str, accuracy: schema.Evaluate | None, speeds: Sequence[schema.Speed], file_bytes: int
) -> list[schema.Reference]:
    """What the originals' authors published, beside what was found here."""
    original = ORIGINALS.get(name)
    if original is None:
        return []
    here = {"size": size(file_bytes), "top1": "not evaluated", "top5": "not evaluated"}
    if accuracy:
        here |= {part: f"{rate['value']:.2%}" for part in ("top1", "top5") if (rate := accuracy[part])}
    for target in dict.fromkeys(speed["target"] for speed in speeds):
        here[target] = timed([speed for speed in speeds if speed["target"] == target])
    return [
        {"what": each.what, "value": each.value, "source": original.source, "here": here.get(each.of, "")}
        for each in original.figures
    ]


def headline(card: schema.Card) -> str:
    """One line, as galleries head their cards."""
    facts = []
    if card["accuracy"]:
        facts += [f"{rate['value']:.2%} {name}" for name, rate in measures(card["accuracy"])]
    fastest = min(card["speeds"], key=lambda speed: speed["ms"], default=None)
    if fastest:
        cores = "1 core" if fastest["threads"] == 1 else f"{fastest['threads']} cores"
        facts.append(f"{fastest['ms']:.1f} ms on {cores} of {fastest['target']}")
    return f"{card['model']} ({', '.join(facts)})" if facts else card["model"]


def _board(name: str) -> str:
    """A board in words."""
    return targets.load(name).description if name in targets.known() else name


def facts(card: schema.Card) -> list[tuple[str, list[str]]]:
    """The rows of a card: what they are about, and the lines of it."""
    accuracy = card["accuracy"]
    evaluated = (
        [
            "".join(
                f"{name}: {rate['value']:.2%} ({rate['low']:.2%} to {rate['high']:.2%}), "
                for name, rate in measures(accuracy)
            )
            + f"on {accuracy['count']} photos of {accuracy['classes']} classes; {accuracy['measured_by']}"
        ]
        if accuracy
        else ["not evaluated"]
    )
    share = f", {card['binary_macs'] / card['macs']:.0%} of them on bits" if card["macs"] else ""
    inputs = [f"{row['name']}: {image(row['shape'])} {row['layout']} {row['dtype']}" for row in card["inputs"]]
    labels = (
        [f"{len(card['labels'])} classes, such as {', '.join(card['labels'][:3])}"] if card["labels"] else ["no labels"]
    )
    rows = [
        ("Download", [card["download"]] if card["download"] else []),
        ("Accuracy", evaluated),
        ("Performance", _performance(card["speeds"])),
        (
            "Size",
            [
                f"{size(card['file_bytes'])} of files, of it {size(card['weight_bytes'])} of weights; "
                f"{size(card['activation_bytes'])} of memory for activations"
            ],
        ),
        ("Arithmetic", [f"{count(card['macs'])} MACs{share}"]),
        ("Input", [*inputs, *([preparation(card["preprocessing"])] if card["preprocessing"] else [])]),
        ("Output", labels),
        ("Notes", card["notes"]),
        ("Model", [f"{card['model']}, SHA-256 {card['sha256']}"]),
    ]
    return [(name, lines or ["not measured"]) for name, lines in rows if lines or name == "Performance"]


def _performance(speeds: Sequence[schema.Speed]) -> list[str]:
    """A line for each board."""
    boards = dict.fromkeys(speed["target"] for speed in speeds)
    return [f"{_board(name)}: {timed([each for each in speeds if each['target'] == name])}" for name in boards]


def markdown(card: schema.Card) -> str:
    """The card as Markdown."""
    lines = [f"## {_escaped(headline(card))}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {'<br>'.join(map(_escaped, texts))} |" for name, texts in facts(card)]
    if card["published"]:
        lines += ["", f"Beside the original ({_escaped(card['published'][0]['source'])}):", ""]
        lines += ["| | published | here |", "|---|---|---|"]
        lines += [
            f"| {' | '.join(_escaped(text) for text in (row['what'], row['value'], row['here']))} |"
            for row in card["published"]
        ]
    lines += ["", "| layer | operation | reads | gives | padding | runs on | MACs |", "|---|---|---|---|---|---|---:|"]
    for row in card["architecture"]:
        padding = ", ".join(map(str, row["padding"])) if any(row["padding"]) else ""
        where = "" if row["binary"] is None else "bits" if row["binary"] else "floats"
        cells = (row["name"], row["operation"], image(row["input_shape"]), image(row["shape"]), padding, where)
        lines.append(f"| {' | '.join(map(_escaped, cells))} | {count(row['macs']) if row['macs'] else ''} |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Text out of a file where Markdown could take it for its own."""
    return "".join(f"\\{each}" if each in "\\`*_[]|" else "&lt;" if each == "<" else each for each in printable(text))


def page(card: schema.Card) -> str:
    """The card as a page."""
    return render(
        "verdict/templates/card.html", title=headline(card), card=card, facts=facts(card), image=image, count=count
    )


def write(card: schema.Card, folder: Path) -> list[Path]:
    """Write the card into ``folder`` as Markdown, page and JSON."""
    texts = {MARKDOWN: markdown(card), PAGE: page(card), DATA: json.dumps(card, indent=1) + "\n"}
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]

"""Writing ELL archives (generation C: one node a layer) as ELL's own tools lay them out."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bitkiln.pipeline.support.files import atomic_write

#: PaddingScheme values.
ZEROS, MIN = 0, 4

#: Zip members carry a date; a fixed one keeps archives of equal content equal.
_DATE = (1980, 1, 1, 0, 0, 0)

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class LayerRecord:
    """A layer to write: its ELL type, the active size of its result, its own fields, and the border its input needs."""

    layer_type: str
    size: Shape
    fields: dict[str, Any] = field(default_factory=dict)
    input_padding: int = 0
    input_scheme: int = ZEROS


def write_archive(path: Path, input_size: Shape, layers: Sequence[LayerRecord]) -> None:
    """Write a chain of layers to ``path`` (.ell.zip); the member is named after the archive."""
    text = json.dumps(_document(input_size, layers), separators=(",", ":"))
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            zipfile.ZipInfo(path.name.removesuffix(".zip"), _DATE), text, zipfile.ZIP_DEFLATED, compresslevel=1
        )


def numbers(array: np.ndarray) -> list[Any]:
    """An array as the flat list of numbers an archive holds."""
    return array.ravel().tolist()


def _document(input_size: Shape, layers: Sequence[LayerRecord]) -> dict[str, Any]:
    first = layers[0]
    entry = {"_type": "InputNode<float>", "_version": "2", "id": "1000", "layout": _layout(input_size, 0)}
    nodes: list[dict[str, Any]] = [entry]
    if first.input_padding:
        nodes.append(
            _node("ReorderDataNode<float>", "0", nodes[-1]["id"])
            | {"inputLayout": _layout(input_size, 0), "outputLayout": _layout(input_size, first.input_padding)}
        )
    size = input_size
    followers: list[LayerRecord | None] = [*layers[1:], None]
    for record, follower in zip(layers, followers, strict=True):
        nodes.append(_layer_node(nodes[-1]["id"], size, record, follower))
        size = record.size
    nodes.append(_node("OutputNode<float>", "2", nodes[-1]["id"]) | {"layout": _layout(size, 0)})
    return {
        "_type": "Map",
        "_version": "2",
        "model": {"_type": "Model", "_version": "2", "nodes": nodes},
        "inputNames": ["input"],
        "inputIds": [nodes[0]["id"]],
        "outputNames": ["output"],
        "outputElements": [f"{nodes[-1]['id']}.output"],
    }


def _layer_node(source: str, input_size: Shape, record: LayerRecord, follower: LayerRecord | None) -> dict[str, Any]:
    padding, scheme = (follower.input_padding, follower.input_scheme) if follower else (0, ZEROS)
    rows, columns, channels = record.size
    base, _, arguments = record.layer_type.partition("<")
    layer = {
        "_type": record.layer_type,
        "_version": "0",
        "inputPaddingScheme": record.input_scheme,
        "inputPaddingSize": record.input_padding,
        "outputShape": [rows + 2 * padding, columns + 2 * padding, channels],
        "outputPaddingScheme": scheme,
        "outputPaddingSize": padding,
        **record.fields,
    }
    return _node(f"{base}Node<{arguments}", "5", source) | {
        "inputLayout": _layout(input_size, record.input_padding),
        "outputLayout": _layout(record.size, padding),
        "inputShape": list(input_size),
        "layer": layer,
    }


def _node(node_type: str, version: str, source: str) -> dict[str, Any]:
    """A node behind node ``source``; ids count up along the chain."""
    node_id = str(int(source) + 1)
    port = {"_type": "InputPort<float>", "_version": "0", "nodeId": node_id, "name": "input", "type": 1}
    return {"_type": node_type, "_version": version, "id": node_id, "input": port | {"input": f"{source}.output"}}


def _layout(size: Shape, padding: int) -> dict[str, Any]:
    rows, columns, channels = size
    extent = [rows + 2 * padding, columns + 2 * padding, channels]
    return {
        "_type": "MemoryLayout",
        "_version": "0",
        "size": list(size),
        "extent": extent,
        "offset": [padding, padding, 0],
        "order": [0, 1, 2],
        "increment": [extent[1] * channels, channels, 1],
    }

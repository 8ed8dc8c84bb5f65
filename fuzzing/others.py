"""What commands read besides models: bundles, tuning records, photos and tensors, all damaged."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from bitkiln import tuning_logs
from fuzzing import onnx_seeds
from fuzzing.bytes_mutation import FLOATS, NUMBERS, TEXTS, damage
from fuzzing.case import Case
from fuzzing.forkserver import Limits, run

_RUN = ("run", "bundle", "--input", "x.npy")


def bundle_case(random: Random, index: int) -> Case:
    """A bundle with a damaged file, at times under a digest that fits the damage."""
    files = dict(_bundle())
    name = random.choice(sorted(files))
    if index % 2:
        manifest = json.loads(files["bundle/manifest.json"])
        how = "manifest " + _change_value(random, manifest)
        files["bundle/manifest.json"] = json.dumps(manifest).encode("utf-8", "surrogatepass")
    elif random.random() < 0.15:
        del files[name]
        how = f"without {name}"
    else:
        files[name], how = damage(random, files[name])
        how = f"{name} {how}"
        if name != "bundle/manifest.json" and random.random() < 0.6:
            _state_digest(files, name)
            how += ", digest stated"
    files = {"x.npy": _bytes_of(np.zeros((1, 3, 12, 12), "f"))} | files | {"m.onnx": _model()}
    commands = (
        _RUN,
        ("profile", "bundle"),
        ("verify", "bundle", "m.onnx"),
        ("deploy", "bundle", "x@127.0.0.1:y", "--port", "1"),
    )
    return Case(files, how, (random.choice(commands),))


def records_case(random: Random, index: int) -> Case:
    """Tuning records damaged as bytes or as JSON."""
    lines = [random.choice(_records()) for _ in range(5)]
    if index % 2:
        record = json.loads(lines[2])
        how = _change_value(random, record)
        lines[2] = json.dumps(record)
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
    else:
        content, how = damage(random, "\n".join(lines).encode())
    commands = (
        ("logs", "check", "logs"),
        ("logs", "merge", "logs/r.jsonl", "-o", "merged.jsonl"),
        ("logs", "best", "--logs", "logs"),
        ("compile", "m.onnx", "-o", "made", "--logs", "logs"),
    )
    return Case({"logs/r.jsonl": content, "m.onnx": _model()}, how, commands if index % 10 == 0 else commands[:3])


def input_case(random: Random, index: int) -> Case:
    """Photos and tensors for ``run``, damaged or enormous."""
    if index % 2:
        name, content, how = "x.npy", *_tensor(random)
        command = _RUN
    else:
        name, content, how = _photo(random)
        command = ("run", "bundle", "--image", name)
    return Case({name: content, **_bundle()}, how, (command,))


def _photo(random: Random) -> tuple[str, bytes, str]:
    kind = random.choice(("JPEG", "PNG", "GIF", "BMP", "TIFF", "bomb"))
    if kind == "bomb":
        return "photo.png", _png_bomb(random.choice((20_000, 60_000, (1 << 31) - 1))), "a PNG of enormous size"
    content = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (30, 40, 3), np.uint8))
    image.convert(random.choice(("RGB", "L"))).save(content, kind)
    damaged, how = damage(random, content.getvalue())
    return f"photo.{kind.lower()}", damaged, f"{kind} {how}"


def _png_bomb(extent: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", extent, extent, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


def _tensor(random: Random) -> tuple[bytes, str]:
    match random.randrange(5):
        case 0:
            content = io.BytesIO()
            np.save(content, np.array([{"a": 1}], object), allow_pickle=True)
            return content.getvalue(), "a pickle"
        case 1:
            shape: tuple[int, ...] = random.choice(((1 << 40,), (1, 3, 1 << 20, 1 << 20), (-1, 3), (0,)))
            header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
            return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header, f"shape {shape}"
        case 2:
            shape = random.choice(((3, 12, 12), (1, 12, 12, 3), (2, 3, 12, 12), (), (1, 3, 12, 13)))
            return _bytes_of(np.zeros(shape, random.choice(("f", "d", "i4", "?", "U3", "c8")))), f"shape {shape}"
        case 3:
            return _bytes_of(np.full((1, 3, 12, 12), random.choice(FLOATS), "f")), "odd numbers"
    return damage(random, _bytes_of(np.zeros((1, 3, 12, 12), "f")))


def _bytes_of(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def _change_value(random: Random, document: Any) -> str:
    """One value of a JSON document becomes another, or goes."""
    places = list(_places(document))
    holder, key = random.choice(places)
    if random.random() < 0.2:
        del holder[key]
        return f"without {key}"
    holder[key] = random.choice((*NUMBERS, *FLOATS, *TEXTS, None, True, [], {}, [[]], {"a": [1]}, "\udc80"))
    return f"{key} = {str(holder[key])[:20]!r}"


def _places(value: Any) -> list[tuple[Any, Any]]:
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in items] + [place for _, item in items for place in _places(item)]


def _state_digest(files: dict[str, bytes], name: str) -> None:
    manifest = json.loads(files["bundle/manifest.json"])
    entry = manifest["files"].get(name.removeprefix("bundle/"))
    if entry:
        entry |= {"size": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
        files["bundle/manifest.json"] = json.dumps(manifest).encode()


def _model() -> bytes:
    return onnx_seeds.seeds()[0].SerializeToString(deterministic=True)


@cache
def _bundle() -> dict[str, bytes]:
    """The files of a small network's bundle."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "m.onnx").write_bytes(_model())
        outcome = run(["compile", "m.onnx", "-o", "bundle"], folder, Limits(300))
        if outcome.status != 0:
            raise RuntimeError(f"the network to damage cannot be compiled: {outcome.stderr}")
        return {f"bundle/{path.name}": path.read_bytes() for path in sorted((folder / "bundle").iterdir())}


@cache
def _records() -> list[str]:
    (folder,) = tuning_logs.__path__
    return [line for path in sorted(Path(folder).rglob("*.jsonl")) for line in path.read_text().splitlines()[:20]]

"""Real model files through import, compilation and the emulated board, against onnxruntime or LiteRT: ``scripts/real_files``.

A file is right where every output differs from the other engine's by at most ``DRIFT`` of its largest value (integers: by
nothing; their error is in units). Of networks that compute in 8 bits, whose roundings may fall otherwise, "decision" says that
the first choice is the same. Inputs are those of ``verify``, seeded pixels or numbers; or, of X.npz beside X.tflite, the first
``x``, for which another engine gave ``y``.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import tflite

from bitkiln.pipeline import api
from bitkiln.pipeline.boards.emulated import on_emulator
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.verify.compare import relative_error
from bitkiln.pipeline.verify.outputs import DRIFT
from bitkiln.pipeline.verify.rivals import Unchecked, by_onnxruntime
from bitkiln.pipeline.verify.samples import make_inputs

#: What files are tried, and what files are opened for more of them.
MODELS = (".onnx", ".onnx.xz", ".tflite")
ARCHIVES = (".whl", ".zip")

#: Of an archive's members: larger ones are no networks for such boards.
_LARGEST = 400 << 20

#: Statuses that count against us.
WRONG = ("differs", "crash", "too slow")


@dataclass(frozen=True)
class Result:
    """What became of a file: ``status`` is right, decision, refused, unchecked or one of ``WRONG``."""

    file: str
    status: str
    error: float | None = None
    text: str = ""

    def line(self) -> str:
        """A row of the table."""
        return f"{self.status:<9} {'' if self.error is None else f'{self.error:.1e}':>8}  {self.file}  {self.text}".rstrip()


def found_in(path: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of every model in a file, folder or archive; those of archives are unpacked below ``scratch``."""
    if path.is_dir():
        for each in sorted(path.rglob("*")):
            if each.is_file() and each.name.lower().endswith((*MODELS, *ARCHIVES)):
                yield from found_in(each, scratch)
    elif path.name.lower().endswith(MODELS):
        yield str(path), path
    elif path.name.lower().endswith(ARCHIVES):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.lower().endswith(MODELS) and member.file_size <= _LARGEST:
                    yield f"{path.name}:{member.filename}", Path(archive.extract(member, scratch / path.name))


def judge(name: str, path: Path, shapes: Mapping[str, tuple[int, ...]], on_board: bool) -> Result:
    """Import ``path``, compile it and run it, or take the reference's answer; and compare."""
    try:
        model = _loaded(path, shapes)
        recorded = _recorded(path)
        inputs = make_inputs(model)
        if recorded is not None:
            (parameter,) = inputs
            shape = inputs[parameter].shape
            inputs = {parameter: recorded[0].reshape(-1, *shape)[0]}
        ours = _on_board(model, inputs) if on_board else _by_reference(model, inputs)
    except BitkilnError as error:
        return Result(name, "refused", text=str(error).removeprefix(f"{path}: "))
    if recorded is not None:
        count = recorded[0].size // next(iter(inputs.values())).size
        return _compared(name, ours[:1], [recorded[1].reshape(count, -1)[0]], _in_8_bits(path))
    try:
        theirs = _by_litert(path, inputs) if path.suffix == ".tflite" else by_onnxruntime(path, inputs)
    except Unchecked as error:
        return Result(name, "unchecked", text=str(error))
    return _compared(name, ours, theirs or [], _in_8_bits(path))


def _loaded(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """The model; with those of the ``shapes`` that are of its inputs, if it wants any."""
    try:
        return api.load(path)
    except BitkilnError:
        own = {name: shape for name, shape in shapes.items() if name in _input_names(path)}
        if not own:
            raise
        return api.load(path, shapes=own)


def _input_names(path: Path) -> list[str]:
    if path.suffix != ".onnx":
        return []
    return [entry.name for entry in _graph(path).input]


def _recorded(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The input and the output that lie beside a file."""
    beside = path.with_suffix(".npz")
    if not beside.exists():
        return None
    with np.load(beside) as tensors:
        return (tensors["x"], tensors["y"]) if {"x", "y"} <= set(tensors) else None


def _by_reference(model: Model, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    from bitkiln.pipeline import reference

    return list(reference.run(model.module, dict(inputs)))


def _on_board(model: Model, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = api.compile(model, Path(folder) / "bundle")
        named = {spec.name: values for spec, values in zip(model.inputs, inputs.values(), strict=True)}
        answer = on_emulator(bundle.folder, bundle.target, named)
        return [answer.outputs[spec.name] for spec in model.outputs]


def _by_litert(path: Path, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """LiteRT's outputs by its own kernels. Raises Unchecked."""
    try:
        from ai_edge_litert import interpreter as litert

        kind = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        engine = litert.Interpreter(model_path=str(path), experimental_op_resolver_type=kind)
        entries = engine.get_input_details()
        for entry, values in zip(entries, inputs.values(), strict=True):
            engine.resize_tensor_input(entry["index"], values.shape)
        engine.allocate_tensors()
        for entry, values in zip(entries, inputs.values(), strict=True):
            engine.set_tensor(entry["index"], values.astype(entry["dtype"]))
        engine.invoke()
        return [engine.get_tensor(entry["index"]) for entry in engine.get_output_details()]
    except (ImportError, RuntimeError, ValueError) as error:
        raise Unchecked(f"LiteRT: {' '.join(str(error).split())[:120]}") from None


def _in_8_bits(path: Path) -> bool:
    """Does the network round its activations to 8 bits?"""
    if path.suffix == ".tflite":
        graph = tflite.Model.GetRootAs(path.read_bytes(), 0).Subgraphs(0)
        kinds = {graph.Tensors(at).Type() for at in range(graph.TensorsLength())}
        return bool(kinds & {tflite.TensorType.INT8, tflite.TensorType.UINT8})
    if path.suffix != ".onnx":
        return False
    return any("Quant" in node.op_type or "Integer" in node.op_type for node in _graph(path).node)


def _graph(path: Path) -> onnx.GraphProto:
    return onnx.load(path, load_external_data=False).graph


def _compared(name: str, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], in_8_bits: bool) -> Result:
    if [each.size for each in ours] != [each.size for each in theirs]:
        shapes = [[list(each.shape) for each in group] for group in (ours, theirs)]
        return Result(name, "differs", text=f"outputs {shapes[0]} for {shapes[1]}")
    pairs = [(mine, their.reshape(mine.shape)) for mine, their in zip(ours, theirs, strict=True)]
    error = max((float(relative_error(mine, their)) for mine, their in pairs), default=0.0)
    if error <= DRIFT:
        return Result(name, "right", error)
    same = in_8_bits and all(mine.size > 1 and int(mine.argmax()) == int(their.argmax()) for mine, their in pairs)
    return Result(name, "decision" if same else "differs", error)


def _in_a_process(name: str, path: Path, options: Sequence[str], seconds: float) -> Result:
    """``judge`` in a process of its own, which may neither hang nor take this one down."""
    argv = [sys.executable, "-m", "benchmarks.real_files", "--one", name, str(path), *options]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Result(name, "too slow", text=f"no answer in {seconds:g} s")
    try:
        return Result(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Result(name, "crash", text=f"exit {done.returncode}: {last[:200]}")


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, numbers = text.rpartition("=")
    try:
        return name, tuple(int(number) for number in numbers.split(","))
    except ValueError:
        raise click.BadParameter(f"{text}: give NAME=1,3,224,224") from None


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--shape", "shapes", multiple=True, help="Of a dynamic input, in files that have one: NAME=1,3,224,224.")
@click.option("--board", is_flag=True, help="Compile each file and run it on the emulated board, not by the reference.")
@click.option("--seconds", default=600.0, show_default=True, help="For each file.")
@click.option("--one", hidden=True)
def main(paths: Sequence[Path], shapes: Sequence[str], board: bool, seconds: float, one: str | None) -> None:
    """Judge every model found; exit status 1 where one is wrong."""
    if one is not None:
        print(json.dumps(asdict(judge(one, paths[0], dict(map(_shape, shapes)), board))))
        return
    options = [word for shape in shapes for word in ("--shape", shape)] + ["--board"] * board
    with tempfile.TemporaryDirectory() as scratch:
        counts: collections.Counter[str] = collections.Counter()
        for path in paths:
            for name, file in found_in(path, Path(scratch)):
                result = _in_a_process(name, file, options, seconds)
                counts[result.status] += 1
                print(result.line(), flush=True)
    print(_summary(counts))
    sys.exit(1 if any(counts[status] for status in WRONG) else 0)


def _summary(counts: Mapping[str, Any]) -> str:
    files = sum(counts.values())
    parts = [f"{counts[status]} {status}" for status in ("right", "decision", "refused", "unchecked", *WRONG)]
    return f"{files} file{'s' * (files != 1)}: {', '.join(parts)}"


if __name__ == "__main__":
    main()

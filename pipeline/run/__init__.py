"""Runs a bundle as the board would: on a simulated or emulated one, over ssh, or on a board of a tracker."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bitkiln.pipeline import schema
from bitkiln.pipeline.boards import place
from bitkiln.pipeline.boards.emulated import RUN_SECONDS, Answer, StepTime, Tensors, answer_of, on_emulator, read_arrays
from bitkiln.pipeline.boards.ssh import Remote
from bitkiln.pipeline.bundle import Bundle, open_bundle
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.errors import BoardError, BundleError, InputError, SetupError
from bitkiln.pipeline.reference.photos import prepare
from bitkiln.pipeline.run.meaning import draw, meaning
from bitkiln.targets import Target
from bitkiln.targets.scratch import scratch_folder
from bitkiln.targets.sim import unlike


def run(
    bundle: Path,
    image: Path | None = None,
    tensor: Path | None = None,
    output: Path | None = None,
    board: str = "sim",
    threads: int = 1,
    steps: bool = False,
    as_json: bool = False,
    drawing: Path | None = None,
    threshold: float | None = None,
    console: Console | None = None,
) -> Answer:
    """Run ``bundle`` on an image or tensors and print the answer. Raises BundleError, InputError, BoardError.

    ``drawing`` is where the image goes with what was found in it, ``threshold`` the least score of a box.
    """
    console = console or Console(quiet=True)
    opened = open_bundle(bundle)
    if drawing is not None and image is None:
        raise InputError("there is no image to draw on: give --image")
    answer = answer_on(board, opened, read_inputs(opened, image, tensor), threads)
    if output is not None:
        _write_outputs(output, answer.outputs)
    report = _report(opened, answer, image, drawing, threshold)
    if as_json:
        console.print(
            json.dumps(_as_json(opened, answer, report), indent=1), soft_wrap=True, highlight=False, markup=False
        )
        return answer
    for line in runner.meaning_lines(report) if image is not None or output is None else ():
        console.print(line, highlight=False, markup=False)
    layers = _layers(opened)
    for step in answer.steps if steps else ():
        share = 100 * step.seconds / (sum(each.seconds for each in answer.steps) or 1.0)
        line = f"{1e3 * step.seconds:9.3f} ms {share:5.1f} %  {layers.get(step.name) or step.name}  ({step.kind})"
        console.print(line, highlight=False, markup=False)
    plural = "thread" if answer.threads == 1 else "threads"
    console.print(f"{1e3 * answer.seconds:.2f} ms, {answer.threads} {plural}, {answer.measured_by}", highlight=False)
    return answer


def answer_on(board: str, bundle: Bundle, inputs: Tensors, threads: int = 1) -> Answer:
    """Run ``bundle`` on "sim", on the ssh host ``board``, or on a board of the tracker "HOST:PORT/KEY"."""
    where = place.parse(board)
    if not isinstance(where, place.Here):
        return _elsewhere(where, bundle, inputs, threads)
    if timed(bundle.target, threads):
        try:
            return on_simulator(bundle, inputs, threads)
        except SetupError:
            # Without the timing model the answer is the same, and its time is labelled as an emulator's.
            pass
    return on_emulator(bundle.folder, bundle.target, inputs, threads)


def timed(target: Target, threads: int) -> bool:
    """Can the simulated board tell how long that many threads take on ``target``?"""
    return unlike(target) is None and threads <= target.cores


def trace_on(board: str, bundle: Bundle, inputs: Tensors, threads: int = 1) -> Answer:
    """As ``answer_on``, and the outputs of every step by their names.

    Views (reshapes) are no steps and do not appear. "sim" is emulated: only its times would differ from a simulated board.
    """
    where = place.parse(board)
    if isinstance(where, place.Here):
        answer = on_emulator(bundle.folder, bundle.target, inputs, threads, with_trace=True)
    else:
        answer = _elsewhere(where, bundle, inputs, threads, with_trace=True)
    return replace(answer, trace=_by_their_names(bundle, answer.trace or {}))


def _by_their_names(bundle: Bundle, trace: Tensors) -> dict[str, np.ndarray]:
    """``trace`` with the names of results beyond a step's first, which boards call after the step: name.1, name.2, ..."""
    names = {
        f"{step['name']}.{index}": name
        for step in bundle.manifest["steps"]
        for index, name in enumerate(step.get("results", ()))
        if index
    }
    return {names.get(name, name): values for name, values in trace.items()}


def _elsewhere(
    where: place.OverSsh | place.AtTracker, bundle: Bundle, inputs: Tensors, threads: int, with_trace: bool = False
) -> Answer:
    if isinstance(where, place.OverSsh):
        return over_ssh(Remote(where.host), bundle, inputs, threads, with_trace)
    from bitkiln.pipeline.boards.board import TrackerBoard  # Brings TVM's RPC with it, which other boards do without.

    return _measured(TrackerBoard.at(where), bundle, inputs, threads, with_trace)


def trace(bundle: Path, inputs: Tensors) -> dict[str, np.ndarray]:
    """The outputs of every step on the emulated board, as ``trace_on`` gives them."""
    answer = trace_on("sim", open_bundle(bundle), inputs)
    assert answer.trace is not None
    return answer.trace


def read_inputs(bundle: Bundle, image: Path | None, tensor: Path | None) -> dict[str, np.ndarray]:
    """The network's inputs by name, from an image or from a .npy or .npz file. Raises InputError."""
    infos = [_info(row) for row in bundle.manifest["inputs"]]
    if (image is None) == (tensor is None):
        raise InputError("give either an image (--image) or a tensor (--input)")
    try:
        if tensor is not None:
            return _match(infos, runner.read_tensors(str(tensor)), tensor)
        how = bundle.manifest.get("preprocessing")
        if not how:
            raise InputError(f"{bundle.folder}: says nothing of how images become inputs; give --input")
        return {infos[0].name: prepare(runner.read_photo(str(image)), how, infos[0].dtype).reshape(infos[0].shape)}
    except runner.RunnerError as error:
        raise InputError(str(error)) from None


def _match(infos: Sequence[runner.TensorInfo], tensors: Mapping[str, Any], path: Path) -> dict[str, np.ndarray]:
    if len(infos) == 1 and len(tensors) == 1:
        tensors = {infos[0].name: next(iter(tensors.values()))}
    for info in infos:
        if info.name not in tensors:
            raise InputError(f"{path}: no tensor {info.name!r}; it has {', '.join(sorted(tensors))}")
        runner.to_bytes(tensors[info.name], info)
    return {info.name: np.asarray(tensors[info.name]) for info in infos}


def on_simulator(bundle: Bundle, inputs: Tensors, threads: int = 1) -> Answer:
    """Run on as many cores of a simulated board as there are ``threads``."""
    from bitkiln.pipeline.boards.board import LocalBoard  # Brings TVM's RPC with it, which other boards do without.

    return _measured(LocalBoard(bundle.target), bundle, inputs, threads)


def _measured(board: Any, bundle: Bundle, inputs: Tensors, threads: int, with_trace: bool = False) -> Answer:
    from bitkiln.pipeline.boards.board import Request

    raw = {name: np.ascontiguousarray(values).tobytes() for name, values in inputs.items()}
    request = Request(threads=threads, per_step=True, outputs=True, trace=with_trace, limit_seconds=RUN_SECONDS)
    result = board.measure(bundle.folder / "model.so", request, raw)
    outputs, traced = (
        {row.name: np.frombuffer(row.data or b"", row.dtype).reshape(row.shape) for row in rows}
        for rows in (result.outputs, result.trace)
    )
    _expect(bundle, result)
    if with_trace and not traced:
        raise BoardError(f"the board gives no traces ({result.measured_by}); put this version's board_server.py on it")
    kinds = [row["kind"] for row in bundle.manifest["steps"]]
    if len(kinds) != len(result.steps):
        raise BundleError(f"{bundle.folder}: its manifest has other steps than model.so; compile or copy it again")
    steps = tuple(
        StepTime(row["name"], kind, _seconds(row, result)) for row, kind in zip(result.steps, kinds, strict=True)
    )
    return Answer(outputs, result.seconds, result.measured_by, threads, steps, traced if with_trace else None)


def _expect(bundle: Bundle, result: Any) -> None:
    """Raise BoardError where the outputs that came back are not the bundle's."""
    wanted = [(row["name"], row["dtype"], tuple(row["shape"])) for row in bundle.manifest["outputs"]]
    found = [(row.name, row.dtype, row.shape) for row in result.outputs]
    if found != wanted or any(row.data is None for row in result.outputs):
        raise BoardError(f"{bundle.folder}: the board gives other outputs than the bundle has ({result.measured_by})")


def _seconds(row: Mapping[str, Any], result: Any) -> float:
    """A step's time from what the board measured of it."""
    return float(row["seconds"]) if "seconds" in row else float(row["cycles"]) / (float(result.clock_mhz) * 1e6)


def over_ssh(remote: Remote, bundle: Bundle, inputs: Tensors, threads: int, with_trace: bool = False) -> Answer:
    """Copy the bundle to a temporary folder on the board, run it there, and fetch the answer."""
    folder = remote.scratch()
    where = shlex.quote(folder)
    try:
        with scratch_folder() as name:
            sent = Path(name) / "in.npz"
            runner.write_tensors(str(sent), dict(inputs))
            remote.copy([*bundle.files(), sent], folder)
            command = f"cd {where} && python3 runner.py . --input in.npz --output out.npz --json --threads {threads}"
            command += " --trace trace.npz" if with_trace else ""
            report = json.loads(remote.run(command, RUN_SECONDS))
            fetched = {}
            for file in ("out.npz", "trace.npz") if with_trace else ("out.npz",):
                (Path(name) / file).write_bytes(remote.read(f"{folder}/{file}"))
                fetched[file] = read_arrays(Path(name) / file)
            return answer_of(report, fetched["out.npz"], f"measured on {remote.host}", fetched.get("trace.npz"))
    finally:
        remote.run(f"rm -rf {where}")


def _info(row: Mapping[str, Any]) -> runner.TensorInfo:
    shape = tuple(row["shape"])
    return runner.TensorInfo(row["name"], row["dtype"], shape, int(np.prod(shape)) * np.dtype(row["dtype"]).itemsize)


def _write_outputs(path: Path, outputs: Mapping[str, np.ndarray]) -> None:
    try:
        runner.write_tensors(str(path), dict(outputs))
    except runner.RunnerError as error:
        raise InputError(str(error)) from None


def _report(
    bundle: Bundle, answer: Answer, image: Path | None, drawing: Path | None, threshold: float | None
) -> dict[str, Any]:
    """What the outputs say, drawn where that is asked for."""
    try:
        photo = runner.read_photo(str(image)) if image is not None else None
        report = meaning(bundle, answer.outputs, photo, threshold)
        if photo is not None and drawing is not None:
            runner.save_image(draw(photo, report), str(drawing))
        return report
    except runner.RunnerError as error:
        raise InputError(str(error)) from None


def _layers(bundle: Bundle) -> dict[str, str]:
    """The layer of the model's file that each step is known by."""
    return {step["name"]: str(step.get("layer", "")) for step in bundle.manifest["steps"]}


def _as_json(bundle: Bundle, answer: Answer, report: Mapping[str, Any]) -> schema.Run:
    layers = _layers(bundle)
    answers: schema.Run = {
        "schema": "bitkiln.run/1",
        "bundle": str(bundle.folder),
        "top": [{"label": label, "score": score} for label, score in report.get("top", ())],
        "ms": 1e3 * answer.seconds,
        "threads": answer.threads,
        "measured_by": answer.measured_by,
        "steps": [
            {"name": step.name, "kind": step.kind, "layer": layers.get(step.name, ""), "ms": 1e3 * step.seconds}
            for step in answer.steps
        ],
    }
    if "boxes" in report:
        answers["boxes"] = report["boxes"]
    if "classes" in report:
        answers["classes"] = report["classes"]
    return answers

"""Measures a work with bitkiln: networks as bundles, layers as libraries of one kernel; their results are checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from benchmarks import peers
from benchmarks.networks import Layer, Work
from benchmarks.stand import UNMODELLED
from bitkiln.pipeline.boards.board import Board, LocalBoard, Measurement, Request
from bitkiln.pipeline.bundle import open_bundle
from bitkiln.pipeline.compile import compile_model
from bitkiln.pipeline.compile.kernels import choose_knobs
from bitkiln.pipeline.errors import BitkilnError, UnsupportedLayer, VerifyError
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.records import Records
from bitkiln.pipeline.tune.builder import SEED, Artifact, build
from bitkiln.pipeline.tune.data import disagreement, reference_result
from bitkiln.pipeline.verify import verify_bundle
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Conv2d, to_json
from bitkiln.targets import Target

#: Seconds for one measurement on the simulated board.
LIMIT = 900.0


class Ours:
    """Compiles with the committed tuning records and measures on ``board``, a simulated one unless given."""

    def __init__(self, target: Target, threads: int, board: Board | None = None) -> None:
        self.target = target
        self.request = Request(threads=threads, limit_seconds=LIMIT)
        self.records = Records.open(None)
        self.board = board or LocalBoard(target)

    def measure(self, work: Work, folder: Path, int8: bool = False) -> tuple[int | None, float, str]:
        """Cycles (None where the clock is unknown) and ms of a warm frame, and how they were measured.

        ``int8``: of the network as it is quantised for other engines. ``folder`` takes files. Raises BitkilnError.
        """
        if int8:
            measured, kernels = self._network(_quantised(work, folder), folder)
        else:
            measured, kernels = (
                self._layer(work.layer, folder) if work.layer else self._network(_file(work, folder), folder)
            )
        by = measured.measured_by if measured.complete else f"{measured.measured_by}, {UNMODELLED}"
        if measured.kind == "board":
            by += f" at {measured.clock_mhz:g} MHz" if measured.clock_mhz else " at an unknown clock"
            by += "" if measured.steady else ", which moved"
            by += ", throttled" if measured.health.get("throttled") else ""
        cycles = measured.cycles
        return None if cycles is None else round(cycles), 1e3 * measured.seconds, f"{by}; kernels: {kernels}"

    def _network(self, source: str, folder: Path) -> tuple[Measurement, str]:
        model = load_model(source)
        threads = [self.request.threads]
        bundle = compile_model(model, self.target, self.records, folder / "bundle", threads=threads)
        if not verify_bundle(bundle, model).passed:
            raise VerifyError(f"it computes something else than the model; see bitkiln verify {source}")
        counts = Counter(step["chosen"] for step in open_bundle(bundle).manifest["steps"] if "chosen" in step)
        kernels = ", ".join(f"{count} {how}" for how, count in sorted(counts.items()))
        return self.board.measure(bundle / "model.so", self.request), kernels

    def _layer(self, layer: Layer, folder: Path) -> tuple[Measurement, str]:
        work = workload(layer)
        knobs, record = choose_knobs(work, self.target, self.records, self.request.threads)
        problem = build(to_json(work), dict(knobs), self.target.name, self.request.threads, str(folder))
        if problem:
            raise BitkilnError(f"its kernel does not compile ({problem})")
        artifact = Artifact(folder)
        measured = self.board.measure(artifact.library, replace(self.request, outputs=True), artifact.inputs())
        problem = disagreement(work, reference_result(work, SEED), measured.outputs[0].data or b"")
        if problem:
            raise VerifyError(f"its kernel computes something else than the reference: {problem}")
        return measured, "tuned" if record else "default"


def _file(work: Work, folder: Path) -> str:
    """A network as we import it."""
    if work.model:
        return work.model
    (path,) = peers.to_onnx(work.onnx(False), folder)
    return str(path)


def _quantised(work: Work, folder: Path) -> str:
    """The file of int8 that other engines run. Raises UnsupportedLayer for layers that have no such form."""
    if work.layer:
        raise UnsupportedLayer("layers by themselves are measured in floats and in bits")
    (path,) = peers.to_tflite_int8(work.onnx(True), folder)
    return str(path)


def workload(layer: Layer) -> Conv2d:
    """What we compute for a layer: float ones with bias and ReLU; binary ones from bits to bits, with true zero padding."""
    size, channels = (layer.size, layer.size), (layer.channels, layer.out_channels)
    if layer.binary:
        return Conv2d(*size, *channels, (3, 3), padding=(1, 1, 1, 1), binary=True, out="bits", threshold="channel")
    return Conv2d(*size, *channels, (3, 3), padding=(1, 1, 1, 1), epilogue=(Step("add", "channel"), Step("relu")))

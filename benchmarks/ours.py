"""Measures a work with bitkiln: networks as bundles, layers as libraries of one kernel."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.networks import Layer, Work
from benchmarks.stand import UNMODELLED
from bitkiln.pipeline.boards import LocalBoard, Measurement, Request
from bitkiln.pipeline.bundle import open_bundle
from bitkiln.pipeline.compile import build_kernel_library, choose_knobs, compile_model
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.records import Records
from bitkiln.schedules.workload import Conv2d, Step
from bitkiln.targets import Target

#: Seconds for one measurement on the simulated board.
LIMIT = 900.0


class Ours:
    """Compiles with the committed tuning records and measures on a simulated board."""

    def __init__(self, target: Target, threads: int) -> None:
        self.target = target
        self.request = Request(threads=threads, limit_seconds=LIMIT)
        self.records = Records.open(None)
        self.board = LocalBoard(target)

    def measure(self, work: Work, folder: Path) -> tuple[int, str]:
        """Cycles of a warm frame and how they were measured; ``folder`` takes files. Raises BitkilnError."""
        library, kernels = self._layer(work.layer, folder) if work.layer else self._network(work.model, folder)
        measured = self.board.measure(library, self.request)
        return round(measured.value), f"{_by(measured)}; kernels: {kernels}"

    def _network(self, model: str, folder: Path) -> tuple[Path, str]:
        bundle = compile_model(load_model(model), self.target, self.records, folder / "bundle")
        steps = open_bundle(bundle).manifest["steps"]
        counts = Counter(step["chosen"] for step in steps if "chosen" in step)
        return bundle / "model.so", ", ".join(f"{count} {source}" for source, count in sorted(counts.items()))

    def _layer(self, layer: Layer, folder: Path) -> tuple[Path, str]:
        work = workload(layer)
        knobs, record = choose_knobs(work, self.target, self.records)
        build_kernel_library(work, knobs, self.target, folder / "model.so")
        return folder / "model.so", "tuned" if record else "default"


def workload(layer: Layer) -> Conv2d:
    """What we compute for a layer: float ones with bias and ReLU; binary ones from bits to bits, with true zero padding."""
    size, channels = (layer.size, layer.size), (layer.channels, layer.out_channels)
    if layer.binary:
        return Conv2d(*size, *channels, (3, 3), padding=(1, 1, 1, 1), binary=True, out="bits", threshold="channel")
    return Conv2d(*size, *channels, (3, 3), padding=(1, 1, 1, 1), epilogue=(Step("add", "channel"), Step("relu")))


def _by(measured: Measurement) -> str:
    return measured.measured_by if measured.complete else f"{measured.measured_by}, {UNMODELLED}"

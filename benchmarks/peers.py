"""The engines we are compared with: what each needs to take a network, and what its wheel makes of it.

Adding one: its wheel in wheels.py, a loader in guest.py, a converter here.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks import onnx_to_tflite, wheels
from benchmarks.networks import Work
from benchmarks.stand import Measurement, Stand
from bitkiln.pipeline.errors import ModelError, SetupError, VerifyError

CONVERSION_TIMEOUT = 300.0
#: Of the output's norm. Winograd loses little; a binarised network flips some signs where a float stem rounds.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Peer:
    """``convert`` writes the network's files into a folder and returns them; ``same_pools`` as in Work."""

    convert: Callable[[onnx.ModelProto, Path], list[Path]]
    same_pools: bool = False


def to_ncnn(model: onnx.ModelProto, folder: Path) -> list[Path]:
    """ncnn's two files, by its own converter."""
    source = folder / "network.onnx"
    source.write_bytes(model.SerializeToString())
    command = [str(wheels.pnnx()), str(source), "fp16=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=CONVERSION_TIMEOUT)
    files = [folder / "network.ncnn.param", folder / "network.ncnn.bin"]
    if done.returncode != 0 or not all(file.exists() for file in files):
        raise ModelError(f"pnnx cannot convert it: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
    # What the converter does not know it leaves in by its own name, and ncnn cannot load.
    unknown = {line.split()[0] for line in files[0].read_text().splitlines() if "." in line.split()[0]}
    if unknown:
        raise ModelError(f"ncnn has no {', '.join(sorted(unknown))}")
    return files


def to_onnx(model: onnx.ModelProto, folder: Path) -> list[Path]:
    """The network as it is."""
    path = folder / "network.onnx"
    path.write_bytes(model.SerializeToString())
    return [path]


def to_tflite(model: onnx.ModelProto, folder: Path) -> list[Path]:
    """A TensorFlow Lite file, by our converter."""
    path = folder / "network.tflite"
    path.write_bytes(onnx_to_tflite.convert(model))
    return [path]


PEERS: Mapping[str, Peer] = {
    "onnxruntime": Peer(to_onnx),
    "ncnn": Peer(to_ncnn),
    "litert": Peer(to_tflite, same_pools=True),
}


def measure(name: str, work: Work, stand: Stand, folder: Path, threads: int) -> Measurement:
    """Convert ``work`` for the peer and time it; ``folder`` takes the files.

    Raises BitkilnError where the peer cannot run it or computes something else.
    """
    peer = PEERS[name]
    model = work.onnx(peer.same_pools)
    data = work.input(model)
    measured = stand.measure(name, peer.convert(model, folder), data, threads)
    check(measured.output, reference(model, data))
    return measured


def reference(model: onnx.ModelProto, data: np.ndarray) -> np.ndarray:
    """What the network answers according to onnxruntime on this machine."""
    try:
        import onnxruntime
    except ImportError:
        raise SetupError("onnxruntime is missing, which checks the engines' outputs: pip install 'bitkiln[dev]'")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: data})[0]


def check(output: np.ndarray, expected: np.ndarray) -> None:
    """Refuse the figure of an engine that computed something else: a wrong conversion can be fast."""
    if output.size != expected.size:
        raise VerifyError(f"its output has {output.size} elements instead of {expected.size}")
    error = np.linalg.norm(output.ravel() - expected.ravel()) / np.linalg.norm(expected)
    if not error <= TOLERANCE:
        raise VerifyError(f"its output is {error:.0%} off the reference's")

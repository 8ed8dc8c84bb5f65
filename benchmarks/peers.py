"""The engines we are compared with: what each needs to take a network, and what its wheel makes of it.

Adding one: its wheel in wheels.py, a loader in guest.py, a converter here.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from benchmarks import onnx_to_tflite, wheels
from benchmarks.networks import Work
from benchmarks.stand import Job, Measurement, Stand
from bitkiln.pipeline.errors import ModelError, SetupError

CONVERSION_TIMEOUT = 300.0
#: Of the output's norm. Winograd loses little; a binarised network flips some signs where a float stem rounds.
TOLERANCE = 0.1
#: A quantised network with random weights is far from the float one; a wrong conversion is off by about its whole norm.
INT8_TOLERANCE = 0.4


@dataclass(frozen=True)
class Peer:
    """``engine`` and ``options`` as in guest.py; ``wheel`` is its package on PyPI.

    ``convert`` writes the network's files into a folder and returns them; ``same`` as in Work.
    """

    engine: str
    wheel: str
    convert: Callable[[onnx.ModelProto, Path], list[Path]]
    same: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    precision: str = "as float"
    tolerance: float = TOLERANCE


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


def to_tflite_int8(model: onnx.ModelProto, folder: Path) -> list[Path]:
    """The same of int8, by the ranges that its values take on a random image."""
    path = folder / "network.tflite"
    path.write_bytes(onnx_to_tflite.convert(model, _ranges(model)))
    return [path]


def _ranges(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """The least and the greatest of every value, by name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    source = next(value for value in model.graph.input if value.name not in constants)
    shape = [dim.dim_value for dim in source.type.tensor_type.shape.dim]
    image = np.random.default_rng(5).uniform(0, 255, shape).astype(np.float32)
    inner = onnx.ModelProto()
    inner.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output]
    del inner.graph.output[:]
    inner.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    values = {source.name: image, **dict(zip(names, reference(inner, image), strict=True))}
    return {name: (float(value.min()), float(value.max())) for name, value in values.items()}


PEERS: Mapping[str, Peer] = {
    "onnxruntime": Peer("onnxruntime", "onnxruntime", to_onnx),
    "ncnn": Peer("ncnn", "ncnn", to_ncnn),
    "ncnn-bf16": Peer(
        "ncnn", "ncnn", to_ncnn, options={"bf16": True}, precision="weights and activations kept as bf16"
    ),
    "litert": Peer("litert", "ai-edge-litert", to_tflite, same=True),
    "litert-int8": Peer(
        "litert", "ai-edge-litert", to_tflite_int8, same=True, precision="quantised to int8", tolerance=INT8_TOLERANCE
    ),
    "tflite-runtime": Peer("tflite-runtime", "tflite-runtime", to_tflite, same=True),
}


def of(architecture: str) -> list[str]:
    """The peers that boards of ``architecture`` are asked for."""
    known = {*wheels.VERSIONS[architecture], *wheels.MISSING[architecture]}
    return [name for name, peer in PEERS.items() if peer.wheel in known]


def measure(name: str, work: Work, stand: Stand, folder: Path, threads: int) -> Measurement:
    """Convert ``work`` for the peer, check its answer and time it; ``folder`` takes the files.

    Raises BitkilnError where the peer cannot run it or computes something else.
    """
    peer, architecture = PEERS[name], stand.target.architecture
    if peer.wheel not in wheels.VERSIONS[architecture]:
        why = wheels.MISSING[architecture].get(peer.wheel, f"{name} is not measured on {architecture}")
        raise SetupError(why)
    model = work.onnx(peer.same)
    data = work.input(model)
    job = Job(
        peer.engine, peer.convert(model, folder), data, reference(model, data), peer.tolerance, threads, peer.options
    )
    measured = stand.measure(job)
    version = wheels.VERSIONS[architecture][peer.wheel]
    return replace(measured, measured_by=f"{measured.measured_by}; {peer.wheel} {version}, {peer.precision}")


def reference(model: onnx.ModelProto, data: np.ndarray) -> list[np.ndarray]:
    """What the network answers according to onnxruntime on this machine."""
    try:
        import onnxruntime
    except ImportError:
        raise SetupError("onnxruntime is missing, which checks the engines' outputs: pip install 'bitkiln[dev]'")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: data})

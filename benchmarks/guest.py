"""Runs inside the ARM userland: loads a network into one engine, checks what it answers, and runs it warm in a marked region.

    guest.py JOB.json

A job names the ``engine`` and its ``options``, the ``threads``, the network's ``files`` as the engine takes them, the ``input``
and the ``expected`` outputs as files of numpy, and the ``tolerance`` within which they must agree. Nothing is timed before they
do. Prints one line of JSON that starts with ``answer:``: how far the outputs were off, and the simulator's report of the last
run, or null where no simulator answers. Imports none of our packages.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

START, STOP, READ = 0x41353301, 0x41353302, 0x41353303
UNANSWERED = b"A53ASK?"
REPORT_BYTES = 16384
#: ncnn's word for a result in its own layout.
AS_IT_IS = 1

#: A prepared network: run it once; fetch the outputs of the last run.
Prepared = tuple[Callable[[], object], Callable[[], "list[np.ndarray]"]]


def ncnn(data: np.ndarray, threads: int, param: str, weights: str, bf16: bool = False) -> Prepared:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_bf16_storage = bf16
    # As ncnn's own benchmark does: buffers are kept from run to run.
    allocators = ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator()
    net.opt.blob_allocator, net.opt.workspace_allocator = allocators
    if net.load_param(param) or net.load_model(weights):
        raise SystemExit(f"ncnn cannot load {param}")
    # Between layers ncnn keeps four channels together: a layer on its own gets and gives them so, as within a network.
    packed = ncnn.convert_packing(ncnn.Mat(data[0]), 4 if data.shape[1] % 4 == 0 else 1)
    source = packed.clone()  # A Mat made of an array does not keep it alive.
    input_name, output_names = net.input_names()[0], sorted(net.output_names())
    results: list[ncnn.Mat] = []

    def run() -> None:
        extractor = net.create_extractor()
        extractor.input(input_name, source)
        results.clear()
        for name in output_names:
            status, result = extractor.extract(name, AS_IT_IS)
            if status:
                raise SystemExit(f"ncnn failed with status {status}")
            results.append(result)

    def fetch(kept: object = (net, allocators)) -> list[np.ndarray]:  # The closure keeps what ncnn only borrows.
        return [np.array(ncnn.convert_packing(_float32(result), 1)) for result in results]

    return run, fetch


def _float32(result: ncnn.Mat) -> ncnn.Mat:
    import ncnn

    return result if result.elempack * 4 == result.elemsize else ncnn.cast_bfloat16_to_float32(result)


def onnxruntime(data: np.ndarray, threads: int, model: str) -> Prepared:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: data}
    results: list[list[np.ndarray]] = []

    def run() -> None:
        results[:] = [session.run(None, feed)]

    return run, lambda: results[0]


def litert(data: np.ndarray, threads: int, model: str) -> Prepared:
    from ai_edge_litert.interpreter import Interpreter

    return _tflite(Interpreter, data, threads, model)


def tflite_runtime(data: np.ndarray, threads: int, model: str) -> Prepared:
    from tflite_runtime.interpreter import Interpreter

    return _tflite(Interpreter, data, threads, model)


def _tflite(interpreter_class: type, data: np.ndarray, threads: int, model: str) -> Prepared:
    """Of int8 networks inputs and outputs are int8 too: turning them is not timed."""
    interpreter = interpreter_class(model_path=model, num_threads=threads)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    values = np.ascontiguousarray(data.transpose(0, 2, 3, 1))
    if source["dtype"] == np.int8:
        scale, zero = source["quantization"]
        values = np.clip(np.round(values / scale) + zero, -128, 127).astype(np.int8)
    interpreter.set_tensor(source["index"], values)

    def fetch() -> list[np.ndarray]:
        results = []
        for output in interpreter.get_output_details():
            result = interpreter.get_tensor(output["index"])
            if result.dtype == np.int8:
                scale, zero = output["quantization"]
                result = (result.astype(np.float32) - zero) * np.float32(scale)
            results.append(result.transpose(0, 3, 1, 2) if result.ndim == 4 else result)
        return results

    return interpreter.invoke, fetch


ENGINES = {"ncnn": ncnn, "onnxruntime": onnxruntime, "litert": litert, "tflite-runtime": tflite_runtime}


def error(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float) -> float:
    """The largest error of an output, of its norm. Leaves where one is not within the tolerance: a wrong conversion is fast."""
    if [output.size for output in outputs] != [wanted.size for wanted in expected]:
        sizes = [", ".join(str(value.size) for value in values) for values in (outputs, expected)]
        raise SystemExit(f"its outputs have {sizes[0]} elements instead of {sizes[1]}")
    norms = [
        float(np.linalg.norm(output.ravel() - wanted.ravel()) / np.linalg.norm(wanted))
        for output, wanted in zip(outputs, expected, strict=True)
    ]
    for norm in norms:
        if not norm <= tolerance:
            raise SystemExit(f"its output is {norm:.0%} off the reference's")
    return max(norms)


def report(libc: ctypes.CDLL) -> dict | None:
    """What the simulator says of the region that ended last; None where there is none."""
    buffer = ctypes.create_string_buffer(UNANSWERED, REPORT_BYTES)
    libc.prctl(ctypes.c_int(READ), buffer, ctypes.c_ulong(REPORT_BYTES), 0, 0)
    return json.loads(buffer.value) if buffer.value.startswith(b"{") else None


def main(job: Mapping[str, Any]) -> None:
    with np.load(job["expected"]) as kept:
        expected = list(kept.values())
    prepare = ENGINES[job["engine"]]
    run, fetch = prepare(np.load(job["input"]), job["threads"], *job["files"], **job["options"])
    run()
    off = error(fetch(), expected, job["tolerance"])
    libc = ctypes.CDLL(None)
    libc.prctl(START, 0, 0, 0, 0)
    run()
    libc.prctl(START, 0, 0, 0, 0)  # Again: the counters begin anew, the caches stay warm.
    run()
    libc.prctl(STOP, 0, 0, 0, 0)
    print("answer:", json.dumps({"error": off, "report": report(libc)}), flush=True)
    os._exit(0)  # Engines tear down in an order of their own, and ncnn's allocators crash in it.


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

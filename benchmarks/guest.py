"""Runs inside the arm64 userland: loads a network into one engine, runs it warm in a marked region, writes the result.

    guest.py ENGINE INPUT.npy OUTPUT.npy THREADS FILE...

FILE are the network's files as the engine takes them. Prints the simulator's report of the last run as one line of JSON
that starts with ``report:``, or ``report: null`` where no simulator answers. Imports none of our packages.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable

import numpy as np

START, STOP, READ = 0x41353301, 0x41353302, 0x41353303
UNANSWERED = b"A53ASK?"
REPORT_BYTES = 16384
#: ncnn's word for a result in its own layout.
AS_IT_IS = 1

#: A prepared network: run it once; fetch the output of the last run.
Prepared = tuple[Callable[[], object], Callable[[], np.ndarray]]


def ncnn(data: np.ndarray, threads: int, param: str, weights: str) -> Prepared:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    # As ncnn's own benchmark does: buffers are kept from run to run.
    allocators = ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator()
    net.opt.blob_allocator, net.opt.workspace_allocator = allocators
    if net.load_param(param) or net.load_model(weights):
        raise SystemExit(f"ncnn cannot load {param}")
    # Between layers ncnn keeps four channels together: a layer on its own gets and gives them so, as within a network.
    packed = ncnn.convert_packing(ncnn.Mat(data[0]), 4 if data.shape[1] % 4 == 0 else 1)
    source = packed.clone()  # A Mat made of an array does not keep it alive.
    input_name, output_name = net.input_names()[0], net.output_names()[0]
    results: list[ncnn.Mat] = []

    def run() -> None:
        extractor = net.create_extractor()
        extractor.input(input_name, source)
        status, result = extractor.extract(output_name, AS_IT_IS)
        if status:
            raise SystemExit(f"ncnn failed with status {status}")
        results[:] = [result]

    # The closure keeps what ncnn only borrows.
    return run, lambda kept=(net, allocators): np.array(ncnn.convert_packing(results[0], 1))


def onnxruntime(data: np.ndarray, threads: int, model: str) -> Prepared:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: data}
    results: list[list[np.ndarray]] = []

    def run() -> None:
        results[:] = [session.run(None, feed)]

    return run, lambda: results[0][0]


def litert(data: np.ndarray, threads: int, model: str) -> Prepared:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=model, num_threads=threads)
    interpreter.allocate_tensors()
    interpreter.set_tensor(
        interpreter.get_input_details()[0]["index"], np.ascontiguousarray(data.transpose(0, 2, 3, 1))
    )
    output = interpreter.get_output_details()[0]["index"]

    def fetch() -> np.ndarray:
        result = interpreter.get_tensor(output)
        return result.transpose(0, 3, 1, 2) if result.ndim == 4 else result

    return interpreter.invoke, fetch


ENGINES = {"ncnn": ncnn, "onnxruntime": onnxruntime, "litert": litert}


def report(libc: ctypes.CDLL) -> dict | None:
    """What the simulator says of the region that ended last; None where there is none."""
    buffer = ctypes.create_string_buffer(UNANSWERED, REPORT_BYTES)
    libc.prctl(ctypes.c_int(READ), buffer, ctypes.c_ulong(REPORT_BYTES), 0, 0)
    return json.loads(buffer.value) if buffer.value.startswith(b"{") else None


def main(engine: str, source: str, destination: str, threads: str, *files: str) -> None:
    run, fetch = ENGINES[engine](np.load(source), int(threads), *files)
    libc = ctypes.CDLL(None)
    libc.prctl(START, 0, 0, 0, 0)
    run()
    libc.prctl(START, 0, 0, 0, 0)  # Again: the counters begin anew, the caches stay warm.
    run()
    libc.prctl(STOP, 0, 0, 0, 0)
    np.save(destination, fetch())
    print("report:", json.dumps(report(libc)), flush=True)
    os._exit(0)  # Engines tear down in an order of their own, and ncnn's allocators crash in it.


if __name__ == "__main__":
    main(*sys.argv[1:])

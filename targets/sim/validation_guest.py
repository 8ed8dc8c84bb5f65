"""Runs inside the simulated board: multiplies matrices with numpy or runs a network with ncnn, in a region of its own.

Usage: validation_guest.py sgemm N | ncnn PARAM SIDE THREADS
"""

import ctypes
import os
import sys

START, STOP = 0x41353301, 0x41353302
libc = ctypes.CDLL(None)


def mark(option: int) -> None:
    libc.prctl(ctypes.c_int(option), *[ctypes.c_ulong(0)] * 4)


def sgemm(n: int) -> None:
    """C = A B of n x n floats, once to warm up and once measured."""
    import numpy as np

    a, b, c = np.ones((n, n), np.float32), np.ones((n, n), np.float32), np.empty((n, n), np.float32)
    for measured in (False, True):
        mark(START)
        np.matmul(a, b, out=c)
        if measured:
            mark(STOP)


def network(param: str, side: int, threads: int) -> None:
    """One inference with the settings of ncnn's benchmark; the first, at full speed, prepares weights and buffers."""
    import ncnn

    net = ncnn.Net()
    blobs, workspace = ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator()
    net.opt.lightmode = True
    net.opt.num_threads = threads
    net.opt.blob_allocator = blobs
    net.opt.workspace_allocator = workspace
    assert net.load_param(param) == 0, f"ncnn does not accept {param}"
    net.load_model(ncnn.DataReaderFromEmpty())
    picture = ncnn.Mat(side, side, 3)
    picture.fill(0.01)
    for measured in (False, True):
        with net.create_extractor() as extractor:
            extractor.input("data", picture)
            if measured:
                mark(START)
            status, _ = extractor.extract("prob")
            if measured:
                mark(STOP)
            assert status == 0, "the network does not run"
    os._exit(0)  # ncnn's allocators complain when Python destroys them before what they allocated


if __name__ == "__main__":
    if sys.argv[1] == "sgemm":
        sgemm(int(sys.argv[2]))
    else:
        network(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

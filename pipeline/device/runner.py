#!/usr/bin/env python3
"""Runs a compiled network on the board: ``python3 runner.py --image cat.jpg``, or ``Model(folder)(array)`` from Python.

Needs Python 3.7 and its standard library. numpy makes arrays nicer to handle and Pillow reads images; answers are the
same without numpy. This file stands alone: it travels inside every bundle.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and sys.path[:1] == [os.path.dirname(os.path.abspath(__file__))]:
    del sys.path[0]  # A numpy.py that lies in the bundle is not what is to be imported.

import argparse
import array
import ast
import contextlib
import ctypes
import errno
import hashlib
import heapq
import io
import json
import operator
import random
import resource
import stat
import statistics
import struct
import time
import warnings
import zipfile
import zlib
from typing import IO, Any, Callable, Iterator, NamedTuple, Sequence

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]


def process_start() -> float:
    """When the process began, as ``time.perf_counter`` counts: within 10 ms where the system says so."""
    now, least = time.perf_counter(), time.process_time()
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return now - least
    # An emulator may say something else.
    return now - (age if ticks and least - 0.02 <= age < 3600 else least)


STARTED = process_start()

ABI_VERSION = 1
MAX_THREADS = 16
OUTSIDE = 65535  # in a mask: what the network has not seen
FORMAT_VERSION = 1

# numpy's name of a type: its array.array code, its code in .npy files, its bytes.
DTYPES = {
    "float32": ("f", "<f4", 4),
    "float64": ("d", "<f8", 8),
    "uint8": ("B", "|u1", 1),
    "int8": ("b", "|i1", 1),
    "uint16": ("H", "<u2", 2),
    "int16": ("h", "<i2", 2),
    "uint32": ("I", "<u4", 4),
    "int32": ("i", "<i4", 4),
    "uint64": ("Q", "<u8", 8),
    "int64": ("q", "<i8", 8),
    "bool": ("B", "|b1", 1),
}

MACHINES = {183: "64-bit ARM (aarch64)", 40: "32-bit ARM (armv7l)", 62: "x86-64", 3: "32-bit x86", 243: "RISC-V"}


class TensorInfo(NamedTuple):
    """A tensor's name, its type as numpy calls it, its shape and its size in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class RunnerError(Exception):
    """Something the user can put right; its text is one line."""


class Tensor:
    """An array where there is no numpy: ``dtype``, ``shape`` and ``data``, an ``array.array`` in C order."""

    def __init__(self, dtype: str, shape: Sequence[int], data: array.array) -> None:
        self.dtype = dtype
        self.shape = tuple(shape)
        self.data = data

    def tobytes(self) -> bytes:
        return self.data.tobytes()

    def tolist(self) -> Any:
        """Nested lists, as numpy's tolist gives them."""
        values = self.data.tolist()
        for extent in reversed(self.shape[1:]):
            values = [values[at : at + extent] for at in range(0, len(values), max(extent, 1))]
        return values if self.shape else values[0]

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, {self.shape})"


def make_array(dtype: str, shape: Sequence[int], data: bytes) -> Any:
    """``data`` (bytes) as a numpy array, or as a Tensor where there is no numpy."""
    if numpy is not None:
        return numpy.frombuffer(bytes(data), dtype).reshape(shape).copy()
    values = array.array(DTYPES[dtype][0])
    values.frombytes(data)
    return Tensor(dtype, shape, values)


def flat_values(values: Any) -> list[Any]:
    """The elements of what ``make_array`` gives, as a flat list."""
    return values.data.tolist() if isinstance(values, Tensor) else values.ravel().tolist()


# --- The library ------------------------------------------------------------------------------------------------------


class _Info(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("ndim", ctypes.c_int),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("nbytes", ctypes.c_size_t),
    ]


class _Image(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_char_p),
        ("nbytes", ctypes.c_size_t),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("stride", ctypes.c_int),
        ("rows", ctypes.c_int),
        ("pixels", ctypes.c_int),
        ("video_range", ctypes.c_int),
    ]


class _Box(ctypes.Structure):
    _fields_ = [
        ("left", ctypes.c_float),
        ("top", ctypes.c_float),
        ("right", ctypes.c_float),
        ("bottom", ctypes.c_float),
        ("score", ctypes.c_float),
        ("label", ctypes.c_int32),
    ]


_POINTER, _INT, _TEXT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t
_INFO = ctypes.POINTER(_Info)

# Functions of bitkiln.h: result and parameters.
_FUNCTIONS = {
    "bk_abi_version": (_INT, []),
    "bk_create": (_POINTER, [_INT]),
    "bk_destroy": (None, [_POINTER]),
    "bk_last_error": (_TEXT, [_POINTER]),
    "bk_thread_count": (_INT, [_POINTER]),
    "bk_input_count": (_INT, [_POINTER]),
    "bk_output_count": (_INT, [_POINTER]),
    "bk_input_info": (_INT, [_POINTER, _INT, _INFO]),
    "bk_output_info": (_INT, [_POINTER, _INT, _INFO]),
    "bk_set_input": (_INT, [_POINTER, _INT, _POINTER, _SIZE]),
    "bk_output_data": (_POINTER, [_POINTER, _INT]),
    "bk_run": (_INT, [_POINTER]),
    "bk_run_marked": (_INT, [_POINTER, _INT]),
    "bk_run_step": (_INT, [_POINTER, _INT]),
    "bk_step_count": (_INT, [_POINTER]),
    "bk_step_name": (_TEXT, [_POINTER, _INT]),
    "bk_step_kind": (_TEXT, [_POINTER, _INT]),
    "bk_step_seconds": (ctypes.c_double, [_POINTER, _INT]),
    "bk_step_output_count": (_INT, [_POINTER, _INT]),
    "bk_step_output_info": (_INT, [_POINTER, _INT, _INT, _INFO]),
    "bk_step_output_data": (_POINTER, [_POINTER, _INT, _INT]),
}


# Those that libraries of an older bitkiln, or of a single kernel, may be without.
_LATER_FUNCTIONS = {
    "bk_memory_bytes": (ctypes.c_uint64, [_POINTER]),
    "bk_prepare": (_INT, [_POINTER, ctypes.POINTER(_Image)]),
    "bk_task_name": (_TEXT, [_POINTER]),
    "bk_detect": (_INT, [_POINTER, ctypes.c_float, ctypes.c_float, ctypes.POINTER(_Box), _INT]),
    "bk_segment": (_INT, [_POINTER, _POINTER, _INT, _INT]),
}


def elf_machine(path: str) -> tuple[int, int]:
    """(machine number, bits) of an ELF file."""
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError as error:
        raise RunnerError(f"{path}: {error.strerror}")
    if len(head) < 20 or head[:4] != b"\x7fELF":
        raise RunnerError(f"{path}: not a shared library; copy the bundle again")
    return struct.unpack_from("<H", head, 18)[0], 64 if head[4] == 2 else 32


def machine_name(machine: int, bits: int) -> str:
    return MACHINES.get(machine, f"{bits}-bit CPU number {machine}")


def own_machine() -> tuple[int, int]:
    """(machine number, bits) of this Python: its kernel's may differ."""
    return elf_machine("/proc/self/exe" if os.path.exists("/proc/self/exe") else sys.executable)


def check_machine(library: str) -> None:
    """Raise RunnerError where ``library`` is for another CPU than this Python."""
    theirs, ours = elf_machine(library), own_machine()
    if theirs != ours:
        raise RunnerError(
            f"{library} is for {machine_name(*theirs)}, this Python is {machine_name(*ours)}: "
            "compile the network for this board's target"
        )


def open_library(path: str) -> ctypes.CDLL:
    """The library at ``path`` with all functions of bitkiln.h declared."""
    check_machine(path)
    try:
        library = ctypes.CDLL(os.path.abspath(path))
        for name, (result, parameters) in list(_FUNCTIONS.items()) + list(_LATER_FUNCTIONS.items()):
            if name in _FUNCTIONS or hasattr(library, name):
                function = getattr(library, name)
                function.restype = result
                function.argtypes = parameters
    except (OSError, AttributeError) as error:
        raise RunnerError(f"{path} cannot be loaded: {str(error).splitlines()[0]}")
    if library.bk_abi_version() != ABI_VERSION:
        raise RunnerError(
            f"{path} has interface version {library.bk_abi_version()}, this runner knows {ABI_VERSION}: "
            "use the runner.py of its bundle"
        )
    return library


class Model:
    """A compiled network: a bundle's folder, or a ``.so``.

    ``inputs`` and ``outputs`` list TensorInfo. ``threads`` 0 uses every processor that this process may, at most 4. Threads
    may share a Model, but setting inputs, running and reading outputs are then to be kept together: a Model for each is
    simpler. After ``os.fork`` (or multiprocessing's) a child may use, close or leave the Models of its parent.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 0) -> None:
        self._model = None
        self._labels: list[str] | None = None
        path = os.fspath(path)
        if not path:
            raise RunnerError("the path of the bundle, or of its model.so, is empty")
        if not isinstance(threads, int) or not 0 <= threads <= MAX_THREADS:
            raise RunnerError(f"{threads!r} threads: give 1 to {MAX_THREADS}, or 0 for one per processor")
        self._folder = path if os.path.isdir(path) else os.path.dirname(path)
        if os.path.isdir(path):
            path = os.path.join(path, "model.so")
        self.path = path
        self._manifest: dict[str, Any] | None = None
        begin = time.perf_counter()
        self._library = open_library(path)
        opened = time.perf_counter()
        self._model = self._library.bk_create(threads)
        #: Seconds until the library was open, and then until memory, threads and packed weights were there.
        self.opening = opened - begin, time.perf_counter() - opened
        if not self._model:
            raise RunnerError(f"{path}: {self._text(self._library.bk_last_error(None))}")
        library, model = self._library, self._model
        self.threads = library.bk_thread_count(model)
        self.inputs = [self._info(library.bk_input_info, i) for i in range(library.bk_input_count(model))]
        self.outputs = [self._info(library.bk_output_info, i) for i in range(library.bk_output_count(model))]
        steps = range(library.bk_step_count(model))
        self.step_names = [self._text(library.bk_step_name(model, i)) for i in steps]
        self.step_kinds = [self._text(library.bk_step_kind(model, i)) for i in steps]
        self._sees = hasattr(library, "bk_prepare")
        self.task = self._text(library.bk_task_name(model)) if self._sees else ""

    def close(self) -> None:
        """Free the network's memory and threads; the library itself stays loaded."""
        if self._model:
            self._library.bk_destroy(self._model)
            self._model = None

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __call__(self, *arrays: Any) -> Any:
        """Run on one array for each input; gives the output, or a list where there are several."""
        if len(arrays) != len(self.inputs):
            raise RunnerError(f"the network has {len(self.inputs)} inputs, {len(arrays)} were given")
        for index, values in enumerate(arrays):
            self.set_input(index, values)
        self.run()
        results = [self.output(i) for i in range(len(self.outputs))]
        return results[0] if len(results) == 1 else results

    def set_input(self, which: int | str, values: Any) -> None:
        """Set an input, by position or name, from a numpy array, a Tensor, nested lists or the raw bytes."""
        index = self._index(self.inputs, which, "input")
        data = to_bytes(values, self.inputs[index])
        self._check(self._library.bk_set_input(self._handle, index, data, len(data)))

    def fill_random(self, seed: int = 0) -> None:
        """Fill all inputs with numbers that ``seed`` fixes: floats in [-1, 1], any bytes, small integers."""
        for index, info in enumerate(self.inputs):
            data = random_bytes(info, f"{seed}/{index}")
            self._check(self._library.bk_set_input(self._handle, index, data, len(data)))

    def run(self) -> None:
        """Run the network on the inputs set before."""
        self._check(self._library.bk_run(self._handle))

    def run_marked(self, per_step: bool = False) -> None:
        """As ``run``, marking the run, or each step, as a region for a simulated Cortex-A53; takes no step times."""
        self._check(self._library.bk_run_marked(self._handle, 1 if per_step else 0))

    def output(self, which: int | str = 0) -> Any:
        """An output of the last run, by position or name: a numpy array, or a Tensor where there is no numpy."""
        index = self._index(self.outputs, which, "output")
        info = self.outputs[index]
        return self._array(info, self._library.bk_output_data(self._handle, index))

    @property
    def memory_bytes(self) -> int:
        """What the network takes: its library without what no run reads, weights packed when it was loaded, activations,
        inputs and outputs, and its kernels' scratch memory so far.
        """
        counted = hasattr(self._library, "bk_memory_bytes")
        library = os.path.getsize(self.path) - bytes_of_plan(self._described(), "unread", self.threads)
        return library + (self._library.bk_memory_bytes(self._handle) if counted else 0)

    def _described(self) -> dict[str, Any]:
        """The manifest, where there is one beside the library."""
        if self._manifest is None:
            there = os.path.exists(os.path.join(self._folder, "manifest.json"))
            self._manifest = Bundle(self._folder).manifest if there else {}
        return self._manifest

    @property
    def labels(self) -> list[str]:
        """Class names, where the bundle has them."""
        if self._labels is None:
            there = os.path.exists(os.path.join(self._folder, "manifest.json"))
            self._labels = Bundle(self._folder).labels() if there else []
        return self._labels

    def label(self, number: int) -> str:
        """The name of a class."""
        return self.labels[number] if 0 <= number < len(self.labels) else f"class {number}"

    def prepare(self, frame: Any, **layout: Any) -> Frame:
        """Make the first input of an image, as the bundle says; ``frame`` and ``layout`` are ``to_frame``'s."""
        library = self._seeing()
        frame = to_frame(frame, **layout)
        numbers = (frame.width, frame.height, frame.stride, frame.rows)
        if not all(isinstance(number, int) and 0 <= number <= 8 * MAX_SIDE for number in numbers):
            raise RunnerError("an image of {} x {}, stride {}, rows {}".format(*numbers))
        kind = list(PIXELS).index(frame.pixels)
        image = _Image(frame.data, len(frame.data), *numbers, kind, 1 if frame.video_range else 0)
        self._check(library.bk_prepare(self._handle, ctypes.byref(image)))
        return frame

    def classify(self, frame: Any, top: int = 5, **layout: Any) -> list[tuple[str, float]]:
        """[(label, score)] of the best classes of an image: a path, a PIL image, a numpy array, or a camera's buffer."""
        self.prepare(frame, **layout)
        self.run()
        return best_classes(self.output(0), self.labels, top)

    def detect(
        self, frame: Any, threshold: float | None = None, overlap: float | None = None, most: int = 100, **layout: Any
    ) -> list[Box]:
        """What is in an image, best first; ``threshold`` and ``overlap`` replace the bundle's. See ``classify`` and Box."""
        self.prepare(frame, **layout)
        self.run()
        return self.boxes(threshold, overlap, most)

    def segment(self, frame: Any, **layout: Any) -> Any:
        """The class of each pixel of an image, uint16 of (height, width); OUTSIDE where the network has not seen it."""
        frame = self.prepare(frame, **layout)
        self.run()
        return self.mask(frame.width, frame.height)

    def boxes(self, threshold: float | None = None, overlap: float | None = None, most: int = 100) -> list[Box]:
        """What the last run found, in pixels of the image it was prepared with, or else of the network's input."""
        most = positive("most", most)
        room = (_Box * most)()
        limits = [-1.0 if limit is None else fraction(limit) for limit in (threshold, overlap)]
        count = self._seeing().bk_detect(self._handle, limits[0], limits[1], room, most)
        self._check(min(count, 0))
        return [Box(self.label(b.label), b.score, b.left, b.top, b.right, b.bottom, b.label) for b in room[:count]]

    def mask(self, width: int, height: int) -> Any:
        """The classes that the last run gave, as ``segment`` does, over the whole image in ``width`` x ``height`` pixels."""
        data = ctypes.create_string_buffer(2 * width * height)
        self._check(self._seeing().bk_segment(self._handle, data, width, height))
        return make_array("uint16", (height, width), data.raw)

    @property
    def step_seconds(self) -> list[float]:
        """Seconds that each step took in the last ``run``."""
        return [self._library.bk_step_seconds(self._handle, i) for i in range(len(self.step_names))]

    def trace(self) -> Iterator[tuple[str, list[Any]]]:
        """Run step by step; yields (step name, [outputs]) after each."""
        library = self._library
        for step, name in enumerate(self.step_names):
            self._check(library.bk_run_step(self._handle, step))
            results = []
            for index in range(library.bk_step_output_count(self._handle, step)):
                info = self._info(library.bk_step_output_info, step, index)
                results.append(self._array(info, library.bk_step_output_data(self._handle, step, index)))
            yield name, results

    def _seeing(self) -> ctypes.CDLL:
        if not self._sees:
            raise RunnerError(f"{self.path}: compiled before bundles knew of images; compile it again")
        return self._library

    @property
    def _handle(self) -> int:
        if not self._model:
            raise RunnerError(f"{self.path}: the model is closed")
        return self._model

    def _index(self, infos: Sequence[TensorInfo], which: int | str, kind: str) -> int:
        if isinstance(which, int):
            if not 0 <= which < len(infos):
                raise RunnerError(f"there is no {kind} {which}: the network has {len(infos)}")
            return which
        names = [info.name for info in infos]
        if which not in names:
            raise RunnerError("there is no {} {!r}: there are {}".format(kind, which, ", ".join(names)))
        return names.index(which)

    def _info(self, function: Callable[..., int], *index: int) -> TensorInfo:
        info = _Info()
        self._check(function(self._handle, *index, ctypes.byref(info)))
        shape = tuple(info.shape[i] for i in range(info.ndim))
        return TensorInfo(self._text(info.name), self._text(info.dtype), shape, info.nbytes)

    def _array(self, info: TensorInfo, pointer: int) -> Any:
        return make_array(info.dtype, info.shape, ctypes.string_at(pointer, info.nbytes))

    def _check(self, code: int) -> None:
        if code != 0:
            raise RunnerError(f"{self.path}: {self._text(self._library.bk_last_error(self._handle))}")

    @staticmethod
    def _text(value: bytes) -> str:
        return value.decode("utf-8", "replace")


def fraction(limit: float) -> float:
    """A threshold or an overlap; RunnerError where it is not within 0..1."""
    try:
        number = float(limit)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:
        raise RunnerError(f"a threshold or overlap of {limit!r}: give a number within 0..1")
    return number


def to_bytes(values: Any, info: TensorInfo) -> bytes:
    """``values`` as the bytes of the tensor ``info``; raises RunnerError where shape or type differ."""
    if isinstance(values, (bytes, bytearray, memoryview)):
        data = bytes(values)
        if len(data) != info.nbytes:
            raise RunnerError(f"input {info.name} has {info.nbytes} bytes, {len(data)} were given")
        return data
    if isinstance(values, (list, tuple)):
        values = from_lists(values, info.dtype)
    if not all(hasattr(values, name) for name in ("shape", "dtype", "tobytes")):
        raise RunnerError(f"input {info.name} takes an array, nested lists or bytes, not {type(values).__name__}")
    shape, dtype = tuple(values.shape), str(values.dtype)
    if shape != info.shape:
        raise RunnerError(f"input {info.name} has shape {show_shape(info.shape)}, not {show_shape(shape)}")
    if dtype != info.dtype:
        raise RunnerError(f"input {info.name} is {info.dtype}, not {dtype}")
    return values.tobytes()


def from_lists(values: Sequence[Any], dtype: str) -> Tensor:
    """Nested lists as a Tensor."""
    shape = []
    while isinstance(values, (list, tuple)) and values and isinstance(values[0], (list, tuple)):
        shape.append(len(values[0]))
        if any(not isinstance(row, (list, tuple)) or len(row) != shape[-1] for row in values):
            raise RunnerError("lists given as a tensor have rows of different lengths")
        values = [element for row in values for element in row]
    outer = len(values)
    for extent in shape:
        outer //= max(extent, 1)
    try:
        return Tensor(dtype, [outer, *shape], array.array(DTYPES[dtype][0], values))
    except (TypeError, OverflowError):
        raise RunnerError(f"lists given as a tensor hold values that are no {dtype}")


def show_shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"


def random_bytes(info: TensorInfo, seed: int | str) -> bytes:
    """Bytes of a tensor of random numbers. A pool of prime length repeats: fast, and the same on every board."""
    count = info.nbytes // DTYPES[info.dtype][2]
    source = random.Random(seed)
    size = min(count, 16381)
    if info.dtype in ("float32", "float64"):
        pool: array.array[Any] = array.array(DTYPES[info.dtype][0], [source.uniform(-1.0, 1.0) for _ in range(size)])
    elif info.dtype == "uint8":
        pool = array.array("B", [source.getrandbits(8) for _ in range(size)])
    elif info.dtype == "bool":
        pool = array.array("B", [source.getrandbits(1) for _ in range(size)])
    else:
        low = 0 if info.dtype.startswith("u") else -64
        pool = array.array(DTYPES[info.dtype][0], [source.randint(low, 64) for _ in range(size)])
    return (pool * (-(-count // max(size, 1))))[:count].tobytes()


# --- Files of tensors -------------------------------------------------------------------------------------------------


def read_npy(file: IO[bytes], name: str) -> Any:
    """The array in an open .npy file."""
    try:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError
        major = file.read(2)[0]
        (length,) = struct.unpack("<H" if major == 1 else "<I", file.read(2 if major == 1 else 4))
        if length > 1 << 16:
            raise ValueError
        header = ast.literal_eval(file.read(length).decode("latin-1").strip())
        descr, order, shape = header["descr"], header["fortran_order"], tuple(map(int, header["shape"]))
        if min(shape, default=0) < 0 or not isinstance(descr, (str, list)):
            raise ValueError
    except (ValueError, SyntaxError, KeyError, IndexError, struct.error, TypeError, RecursionError, OverflowError):
        raise RunnerError(f"{name}: not a .npy file")
    known = {code: dtype for dtype, (_, code, _) in DTYPES.items()}
    dtype = known.get(str(descr))
    if dtype is None:
        raise RunnerError(f"{name}: tensors of type {descr} are not supported")
    nbytes = DTYPES[dtype][2]
    for extent in shape:
        nbytes *= extent
    data = file.read(min(nbytes, sys.maxsize - 1) + 1)
    if len(data) != nbytes:
        more = "more" if len(data) > nbytes else len(data)
        raise RunnerError(f"{name}: {more} bytes of data, {nbytes} expected")
    if order and len(shape) > 1:
        data = to_c_order(data, shape, DTYPES[dtype][0])
    return make_array(dtype, shape, data)


def to_c_order(data: bytes, shape: Sequence[int], code: str) -> bytes:
    """Bytes of a column-major array, in C order."""
    source = array.array(code)
    source.frombytes(data)
    strides = [1]
    for extent in shape[:-1]:
        strides.append(strides[-1] * extent)
    positions = [0]
    for extent, stride in zip(shape, strides):
        positions = [at + i * stride for at in positions for i in range(extent)]
    return array.array(code, [source[at] for at in positions]).tobytes()


def npy_bytes(values: Any) -> bytes:
    """``values`` as the content of a .npy file."""
    shape = f"({values.shape[0]},)" if len(values.shape) == 1 else str(tuple(values.shape))
    code = DTYPES[str(values.dtype)][1]
    header = f"{{'descr': '{code}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + values.tobytes()


def open_file(path: str) -> IO[bytes]:
    """A file, opened to be read. Raises OSError, RunnerError for pipes and devices, which may never end."""
    # Opening a pipe waits for whoever writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunnerError(f"{path}: is not a file")
    return os.fdopen(descriptor, "rb")


def read_tensors(path: str) -> dict[str, Any]:
    """{name: array} of a .npz file, or {"": array} of a .npy file."""
    try:
        with open_file(path) as file:
            if file.read(2) == b"PK":
                with zipfile.ZipFile(file) as archive:
                    return {
                        name[:-4]: read_npy(archive.open(name), f"{path}:{name}")
                        for name in archive.namelist()
                        if name.endswith(".npy")
                    }
            file.seek(0)
            return {"": read_npy(file, path)}
    except OSError as error:
        raise RunnerError(f"{path}: {error.strerror}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        raise RunnerError(f"{path}: a damaged .npz file")


def write_tensors(path: str, tensors: dict[str, Any]) -> None:
    """Write {name: array} as .npz, or the only one as .npy where ``path`` ends so."""
    if path.endswith(".npy"):
        if len(tensors) != 1:
            raise RunnerError(f"{path}: {len(tensors)} tensors need a .npz file")
        write_file(path, npy_bytes(next(iter(tensors.values()))))
        return
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, values in tensors.items():
            archive.writestr(name.replace("/", "_") + ".npy", npy_bytes(values))
    write_file(path, content.getbuffer())


def write_file(path: str, content: bytes | memoryview) -> None:
    """Write a file whole or not at all. A link leads to the file that is written; devices and pipes are written into."""
    temporary = ""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "wb") as file:
                file.write(content)
            return
        path = os.path.realpath(path)
        if os.path.islink(path):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        temporary = f"{path}.{os.getpid()}.part"
        with open(temporary, "xb") as file:
            file.write(content)
        if os.path.exists(path):
            os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary) and not isinstance(error, FileExistsError):
            os.unlink(temporary)
        raise RunnerError(f"{path}: {error.strerror}")


# --- Images -----------------------------------------------------------------------------------------------------------

#: Layouts of pixels in memory, in the order of bitkiln.h's enum bk_pixels, and their bytes a pixel (of YUV: the first plane's).
PIXELS = {"RGB": 3, "BGR": 3, "RGBA": 4, "BGRA": 4, "RGBX": 4, "BGRX": 4, "GREY": 1, "YUV420": 1, "NV12": 1}

PLANES = ("YUV420", "NV12")

MAX_PIXELS = 64000000
MAX_SIDE = 32768


class Frame(NamedTuple):
    """An image in memory: its bytes, its size, how its pixels lie (a name of PIXELS), and what bitkiln.h calls the rest."""

    data: bytes
    width: int
    height: int
    pixels: str
    stride: int = 0
    rows: int = 0
    video_range: bool = False


class Box(NamedTuple):
    """Something that was found: its class, its score, its sides in pixels of the frame, and the class's number."""

    label: str
    score: float
    left: float
    top: float
    right: float
    bottom: float
    number: int


def pillow() -> Any:
    """Pillow's Image module, which old files of Pillow want imported before all else."""
    try:
        from PIL import Image
    except ImportError:
        raise RunnerError("images need Pillow (apt install python3-pil); --input takes tensors without it")
    return Image


def read_photo(path: str) -> Any:
    """The image in a file as ``plain_image`` makes it; RunnerError where it is none, or too large."""
    image_module = pillow()
    with readable(path), open_file(path) as file, image_module.open(file) as opened:
        check_size(path, *opened.size)
        return plain_image(opened)


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Whatever Pillow raises of an image, as a RunnerError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow complains of damaged tags, and reads on.
            yield
    except FileNotFoundError:
        raise RunnerError(f"{name}: no such file")
    except RunnerError as error:
        raise RunnerError(str(error) if str(error).startswith(name) else f"{name}: {error}")
    except MemoryError:
        raise
    except pillow().DecompressionBombError:
        raise RunnerError(f"{name}: too many pixels; at most {MAX_PIXELS // 1000000} million: make it smaller")
    except Exception as error:  # Its decoders raise a dozen types of files that are damaged.
        if isinstance(error, OSError) and error.errno:
            raise RunnerError(f"{name}: {error.strerror}")
        raise RunnerError(f"{name}: not an image that Pillow can read, or a damaged one")


def check_size(name: str, width: int, height: int) -> None:
    """Raise RunnerError for images that would take more memory than a board can spare."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise RunnerError(
            f"{name}: {width} x {height} pixels; at most {MAX_PIXELS // 1000000} million, {MAX_SIDE} a side: make it smaller"
        )


def plain_image(image: Any) -> Any:
    """A PIL image upright, of 8 bits, in RGB or grey ("L"): 16 bits are scaled, transparent parts are laid on white."""
    from PIL import ImageOps

    image_module, kind = pillow(), image.format
    image = ImageOps.exif_transpose(image)
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        if image.mode == "I" and kind not in ("PNG", "PPM"):  # of which Pillow gives 16 bits so
            raise RunnerError("its pixels are whole numbers of nobody knows what range; save it with 8 or 16 bits")
        if clear is not None:
            raise RunnerError("grey of 16 bits with a transparent shade; save it with 8 bits")
        return image.convert("I").point(lambda value: value * (1 / 257.0) + 0.5).convert("L")
    if image.mode == "F":
        raise RunnerError("its pixels are fractions of nobody knows what; save it with 8 or 16 bits")
    if isinstance(clear, tuple) and max(clear) > 255:  # Pillow compares it with pixels that have lost their lower bits.
        raise RunnerError("colours of 16 bits of which one is transparent; save it with 8 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or clear is not None:
        image = image.convert("RGBA")
        white = image_module.new("RGBA", image.size, (255, 255, 255, 255))
        return image_module.alpha_composite(white, image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def to_frame(
    frame: Any,
    pixels: str = "",
    size: Sequence[int] | None = None,
    stride: int = 0,
    rows: int = 0,
    video_range: bool = False,
) -> Frame:
    """A path, a PIL image, a numpy array or a camera's buffer as a Frame.

    Arrays are uint8 of shape (height, width) or (height, width, channels): grey, RGB or RGBA unless ``pixels`` names another
    layout; OpenCV's are "BGR". Of "YUV420" and "NV12" they are (rows * 3 / 2, stride), as Pi cameras give them. Bytes need
    ``pixels`` and ``size``, (width, height); ``stride`` and ``rows`` where the buffer is padded. ``video_range``: Y is 16..235.
    """
    if isinstance(frame, Frame):
        return frame
    if pixels not in ("", *PIXELS):
        raise RunnerError("pixels {!r} are none of {}".format(pixels, ", ".join(PIXELS)))
    if video_range and pixels not in PLANES:
        raise RunnerError("video_range is of {} alone".format(" and ".join(PLANES)))
    size = None if size is None else whole_numbers("size", size, 2)
    stride, rows = whole_numbers("stride and rows", (stride, rows), 2)
    is_file = isinstance(frame, (str, os.PathLike))
    if is_file or hasattr(frame, "getbands"):
        if pixels or size or stride or rows:
            raise RunnerError(
                "files and PIL images say themselves how their pixels lie: leave pixels, size, stride and rows out"
            )
        image = read_photo(os.fspath(frame)) if is_file else plain_copy(frame)
        return Frame(image.tobytes(), image.size[0], image.size[1], "GREY" if image.mode == "L" else "RGB")
    if isinstance(frame, (bytes, bytearray, memoryview)):
        if not pixels or size is None:
            raise RunnerError("bytes of an image need pixels (such as 'RGB' or 'YUV420') and size, (width, height)")
        return Frame(bytes(frame), size[0], size[1], pixels, stride, rows, video_range)
    if stride or rows:
        raise RunnerError("stride and rows are of bytes alone: an array's shape says them")
    return array_to_frame(frame, pixels, size, video_range)


def plain_copy(image: Any) -> Any:
    """A PIL image as ``plain_image`` makes it; RunnerError where it cannot be read, or is too large."""
    with readable("the image"):
        check_size("the image", *image.size)
        return plain_image(image)


def whole_numbers(name: str, values: Sequence[Any], count: int) -> tuple[int, ...]:
    """``count`` integers of whatever type; RunnerError where they are something else."""
    try:
        numbers = tuple(map(operator.index, values))
    except TypeError:
        numbers = ()
    if len(numbers) != count:
        raise RunnerError(f"{name}: {values!r}; {count} whole number{'s' * (count > 1)} wanted")
    return numbers


def positive(name: str, value: Any) -> int:
    """``value``, an integer of whatever type, from 1."""
    (number,) = whole_numbers(name, (value,), 1)
    if number < 1:
        raise RunnerError(f"{name} is {number}: give a number from 1")
    return number


def array_to_frame(frame: Any, pixels: str, size: Sequence[int] | None, video_range: bool) -> Frame:
    """A numpy array (or what looks like one) as a Frame; see ``to_frame``."""
    if not all(hasattr(frame, name) for name in ("shape", "dtype", "tobytes")):
        raise RunnerError(f"a frame is an array, a PIL image, a path or bytes, not {type(frame).__name__}")
    shape = tuple(frame.shape)
    if str(frame.dtype) == "uint16" and pixels not in PLANES:
        frame = ((frame.astype("uint32") + 128) // 257).astype("uint8")
    if str(frame.dtype) != "uint8":
        raise RunnerError(f"frames are uint8, 0 to 255, not {frame.dtype}; raw tensors go through set_input")
    if pixels in PLANES:
        if len(shape) != 2 or shape[0] % 3:
            raise RunnerError(f"{pixels} is an array of (rows * 3 / 2, stride), not {show_shape(shape)}")
        rows = shape[0] // 3 * 2
        width, height = size or (shape[1], rows)
        return Frame(frame.tobytes(), width, height, pixels, shape[1], rows, video_range)
    channels = shape[2] if len(shape) == 3 else 1
    pixels = pixels or {1: "GREY", 3: "RGB", 4: "RGBA"}.get(channels, "")
    if len(shape) not in (2, 3) or PIXELS.get(pixels) != channels:
        raise RunnerError(f"a frame is (height, width) or (height, width, 3 or 4), not {show_shape(shape)}")
    if size and size != shape[1::-1]:
        raise RunnerError("size {}x{} is not that of the array, {}x{}".format(*size, *shape[1::-1]))
    return Frame(frame.tobytes(), shape[1], shape[0], pixels)


#: Colours of classes, far apart from one another.
COLOURS = (
    (230, 25, 75),
    (60, 180, 75),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
)


def draw_boxes(image: Any, boxes: Sequence[Box]) -> Any:
    """A copy of a PIL image with the boxes drawn on it."""
    from PIL import ImageDraw

    image = image.convert("RGB")
    pen = ImageDraw.Draw(image)
    width = max(2, min(image.size) // 200)
    for box in reversed(boxes):
        colour = COLOURS[box.number % len(COLOURS)]
        for inset in range(width):
            sides = [box.left + inset, box.top + inset, box.right - 1 - inset, box.bottom - 1 - inset]
            if sides[0] <= sides[2] and sides[1] <= sides[3]:
                pen.rectangle(sides, outline=colour)
        text = f"{box.label} {box.score:.2f}".encode("latin-1", "replace").decode("latin-1")
        pen.rectangle([box.left, box.top, box.left + 6 * len(text) + 4, box.top + 12], fill=colour)
        pen.text((box.left + 2, box.top + 1), text, fill=(255, 255, 255))
    return image


def draw_mask(image: Any, mask: Any) -> Any:
    """A copy of a PIL image with its classes in colours, but for class 0."""
    image_module = pillow()
    image = image.convert("RGB")
    data = array.array("H", mask.tobytes())
    codes = bytes(0 if number in (0, OUTSIDE) else 1 + number % len(COLOURS) for number in data)
    layer = image_module.frombytes("P", image.size, codes)
    layer.putpalette([0, 0, 0] + [part for colour in COLOURS for part in colour])
    cover = image_module.frombytes("L", image.size, codes).point(lambda code: 128 if code else 0)
    return image_module.composite(layer.convert("RGB"), image, cover)


def save_image(image: Any, path: str) -> None:
    """Write a PIL image, in the format that the path's ending names."""
    content = io.BytesIO()
    try:
        kind = pillow().registered_extensions().get(os.path.splitext(path)[1].lower(), "PNG")
        image.save(content, kind)
    except (OSError, KeyError, ValueError):
        raise RunnerError(f"{path}: Pillow cannot write such a file; name it .png or .jpg")
    write_file(path, content.getvalue())


# --- The bundle -------------------------------------------------------------------------------------------------------

MAX_MANIFEST = 64 << 20
MAX_LABELS = 16 << 20

_NUMBER = (int, float)
_TENSOR = {"name": str, "dtype": str, "shape": [int]}

# What a manifest must hold where this runner takes it for granted. A key with "?" may be absent or null.
MANIFEST = {
    "files": {"*": {"size": int, "sha256": str}},
    "requires": {"glibc": str},
    "inputs": [_TENSOR],
    "outputs": [_TENSOR],
    "golden?": {"inputs": [str], "outputs": [str]},
    "memory?": {"running?": int, "packed_on_board?": [int], "unread?": [int]},
    "threads?": [int],
    "preprocessing?": {"height": int, "width": int, "mean": [_NUMBER]},
    "head?": {"task": str, "classes": int},
}
# What every bundle holds.
PROGRAMS = ("model.so", "runner.py")


def fits(value: Any, pattern: Any) -> bool:
    """Is ``value`` of a type, a list of what fits the pattern's one item, or a dict with what the pattern's keys ask for?

    A key "NAME?" may be absent or None; what "*" asks for holds for all values. Numbers are of a size to calculate with.
    """
    if isinstance(pattern, list):
        return isinstance(value, list) and all(fits(item, pattern[0]) for item in value)
    if not isinstance(pattern, dict):
        if isinstance(value, bool):
            return pattern is bool
        return isinstance(value, pattern) and (not isinstance(value, _NUMBER) or abs(value) < 1 << 62)
    if not isinstance(value, dict):
        return False
    if "*" in pattern:
        return all(fits(item, pattern["*"]) for item in value.values())
    for key, wanted in pattern.items():
        found = value.get(key.rstrip("?"))
        if not (found is None and key.endswith("?")) and not fits(found, wanted):
            return False
    return True


def plain_name(name: str) -> bool:
    """Is it the name of a file in this folder?"""
    return os.path.basename(name) == name and name not in ("", ".", "..") and "\0" not in name


class Bundle:
    """A folder as ``bitkiln compile`` writes it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        path = self.path("manifest.json")
        try:
            manifest = json.loads(self.read("manifest.json", MAX_MANIFEST).decode("utf-8"))
        except (ValueError, RecursionError):
            raise RunnerError(f"{path}: damaged; copy the bundle again")
        if isinstance(manifest, dict) and manifest.get("format") != FORMAT_VERSION:
            raise RunnerError(
                "{}: format {:.40}, this runner knows {}".format(path, repr(manifest.get("format")), FORMAT_VERSION)
            )
        if not fits(manifest, MANIFEST) or not all(map(plain_name, manifest["files"])):
            raise RunnerError(f"{path}: damaged, it holds something else than expected; copy the bundle again")
        self.manifest = manifest
        self._model: Model | None = None

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def read(self, name: str, most: int) -> bytes:
        """The content of a file of the bundle, of ``most`` bytes at most."""
        with self.open(name) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise RunnerError(f"{self.path(name)}: too large; copy the bundle again")
        return content

    def open(self, name: str) -> IO[bytes]:
        """A file of the bundle, opened; RunnerError unless it is a file there, and no link or device."""
        path = self.path(name)
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise RunnerError(f"{path}: not a file; copy the bundle again")
            return open(path, "rb")
        except OSError as error:
            what = "this is no bundle" if name == "manifest.json" else "copy the bundle again"
            raise RunnerError(f"{path}: {error.strerror}; {what}")

    def labels(self) -> list[str]:
        if "labels.txt" not in self.manifest["files"]:
            return []
        return self.read("labels.txt", MAX_LABELS).decode("utf-8", "replace").splitlines()

    def check_files(self) -> None:
        """Raise RunnerError where a file is missing, altered, or lies in the folder though the manifest does not list it."""
        listed = self.manifest["files"]
        for name in PROGRAMS:
            if name not in listed:
                raise RunnerError(
                    "{}: does not list {}; copy the bundle again".format(self.path("manifest.json"), name)
                )
        for name in sorted(listed):
            self.check_digest(name)
        for name in sorted(os.listdir(self.folder)):
            if name not in listed and name.endswith((".py", ".so", ".pth")):
                raise RunnerError(f"{self.path(name)}: no part of the bundle, and a program: remove it")

    def check_digest(self, name: str) -> None:
        """Raise RunnerError where a file is missing or altered."""
        expected = self.manifest["files"].get(name)
        if expected is None:
            raise RunnerError("{}: does not list {}; copy the bundle again".format(self.path("manifest.json"), name))
        digest, size = hashlib.sha256(), 0
        try:
            with self.open(name) as file:
                for part in iter(lambda: file.read(1 << 20), b""):
                    digest.update(part)
                    size += len(part)
        except OSError as error:
            raise RunnerError(f"{self.path(name)}: {error.strerror}; copy the bundle again")
        if size != expected["size"] or digest.hexdigest() != expected["sha256"]:
            raise RunnerError(f"{self.path(name)}: altered since it was compiled; copy the bundle again")

    def check_system(self) -> None:
        """Raise RunnerError where this system is too old or another CPU."""
        check_machine(self.path("model.so"))
        have, need = glibc_version(), self.manifest["requires"]["glibc"]
        if have and version_numbers(have) < version_numbers(need):
            raise RunnerError(f"this system has glibc {have}, the bundle needs {need}")

    def model(self, threads: int = 0) -> Model:
        """The network, loaded once."""
        if self._model is None:
            self._model = Model(self.folder, threads)
        return self._model

    def classify(self, frame: Any, top: int = 5, **layout: Any) -> list[tuple[str, float]]:
        """``Model.classify``."""
        return self.model().classify(frame, top, **layout)

    def detect(self, frame: Any, **options: Any) -> list[Box]:
        """``Model.detect``."""
        return self.model().detect(frame, **options)

    def segment(self, frame: Any, **layout: Any) -> Any:
        """``Model.segment``."""
        return self.model().segment(frame, **layout)

    def running_bytes(self, threads: int) -> int:
        """What the network takes of memory while it runs; 0 where the bundle does not say."""
        of_one, of_all = (
            bytes_of_plan(self.manifest, "packed_on_board", count) - bytes_of_plan(self.manifest, "unread", count)
            for count in (1, threads)
        )
        taken = (self.manifest.get("memory") or {}).get("running") or 0
        return taken and taken - of_one + of_all

    def check_memory(self, threads: int) -> None:
        """Raise RunnerError where this system cannot hold the network, before it tries to and others pay for it."""
        need, have = self.running_bytes(threads), memory_bytes_free()
        if have and need > have:
            raise RunnerError(
                f"the network takes {need / 1e6:.0f} MB of memory, {have / 1e6:.0f} MB are free: "
                "close other programs, or let it run on a board with more"
            )

    def set_tensors(self, model: Model, path: str) -> None:
        tensors = read_tensors(path)
        if len(model.inputs) == 1 and len(tensors) == 1:
            model.set_input(0, next(iter(tensors.values())))
            return
        for info in model.inputs:
            if info.name not in tensors:
                raise RunnerError("{}: no tensor {!r}; it has {}".format(path, info.name, ", ".join(sorted(tensors))))
            model.set_input(info.name, tensors[info.name])

    def golden(self, kind: str) -> list[Any]:
        names = self.manifest["golden"][kind]
        for name in names:
            if name not in self.manifest["files"]:
                raise RunnerError(
                    "{}: does not list {}; copy the bundle again".format(self.path("manifest.json"), name)
                )
        return [next(iter(read_tensors(self.path(name)).values())) for name in names]


def bytes_of_plan(manifest: dict[str, Any], name: str, threads: int) -> int:
    """What the manifest's ``memory`` says of one thread, or of several where their plan is another; 0 where it does not."""
    values = (manifest.get("memory") or {}).get(name) or [0]
    return values[-1 if threads > 1 else 0]


def thread_count(threads: int) -> int:
    """How many threads a Model of so many has; 0 is one for each processor, at most 4."""
    return threads or min(len(os.sched_getaffinity(0)), 4)


def glibc_version() -> str:
    """Such as "2.31", or "" where the C library is another."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return version if name == "glibc" else ""
    except (ValueError, OSError, AttributeError):
        return ""


def memory_bytes_free() -> int:
    """Bytes of memory that programs can still have, swap included; 0 where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            rows = dict(line.split(":", 1) for line in file if ":" in line)
        free = sum(int(rows[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError, IndexError):
        return 0
    return min([free, *group_bytes_free()])


def group_bytes_free() -> Iterator[int]:
    """What the limits of containers and services leave this process (cgroup v2), its own and those of all it is part of."""
    try:
        with open("/proc/self/cgroup") as file:
            group = next(line.strip()[3:] for line in file if line.startswith("0::"))
        while True:
            folder = "/sys/fs/cgroup" + group.rstrip("/")
            yield from _bytes_left(folder)
            if group in ("", "/"):
                return
            group = os.path.dirname(group)
    except (OSError, ValueError, StopIteration):
        return


def _bytes_left(group: str) -> Iterator[int]:
    """What a control group's limit leaves: pages of files are given up where memory is needed."""
    try:
        with open(group + "/memory.max") as limit, open(group + "/memory.current") as taken:
            most, now = limit.read().strip(), int(taken.read())
        with open(group + "/memory.stat") as file:
            rows = dict(line.split() for line in file)
    except (OSError, ValueError):
        return
    if most != "max":
        yield max(int(most) - now + sum(int(rows.get(name, 0)) for name in ("inactive_file", "active_file")), 1)


def storage_bytes_read() -> int | None:
    """Bytes that this process has had read from storage so far; None where the system does not count them."""
    try:
        with open("/proc/self/io") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("read_bytes:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def version_numbers(version: str) -> tuple[int, ...]:
    """(2, 31) of "2.31"; what is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2])


def largest_error(values: Any, expected: Any) -> float:
    """Largest difference, relative to the largest expected value where that is above 1; NaN matches only NaN."""
    pairs = list(zip(flat_values(values), flat_values(expected)))
    scale = max([1.0] + [abs(b) for _, b in pairs if b == b and abs(b) != float("inf")])
    worst = 0.0
    for a, b in pairs:
        if a == b or (a != a and b != b):
            continue
        difference = abs(a - b) / scale
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst


# --- The command line -------------------------------------------------------------------------------------------------


def check(bundle: Bundle, threads: int) -> None:
    """Print what was checked; raises RunnerError at the first thing that is wrong."""
    bundle.check_files()
    print("files: {} as compiled".format(len(bundle.manifest["files"])))
    bundle.check_system()
    bundle.check_memory(thread_count(threads))
    print(
        "system: {}, glibc {} (needs {})".format(
            machine_name(*own_machine()), glibc_version() or "unknown", bundle.manifest["requires"]["glibc"]
        )
    )
    if not bundle.manifest.get("golden"):
        print("answer: the bundle has no golden output to compare")
        return
    model = Model(bundle.folder, threads)
    for index, values in enumerate(bundle.golden("inputs")):
        model.set_input(index, values)
    model.run()
    for index, expected in enumerate(bundle.golden("outputs")):
        error = largest_error(model.output(index), expected)
        if error > 1e-4:
            raise RunnerError(
                f"output {model.outputs[index].name} differs from the golden one by {error:.3g} (relative)"
            )
        print(f"answer: output {model.outputs[index].name} within {error:.1e} of the golden one")


def best_classes(values: Any, labels: Sequence[str], count: int) -> list[tuple[str, float]]:
    """[(label, score)] of the highest scores."""
    count = positive("top", count)
    scores = values.data if isinstance(values, Tensor) else array.array(DTYPES[str(values.dtype)][0], values.tobytes())
    # A list of all, sorted, would take some hundred bytes for each.
    order = heapq.nsmallest(count, range(len(scores)), lambda i: -scores[i] if scores[i] == scores[i] else float("inf"))
    return [(labels[i] if i < len(labels) else f"class {i}", scores[i]) for i in order]


def peak_memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


class Stages:
    """Seconds from one call of ``end`` to the next, by what was done between them; the first count from the process's start."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = STARTED

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


def bench(model: Model, stages: Stages, chosen_for: list[int], seconds: float = 3.0, most: int = 200) -> dict[str, Any]:
    """Times of repeated runs, in a dict; the first run counts as the first answer only, and ends the last of ``stages``.

    ``chosen_for``: the numbers of threads that the bundle's kernels were chosen for.
    """
    model.run()
    stages.end("run")
    read = storage_bytes_read()
    first = time.perf_counter()
    times: list[float] = []
    while len(times) < 3 or (len(times) < most and time.perf_counter() - first < seconds):
        start = time.perf_counter()
        model.run()
        times.append(time.perf_counter() - start)
    return {
        "runs": len(times),
        "min_ms": 1e3 * min(times),
        "median_ms": 1e3 * statistics.median(times),
        "max_ms": 1e3 * max(times),
        "load_ms": 1e3 * sum(model.opening),
        "first_answer_ms": 1e3 * sum(stages.seconds.values()),
        "stages_ms": {name: 1e3 * seconds for name, seconds in stages.seconds.items()},
        "storage_read_mib": None if read is None else read / 1048576.0,
        "peak_mib": peak_memory_mib(),
        "network_mib": model.memory_bytes / 1048576.0,
        "library_mib": os.path.getsize(model.path) / 1048576.0,
        "threads": model.threads,
        "chosen_for_threads": chosen_for,
    }


def print_bench(figures: dict[str, Any]) -> None:
    print(
        "{runs} runs, {threads} threads: min {min_ms:.2f} ms, median {median_ms:.2f} ms, max {max_ms:.2f} ms".format(
            **figures
        )
    )
    wanted = " and ".join(map(str, figures["chosen_for_threads"]))
    print(f"kernels chosen for {wanted} threads")
    stages = ", ".join(f"{name} {ms:.0f}" for name, ms in figures["stages_ms"].items())
    read = figures["storage_read_mib"]
    print(
        "start to first answer {:.0f} ms ({}){}".format(
            figures["first_answer_ms"], stages, "" if read is None else f", {read:.1f} MiB read from storage"
        )
    )
    print(
        "peak memory {peak_mib:.1f} MiB, of which the network {network_mib:.1f} MiB (library {library_mib:.1f} MiB)".format(
            **figures
        )
    )


def print_steps(model: Model) -> None:
    total = sum(model.step_seconds) or 1.0
    for name, kind, seconds in zip(model.step_names, model.step_kinds, model.step_seconds):
        print(f"{1e3 * seconds:9.3f} ms {100 * seconds / total:5.1f} %  {name}  ({kind})")


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run the network of this bundle.", epilog="example: python3 runner.py --image cat.jpg"
    )
    parser.add_argument("bundle", nargs="?", default=os.path.dirname(os.path.abspath(__file__)), help="bundle folder")
    parser.add_argument("--image", metavar="FILE", help="run on an image")
    parser.add_argument("--input", metavar="X.npy", help="run on a tensor, or on the named tensors of a .npz")
    parser.add_argument("--output", metavar="Y.npz", help="write all outputs")
    parser.add_argument("--trace", metavar="T.npz", help="write the outputs of every step")
    parser.add_argument("--check", action="store_true", help="verify files, system and the golden output")
    parser.add_argument("--bench", action="store_true", help="time repeated runs")
    parser.add_argument("--steps", action="store_true", help="print the time of each step")
    parser.add_argument("--threads", type=int, default=0, help="1 to 16; 0 = one per processor, at most 4")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="how many classes to print")
    parser.add_argument("--draw", metavar="OUT.png", help="write the image with what was found in it")
    parser.add_argument(
        "--threshold", type=float, metavar="SCORE", help="of boxes: least score, instead of the bundle's"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def trace_tensors(model: Model) -> dict[str, Any]:
    """{name: array} of every step's outputs; further outputs of a step are called name.1, name.2 ..."""
    tensors = {}
    for name, results in model.trace():
        for index, values in enumerate(results):
            tensors[name if index == 0 else f"{name}.{index}"] = values
    return tensors


def run(bundle: Bundle, options: argparse.Namespace) -> tuple[Model, dict[str, Any]]:
    """Do what the options ask; gives what to report."""
    stages = Stages()
    stages.end("python")
    bundle.check_memory(thread_count(options.threads))
    bundle.check_digest("model.so")
    stages.end("digest")
    model = bundle.model(options.threads)
    stages.end("open")
    stages.seconds["weights"] = model.opening[1]
    stages.seconds["open"] -= model.opening[1]
    photo = read_photo(options.image) if options.image else None
    if photo is not None:
        model.prepare(photo)
    elif options.input:
        bundle.set_tensors(model, options.input)
    else:
        model.fill_random()
    report: dict[str, Any] = {}
    if options.bench:
        stages.end("input")
        report["bench"] = bench(model, stages, bundle.manifest.get("threads") or [1])
    if options.trace:
        write_tensors(options.trace, trace_tensors(model))
    start = time.perf_counter()
    model.run()
    report["seconds"] = time.perf_counter() - start
    if options.output:
        write_tensors(options.output, {info.name: model.output(i) for i, info in enumerate(model.outputs)})
    report["threads"] = model.threads
    report["memory_bytes"] = model.memory_bytes
    report["steps"] = list(zip(model.step_names, model.step_kinds, model.step_seconds))
    if options.image or options.input:
        report.update(meaning(bundle, model, photo, options))
    return model, report


def meaning(bundle: Bundle, model: Model, photo: Any, options: argparse.Namespace) -> dict[str, Any]:
    """What the outputs say: "top", "boxes" or "classes", to report; drawn on the photo where that is asked for."""
    if model.task == "detect":
        boxes = model.boxes(options.threshold)
        if options.draw:
            save_image(draw_boxes(photo, boxes), options.draw)
        return {"boxes": [box._asdict() for box in boxes]}
    if options.draw and model.task != "segment":
        raise RunnerError("this network gives classes of the whole image: there is nothing to draw")
    if model.task == "segment":
        how = bundle.manifest.get("preprocessing")
        mask = model.mask(*(photo.size if photo is not None else (how["width"], how["height"]) if how else (64, 64)))
        if options.draw:
            save_image(draw_mask(photo, mask), options.draw)
        return {"classes": [{"label": model.label(number), "share": share} for number, share in shares(mask)]}
    return {"top": best_classes(model.output(0), model.labels, options.top)}


def shares(mask: Any) -> list[tuple[int, float]]:
    """[(class, share of the pixels that the network has seen)], the largest first."""
    data = array.array("H", mask.tobytes())
    counts: dict[int, int] = {}
    for number in data:
        counts[number] = counts.get(number, 0) + 1
    counts.pop(OUTSIDE, None)
    seen = sum(counts.values())
    return sorted(((number, count / seen) for number, count in counts.items()), key=lambda pair: (-pair[1], pair[0]))


def meaning_lines(report: dict[str, Any]) -> Iterator[str]:
    """What ``meaning`` found, for people."""
    for label, score in report.get("top", ()):
        yield f"{score:12.5f}  {label}"
    if "boxes" in report and not report["boxes"]:
        yield "nothing found: --threshold may be lowered"
    for box in report.get("boxes", ()):
        yield "{score:12.5f}  {label}: {left:.0f}, {top:.0f} to {right:.0f}, {bottom:.0f}".format(**box)
    for row in report.get("classes", ()):
        yield f"{100 * row['share']:10.2f} %  {row['label']}"


def as_json(report: dict[str, Any]) -> dict[str, Any]:
    """What --json prints of a report: bitkiln.runner/1 of docs/json.md, in which lists have objects and times are ms."""
    steps = [{"name": name, "kind": kind, "ms": 1e3 * seconds} for name, kind, seconds in report["steps"]]
    made = dict(report, schema="bitkiln.runner/1", ms=1e3 * report["seconds"], steps=steps)
    del made["seconds"]
    if "top" in made:
        made["top"] = [{"label": label, "score": score} for label, score in made["top"]]
    return made


def print_report(model: Model, report: dict[str, Any], options: argparse.Namespace) -> None:
    if options.image or not options.output:
        for line in meaning_lines(report):
            print(line)
    if options.steps:
        print_steps(model)
    if "bench" in report:
        print_bench(report["bench"])
    else:
        print("{:.2f} ms, {} threads".format(1e3 * report["seconds"], report["threads"]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = arguments_parser()
    options = parser.parse_args(arguments)
    if options.image and options.input:
        parser.error("--image and --input exclude each other")
    if options.draw and not options.image:
        parser.error("--draw needs --image")
    if not (options.image or options.input or options.check or options.bench or options.steps or options.trace):
        parser.error("give --image, --input, --check or --bench")
    try:
        bundle = Bundle(options.bundle)
        if options.check:
            check(bundle, options.threads)
        if options.image or options.input or options.bench or options.steps or options.trace:
            model, report = run(bundle, options)
            if options.json:
                print(json.dumps(as_json(report)))
            else:
                print_report(model, report, options)
    except RunnerError as error:
        print(f"runner: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("runner: interrupted", file=sys.stderr)
        return 130
    except MemoryError:
        print(
            "runner: out of memory: close other programs, or let the network run on a board with more", file=sys.stderr
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Reads the tensors of a file that ``torch.save`` wrote, without PyTorch.

Both formats are known: the zip archive of PyTorch 1.6 and later, and the row of pickles before it. Unpickling may call only
what a dict of tensors needs, so a file cannot run anything else.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

#: What elements of a storage are, by its class in PyTorch.
TYPES = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4"}


class Tensor:
    """A tensor whose bytes are not read yet: a view of the storage ``key``; offset and strides count elements."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self, elements: np.ndarray) -> np.ndarray:
        """The tensor, where its storage holds ``elements``."""
        reach = self.offset + 1 + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        if min(self.offset, *self.strides, 0) < 0 or (0 not in self.shape and reach > len(elements)):
            raise ValueError("a tensor reaches beyond its storage")
        strides = [step * elements.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(elements[self.offset :], self.shape, strides).copy()


class Storage:
    """Where elements of one type lie, by a key of the file."""

    def __init__(self, key: str, kind: str) -> None:
        self.key, self.kind = key, kind


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> Storage:
        _, kind, key, *_ = pid
        return Storage(str(key), TYPES[kind])

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in TYPES:
            return name
        known: Mapping[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: Tensor(
                storage, offset, shape, strides
            ),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which is no part of a dict of tensors")
        return known[module, name]


def read(file: BinaryIO) -> dict[str, np.ndarray]:
    """The tensors in a file by name. Raises ValueError or pickle.UnpicklingError for what is no dict of tensors."""
    data = file.read()
    tensors, elements = _from_zip(data) if data[:2] == b"PK" else _from_pickles(io.BytesIO(data))
    if not isinstance(tensors, dict):
        raise ValueError("the file holds no dict of tensors")
    return {name: each.array(elements(each.storage)) for name, each in tensors.items() if isinstance(each, Tensor)}


def _from_zip(data: bytes) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    archive = zipfile.ZipFile(io.BytesIO(data))
    (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    root = index.removesuffix("data.pkl")

    def elements(storage: Storage) -> np.ndarray:
        return np.frombuffer(archive.read(f"{root}data/{storage.key}"), storage.kind)

    return _Unpickler(io.BytesIO(archive.read(index))).load(), elements


def _from_pickles(file: io.BytesIO) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    """Magic number, version and facts of the system; the dict; the storages' keys; then their elements in that order."""
    for _ in range(3):
        _Unpickler(file).load()
    tensors = _Unpickler(file).load()
    keys = _Unpickler(file).load()
    kinds = {each.storage.key: each.storage.kind for each in tensors.values() if isinstance(each, Tensor)}
    found = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        kind = np.dtype(kinds.get(str(key), "<f4"))
        found[str(key)] = np.frombuffer(file.read(count * kind.itemsize), kind)
    return tensors, lambda storage: found[storage.key]

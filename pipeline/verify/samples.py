"""Inputs to verify on, and outputs of another engine to compare with: from the model, a photo, or files of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.errors import InputError
from bitkiln.pipeline.model import Model, Preprocessing
from bitkiln.pipeline.run import read_inputs

SEED = 53

#: What tensors are called in files that name them by their part, not after the model.
USUAL_INPUT, USUAL_OUTPUT = "x", "y"


@dataclass(frozen=True)
class Sample:
    """One input of the network by name, where it came from, and what another engine gave for it, if that is known."""

    inputs: Mapping[str, np.ndarray]
    source: str
    expected: tuple[np.ndarray | None, ...] = ()


def make_inputs(model: Model) -> dict[str, np.ndarray]:
    """Seeded inputs for every parameter: of the first random pixels, preprocessed; where the model says nothing, and of the
    others, normal numbers.
    """
    rng = np.random.default_rng(SEED)
    inputs: dict[str, np.ndarray] = {}
    for param in model.module["main"].params:
        shape = tuple(int(size) for size in param.ty.shape.values)
        inputs[param.name] = _random(rng, shape, str(param.ty.dtype), None if inputs else model.preprocessing)
    return inputs


def read_samples(
    bundle: Bundle, model: Model, image: Path | None = None, tensor: Path | None = None, expected: Path | None = None
) -> list[Sample]:
    """The user's input, or a random one. Files may hold several inputs along the first axis. Raises InputError."""
    if image and tensor:
        raise InputError("give either an image (--image) or a tensor (--input)")
    if expected and not (image or tensor):
        raise InputError(f"{expected}: give the --input that these outputs are of")
    if image:
        samples = [Sample(read_inputs(bundle, image, None), str(image))]
    elif tensor:
        samples = _read_inputs(model, tensor)
    else:
        source = "random pixels" if model.preprocessing else "random numbers"
        samples = [Sample(make_inputs(model), f"{source}, seed {SEED}")]
    return _with_expected(samples, model, expected) if expected else samples


def _read_inputs(model: Model, path: Path) -> list[Sample]:
    tensors = _tensors(path)
    if len(model.inputs) == 1:
        spec = model.inputs[0]
        name = next((name for name in (spec.name, _parameter(model, 0), USUAL_INPUT) if name in tensors), None)
        if name is None and len(tensors) > 1:
            raise InputError(f"{path}: no tensor {spec.name!r} or {USUAL_INPUT!r}; it has {', '.join(sorted(tensors))}")
        values = tensors[name] if name is not None else next(iter(tensors.values()))
        batch = _split(values, spec.shape, f"{path}: input {spec.name}")
        many = [f"{path}, input {at}" if len(batch) > 1 else str(path) for at in range(len(batch))]
        return [
            Sample({_parameter(model, 0): _typed(each, spec.dtype, path)}, text)
            for each, text in zip(batch, many, strict=True)
        ]
    inputs = {}
    for at, spec in enumerate(model.inputs):
        name = next((name for name in (spec.name, _parameter(model, at)) if name in tensors), None)
        if name is None:
            raise InputError(f"{path}: no tensor {spec.name!r}; it has {', '.join(sorted(tensors))}")
        values = _split(tensors[name], spec.shape, f"{path}: input {spec.name}")[0]
        inputs[_parameter(model, at)] = _typed(values, spec.dtype, path)
    return [Sample(inputs, str(path))]


def _parameter(model: Model, at: int) -> str:
    return model.module["main"].params[at].name


def _typed(values: np.ndarray, dtype: str, path: Path) -> np.ndarray:
    if str(values.dtype) != dtype:
        raise InputError(f"{path}: its input is {values.dtype}, the model's {dtype}")
    return np.ascontiguousarray(values)


def _with_expected(samples: Sequence[Sample], model: Model, path: Path) -> list[Sample]:
    """The samples with the outputs in ``path``, by name, or where there is one, the only tensor or the one called "y"."""
    tensors = _tensors(path)
    columns: list[list[np.ndarray | None]] = []
    for spec in model.outputs:
        values = tensors.get(spec.name)
        if values is None and len(model.outputs) == 1:
            values = tensors.get(USUAL_OUTPUT, next(iter(tensors.values())) if len(tensors) == 1 else None)
        if values is None:
            columns.append([None] * len(samples))
            continue
        batch = _split(values, spec.shape, f"{path}: output {spec.name}")
        if len(batch) != len(samples):
            raise InputError(f"{path}: {len(batch)} outputs {spec.name} for {len(samples)} inputs")
        columns.append(list(batch))
    if all(column[0] is None for column in columns):
        names = ", ".join(repr(spec.name) for spec in model.outputs)
        raise InputError(f"{path}: no tensor {names}; it has {', '.join(sorted(tensors))}")
    return [
        Sample(sample.inputs, sample.source, tuple(column[at] for column in columns))
        for at, sample in enumerate(samples)
    ]


def _split(values: np.ndarray, shape: Sequence[int], what: str) -> list[np.ndarray]:
    """``values`` as tensors of ``shape``: one, or several along the first axis; axes of length one may be missing or more."""
    plain = tuple(size for size in shape if size != 1)
    given = tuple(size for size in values.shape if size != 1)
    if given == plain:
        return [values.reshape(shape)]
    if len(values.shape) > 1 and tuple(size for size in values.shape[1:] if size != 1) == plain:
        return [each.reshape(shape) for each in values]
    texts = ["x".join(map(str, each)) or "scalar" for each in (values.shape, tuple(shape))]
    raise InputError(f"{what} has shape {texts[0]}, the model's {texts[1]}")


def _tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        found = {name: np.asarray(values) for name, values in runner.read_tensors(str(path)).items()}
    except runner.RunnerError as error:
        raise InputError(str(error)) from None
    if not found:
        raise InputError(f"{path}: holds no tensors")
    return found


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, how: Preprocessing | None) -> np.ndarray:
    if dtype != "float32":
        return rng.integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)
    if how is None or len(shape) != 4:
        return rng.standard_normal(shape, dtype=np.float32)
    channels_last = how.layout == "NHWC"
    pixels = rng.integers(0, 256, shape).astype(np.float32)
    per_channel = (1, 1, 1, -1) if channels_last else (1, -1, 1, 1)
    mean, scale = (np.asarray(values, np.float32).reshape(per_channel) for values in (how.mean, how.scale))
    return (pixels - mean) * scale

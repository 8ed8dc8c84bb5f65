"""TensorFlow Lite files, float and of Larq Compute Engine, damaged as bytes, word by word, and in what they say."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import tflite
from flatbuffers import flexbuffers

from benchmarks.tflite_file import TfliteFile
from fuzzing.bytes_mutation import FLOATS, NUMBERS, TEXTS, damage
from fuzzing.case import Case


def case(random: Random, index: int) -> Case:
    """A damaged network: its bytes, its words, or what it says."""
    seed = random.choice(_SEEDS)
    if index % 4 < 2:
        content, how = damaged_file(random, seed(np.random.default_rng(1)).write())
        return Case({"m.tflite": content}, how)
    network = seed(np.random.default_rng(random.randrange(10)))
    try:
        how = "; ".join(_mutate(random, network) for _ in range(random.choice((1, 1, 2, 3))))
        return Case({"m.tflite": network.write()}, how)
    except Exception:  # nothing left to damage, or what the schema's types cannot hold
        return Case({"m.tflite": damage(random, seed(np.random.default_rng(1)).write())[0]}, "damage")


def damaged_file(random: Random, content: bytes) -> tuple[bytes, str]:
    """A file damaged as bytes or word by word."""
    return _words(random, content) if random.random() < 0.5 else damage(random, content)


def _words(random: Random, content: bytes) -> tuple[bytes, str]:
    """Offsets, lengths and numbers among the tables take other values: near ones, or others of the file's."""
    result = bytearray(content)
    places = []
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(content) // 4) * 4
        old, other = (
            struct.unpack_from("<i", content, place)[0] for place in (at, random.randrange(len(content) // 4) * 4)
        )
        new = random.choice((old + 4, old - 4, old + 1, -old, other, at, *NUMBERS)) & 0xFFFFFFFF
        struct.pack_into("<I", result, at, new)
        places.append(at)
    return bytes(result), f"words at {places}"


@dataclass
class Network:
    """A file to be written, from the tensors ``inputs`` to the tensors ``outputs``."""

    file: TfliteFile
    inputs: list[int]
    outputs: list[int]

    def write(self) -> bytes:
        """The file's content."""
        return self.file.write(self.inputs, self.outputs)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype("f")


def _float_network(rng: np.random.Generator) -> Network:
    file = TfliteFile()
    x = file.tensor((1, 8, 8, 3), name="x")
    operands = [x, file.constant(_normal(rng, 4, 3, 3, 3)), file.constant(_normal(rng, 4))]
    strided = {"StrideW": 1, "StrideH": 1, "Padding": tflite.Padding.SAME}
    y = file.operator("CONV_2D", operands, (1, 8, 8, 4), "Conv2DOptions", **strided, FusedActivationFunction=1)
    operands = [y, file.constant(_normal(rng, 1, 3, 3, 4)), file.constant(_normal(rng, 4))]
    y = file.operator(
        "DEPTHWISE_CONV_2D", operands, (1, 8, 8, 4), "DepthwiseConv2DOptions", **strided, DepthMultiplier=1
    )
    pool = {"StrideW": 2, "StrideH": 2, "FilterWidth": 2, "FilterHeight": 2, "Padding": tflite.Padding.VALID}
    y = file.operator("MAX_POOL_2D", [y], (1, 4, 4, 4), "Pool2DOptions", **pool)
    y = file.operator("ADD", [y, file.constant(_normal(rng, 4))], (1, 4, 4, 4), "AddOptions")
    y = file.operator("MEAN", [y, file.constant(np.array([1, 2], np.int32))], (1, 4), "ReducerOptions")
    y = file.operator("FULLY_CONNECTED", [y, file.constant(_normal(rng, 5, 4)), -1], (1, 5), "FullyConnectedOptions")
    y = file.operator("SOFTMAX", [y], (1, 5), "SoftmaxOptions", Beta=1.0)
    return Network(file, [x], [y])


def _binary_network(rng: np.random.Generator) -> Network:
    """Quantise, two binary convolutions with bits between them, a binary pooling, and back to floats."""
    file = TfliteFile()
    x = file.tensor((1, 8, 8, 40), name="x")
    bits = file.custom("LceQuantize", [x], (1, 8, 8, 2), "int32")
    filters = rng.integers(-(1 << 31), 1 << 31, (32, 3, 3, 2))
    filters[..., 1] &= 0xFF  # the 8 channels behind the first 32
    words = file.constant(filters.astype("i4"))
    thresholds = file.constant(rng.integers(-50, 50, 32).astype("i4"))
    first = [bits, words, -1, -1, thresholds]
    y = file.custom("LceBconv2d", first, (1, 8, 8, 1), "int32", _lce_options(channels_in=40, pad_values=1))
    y = file.custom("LceBMaxPool2d", [y], (1, 4, 4, 1), "int32", _pool_options())
    more = file.constant(rng.integers(-(1 << 31), 1 << 31, (8, 3, 3, 1)).astype("i4"))
    second = [y, more, file.constant(_normal(rng, 8)), file.constant(_normal(rng, 8)), -1]
    y = file.custom("LceBconv2d", second, (1, 4, 4, 8), options=_lce_options(channels_in=32, pad_values=1))
    return Network(file, [x], [y])


def _lce_options(**changed: int) -> bytes:
    known = {
        "channels_in": 1,
        "dilation_height_factor": 1,
        "dilation_width_factor": 1,
        "fused_activation_function": 0,
        "pad_values": 0,
        "padding": 0,
        "stride_height": 1,
        "stride_width": 1,
    }
    return _flexbuffer(known | changed)


def _pool_options() -> bytes:
    return _flexbuffer({"filter_height": 2, "filter_width": 2, "padding": 1, "stride_height": 2, "stride_width": 2})


def _flexbuffer(values: dict[str, Any]) -> bytes:
    return bytes(flexbuffers.Dumps(values))


def _shapes(rng: np.random.Generator) -> Network:
    file = TfliteFile()
    x = file.tensor((1, 4, 6, 2), name="x")
    widths = file.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
    y = file.operator("PAD", [x, widths], (1, 6, 8, 2), "PadOptions")
    y = file.operator(
        "TRANSPOSE", [y, file.constant(np.array([0, 2, 1, 3], np.int32))], (1, 8, 6, 2), "TransposeOptions"
    )
    y = file.operator("CONCATENATION", [y, y], (1, 8, 6, 4), "ConcatenationOptions", Axis=3)
    bounds = [file.constant(np.array(each, np.int32)) for each in ([0, 0, 0, 0], [1, 8, 6, 4], [1, 2, 1, 1])]
    y = file.operator("STRIDED_SLICE", [y, *bounds], (1, 4, 6, 4), "StridedSliceOptions")
    size = file.constant(np.array([8, 12], np.int32))
    y = file.operator("RESIZE_NEAREST_NEIGHBOR", [y, size], (1, 8, 12, 4), "ResizeNearestNeighborOptions")
    y = file.operator("RESHAPE", [y, file.constant(np.array([1, 96, 4], np.int32))], (1, 96, 4), "ReshapeOptions")
    y = file.operator("PRELU", [y, file.constant(_normal(rng, 1, 4))], (1, 96, 4))
    return Network(file, [x], [y])


_SEEDS = (_float_network, _binary_network, _shapes)


def _mutate(random: Random, network: Network) -> str:
    mutation = random.choice(_MUTATIONS)
    return f"{mutation.__name__.strip('_')} {mutation(random, network)}"


def _other_tensor(random: Random, network: Network) -> str:
    """A tensor of another shape, type or value."""
    tensors = network.file.tensors
    at = random.randrange(len(tensors))
    tensor = tensors[at]
    shape = list(tensor.shape)
    match random.randrange(5):
        case 0 | 1:
            extents = (random.choice((1, 2, *NUMBERS)) for _ in range(random.choice((0, 1, 2, 4, 4, 9))))
            changed = [extent & 0x7FFFFFFF for extent in extents]
            if shape and random.random() < 0.5:
                changed = shape
                changed[random.randrange(len(shape))] = random.choice((0, -1, 1, shape[0] + 1, 1 << 20, (1 << 31) - 1))
            tensors[at] = replace(tensor, shape=tuple(changed))
        case 2:
            tensors[at] = replace(
                tensor, dtype=random.choice(("float32", "float16", "int32", "int8", "uint8", "int64", "bool", "string"))
            )
        case 3:
            values = random.choice((None, np.zeros(3, "f"), np.full(tensor.shape, random.choice(FLOATS), "f")))
            tensors[at] = replace(tensor, values=values)
        case 4:
            tensors[at] = replace(tensor, signature=tuple(-1 for _ in shape), scale=random.choice(FLOATS))
    return f"{at}: {str(tensors[at].shape)[:40]} {tensors[at].dtype}"


def _rewire(random: Random, network: Network) -> str:
    """Operands or results of an operator become other tensors: cycles, missing ones, too few or too many."""
    operators = network.file.operators
    at = random.randrange(len(operators))
    name = random.choice(("inputs", "inputs", "results"))
    old = list(getattr(operators[at], name))
    count = len(network.file.tensors)
    match random.randrange(3):
        case 0:
            old[random.randrange(len(old))] = random.choice((-1, -2, count, (1 << 31) - 1, *range(count)))
        case 1:
            del old[random.randrange(len(old)) :]
        case 2:
            old += [random.randrange(count)] * random.choice((1, 4, 1000))
    operators[at] = (
        replace(operators[at], inputs=tuple(old)) if name == "inputs" else replace(operators[at], results=tuple(old))
    )
    return f"{at} {name} {old[:6]}"


def _other_operator(random: Random, network: Network) -> str:
    """An operator of another kind, with the operands it has."""
    operators = network.file.operators
    at = random.randrange(len(operators))
    codes = [value for value in vars(tflite.BuiltinOperator).values() if isinstance(value, int)]
    names = ("LceQuantize", "LceDequantize", "LceBconv2d", "LceBMaxPool2d", "Secret", *TEXTS)
    code = random.choice(codes) if random.random() < 0.7 else random.choice(names)
    options = operators[at].options
    if isinstance(code, str) != isinstance(options, bytes):
        options = b"" if isinstance(code, str) else {}
    operators[at] = replace(operators[at], code=code, options=options, table=operators[at].table if options else "")
    return f"{at}: {str(code)[:20]!r}"


def _other_options(random: Random, network: Network) -> str:
    """Options with other numbers, or none."""
    operators = network.file.operators
    at = random.randrange(len(operators))
    options = operators[at].options
    if isinstance(options, bytes):
        known = flexbuffers.Loads(options) if options else {}
        name = random.choice([*known, "more"])
        value: object = random.choice((*NUMBERS, *FLOATS, *TEXTS, None, True, [1], {}))
        options = random.choice((_flexbuffer(known | {name: value}), damage(random, options)[0]))
    elif options and random.random() < 0.9:
        name = random.choice(list(options))
        options = options | {name: random.choice((0, 1, 2, 3, 5, 100, 127, -1, 1 << 20, (1 << 31) - 1))}
    else:
        name, options = "all", {}
    operators[at] = replace(operators[at], options=options)
    return f"{at}: {name}"


def _order(random: Random, network: Network) -> str:
    """Operators in another order, doubled or missing; other inputs and outputs."""
    operators = network.file.operators
    at, other = random.randrange(len(operators)), random.randrange(len(operators))
    match random.randrange(4):
        case 0:
            operators[at], operators[other] = operators[other], operators[at]
        case 1:
            operators.insert(at, operators[other])
        case 2:
            del operators[at]
        case 3:
            count = len(network.file.tensors)
            chosen = [random.randrange(-1, count + 1) for _ in range(random.choice((0, 1, 2)))]
            setattr(network, random.choice(("inputs", "outputs")), chosen)
    return f"{at} {other}"


_MUTATIONS: tuple[Callable[[Random, Network], str], ...] = (
    _other_tensor,
    _other_tensor,
    _rewire,
    _other_operator,
    _other_options,
    _order,
)

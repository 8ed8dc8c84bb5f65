"""Small ONNX networks to damage: what people export, and a node of every operator in ONNX's registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

_Weights = Mapping[str, np.ndarray]


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: _Weights,
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model with float inputs and outputs of unknown shape."""
    graph = helper.make_graph(
        list(nodes),
        "fuzz",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    domains = [("", opset), ("onnx.brevitas", 1), ("local", 1)]
    imports = [helper.make_opsetid(domain, version) for domain, version in domains]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node named after its operator; ``inputs`` and ``outputs`` are separated by blanks."""
    return helper.make_node(kind, inputs.split(" "), outputs.split(" "), name=f"the_{kind.lower()}", **attributes)


def seeds() -> list[onnx.ModelProto]:
    """Networks that import without complaint."""
    return [build(np.random.default_rng(index)) for index, build in enumerate(_NETWORKS)]


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype("f")


def _signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.where(rng.random(shape) < 0.5, -1, 1).astype("f")


def _statistics(rng: np.random.Generator, channels: int, prefix: str = "") -> dict[str, np.ndarray]:
    names = ("gamma", "beta", "mean", "variance")
    return {prefix + name: np.abs(_normal(rng, channels)) + np.float32(0.1) for name in names}


def _float_network(rng: np.random.Generator) -> onnx.ModelProto:
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1], kernel_shape=[3, 3], strides=[1, 1], group=1),
        node("BatchNormalization", "c gamma beta mean variance", "n", epsilon=1e-5),
        node("Relu", "n", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "p", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f dense bias", "d", transB=1),
        node("Softmax", "d", "y", axis=1),
    ]
    weights = {"w": _normal(rng, 8, 3, 3, 3), "b": _normal(rng, 8), **_statistics(rng, 8)}
    weights |= {"dense": _normal(rng, 10, 8), "bias": _normal(rng, 10)}
    return model(nodes, weights, {"x": [1, 3, 12, 12]})


def _binary_network(rng: np.random.Generator) -> onnx.ModelProto:
    nodes = [
        node("Sign", "x", "s"),
        node("Pad", "s pads minus", "p"),
        node("Conv", "p w", "c", strides=[2, 2]),
        node("BatchNormalization", "c gamma beta mean variance", "n"),
        node("PRelu", "n slope", "a"),
        node("BipolarQuant", "a scale", "q", domain="onnx.brevitas"),
        node("Conv", "q v", "y", group=2, dilations=[2, 2], auto_pad="SAME_UPPER"),
    ]
    weights = {"w": _signs(rng, 16, 8, 3, 3), "v": _signs(rng, 8, 8, 3, 3), **_statistics(rng, 16)}
    weights |= {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "minus": np.array(-1, np.float32)}
    weights |= {"slope": _normal(rng, 16, 1, 1), "scale": np.array(1, np.float32)}
    return model(nodes, weights, {"x": [1, 8, 10, 10]})


def _residual_with_shapes(rng: np.random.Generator) -> onnx.ModelProto:
    """Shape arithmetic as exporters leave it, a split, a concatenation, an upsampling, two inputs."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape first", "batch", axis=0),
        node("Unsqueeze", "batch axes", "batches"),
        node("Concat", "batches rest", "target", axis=0),
        node("Split", "x halves", "left right", axis=1),
        node("Add", "left right", "sum"),
        node("Concat", "sum left right", "all", axis=1),
        node("Resize", "all roi scales", "big", mode="nearest"),
        node("Resize", "big roi roi sizes", "small", mode="linear"),
        node("Slice", "small starts ends axes2 steps", "cut"),
        node("Reshape", "cut target", "flat"),
        node("MatMul", "flat matrix", "m"),
        node("Transpose", "m", "t", perm=[1, 0]),
        node("Clip", "t low high", "u"),
        node("Where", "condition u other", "y"),
    ]
    weights: dict[str, np.ndarray] = {
        "first": np.array(0, np.int64),
        "axes": np.array([0], np.int64),
        "rest": np.array([-1], np.int64),
        "halves": np.array([2, 2], np.int64),
        "roi": np.array([], np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "sizes": np.array([1, 6, 4, 4], np.int64),
        "starts": np.array([0], np.int64),
        "ends": np.array([4], np.int64),
        "axes2": np.array([2], np.int64),
        "steps": np.array([2], np.int64),
        "matrix": _normal(rng, 48, 5),
        "low": np.array(-1, np.float32),
        "high": np.array(1, np.float32),
        "condition": np.array([[True], [False], [True], [True], [False]]),
        "other": np.array([[3]], np.float32),
    }
    return model(nodes, weights, {"x": [1, 4, 6, 6]}, opset=17)


def _subgraphs(rng: np.random.Generator) -> onnx.ModelProto:
    del rng
    info = helper.make_tensor_value_info
    branches = [
        helper.make_graph([node(kind, "x", out)], kind, [], [info(out, TensorProto.FLOAT, None)])
        for kind, out in (("Relu", "then"), ("Neg", "else"))
    ]
    body = helper.make_graph(
        [node("Identity", "more", "again"), node("Add", "state x", "next")],
        "body",
        [info("i", TensorProto.INT64, []), info("more", TensorProto.BOOL, []), info("state", TensorProto.FLOAT, None)],
        [info("again", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, None)],
    )
    nodes = [
        node("If", "condition", "a", then_branch=branches[0], else_branch=branches[1]),
        node("Loop", "trips condition a", "b", body=body),
        node("Abs", "b", "y"),
    ]
    return model(nodes, {"condition": np.array(True), "trips": np.array(3, np.int64)}, {"x": [1, 4]})


def _functions(rng: np.random.Generator) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    inner = helper.make_function("local", "Inner", ["a"], ["b"], [node("Relu", "a", "b")], imports[:1])
    body = [helper.make_node("Inner", ["c"], ["e"], domain="local"), node("Add", "c e", "d")]
    outer = helper.make_function("local", "Outer", ["c"], ["d"], body, imports)
    nodes = [helper.make_node("Outer", ["x"], ["h"], domain="local"), node("Conv", "h w", "y")]
    return model(nodes, {"w": _normal(rng, 4, 2, 1, 1)}, {"x": [1, 2, 5, 5]}, functions=[inner, outer])


def _sparse_and_constants(rng: np.random.Generator) -> onnx.ModelProto:
    values = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "sparse")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 4, 8], np.int64)), [3, 3])
    nodes = [
        node("Constant", "", "k", value=numpy_helper.from_array(_normal(rng, 3, 3))),
        node("ConstantOfShape", "extent", "ones", value=numpy_helper.from_array(np.array([1], np.float32))),
        node("Expand", "k extent", "wide"),
        node("Tile", "k repeats", "tiled"),
        node("Range", "zero three one", "steps"),
        node("Add", "wide tiled", "a"),
        node("Mul", "a ones", "b"),
        node("MatMul", "x b", "y"),
    ]
    nodes[0].ClearField("input")
    weights = {"extent": np.array([3, 3], np.int64), "repeats": np.array([1, 1], np.int64)}
    weights |= {name: np.array(value, np.int64) for name, value in {"zero": 0, "three": 3, "one": 1}.items()}
    proto = model(nodes, weights, {"x": [2, 3]})
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    proto.graph.sparse_initializer.append(sparse)
    return proto


def _odd_operators(rng: np.random.Generator) -> onnx.ModelProto:
    nodes = [
        node("ConvTranspose", "x w", "a", strides=[2, 2]),
        node("LRN", "a", "b", size=3),
        node("AveragePool", "b", "c", kernel_shape=[3, 3], ceil_mode=1, pads=[1, 1, 1, 1]),
        node("ReduceMean", "c", "d", axes=[2, 3], keepdims=1),
        node("HardSwish", "d", "e"),
        node("Squeeze", "e squeezed", "f"),
        node("Einsum", "f matrix", "g", equation="ab,bc->ac"),
        node("LayerNormalization", "g gain", "y"),
    ]
    weights = {"w": _normal(rng, 3, 4, 2, 2), "squeezed": np.array([2, 3], np.int64)}
    weights |= {"matrix": _normal(rng, 4, 6), "gain": _normal(rng, 6)}
    return model(nodes, weights, {"x": [1, 3, 7, 7]})


def _quantised(rng: np.random.Generator) -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", "x scale zero", "q"),
        node("DequantizeLinear", "q scale zero", "d"),
        node("Cast", "d", "h", to=TensorProto.FLOAT16),
        node("Cast", "h", "f", to=TensorProto.FLOAT),
        node("Conv", "f w", "y"),
    ]
    weights: dict[str, np.ndarray] = {"scale": np.array(0.1, np.float32), "zero": np.array(3, np.uint8)}
    weights["w"] = _normal(rng, 2, 3, 1, 1)
    return model(nodes, weights, {"x": [1, 3, 4, 4]})


_NETWORKS: tuple[Callable[[np.random.Generator], onnx.ModelProto], ...] = (
    _float_network,
    _binary_network,
    _residual_with_shapes,
    _subgraphs,
    _functions,
    _sparse_and_constants,
    _odd_operators,
    _quantised,
)

_SCHEMAS = sorted(
    (schema for schema in defs.get_all_schemas_with_history() if schema.domain == ""),
    key=lambda schema: (schema.name, schema.since_version),
)

#: Every operator of ONNX's default domain.
OPERATORS = sorted({schema.name for schema in _SCHEMAS})


def any_operator(random: Random) -> onnx.ModelProto:
    """One node of any operator at any opset, with operands, ranks and attributes as they fall."""
    schema = random.choice(_SCHEMAS)
    opset = max(schema.since_version, random.choice((9, 11, 13, 17, 21)))
    rng = np.random.default_rng(random.randrange(1 << 32))
    shape = random.choice(([1], [1, 4], [1, 3, 6], [1, 3, 6, 6], [1, 2, 4, 4, 4], [1, 6, 6, 3]))
    most = min(schema.max_input, schema.min_input + 3)
    names = [f"w{index}" for index in range(random.randint(schema.min_input, max(most, schema.min_input)))]
    weights = {name: _any_array(random, rng, shape) for name in names}
    if names and random.random() < 0.95:
        names[0] = "x"
    if len(names) > 1 and random.random() < 0.2:
        names[random.randrange(1, len(names))] = random.choice(("x", ""))
    attributes = {
        name: _any_value(random, rng, attribute.type)
        for name, attribute in schema.attributes.items()
        if attribute.required or random.random() < 0.4
    }
    attributes = {name: value for name, value in attributes.items() if value is not None}
    count = max(schema.min_output, min(schema.max_output, random.choice((1, 1, 1, 2))))
    outputs = ["y", *(f"y{index}" for index in range(1, count))]
    nodes = [helper.make_node(schema.name, names, outputs, name=f"the_{schema.name.lower()}", **attributes)]
    return model(nodes, weights, {"x": shape}, opset=opset)


def _any_array(random: Random, rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    extents = random.choice(
        (
            shape,
            [],
            [1],
            [len(shape)],
            [2 * len(shape)],
            shape[1:2],
            [4, *shape[1:]],
            [4, shape[1] if len(shape) > 1 else 1, 3, 3],
        )
    )
    kind = random.choice("ffffflllibBh?de")
    values = rng.integers(-2, 8, extents) if kind in "lihbB" else rng.normal(size=extents) * 2
    return np.asarray(values).astype({"l": "int64", "h": "int16"}.get(kind, kind))


def _any_value(random: Random, rng: np.random.Generator, kind: defs.OpSchema.AttrType) -> Any:
    types = defs.OpSchema.AttrType
    match kind:
        case types.INT:
            return random.choice((-1, 0, 1, 2, 3, 7, 1 << 40))
        case types.INTS:
            return [random.choice((0, 1, 1, 2, 3, -1)) for _ in range(random.choice((1, 2, 2, 4, 8)))]
        case types.FLOAT:
            return random.choice((0.0, 1.0, 0.5, -1.0, 1e30))
        case types.FLOATS:
            return [random.choice((0.5, 1.0, 2.0)) for _ in range(random.choice((1, 2, 4)))]
        case types.STRING:
            return random.choice(("", "SAME_UPPER", "linear", "reflect", "edge", "ij,jk->ik", "forward", "none"))
        case types.STRINGS:
            return [random.choice(("Relu", "Tanh", "x"))]
        case types.TENSOR:
            return numpy_helper.from_array(_any_array(random, rng, [1, 3]))
    return None

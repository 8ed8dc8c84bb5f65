"""TensorFlow Lite's operators against LiteRT, and each of their options with another value than its default."""

from __future__ import annotations

import numpy as np
import pytest
import tflite

from benchmarks.tflite_file import TfliteFile
from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.importers.tflite.options import _default, fields
from bitkiln.pipeline.importers.tflite.sparse import Level, densified
from tests.pipeline.importers.test_tflite_layers import ints, normal

WINDOW = {"StrideH": 1, "StrideW": 1, "Padding": 0}
POOL = WINDOW | {"FilterHeight": 2, "FilterWidth": 2}
DILATED = WINDOW | {"DilationHFactor": 1, "DilationWFactor": 1}

#: Operator: (its further operands, the result's shape, options table, options), for an input of [1, 4, 6, 4].
OPERATORS = {
    "ABS": ([], None, "AbsOptions", {}),
    "ADD": ([normal(4)], None, "AddOptions", {}),
    "AVERAGE_POOL_2D": ([], None, "Pool2DOptions", POOL),
    "BATCH_MATMUL": ([normal(1, 4, 4, 4)], None, "BatchMatMulOptions", {}),
    "CONCATENATION": ([normal(1, 4, 6, 2)], (1, 4, 6, 6), "ConcatenationOptions", {"Axis": 3}),
    "CONV_2D": ([normal(4, 3, 3, 4), normal(4)], None, "Conv2DOptions", DILATED),
    "COS": ([], None, "CosOptions", {}),
    "DEPTHWISE_CONV_2D": (
        [normal(1, 3, 3, 4), normal(4)],
        None,
        "DepthwiseConv2DOptions",
        DILATED | {"DepthMultiplier": 1},
    ),
    "DEPTH_TO_SPACE": ([], (1, 8, 12, 1), "DepthToSpaceOptions", {"BlockSize": 2}),
    "DIV": ([np.abs(normal(4)) + 1], None, "DivOptions", {}),
    "ELU": ([], None, "", {}),
    "EXP": ([], None, "ExpOptions", {}),
    "EXPAND_DIMS": ([ints(1)], (1, 1, 4, 6, 4), "ExpandDimsOptions", {}),
    "FLOOR": ([], None, "", {}),
    "FLOOR_DIV": ([np.abs(normal(4)) + 1], None, "FloorDivOptions", {}),
    "FLOOR_MOD": ([np.abs(normal(4)) + 1], None, "FloorModOptions", {}),
    "FULLY_CONNECTED": ([normal(5, 4), normal(5)], (24, 5), "FullyConnectedOptions", {}),
    "GATHER": ([ints(2, 0)], (1, 4, 6, 2), "GatherOptions", {"Axis": 3}),
    "GELU": ([], None, "GeluOptions", {}),
    "HARD_SWISH": ([], None, "HardSwishOptions", {}),
    "L2_NORMALIZATION": ([], None, "L2NormOptions", {}),
    "LEAKY_RELU": ([], None, "LeakyReluOptions", {"Alpha": 0.25}),
    "LOCAL_RESPONSE_NORMALIZATION": (
        [],
        None,
        "LocalResponseNormalizationOptions",
        {"Radius": 1, "Bias": 1.0, "Alpha": 0.5, "Beta": 0.75},
    ),
    "LOGISTIC": ([], None, "", {}),
    "LOG_SOFTMAX": ([], None, "LogSoftmaxOptions", {}),
    "MAXIMUM": ([normal(4)], None, "MaximumMinimumOptions", {}),
    "MAX_POOL_2D": ([], None, "Pool2DOptions", POOL),
    "MEAN": ([ints(1, 2)], (1, 4), "ReducerOptions", {}),
    "MINIMUM": ([normal(4)], None, "MaximumMinimumOptions", {}),
    "MIRROR_PAD": ([np.int32([[0, 0], [1, 1], [0, 0], [0, 0]])], (1, 6, 6, 4), "MirrorPadOptions", {}),
    "MUL": ([normal(4)], None, "MulOptions", {}),
    "NEG": ([], None, "NegOptions", {}),
    "PACK": ([normal(1, 4, 6, 4)], (1, 2, 4, 6, 4), "PackOptions", {"ValuesCount": 2, "Axis": 1}),
    "PAD": ([np.int32([[0, 0], [1, 0], [0, 2], [0, 0]])], (1, 5, 8, 4), "PadOptions", {}),
    "PRELU": ([normal(1, 1, 4)], None, "", {}),
    "REDUCE_MAX": ([ints(3)], (1, 4, 6), "ReducerOptions", {}),
    "RELU": ([], None, "", {}),
    "RELU6": ([], None, "", {}),
    "RESHAPE": ([ints(1, 96)], (1, 96), "ReshapeOptions", {}),
    "RESIZE_BILINEAR": ([ints(7, 9)], (1, 7, 9, 4), "ResizeBilinearOptions", {}),
    "RESIZE_NEAREST_NEIGHBOR": ([ints(7, 9)], (1, 7, 9, 4), "ResizeNearestNeighborOptions", {}),
    "REVERSE_V2": ([ints(2)], None, "ReverseV2Options", {}),
    "SLICE": ([ints(0, 1, 0, 0), ints(1, 2, 6, 3)], (1, 2, 6, 3), "SliceOptions", {}),
    "SOFTMAX": ([], None, "SoftmaxOptions", {"Beta": 1.0}),
    "SPACE_TO_BATCH_ND": ([ints(2, 3), np.int32([[0, 0], [1, 2]])], (6, 2, 3, 4), "SpaceToBatchNDOptions", {}),
    "SPACE_TO_DEPTH": ([], (1, 2, 3, 16), "SpaceToDepthOptions", {"BlockSize": 2}),
    "SQUARED_DIFFERENCE": ([normal(4)], None, "SquaredDifferenceOptions", {}),
    "SQUEEZE": ([], (4, 6, 4), "SqueezeOptions", {}),
    "STRIDED_SLICE": (
        [ints(0, 1, 0, 0), ints(1, 3, 6, 4), ints(1, 1, 2, 1)],
        (1, 2, 3, 4),
        "StridedSliceOptions",
        {},
    ),
    "SUB": ([normal(4)], None, "SubOptions", {}),
    "SUM": ([ints(1)], (1, 6, 4), "ReducerOptions", {}),
    "TANH": ([], None, "", {}),
    "TILE": ([ints(1, 2, 1, 1)], (1, 8, 6, 4), "TileOptions", {}),
    "TRANSPOSE": ([ints(0, 2, 3, 1)], (1, 6, 4, 4), "TransposeOptions", {}),
}

#: Other values of options.
OTHERS = {float: (0.5, 2.0), bool: (True, False), int: (1, 2, 3, -1)}


@pytest.fixture(scope="module")
def litert():
    return pytest.importorskip(
        "ai_edge_litert.interpreter", reason="needs ai-edge-litert, whose kernels are the measure"
    )


def theirs(litert, content, x):
    """LiteRT's output by its own kernels; None where it refuses the file.

    Not by its reference kernels: that of local response normalisation leaves out the last channel of its windows.
    """
    try:
        kind = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        engine = litert.Interpreter(model_content=content, experimental_op_resolver_type=kind)
        engine.allocate_tensors()
        engine.set_tensor(engine.get_input_details()[0]["index"], x)
        engine.invoke()
        return engine.get_tensor(engine.get_output_details()[0]["index"])
    except (RuntimeError, ValueError):
        return None


def written(name, options):
    operands, shape, table, _ = OPERATORS[name]
    file = TfliteFile()
    source = file.tensor((1, 4, 6, 4))
    inputs = [source, *(file.constant(np.asarray(each)) for each in operands)]
    return file.write(source, file.operator(name, inputs, shape or (1, 4, 6, 4), table, **options))


def ours(folder, content, x):
    """The output by the reference; an error where the file is refused."""
    path = folder / "net.tflite"
    path.write_bytes(content)
    model = load_model(path)
    return reference.run(model.module, {model.module["main"].params[0].name: x})[0]


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(litert, tmp_path, name):
    x = normal(1, 4, 6, 4) * 3
    content = written(name, OPERATORS[name][3])
    want = theirs(litert, content, x)
    assert want is not None, "LiteRT refuses the test's file"
    got = ours(tmp_path, content, x)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def changed(name):
    """The operator's options, each with other values than it has."""
    table, given = OPERATORS[name][2:]
    for field in fields(table) if table else ():
        value = given.get(field, _default(table, field))
        for other in OTHERS.get(type(value), ()):
            if other != value:
                yield field, other, given | {field: other}


@pytest.mark.parametrize("name", [name for name in OPERATORS if OPERATORS[name][2] and fields(OPERATORS[name][2])])
def test_options_are_honoured_or_refused_by_name(litert, tmp_path, name):
    x = normal(1, 4, 6, 4) * 3
    faults = []
    for field, value, options in changed(name):
        content = written(name, options)
        try:
            got = ours(tmp_path, content, x)
        except BitkilnError as problem:
            if "internal error" in str(problem) or "operator 0" not in str(problem):
                faults.append(f"{field}={value}: {problem}")
            continue
        want = theirs(litert, content, x)
        if want is not None and (got.shape != want.shape or not np.allclose(got, want, rtol=1e-3, atol=1e-4)):
            faults.append(f"{field}={value}: {got.shape} {got.ravel()[:4]} for {want.shape} {want.ravel()[:4]}")
    assert not faults, "\n".join(faults)


def test_every_operator_that_is_imported_has_a_number():
    from bitkiln.pipeline.importers.tflite import _BUILTIN

    for name in _BUILTIN:
        assert hasattr(tflite.BuiltinOperator, name), name


def test_batch_to_space_is_the_inverse(litert, tmp_path):
    file = TfliteFile()
    source = file.tensor((1, 4, 6, 4))
    edges = file.constant(np.int32([[0, 0], [1, 2]]))
    blocks = file.constant(ints(2, 3))
    batch = file.operator("SPACE_TO_BATCH_ND", [source, blocks, edges], (6, 2, 3, 4))
    content = file.write(source, file.operator("BATCH_TO_SPACE_ND", [batch, blocks, edges], (1, 4, 6, 4)))
    x = normal(1, 4, 6, 4)
    np.testing.assert_array_equal(ours(tmp_path, content, x), x)
    np.testing.assert_array_equal(theirs(litert, content, x), x)


@pytest.mark.parametrize("padding", [1, 2])
def test_transposed_convolutions_of_mediapipe(tmp_path, padding):
    x, weight, bias = normal(1, 4, 5, 3), normal(2, 3, 3, 3), normal(2)
    full = np.zeros((1, 4 * 2 + 1, 5 * 2 + 1, 2), np.float32)
    for row in range(4):
        for column in range(5):
            full[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3] += np.einsum(
                "i,okli->klo", x[0, row, column], weight
            )
    want = full[:, :8, :10] if padding == 1 else full
    file = TfliteFile()
    source = file.tensor(x.shape)
    options = np.int32([padding, 2, 2]).tobytes()
    inputs = [source, file.constant(weight), file.constant(bias)]
    made = file.custom("Convolution2DTransposeBias", inputs, want.shape, options=options)
    np.testing.assert_allclose(ours(tmp_path, file.write(source, made), x), want + bias, rtol=1e-5, atol=1e-5)


def test_sparse_constants_are_made_dense():
    """Rows of a matrix, and blocks of 2x2 in one."""
    dense = np.array([[0, 5, 0, 0], [0, 0, 0, 0], [7, 0, 0, 8]], np.float32)
    rows = [Level(3), Level(0, (0, 1, 1, 3), (1, 0, 3))]
    np.testing.assert_array_equal(densified(np.float32([5, 7, 8]), (3, 4), (0, 1), (), rows), dense)
    blocked = np.zeros((4, 4), np.float32)
    blocked[2:, :2] = [[1, 2], [3, 4]]
    levels = [Level(2), Level(0, (0, 0, 1), (0,)), Level(2), Level(2)]
    np.testing.assert_array_equal(densified(np.float32([1, 2, 3, 4]), (4, 4), (0, 1, 2, 3), (0, 1), levels), blocked)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_come_through_densify(tmp_path, dtype):
    """Converters put DENSIFY behind sparse weights, and DEQUANTIZE behind it where they are of half precision."""
    weight, x = np.arange(6).reshape(2, 3).astype(dtype), np.float32([[1, -2, 3]])
    file = TfliteFile()
    source = file.tensor(x.shape)
    made = file.operator("DENSIFY", [file.constant(weight)], weight.shape, dtype=dtype)
    if dtype == "float16":
        made = file.operator("DEQUANTIZE", [made], weight.shape)
    result = file.operator("FULLY_CONNECTED", [source, made], (1, 2), "FullyConnectedOptions")
    np.testing.assert_array_equal(ours(tmp_path, file.write(source, result), x), x @ weight.astype(np.float32).T)


@pytest.mark.parametrize(
    "levels",
    [
        [Level(3), Level(0, (0, 1, 1, 9), (1, 0, 3))],
        [Level(3), Level(0, (0, 1), (1,))],
        [Level(3), Level(0, (0, 1, 1, 3), (1, 0, 9))],
        [Level(3)],
        [Level(300), Level(300)],
    ],
)
def test_damaged_sparse_constants(levels):
    with pytest.raises(ValueError, match=r"its |it has"):
        densified(np.float32([5, 7, 8]), (3, 4), (0, 1), (), levels)


def test_a_reshape_to_no_axes(tmp_path):
    """Its shape is a constant without elements, which has no bytes in the file."""
    x = np.float32([[3]])
    file = TfliteFile()
    source = file.tensor(x.shape)
    scalar = file.operator("RESHAPE", [source, file.constant(np.zeros(0, np.int32))], (), "ReshapeOptions")
    result = file.operator("ADD", [scalar, source], (1, 1), "AddOptions")
    np.testing.assert_array_equal(ours(tmp_path, file.write(source, result), x), [[6]])

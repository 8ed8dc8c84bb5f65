"""No field of an ELL archive is ignored: each, changed, changes the result or is refused; or it is known to say nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.importers.ell.fields import READ, void_fields

RNG = np.random.default_rng(11)
X = RNG.normal(size=(1, 4, 4, 2)).astype(np.float32)
SLOPES = RNG.uniform(0.1, 0.9, (4, 4, 2))
ALPHA = {"alpha_rows": 4, "alpha_columns": 4, "alpha_channels": 2, "alpha_values": SLOPES.ravel().tolist()}


def numbers(*shape: int) -> list[float]:
    return RNG.normal(size=shape).round(3).ravel().tolist()


def window(filters: int, channels: int) -> dict[str, Any]:
    weights = {"weights_rows": 3 * filters, "weights_columns": 3, "weights_channels": channels}
    return {"receptiveField": 3, "stride": 1, **weights, "weights_values": numbers(filters, 3, 3, channels)}


BITS = {
    "receptiveField": 3,
    "stride": 1,
    "method": 1,
    "weightsScale": 1,
    "binarizedWeights_numVectors": 2,
    "binarizedWeights_values": [int(RNG.integers(1 << 18)) for _ in range(2)],
    "filterMeans": [1.5, 0.25],
}

#: Every kind of layer: (type, active size of its result, own fields, input padding).
LAYERS = [
    ("ScalingLayer<float>", (4, 4, 2), {"scales": [2, -3]}),
    ("ConvolutionalLayer<float>", (4, 4, 2), window(2, 2) | {"method": 0, "numFiltersAtATime": 8}, 1, 1),
    ("ActivationLayer<float>", (4, 4, 2), {"activation": {"_type": "ParametricReLUActivation<float>", **ALPHA}}),
    ("ActivationLayer<float,ParametricReLUActivation>", (4, 4, 2), ALPHA),
    ("ActivationLayer<float>", (4, 4, 2), {"activation": {"_type": "LeakyReLUActivation<float>", "leakyFactor": 0.3}}),
    ("ActivationLayer<float,LeakyReLUActivation>", (4, 4, 2), {"leakyFactor": 0.3}),
    (
        "BatchNormalizationLayer<float>",
        (4, 4, 2),
        {"multiplicationValues": [2, 3], "additionValues": [0.1, -0.2], "epsilon": 1e-5, "epsilonSummand": 1},
    ),
    ("BinaryConvolutionalLayer<float>", (4, 4, 2), BITS, 1, 1),
    ("BiasLayer<float>", (4, 4, 2), {"bias": [0.5, 1.5]}),
    ("PoolingLayer<float,MeanPoolingFunction>", (2, 2, 2), {"poolingSize": 2, "stride": 2}),
    (
        "FullyConnectedLayer<float>",
        (1, 1, 3),
        {"weights_rows": 3, "weights_columns": 8, "weights_values": [each / 100 for each in numbers(3, 8)]},
    ),
    ("SoftmaxLayer<float>", (1, 1, 3), {}),
]


def chain(ell: Any) -> dict[str, Any]:
    """Nodes of every layer, each with all fields that ELL writes."""
    document = ell.chain((4, 4, 2), ell.tables(LAYERS))
    size, border = (4, 4, 2), 0
    for node in document["model"]["nodes"]:
        layer = node.get("layer")
        if layer is None:
            continue
        wanted = layer["outputPaddingSize"]
        rows, columns, channels = layer["outputShape"]
        result = (rows - 2 * wanted, columns - 2 * wanted, channels)
        node["inputLayout"], node["outputLayout"] = full_layout(ell, size, border), full_layout(ell, result, wanted)
        node["inputShape"] = [size[0] + 2 * border, size[1] + 2 * border, size[2]]
        size, border = result, wanted
    return with_outputs(document, "99")


def full_layout(ell: Any, size: tuple[int, int, int], border: int = 0) -> dict[str, Any]:
    layout = ell.layout(size, border)
    _, columns, channels = layout["extent"]
    return layout | {"increment": [columns * channels, channels, 1]}


def with_outputs(document: dict[str, Any], last: str) -> dict[str, Any]:
    names = {
        "inputNames": ["input"],
        "inputIds": ["1"],
        "outputNames": ["output"],
        "outputElements": [f"{last}.output"],
    }
    return document | names


def residual(ell: Any) -> dict[str, Any]:
    """The nodes that are no layers, with a border that is not zero behind a sum."""
    layers = [
        ("ConvolutionalLayer<float>", (4, 4, 2), window(2, 2), 1, 1),
        ("ScalingLayer<float>", (4, 4, 2), {"scales": [1, 3]}),
    ]
    conv, scaling = ell.tables(layers)
    plain, wide = full_layout(ell, (4, 4, 2)), full_layout(ell, (4, 4, 2), 1)
    nodes = [
        {"_type": "ClockNode<double>", "id": "0", "interval": 40, "lagThreshold": 100},
        {"_type": "SourceNode<float>", "id": "1", "shape": [4, 4, 2], "sourceFunctionName": "camera"},
        {"_type": "ReorderDataNode<float>", "id": "2", "input": ell.port("1"), "paddingValue": -2},
        {"_type": "ConvolutionalLayerNode<float>", "id": "3", "input": ell.port("2"), "layer": conv},
        {"_type": "BinaryOperationNode<float>", "id": "4", "input1": ell.port("1"), "input2": ell.port("3")},
        {"_type": "ConvolutionalLayerNode<float>", "id": "5", "input": ell.port("4"), "layer": copy.deepcopy(conv)},
        {"_type": "ScalingLayerNode<float>", "id": "6", "input": ell.port("5"), "layer": scaling},
        {"_type": "ConstantNode<float>", "id": "7", "values": numbers(2, 4, 2), "layout": full_layout(ell, (2, 4, 2))},
        {"_type": "SpliceNode<float>", "id": "8", "numInputs": 2, "input_0": ell.port("6"), "input_1": ell.port("7")},
        {"_type": "ReinterpretLayoutNode<float>", "id": "9", "input": ell.port("8")},
        {"_type": "SinkNode<float>", "id": "10", "input": ell.port("9"), "sinkFunctionName": "lamp"},
    ]
    nodes[2] |= {"inputLayout": plain, "outputLayout": copy.deepcopy(wide)}
    nodes[4] |= {"inputLayout1": plain, "inputLayout2": copy.deepcopy(plain), "outputLayout": wide}
    nodes[4] |= {"operation": "subtract", "padding": 3}
    nodes[9] |= {"outputLayout": full_layout(ell, (4, 6, 2))}
    return with_outputs(ell.document(nodes), "10")


def predictor(ell: Any) -> dict[str, Any]:
    document = ell.predictor("A", (4, 4, 2), ell.tables(LAYERS[:3]))
    nodes = document["model"]["nodes"]
    inner = next(node["predictor"] for node in nodes if "predictor" in node)
    inner["output"] = [1, 2]
    inner["inputLayer"] |= {"scale": 2, "data_rows": 4, "data_columns": 4, "data_channels": 2, "data_values": [1]}
    return with_outputs(document, document["model"]["nodes"][-1]["id"])


def kind_of(name: str, table: dict[str, Any]) -> str:
    """A table's kind; predictors and layouts need not say theirs."""
    kind = str(table.get("_type", "NeuralNetworkPredictor" if name == "predictor" else "")).partition("<")[0]
    return "LayerNode" if kind.endswith("LayerNode") else kind


def tables_of(value: Any, name: str = "", path: tuple = ()) -> Iterator[tuple[tuple, str]]:
    """(path, kind) of every table in an archive."""
    if isinstance(value, dict):
        yield path, kind_of(name, value)
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from tables_of(inner, str(key), (*path, key))


def at(document: Any, path: tuple) -> Any:
    for key in path:
        document = document[key]
    return document


#: Numbers that are all changed, so that it shows behind a binarisation.
WEIGHTS = ("alpha_values", "bias", "filterMeans", "multiplicationValues", "scales", "values", "weights_values")


def another(field: str, value: Any) -> Any:
    """Something of the same type that means something else."""
    if field in WEIGHTS:
        return [-1 - each for each in value]
    if isinstance(value, list):
        return value[:-1] if isinstance(value[0], dict) else [another("", value[0]), *value[1:]]
    if isinstance(value, str):
        return {"subtract": "add", "3.output": "1.output"}.get(value, "3.output")
    return 0 if field == "inputPaddingScheme" else value + 1


def result_of(ell: Any, document: dict[str, Any]) -> np.ndarray | None:
    """The network's output, None where it is refused in one line."""
    try:
        model = load_model(ell.dump(document))
    except ModelError as error:
        assert len(str(error).splitlines()) == 1
        return None
    if model.inputs[0].shape != X.shape:
        return None
    return reference.run(model.module, {"input": X})[0]


@pytest.mark.parametrize("make", [chain, residual, predictor])
def test_every_field_matters_or_is_known_not_to(ell, make):
    document = make(ell)
    plain = result_of(ell, document)
    assert plain is not None and np.isfinite(plain).all()
    faults = []
    for path, kind in tables_of(document):
        where = f"{'/'.join(map(str, path))} ({kind})"
        table = at(document, path)
        table["novelty"] = 1
        if result_of(ell, document) is not None:
            faults.append(f"{where} takes any field")
        del table["novelty"]
        for field, value in list(table.items()):
            if field in ("_type", "_version", "id", "metadata") or isinstance(value, dict):
                continue
            table[field] = another(field, value)
            result = result_of(ell, document)
            table[field] = value
            same = result is not None and np.array_equal(result, plain)
            if same and field in READ.get(kind, "").split() and not without_border(table, field):
                faults.append(f"{where}: {field} is ignored")
            if not same and field in void_fields(kind):
                faults.append(f"{where}: {field} is not void")
    assert not faults, "\n".join(faults)


def without_border(table: dict[str, Any], field: str) -> bool:
    """What a border of no width holds says nothing."""
    return field == "outputPaddingScheme" and table["outputPaddingSize"] == 0


def test_unknown_fields_and_later_versions_are_named(ell):
    document = chain(ell)
    layer = document["model"]["nodes"][1]["layer"]
    layer["dilation"] = 2
    with pytest.raises(ModelError, match=r"node 2 \(ScalingLayerNode<float>\).*'dilation'"):
        load_model(ell.dump(document))
    del layer["dilation"]
    layer["_version"] = "11"
    with pytest.raises(ModelError, match=r"node 2 .*archive version 11"):
        load_model(ell.dump(document))


def test_the_border_behind_a_sum_holds_what_the_file_says(ell):
    """ELL's sums write their own border, which the next convolution reads."""
    ones = {"receptiveField": 3, "stride": 1, "weights_rows": 3, "weights_columns": 3, "weights_channels": 1}
    layers = [("ConvolutionalLayer<float>", (2, 2, 1), ones | {"weights_values": [1] * 9}, 1)]
    nodes = [
        {"_type": "InputNode<float>", "id": "1", "layout": full_layout(ell, (2, 2, 1))},
        {"_type": "BinaryOperationNode<float>", "id": "2", "input1": ell.port("1"), "input2": ell.port("1")},
        {"_type": "ConvolutionalLayerNode<float>", "id": "3", "input": ell.port("2"), "layer": ell.tables(layers)[0]},
    ]
    nodes[1] |= {"operation": "add", "padding": 10, "outputLayout": full_layout(ell, (2, 2, 1), 1)}
    model = load_model(ell.dump(with_outputs(ell.document(nodes), "3")))
    got = reference.run(model.module, {"input": np.ones((1, 2, 2, 1), np.float32)})[0]
    np.testing.assert_array_equal(got, np.full((1, 2, 2, 1), 4 * 2 + 5 * 10))


def test_the_map_says_which_nodes_are_outputs(ell):
    document = chain(ell)
    document["outputElements"] = ["2.output"]
    model = load_model(ell.dump(document))
    np.testing.assert_allclose(reference.run(model.module, {"input": X})[0], X * np.float32([2, -3]))
    document["outputElements"] = ["77.output"]
    with pytest.raises(ModelError, match="outputElements name node 77"):
        load_model(ell.dump(document))


@pytest.mark.parametrize(
    ("kind", "expected"), [("HardTanhActivation", [-1, 0.5, 1]), ("HardSigmoidActivation", [0, 0.6, 1])]
)
def test_hard_activations(ell, kind, expected):
    path = ell.write(
        "C", (1, 1, 3), [("ActivationLayer<float>", (1, 1, 3), {"activation": {"_type": f"{kind}<float>"}})]
    )
    model = load_model(path)
    got = reference.run(model.module, {"input": np.float32([[[[-9, 0.5, 9]]]])})[0]
    np.testing.assert_allclose(got.ravel(), expected, rtol=1e-6)

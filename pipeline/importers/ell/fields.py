"""No field of an archive is ignored: each is read, is held against what it repeats, or says nothing of the network's values.

The names are those that ELL's classes write (microsoft/ELL, ``WriteToArchive`` in libraries/model, nodes, predictors/neural and
utilities). A field that none of them writes is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitkiln.pipeline.errors import UnsupportedLayer

#: The last of ELL's archive versions, of 2019 (utilities/include/ArchiveVersion.h).
LAST_VERSION = 10

#: Every table's type and version; free text of users and converters; the node's own port, which its place in the file says.
_ANYWHERE = "_type _version id metadata"

_RESULT = "outputShape outputPaddingScheme outputPaddingSize"
_SHAPES = f"inputPaddingSize {_RESULT}"
_ALPHA = "alpha_rows alpha_columns alpha_channels alpha_values"
_NODE_OF_LAYER = "input layer inputLayout outputLayout inputShape"

#: What is read, or held against what it repeats, of each kind of table.
READ: Mapping[str, str] = {
    "Map": "model outputElements",
    "Model": "nodes",
    "InputPort": "input",
    "MemoryLayout": "size extent offset order increment",
    "InputNode": "size shape layout",
    "SourceNode": "output outputLayout shape layout size",
    "OutputNode": "input",
    "SinkNode": "input",
    "ClockNode": "",
    "NeuralNetworkPredictorNode": "input predictor",
    "NeuralNetworkPredictor": "inputLayer layers",
    "LayerNode": _NODE_OF_LAYER,
    "ReorderDataNode": "input inputLayout outputLayout paddingValue",
    "ReinterpretLayoutNode": "input outputLayout",
    "BinaryOperationNode": "input1 input2 inputLayout1 inputLayout2 operation outputLayout padding",
    "ConstantNode": "values layout shape",
    "SpliceNode": "inputs numInputs",
    "InputLayer": f"{_RESULT} scale",
    "ActivationLayer": f"{_SHAPES} activation leakyFactor {_ALPHA}",
    "ReLUActivation": "",
    "LeakyReLUActivation": "leakyFactor",
    "ParametricReLUActivation": _ALPHA,
    "SigmoidActivation": "",
    "TanhActivation": "",
    "HardSigmoidActivation": "",
    "HardTanhActivation": "",
    "BatchNormalizationLayer": f"{_SHAPES} multiplicationValues additionValues",
    "BiasLayer": f"{_SHAPES} bias",
    "BinaryConvolutionalLayer": (
        f"{_SHAPES} inputPaddingScheme receptiveField stride weightsScale binarizedWeights_numVectors "
        "binarizedWeights_values filterMeans"
    ),
    "ConvolutionalLayer": (
        f"{_SHAPES} receptiveField stride weights_rows weights_columns weights_channels weights_values"
    ),
    "FullyConnectedLayer": f"{_SHAPES} weights_rows weights_columns weights_values",
    "PoolingLayer": f"{_SHAPES} poolingSize stride",
    "ScalingLayer": f"{_SHAPES} scales",
    "SoftmaxLayer": _SHAPES,
}

#: What says nothing of the values, and why.
_VOID: Mapping[str, Mapping[str, str]] = {
    "Map": {
        "inputNames": "a name for callers",
        "inputIds": "there is one input node",
        "outputNames": "names for callers",
    },
    "InputPort": {
        "nodeId": "the node it is in",
        "name": "the name that the node has it by",
        "type": "what numbers it holds, all of which are computed in float32",
    },
    "SourceNode": {"input": "a clock's tick", "sourceFunctionName": "who is asked for the input"},
    "OutputNode": {"layout": "its input's", "shape": "its input's"},
    "SinkNode": {
        "trigger": "when the output is handed on",
        "sinkFunctionName": "to whom it is handed on",
        "shape": "its input's",
    },
    "ClockNode": {
        "input": "the time",
        "output": "a tick",
        "interval": "how often inputs are asked for",
        "lagThreshold": "when to complain of lateness",
        "lagNotificationFunctionName": "to whom",
    },
    "NeuralNetworkPredictor": {"output": "results of the last run"},
    "InputLayer": {
        "inputPaddingSize": "the network's input has no border",
        **{f"data_{part}": "inputs of the last run" for part in ("rows", "columns", "channels", "values")},
    },
    "BatchNormalizationLayer": {
        "epsilon": "multiplicationValues are made with it",
        "epsilonSummand": "multiplicationValues are made with it",
    },
    "BinaryConvolutionalLayer": {"method": "how ELL computes the same values"},
    "ConvolutionalLayer": {
        "method": "how ELL computes the same values",
        "numFiltersAtATime": "how ELL computes the same values",
    },
}

#: Of every layer but binary convolutions, of which it says whether the border counts.
_BORDER = {"inputPaddingScheme": "the border holds what the layer before has written"}


def void_fields(kind: str) -> Mapping[str, str]:
    """The fields of tables of a kind that say nothing of the values, and why."""
    layer = kind.endswith("Layer") and kind != "BinaryConvolutionalLayer"
    return {**_VOID.get(kind, {}), **(_BORDER if layer else {})}


#: Names a table goes by, besides its own.
_ALIASES = {"DynamicMap": "Map"}


def check_fields(where: str, kind: str, table: Mapping[str, Any]) -> None:
    """UnsupportedLayer for a field of ``table``, a ``kind`` of ``READ``, that nothing here knows, or for a later version."""
    kind = _ALIASES.get(kind, kind)
    kind = "LayerNode" if kind.endswith("LayerNode") else kind
    known = {*_ANYWHERE.split(), *READ.get(kind, "").split(), *void_fields(kind)}
    for name in table:
        if name not in known and not (kind == "SpliceNode" and name.startswith("input_")):
            raise UnsupportedLayer(f"{where}: bitkiln does not know its field {name!r:.60}")
    version = str(table.get("_version", 0))
    if version.isdigit() and int(version[:9]) > LAST_VERSION:
        raise UnsupportedLayer(f"{where}: is of archive version {version:.20}; versions up to {LAST_VERSION} are known")

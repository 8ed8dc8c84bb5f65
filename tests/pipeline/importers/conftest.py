"""Small models of both formats, written where a test needs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

WriteOnnx = Callable[..., Path]


@pytest.fixture
def write_onnx(tmp_path: Path) -> WriteOnnx:
    """``write_onnx(nodes, weights, shape, opset=13)``: a model from input ``x`` to output ``y``; its path."""

    def write(
        nodes: Sequence[onnx.NodeProto],
        weights: dict[str, np.ndarray],
        shape: Sequence[int | str | None] | None,
        opset: int = 13,
        name: str = "model.onnx",
        **options: Any,
    ) -> Path:
        graph = helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info("x", options.pop("dtype", TensorProto.FLOAT), shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, key) for key, array in weights.items()],
        )
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("onnx.brevitas", 1)]
        imports.append(helper.make_opsetid("qonnx.custom_op.general", 1))
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        helper.set_model_props(model, options.pop("notes", {}))
        path = tmp_path / name
        onnx.save(model, path, **options)
        return path

    return write


class Ell:
    """Builds the JSON of ELL archives in the three generations from a chain of layers.

    A layer is (type, active output size, own fields, input padding, input scheme).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, generation: str, size: Sequence[int], layers: Sequence[tuple], name: str = "net.ell") -> Path:
        tables = self.tables(layers)
        document = self.chain(size, tables) if generation == "C" else self.predictor(generation, size, tables)
        return self.dump(document, name)

    def dump(self, document: Any, name: str = "net.ell") -> Path:
        path = self.folder / name
        path.write_text(json.dumps(document))
        return path

    @staticmethod
    def tables(layers: Sequence[tuple]) -> list[dict[str, Any]]:
        full = [(*layer, 0, 0)[:5] for layer in layers]
        follow = [*((layer[3], layer[4]) for layer in full[1:]), (0, 0)]
        return [
            {
                "_type": kind,
                "_version": "0",
                "inputPaddingScheme": scheme,
                "inputPaddingSize": padding,
                "outputShape": [size[0] + 2 * out, size[1] + 2 * out, size[2]],
                "outputPaddingScheme": out_scheme,
                "outputPaddingSize": out,
                **fields,
            }
            for (kind, size, fields, padding, scheme), (out, out_scheme) in zip(full, follow, strict=True)
        ]

    @staticmethod
    def layout(size: Sequence[int], padding: int = 0) -> dict[str, Any]:
        return {
            "_type": "MemoryLayout",
            "size": list(size),
            "extent": [size[0] + 2 * padding, size[1] + 2 * padding, size[2]],
            "offset": [padding, padding, 0],
            "order": [0, 1, 2],
        }

    @staticmethod
    def port(source: str) -> dict[str, Any]:
        return {"_type": "InputPort<float>", "type": 1, "input": f"{source}.output"}

    def document(self, nodes: list[dict[str, Any]]) -> dict[str, Any]:
        return {"_type": "Map", "_version": "2", "model": {"_type": "Model", "_version": "2", "nodes": nodes}}

    def chain(self, size: Sequence[int], tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
        nodes = [{"_type": "InputNode<float>", "id": "1", "layout": self.layout(size)}]
        if tables[0]["inputPaddingSize"]:
            border = self.layout(size, tables[0]["inputPaddingSize"])
            nodes.append(
                {"_type": "ReorderDataNode<float>", "id": "2", "input": self.port("1"), "outputLayout": border}
            )
        for table in tables:
            kind = table["_type"].replace("Layer<", "LayerNode<")
            source = nodes[-1]["id"]
            nodes.append({"_type": kind, "id": str(int(source) + 1), "input": self.port(source), "layer": table})
        nodes.append({"_type": "OutputNode<float>", "id": "99", "input": self.port(nodes[-1]["id"])})
        return self.document(nodes)

    def predictor(self, generation: str, size: Sequence[int], tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
        padding = tables[0]["inputPaddingSize"]
        first = {
            "_type": "InputLayer<float>",
            "inputPaddingScheme": 0,
            "inputPaddingSize": 0,
            "outputShape": [size[0] + 2 * padding, size[1] + 2 * padding, size[2]],
            "outputPaddingScheme": 0,
            "outputPaddingSize": padding,
            "scale": 1,
        }
        source, sink = ("InputNode", "OutputNode") if generation == "A" else ("SourceNode", "SinkNode")
        flat = int(np.prod(size))
        nodes = [
            {"_type": f"{source}<float>", "id": "10", "size": flat},
            {
                "_type": "NeuralNetworkPredictorNode<float>",
                "id": "11",
                "input": self.port("10"),
                "predictor": {"_type": "NeuralNetworkPredictor<float>", "inputLayer": first, "layers": list(tables)},
            },
            {"_type": f"{sink}<float>", "id": "12", "input": self.port("11")},
        ]
        if generation == "B":
            nodes.insert(0, {"_type": "ClockNode", "id": "9"})
            nodes[1]["input"] = self.port("9")
        return self.document(nodes)


@pytest.fixture
def ell(tmp_path: Path) -> Ell:
    return Ell(tmp_path)

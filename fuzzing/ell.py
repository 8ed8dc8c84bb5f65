"""ELL archives of the three generations, damaged as JSON, as text, and as the zip around it."""

from __future__ import annotations

import copy
import io
import json
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from bitkiln.pipeline.importers.ell.writer import MIN, ZEROS, LayerRecord, numbers, write_archive
from fuzzing.bytes_mutation import FLOATS, NUMBERS, TEXTS, damage
from fuzzing.case import Case

_Json = Any


def case(random: Random, index: int) -> Case:
    """A damaged archive, plain or zipped."""
    if index % 8 == 0:
        return _bomb(random)
    if index % 8 == 1:
        content, how = damage(random, _text(random.choice(_seeds())))
        return Case({"m.ell": content}, how)
    document = copy.deepcopy(random.choice(_seeds()))
    how = "; ".join(_mutate(random, document) for _ in range(random.choice((1, 1, 1, 2, 3))))
    if index % 8 != 2:
        return Case({"m.ell": _text(document)}, how)
    content, again = damage(random, _zipped({"m.ell": _text(document)}))
    return Case({"m.ell.zip": content}, f"{how}; zip {again}")


def damaged_file(random: Random, content: bytes) -> tuple[bytes, str]:
    """A user's archive, damaged as bytes or as JSON."""
    try:
        document = json.loads(content)
    except ValueError:
        return damage(random, content)
    if random.random() < 0.3:
        return damage(random, content)
    return _text(document), _mutate(random, document)


@cache
def _seeds() -> list[_Json]:
    """One network in generations A, B and C."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.ell.zip"
        write_archive(path, (8, 8, 3), _layers(np.random.default_rng(1)))
        with zipfile.ZipFile(path) as archive:
            chained = json.loads(archive.read(archive.namelist()[0]))
    return [chained, chained, _predictor(chained, "A"), _predictor(chained, "B")]


def _layers(rng: np.random.Generator) -> list[LayerRecord]:
    def floats(*shape: int) -> list[Any]:
        return numbers(rng.normal(size=shape).round(3))

    scales = {"scales": floats(4)}
    normal = {"multiplicationValues": floats(4), "additionValues": floats(4), "epsilon": 1e-5, "epsilonSummand": 1}
    convolution = {
        "receptiveField": 3,
        "stride": 1,
        "method": 1,
        "weights_rows": 12,
        "weights_columns": 3,
        "weights_channels": 3,
        "weights_values": floats(4, 3, 3, 3),
    }
    binary = {
        "receptiveField": 3,
        "stride": 1,
        "method": 1,
        "weightsScale": 1,
        "binarizedWeights_numVectors": 4,
        "binarizedWeights_values": [int(word) for word in rng.integers(0, 1 << 36, 4)],
        "filterMeans": floats(4),
    }
    prelu = {
        "activation": {
            "_type": "ParametricReLUActivation<float>",
            "alpha_rows": 8,
            "alpha_columns": 8,
            "alpha_channels": 4,
            "alpha_values": [0.25] * 256,
        }
    }
    leaky = {"activation": {"_type": "LeakyReLUActivation<float>", "leakyFactor": 0.1}}
    dense = {"weights_rows": 5, "weights_columns": 64, "weights_values": floats(5, 64)}
    pooling = {"poolingSize": 2, "stride": 2}
    return [
        LayerRecord("ScalingLayer<float>", (8, 8, 3), {"scales": [1.0, 0.5, 2.0]}),
        LayerRecord("ConvolutionalLayer<float>", (8, 8, 4), convolution, 1, ZEROS),
        LayerRecord("BatchNormalizationLayer<float>", (8, 8, 4), normal),
        LayerRecord("BinaryConvolutionalLayer<float>", (8, 8, 4), binary, 1, ZEROS),
        LayerRecord("BiasLayer<float>", (8, 8, 4), {"bias": floats(4)}),
        LayerRecord("ActivationLayer<float>", (8, 8, 4), prelu),
        LayerRecord("PoolingLayer<float,MaxPoolingFunction>", (4, 4, 4), pooling, 0, MIN),
        LayerRecord("ScalingLayer<float>", (4, 4, 4), scales),
        LayerRecord("ActivationLayer<float>", (4, 4, 4), leaky),
        LayerRecord("FullyConnectedLayer<float>", (1, 1, 5), dense),
        LayerRecord("SoftmaxLayer<float>", (1, 1, 5)),
    ]


def _predictor(document: _Json, generation: str) -> _Json:
    """A network of generation C as one predictor node, as generations A and B have it."""
    source, sink = ("InputNode", "OutputNode") if generation == "A" else ("SourceNode", "SinkNode")
    layers = [node["layer"] for node in document["model"]["nodes"] if "layer" in node]
    first = {
        "_type": "InputLayer<float>",
        "inputPaddingScheme": 0,
        "inputPaddingSize": 0,
        "outputShape": [8, 8, 3],
        "outputPaddingScheme": 0,
        "outputPaddingSize": 0,
        "scale": 1,
    }
    predictor = {"_type": "NeuralNetworkPredictor<float>", "inputLayer": first, "layers": copy.deepcopy(layers)}
    nodes = [
        {"_type": f"{source}<float>", "id": "10", "size": 192},
        {
            "_type": "NeuralNetworkPredictorNode<float>",
            "id": "11",
            "input": {"_type": "InputPort<float>", "type": 1, "input": "10.output"},
            "predictor": predictor,
        },
        {"_type": f"{sink}<float>", "id": "12", "input": {"_type": "InputPort<float>", "input": "11.output"}},
    ]
    return {"_type": "Map", "_version": "2", "model": {"_type": "Model", "nodes": nodes}}


def _text(document: _Json) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), member, method)
    return content.getvalue()


def _places(value: _Json) -> Iterator[tuple[_Json, Any]]:
    """(table or list, key or index) of every value; of long lists, the first few."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:6]) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def _mutate(random: Random, document: _Json) -> str:
    mutation = random.choice(_MUTATIONS)
    return f"{mutation.__name__.strip('_')} {mutation(random, document) or ''}".strip()


def _replace(random: Random, document: _Json) -> str:
    """A value becomes another of its own type, or of any."""
    holder, key = random.choice(list(_places(document)))
    old = holder[key]
    if type(old) in (int, float) and random.random() < 0.8:
        holder[key] = random.choice((*NUMBERS, *FLOATS, old + 1, old - 1, -old))
    elif isinstance(old, str) and random.random() < 0.6:
        strings = [h[k] for h, k in _places(document) if isinstance(h[k], str)]
        holder[key] = random.choice((*TEXTS, *strings, "\udc80"))
    else:
        holder[key] = random.choice(
            (None, True, 1e300, 10**400, -1, 0.5, [], {}, [[]], "x", [None], {"a": 1}, "1.output")
        )
    return f"{key}: {str(old)[:20]!r} -> {str(holder[key])[:20]!r}"


def _remove(random: Random, document: _Json) -> str:
    holder, key = random.choice(list(_places(document)))
    del holder[key]
    return str(key)


def _copy_value(random: Random, document: _Json) -> str:
    """A value takes the place of another: tables for numbers, foreign layers, doubled nodes."""
    places = list(_places(document))
    (source, source_key), (target, target_key) = random.choice(places), random.choice(places)
    value = copy.deepcopy(source[source_key])
    if isinstance(target, list) and random.random() < 0.5:
        target.insert(target_key, value)
    else:
        target[target_key] = value
    return f"{source_key} -> {target_key}"


def _change_list(random: Random, document: _Json) -> str:
    lists = [(holder[key], key) for holder, key in _places(document) if isinstance(holder[key], list) and holder[key]]
    none: list[_Json] = [0]
    values, key = random.choice(lists) if lists else (none, "none")
    at = random.randrange(len(values))
    match random.randrange(5):
        case 0:
            del values[at:]
        case 1:
            values.extend(copy.deepcopy(values))
        case 2:
            values.reverse()
        case 3:
            values[at] = random.choice((*NUMBERS, *FLOATS, "x", None, [1], {}))
        case 4:
            values.append(values[at])
    return str(key)


def _rewire(random: Random, document: _Json) -> str:
    """A node takes its input from any node: cycles, dead ends, doubled inputs."""
    nodes = (document.get("model") or {}).get("nodes") if isinstance(document, dict) else None
    nodes = [node for node in nodes if isinstance(node, dict)] if isinstance(nodes, list) else []
    ports = [node["input"] for node in nodes if isinstance(node.get("input"), dict)]
    if not ports:
        return "nothing"
    port, source = random.choice(ports), str(random.choice(nodes).get("id"))
    port["input"] = random.choice((f"{source}.output", f"{{{source}.output,{source}.output}}", f"{source}.output[0:3]"))
    return port["input"][:60]


_MUTATIONS: tuple[Callable[[Random, _Json], str], ...] = (
    _replace,
    _replace,
    _replace,
    _remove,
    _copy_value,
    _change_list,
    _rewire,
)


def _bomb(random: Random) -> Case:
    """A small archive that asks for a great deal, or reaches outside."""
    build = random.choice(_BOMBS)
    files, links = build(random)
    return Case(files, build.__name__.strip("_"), links=links)


_Files = tuple[dict[str, bytes], dict[str, str]]


def _deep_json(random: Random) -> _Files:
    depth = random.choice((1000, 10**5, 10**6))
    opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return {"m.ell": opening * depth + (closing * depth if random.random() < 0.5 else b"")}, {}


def _wide_json(random: Random) -> _Files:
    """Text whose values take much more room than it does."""
    item = random.choice((b"[],", b"{},", b"0,", b"1000,", b'"",', b'{"a":1},', b"1e9,"))
    count = random.choice((10**6, 10**7, 3 * 10**7))
    text = b'{"model":{"nodes":[{"id":"1","a":[' + item * count + b"0]}]}}"
    return ({"m.ell.zip": _zipped({"m.ell": text})} if random.random() < 0.7 else {"m.ell": text[: 10**8]}), {}


def _odd_numbers(random: Random) -> _Files:
    text = _text(random.choice(_seeds())).decode()
    number = random.choice(("1e999", "-1e999", "NaN", "Infinity", "9" * 5000, "1e-999", "0." + "1" * 5000))
    at = [index for index in range(len(text) - 2) if text[index : index + 2] == ": " and text[index + 2].isdigit()]
    start = random.choice(at) + 2
    end = start
    while text[end] in "0123456789.e-+":
        end += 1
    return {"m.ell": (text[:start] + number + text[end:]).encode()}, {}


def _zip_bomb(random: Random) -> _Files:
    size = random.choice((1 << 20, 1 << 26, (1 << 30) + 1))
    member = random.choice((b"0", b" ", b"[0,"))
    return {"m.ell.zip": _zipped({"m.ell": member * (size // len(member))})}, {}


def _zip_slip(random: Random) -> _Files:
    name = random.choice(("../m.ell", "/tmp/m.ell", "a/../../m.ell", "C:\\m.ell", "..\\m.ell", "m.ell\0x", "x\nm.ell"))
    text = _text(_seeds()[0])
    return {"m.ell.zip": _zipped({name: text} if random.random() < 0.5 else {name: text, "m.ell": text})}, {}


def _zip_link(random: Random) -> _Files:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        link = zipfile.ZipInfo("m.ell")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, random.choice(("/etc/passwd", "/dev/zero", "m.ell")))
    return {"m.ell.zip": content.getvalue()}, {}


def _zip_of_many(random: Random) -> _Files:
    count = random.choice((10, 999, 1001, 20000))
    return {"m.ell.zip": _zipped({f"{index}.txt": b"x" for index in range(count)} | {"m.ell": _text(_seeds()[0])})}, {}


def _nested_zip(random: Random) -> _Files:
    content = _text(_seeds()[0])
    for _ in range(random.choice((1, 5))):
        content = _zipped({"m.ell": content})
    return {"m.ell.zip": content}, {}


def _zip_methods(random: Random) -> _Files:
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    content, _ = damage(random, _zipped({"m.ell": _text(_seeds()[0])}, method))
    return {"m.ell.zip": content}, {}


def _not_a_file(random: Random) -> _Files:
    target = random.choice(("/dev/zero", "/dev/null", "m.ell", "nowhere", "."))
    return {"m.ell": b""}, {"m.ell": target}


def _long_graph(random: Random) -> _Files:
    """Thousands of nodes in a row, the last first; or one that thousands read."""
    count = random.choice((100, 1000))
    document = copy.deepcopy(_seeds()[0])
    nodes = document["model"]["nodes"]
    bias = next(node for node in nodes if node["_type"].startswith("ScalingLayer"))
    chain = []
    for index in range(count):
        link = copy.deepcopy(bias)
        link["id"] = str(5000 + index)
        link["input"]["input"] = f"{5000 + index - 1}.output" if index else bias["input"]["input"]
        chain.append(link)
    sink = copy.deepcopy(nodes[-1])
    sink["id"] = "9999"
    sink["input"]["input"] = f"{5000 + count - 1}.output"
    document["model"]["nodes"] = [*chain[::-1], sink, *nodes]
    return {"m.ell": _text(document)}, {}


_BOMBS: tuple[Callable[[Random], _Files], ...] = (
    _deep_json,
    _wide_json,
    _odd_numbers,
    _odd_numbers,
    _zip_bomb,
    _zip_slip,
    _zip_link,
    _zip_of_many,
    _nested_zip,
    _zip_methods,
    _not_a_file,
    _long_graph,
)

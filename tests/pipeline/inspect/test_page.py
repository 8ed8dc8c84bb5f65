"""The page that shows a network: its blocks, what it says, and that nothing in it comes from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.inspect import inspect_model
from bitkiln.pipeline.inspect.blocks import blocks_of
from bitkiln.pipeline.inspect.page import render
from bitkiln.pipeline.inspect.result import Inspection, Row, Totals
from bitkiln.pipeline.model import TensorSpec
from tests.pipeline.inspect.networks import model_of, weight

RASP3B = [targets.load("rasp3b")]


def residual(emit, x):
    """A stem, and a binary convolution with its straight-through residue beside a shortcut."""
    stem = emit(relax.op.nn.conv2d(x, weight(4, 4, 3, 3), padding=1), "stem")
    relu = emit(relax.op.nn.relu(stem), "relu")
    moved = emit(relax.op.add(relu, relax.const(np.float32(-0.5))), "moved")
    less = emit(relax.op.subtract(emit(relax.op.sign(moved), "sign"), moved), "less")
    residue = emit(relax.op.add(less, moved), "residue")
    conv = emit(relax.op.nn.conv2d(residue, weight(4, 4, 3, 3, binary=True), padding=1), "conv")
    scaled = emit(relax.op.multiply(conv, relax.const(np.full((1, 4, 1, 1), 0.3, np.float32))), "scaled")
    return emit(relax.op.add(scaled, relu), "joined")


class Page(HTMLParser):
    """Elements with their attributes, and whether all are closed in order."""

    VOID = frozenset({"meta", "input", "br", "link", "img"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def having(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]


def page_of(found):
    page = Page(render(found))
    assert page.open == []
    return page


def test_blocks_gather_what_belongs_to_a_convolution():
    blocks = blocks_of(inspect_model(model_of(residual), RASP3B))
    assert [(block.name, [row.name for row in block.rows]) for block in blocks] == [
        ("x", []),
        ("stem", ["stem", "relu"]),
        ("conv", ["moved", "sign", "less", "residue", "conv", "scaled"]),
        ("joined", ["joined"]),
        ("y", []),
    ]
    assert [block.inputs for block in blocks] == [(), (0,), (1,), (2, 1), (3,)]


def test_signs_lead_and_all_else_follows():
    def body(emit, x):
        first = emit(relax.op.nn.conv2d(emit(relax.op.sign(x), "sign1"), weight(4, 4, 1, 1, binary=True)), "first")
        added = emit(relax.op.add(first, relax.const(np.full((1, 4, 1, 1), 0.3, np.float32))), "added")
        padded = emit(relax.op.nn.pad(emit(relax.op.sign(added), "sign2"), [0, 0, 0, 0, 1, 1, 1, 1]), "padded")
        return relax.op.nn.conv2d(padded, weight(4, 4, 3, 3, binary=True))

    blocks = blocks_of(inspect_model(model_of(body), RASP3B))
    assert [[row.name for row in block.rows] for block in blocks[1:-1]] == [
        ["sign1", "first", "added"],
        ["sign2", "padded", "y"],
    ]


def test_the_page_is_whole_and_self_contained():
    text = render(inspect_model(model_of(residual), RASP3B))
    page = page_of(inspect_model(model_of(residual), RASP3B))
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert not [tag for tag, attrs in page.elements if tag in ("link", "img", "iframe") or "src" in attrs]
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert [tag for tag, _ in page.elements].count("svg") == 1
    assert [tag for tag, _ in page.elements].count("path") == 5
    assert all(link.startswith("#b") for link in page.having("href"))


def test_every_block_has_details_and_every_layer_a_line():
    found = inspect_model(model_of(residual), RASP3B)
    page = page_of(found)
    nodes = [attrs["data-b"] for tag, attrs in page.elements if tag == "button" and "data-b" in attrs]
    sections = [attrs["id"] for tag, attrs in page.elements if tag == "section"]
    assert sections == ["d", *(f"d{node}" for node in nodes)]
    assert len([attrs for tag, attrs in page.elements if tag == "tr" and "data-b" in attrs]) == len(found.rows)
    assert set(page.having("data-go")) <= set(nodes)


def test_names_out_of_files_are_only_text():
    hostile = "<script>alert(1)</script>\"'&\x1b]0;x\x07\u202e\ud800"
    row = Row(
        hostile, hostile, (1, 2), 9, False, hostile, inputs=(hostile + "in",), warnings=(hostile,), notes=(hostile,)
    )
    specs = (TensorSpec(hostile + "in", (1, 2), layout=hostile),), (TensorSpec(hostile + "out", (1, 2)),)
    totals = Totals(1, 0, 0, 9, 8, 8, 0, 8)
    found = Inspection(hostile, *specs, (row,), totals, problems=(hostile,), results=(hostile,))
    text = render(found)
    assert "<script>alert" not in text
    assert text.count("<script") == 1
    assert not set(text) & set("\x1b\x07\u202e\ud800")
    assert any("<script>alert(1)</script>" in part for part in page_of(found).texts)


def test_a_problem_and_nothing_else():
    found = Inspection("empty", (), (), (), Totals(0, 0, 0, 0, 0, 0, 0, None), problems=("op 'x' has no kernel",))
    assert "Cannot be compiled" in "".join(page_of(found).texts)


def test_bits_are_drawn_between_binary_layers():
    def body(emit, x):
        first = emit(relax.op.nn.conv2d(relax.op.sign(x), weight(4, 4, 1, 1, binary=True)), "first")
        moved = emit(relax.op.add(first, relax.const(np.full((1, 4, 1, 1), 0.3, np.float32))), "moved")
        return relax.op.nn.conv2d(emit(relax.op.sign(moved), "sign"), weight(4, 4, 1, 1, binary=True))

    text = render(inspect_model(model_of(body), RASP3B))
    assert re.findall(r'<path( class="bits")? data-e="(\d) (\d)"', text) == [
        ("", "0", "1"),
        (' class="bits"', "1", "2"),
        ("", "2", "3"),
    ]


def test_card_binary():
    found = inspect_model(load_model("card-binary"), RASP3B)
    page = page_of(found)
    assert [block.name for block in blocks_of(found)][3] == "bconv_15"
    assert "".join(page.texts).count("stored as binary, true zero padding") == 10  # In the table and in the details.


@pytest.mark.parametrize("name", ["onnx/pt_reactnet_block.onnx", "onnx/cifar10_resnet18_w1a1.onnx.xz"])
def test_trained_networks(shared, name):
    found = inspect_model(load_model(shared / "models" / name), RASP3B)
    blocks = blocks_of(found)
    assert len(blocks) < len(found.rows) / 3
    assert sum(len(block.rows) for block in blocks) == len(found.rows)
    page_of(found)

"""The inspection on terminals and in pipes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline.inspect import inspect_model
from bitkiln.pipeline.inspect.result import Row
from bitkiln.pipeline.inspect.table import print_summary, print_table
from tests.pipeline.inspect.networks import model_of, weight

ROWS = [
    Row("a", "conv2d", (1, 2, 3, 4), 1_500_000, True, "signs x +-1", weight_bytes=3200, packed_bytes=100),
    Row("b", "conv2d", (1, 2, 3, 4), 500_000, False, "float weights", kernel=(3, 3), strides=(2, 2), groups=2),
    Row("c", "conv2d", (1, 2, 3, 4), 500_000, False, "its input is no sign", suspicious=True),
    Row("d[0]", "relu", (1, 2, 3, 4), input_shape=(1, 2, 6, 8)),
    Row("e", "binarize", (1, 6, 6, 2), input_shape=(1, 6, 6, 15), bits=15),
]


def printed(rows, width=80, terminal=False):
    text = io.StringIO()
    print_table(rows, Console(file=text, width=width, force_terminal=terminal, color_system=None))
    return text.getvalue()


def test_a_row_is_a_line_in_a_pipe():
    lines = printed(ROWS).splitlines()
    assert lines[0].split() == ["layer", "kind", "shape", "MMACs", "weights", "packed", "binary"]
    assert lines[1].split() == ["a", "conv2d", "1x2x3x4", "1.50", "3.2", "kB", "100", "B", "yes:", "signs", "x", "+-1"]
    assert lines[2].split() == ["b", "conv2d", "3x3/2", "g2", "1x2x3x4", "0.50", "no:", "float", "weights"]
    assert "NO: its input is no sign" in lines[3]
    assert lines[4].split() == ["d[0]", "relu", "1x2x6x8", "->", "1x2x3x4"]
    assert lines[5].split() == ["e", "binarize", "1x6x6x15", "->", "1x6x6x15", "bits"]
    assert "\x1b" not in printed(ROWS)
    assert all(line == line.rstrip() for line in lines)


def test_long_names_and_reasons_stay_whole_in_a_pipe():
    row = Row("layer" * 40, "conv2d", (1, 2, 3, 4), 1, False, "because " * 60)
    (_, line) = printed([row]).splitlines()
    assert "layer" * 40 in line and line.count("because") == 60


@pytest.mark.parametrize("width", [40, 60, 80, 100, 132, 200])
def test_terminals_of_every_width(width):
    rows = [Row(row.name * 30, row.kind, row.shape, row.macs, row.binary, row.reason * 9) for row in ROWS]
    text = printed(rows, width, terminal=True)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("its input is no sign") >= 1 or width < 60
    assert text.replace("\n", "").replace(" ", "").count("signsx+-1") == 9


def test_a_file_cannot_command_the_terminal():
    hostile = "a\x1b]0;owned\x07\x9b2J\u202eb\n[bold]"
    row = Row(hostile, "conv2d", (1, 2, 3, 4), 1, False, f"read {hostile}", warnings=(f"{hostile} is odd",))
    for terminal in (False, True):
        text = printed([row], 160, terminal)
        assert not set(text) & set("\x07\x9b\u202e")
        assert "\x1b]" not in text and "[bold]" in text


def test_no_layers():
    assert "no layers" in printed([])


def test_the_summary():
    def body(emit, x):
        sign = emit(relax.op.sign(x), "sign")
        good = emit(relax.op.nn.conv2d(sign, weight(16, 16, 3, 3, binary=True), padding=1), "good")
        return relax.op.nn.conv2d(good, weight(16, 16, 1, 1, binary=True))

    found = inspect_model(model_of(body, (1, 16, 6, 6)), [targets.load("rasp3b")])
    text = io.StringIO()
    print_summary(found, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert lines[0] == "1 of 2 convolutions and dense layers are binary: 0.1 M binary and 0.0 M float MACs"
    assert lines[1].startswith("weights: 10.2 kB as float32, 1.3 kB packed")
    assert "activations" in lines[1]
    assert any("not a measurement" in line for line in lines)
    assert any(line.split()[0] == "rasp3b" for line in lines)
    assert any(line.startswith("warning: y: not binary") for line in lines)
    text = io.StringIO()
    print_summary(found, Console(file=text, width=60, force_terminal=True, color_system=None))
    assert max(map(len, text.getvalue().splitlines())) <= 60

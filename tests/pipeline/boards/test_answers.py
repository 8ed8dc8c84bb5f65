"""Boards' answers are believed as far as they can be true."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from bitkiln.pipeline.boards import answers
from bitkiln.pipeline.boards.answers import KernelFailed
from bitkiln.pipeline.errors import BoardError

DATA = bytes(range(64))
OUTPUT = {
    "name": "y",
    "shape": [4, 4],
    "dtype": "float32",
    "sha256": hashlib.sha256(DATA).hexdigest(),
    "file": "output-0",
}
GOOD = {
    "status": "ok",
    "unit": "cycles",
    "value": 120000,
    "kind": "simulated",
    "measured_by": "simulated, v1",
    "clock_mhz": 1200,
    "samples": [120000],
    "steps": [{"name": "a", "cycles": 120000, "where": {"x": 1}}],
    "outputs": [OUTPUT],
}


def believed(answer: Any, data: bytes = DATA) -> answers.Measurement:
    return answers.measurement(answer, lambda file: data, (), "board pi")


def test_a_sensible_answer_is():
    found = believed(GOOD)
    assert found.seconds == pytest.approx(1e-4)
    assert found.outputs[0].data == DATA
    assert found.steps[0]["where"] == {"x": 1}
    known = answers.measurement(GOOD, lambda file: b"", {OUTPUT["sha256"]}, "board pi")
    assert known.outputs[0].data is None


NONSENSE: dict[str, Any] = {
    "nothing": None,
    "a list": [1],
    "a text": "ok",
    "an empty object": {},
    "a status alone": {"status": "ok"},
    "no message": {"status": "crashed"},
    "another status": {"status": "splendid", "message": ""},
    **{
        f"value {value!r}": {**GOOD, "value": value}
        for value in (float("nan"), float("inf"), 0, -5, 10**400, "1", None, True, [])
    },
    **{f"clock {value!r}": {**GOOD, "clock_mhz": value} for value in (0, -1, "x", float("inf"), None, 10**400)},
    "unit": {**GOOD, "unit": "parsecs"},
    "kind": {**GOOD, "kind": "x"},
    "a real board's cycles": {**GOOD, "kind": "board"},
    "escape": {**GOOD, "measured_by": "a\x1b]0;x\x07"},
    "no name": {**GOOD, "measured_by": None},
    "steps without names": {**GOOD, "steps": [{"x": 1}]},
    "a step's name": {**GOOD, "steps": [{"name": "\x1b[2J", "cycles": 1}]},
    "a step's cycles": {**GOOD, "steps": [{"name": "a", "cycles": float("nan")}]},
    "a step's type": {**GOOD, "steps": [{"name": "a", "cycles": "z"}]},
    **{
        f"output {name} {value!r}"[:40]: {**GOOD, "outputs": [{**OUTPUT, name: value}]}
        for name, value in (
            ("shape", [-1]),
            ("shape", [2**62]),
            ("shape", [7, 7]),
            ("shape", [1] * 50),
            ("dtype", "object"),
            ("dtype", "float64x"),
            ("sha256", "0"),
            ("file", "../../x"),
            ("file", "/etc/passwd"),
            ("name", "\x1b"),
        )
    },
    "outputs": {**GOOD, "outputs": None},
    "health": {**GOOD, "health": {"a": {"b": 1}}},
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_one_line_that_names_the_board(name):
    with pytest.raises(BoardError, match="board pi answers nonsense") as caught:
        believed(NONSENSE[name])
    assert not isinstance(caught.value, KernelFailed)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_board_that_cannot_measure_says_nothing_of_the_kernel():
    with pytest.raises(BoardError, match="board pi cannot measure: no reports") as caught:
        believed({"status": "unfit", "message": "no\nreports"})
    assert not isinstance(caught.value, KernelFailed)


def test_bytes_that_are_not_those_of_the_digest_are_refused():
    with pytest.raises(BoardError, match="differs from the digest"):
        believed(GOOD, bytes(64))
    with pytest.raises(BoardError, match="3 bytes for the 64 of y"):
        believed(GOOD, b"abc")


def test_a_failure_s_message_is_made_safe_to_show():
    with pytest.raises(KernelFailed) as caught:
        believed({"status": "crashed", "message": "died\n of \x1b[2J" + "x" * 10_000})
    assert caught.value.status == "crashed"
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 400


@pytest.mark.parametrize("text", ["x", "[" * 100_000, '{"a":' * 100_000, b"\xff\xfe", '"' + "x" * (1 << 27) + '"'])
def test_texts_that_are_no_answers(text):
    with pytest.raises(BoardError, match="board pi answers nonsense"):
        answers.parsed(text, "board pi")


@pytest.mark.parametrize(
    "identity",
    [
        {},
        [],
        5,
        {"measured_by": 5, "kind": "board"},
        {"measured_by": "a\x1b[31m", "kind": "board"},
        {"measured_by": "a", "kind": "x"},
    ],
)
def test_identities_are_checked(identity):
    with pytest.raises(BoardError, match="nonsense about itself"):
        answers.identity(identity, "board pi")
    good = answers.identity({"kind": "board", "measured_by": "Pi, Cortex-A53", "max_mhz": 1200, "new": 1}, "board pi")
    assert good["max_mhz"] == 1200

"""What commands print for programs is of the types that say so, and docs/json.md names every field."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

import click
import numpy as np
import pytest
from click.testing import CliRunner

from bitkiln.pipeline import cli, schema
from bitkiln.pipeline.boards.board import Measurement
from bitkiln.pipeline.bundle import Bundle
from tests.conftest import REPOSITORY


def wrong(value: Any, kind: Any, where: str = "") -> list[str]:
    """Where ``value`` is not of the type ``kind``, which may be a TypedDict: no field may lack, none be unknown."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return []
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return [f"{where}: no object"]
        hints = get_type_hints(kind, include_extras=True)
        optional = {name for name, hint in hints.items() if get_origin(hint) is NotRequired}
        odd = [f"{where}.{name}" for name in (hints.keys() - optional - value.keys()) | (value.keys() - hints.keys())]
        plain = get_type_hints(kind)
        return odd + [
            line for name in value.keys() & plain.keys() for line in wrong(value[name], plain[name], f"{where}.{name}")
        ]
    if origin is Literal:
        return [] if value in arguments else [f"{where}: {value!r}"]
    if origin in (Union, UnionType):
        return [] if any(not wrong(value, each, where) for each in arguments) else [f"{where}: {value!r} is no {kind}"]
    if origin in (list, dict) and not isinstance(value, origin):
        return [f"{where}: {value!r} is no {kind}"]
    if origin is list:
        return [line for at, each in enumerate(value) for line in wrong(each, arguments[0], f"{where}[{at}]")]
    if origin is dict:
        return [line for name, each in value.items() for line in wrong(each, arguments[1], f"{where}.{name}")]
    allowed = {float: (int, float), NoneType: (NoneType,)}.get(kind, (kind,))
    right = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    return [] if right else [f"{where}: {value!r} is no {kind}"]


def printed(*arguments: Any, status: int = 0) -> Any:
    """What a command prints on standard output."""
    result = CliRunner().invoke(cli.bitkiln, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def commands() -> dict[str, Any]:
    """The type of each document, by the name in its ``schema`` field."""
    found = {}
    for kind in vars(schema).values():
        if is_typeddict(kind) and "schema" in kind.__annotations__:
            (name,) = get_args(get_type_hints(kind)["schema"])
            found[name] = kind
    return found


def test_inspect() -> None:
    rows = printed("inspect", "card-binary", "--target", "rasp3b")
    assert isinstance(rows, list) and not wrong(rows, list[schema.Layer])
    assert sum(row["share"] or 0 for row in rows) == pytest.approx(1)
    assert not wrong(printed("inspect", "card-binary", "--summary"), schema.Inspect)


def test_run_profile_and_verify(toy_bundle: Bundle, toy_input: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", toy_input)
    assert not wrong(printed("run", toy_bundle.folder, "--input", tmp_path / "x.npy"), schema.Run)
    assert not wrong(printed("profile", toy_bundle.folder), schema.Profile)
    # The toy has no layer of the card's names: a report of a mismatch has all the fields too.
    assert not wrong(printed("verify", toy_bundle.folder, "card-float", status=1), schema.Verify)


def test_compile(compiled_toy: Path) -> None:
    from bitkiln.pipeline.bundle import open_bundle
    from bitkiln.pipeline.compile.manifest import as_json

    made = as_json(open_bundle(compiled_toy))
    assert not wrong(made, schema.Compile)
    assert made["memory_bytes"] is not None and made["memory_bytes"] > made["activation_bytes"]


def test_tune(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bitkiln.pipeline.api.tune", lambda *_, **__: [])
    found = printed("tune", "card-float", "--logs", tmp_path)
    assert not wrong(found, schema.Tune) and found["gain"] is None


def test_deploy() -> None:
    from bitkiln.pipeline.run.deploy import Deployed

    assert not wrong(Deployed(Path("net"), "pi", "bitkiln/net", ("all well",)).as_json(), schema.Deploy)


def test_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitkiln.pipeline.boards.tracker import Boards
    from bitkiln.pipeline.doctor import Check

    monkeypatch.setattr(
        "bitkiln.pipeline.boards.tracker.TrackerClient.boards",
        lambda _: [Boards("rasp3b", 2, 1, 0, ("10.0.0.2:9090",))],
    )
    monkeypatch.setattr("bitkiln.pipeline.doctor.doctor", lambda: [Check("gcc", False, "install it", "compile")])
    assert not wrong(printed("boards", "list"), schema.BoardsList)
    kinds = printed("boards", "kinds")
    assert not wrong(kinds, schema.BoardsKinds)
    assert {(row["target"], row["bits"]) for row in kinds["kinds"]} >= {("rasp3b", 64), ("rasp3b32", 32)}
    assert not wrong(printed("doctor", status=1), schema.Doctor)


def test_sign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bitkiln.pipeline.api.sign", lambda bundle, key: bundle / "manifest.json.sig")
    assert not wrong(printed("sign", tmp_path), schema.Sign)


def test_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitkiln.pipeline.fetch.fetch", lambda: iter(["qemu: there"]))
    found = printed("fetch")
    assert not wrong(found, schema.Fetch) and found["done"] == ["qemu: there"]


#: Commands that run until they are interrupted, talk with a board's system, or write a file of JSON themselves.
SERVICES = {"start-sim", "tracker", "setup", "measure"}


def test_every_command_prints_json_and_is_documented() -> None:
    text = (REPOSITORY / "docs" / "json.md").read_text(encoding="utf-8")

    def leaves(group: click.Group) -> typing.Iterator[click.Command]:
        for command in group.commands.values():
            if isinstance(command, click.Group):
                yield from leaves(command)
            elif command.name not in SERVICES:
                yield command

    for command in leaves(cli.bitkiln):
        assert any("--json" in option.opts for option in command.params), command.name
        assert f"{command.name}" in text


def test_logs(tmp_path: Path) -> None:
    best = printed("logs", "best")
    assert not wrong(best, schema.LogsBest) and best["records"]
    log = tmp_path / "x.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in best["records"][:2]) + "torn\n")
    assert not wrong(printed("logs", "check", log, status=1), schema.LogsCheck)
    merged = printed("logs", "merge", log, log, "-o", tmp_path / "y.jsonl")
    assert not wrong(merged, schema.LogsMerge) and merged["records"] == 2


def test_numbers_that_json_has_not_are_null() -> None:
    found = schema.plain(Measurement("cycles", float("nan"), "simulated", "x", float("inf"), samples=(1.0,)))
    assert found["value"] is None and found["clock_mhz"] is None and found["samples"] == [1.0]


@pytest.mark.parametrize("name", commands())
def test_every_field_is_documented(name: str) -> None:
    text = (REPOSITORY / "docs" / "json.md").read_text(encoding="utf-8")
    assert f"`{name}`" in text

    def named(kind: Any) -> typing.Iterator[str]:
        for field, hint in get_type_hints(kind).items():
            yield field
            for part in (hint, *get_args(hint)):
                if is_typeddict(part):
                    yield from named(part)

    missing = [field for field in named(commands()[name]) if f"`{field}`" not in text]
    assert not missing

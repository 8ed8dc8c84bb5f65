"""The command line: help with an example everywhere, one-line errors with status 2, tracebacks only on demand."""

import json
import os
import shlex
import subprocess
import sys

import click
import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline import cli
from tests.conftest import REPOSITORY


def commands(group: click.Group, prefix: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        yield (*prefix, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))


@pytest.fixture
def invoke(monkeypatch, capsys):
    """Run ``bitkiln ARGUMENTS`` in this process: status, standard output, standard error."""

    def run(*arguments: str, entry=cli.main):
        monkeypatch.setattr(sys, "argv", ["bitkiln", *map(str, arguments)])
        status = 0
        try:
            entry()
        except SystemExit as end:
            status = end.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.mark.parametrize("path", list(commands(cli.bitkiln)), ids=" ".join)
def test_every_command_has_help_with_an_example(path, invoke):
    status, out, _ = invoke(*path, "--help")
    assert status == 0
    assert "Example: " in out


def test_tune_is_a_command_of_its_own(invoke):
    status, out, _ = invoke("-h", entry=cli.tune_main)
    assert status == 0
    assert "--tracker" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "missing.onnx"], "missing.onnx"),
        (["inspect", "card-binery"], "card-binary"),
        (["inspect", "card-binary", "--shape", "x=1,a"], "name=1,3,224,224"),
        (["inspect", "card-binary", "--mean", "1;2"], "comma-separated"),
        (["compile", "card-binary", "--target", "rasp3", "-o", "x"], "did you mean rasp3b"),
        (["compile", "card-binary"], "--output"),
        (["run", "nowhere", "--image", "x.png"], "nowhere"),
        (["run", "nowhere", "--threads", "9"], "1<=x<=4"),
        (["boards", "list", "--tracker", "127.0.0.1:1"], "127.0.0.1:1"),
        (["logs", "check", "nowhere"], "nowhere"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, invoke):
    status, _, err = invoke(*arguments)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("path", [(), ("boards",), ("logs",)], ids=" ".join)
def test_without_a_command_the_help_is_shown(path, invoke):
    status, _, err = invoke(*path)
    assert status == 2
    assert err.startswith("Usage: ")
    assert "\nCommands:\n" in err


def test_errors_of_the_system_name_the_file(monkeypatch, invoke):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "logs.jsonl")

    monkeypatch.setattr("bitkiln.pipeline.records.merge", refuse)
    assert invoke("logs", "merge", "a", "-o", "b") == (2, "", "bitkiln: logs.jsonl: Permission denied\n")


def test_no_records_are_said_to_be_none(monkeypatch, invoke):
    monkeypatch.setattr("bitkiln.pipeline.records.Records.choices", lambda *_: [])
    assert invoke("logs", "best", "--target", "rasp3b") == (0, "", "no records for rasp3b; bitkiln tune makes some\n")


def test_debug_shows_the_traceback(invoke):
    status, _, err = invoke("inspect", "missing.onnx", "--debug")
    assert status == 2
    assert "Traceback" in err
    assert err.strip().splitlines()[-1].startswith("bitkiln: missing.onnx")


def test_inspect_prints_rows_for_programs(invoke):
    status, out, _ = invoke("inspect", "card-float", "--json")
    rows = json.loads(out)
    assert status == 0 and isinstance(rows, list)
    assert {"name", "kind", "shape", "macs", "binary", "reason"} <= rows[0].keys()


def test_inspect_summarises(invoke, tmp_path):
    page = tmp_path / "deep" / "card.html"
    status, out, _ = invoke("inspect", "card-float", "--summary", "--json", "--target", "db410c", "--html", page)
    summary = json.loads(out)
    assert status == 0
    assert [bound["target"] for bound in summary["bounds"]] == ["dragonboard410c"]
    assert summary["totals"]["binary"] == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_inspect_gives_the_bound_of_every_target(invoke):
    status, out, _ = invoke("inspect", "card-float", "--summary", "--all-targets")
    assert status == 0
    assert all(f"\n  {name} " in out for name in targets.known())
    _, one, _ = invoke("inspect", "card-float", "--summary")
    assert "\n  rasp3b " in one and "zero2w" not in one
    assert "conv_" not in out.split("largest share")[0]


def test_paths_that_tools_read_otherwise(tmp_path, toy_bundle, toy_input):
    """qemu parts options at commas, assemblers end texts at quotes."""
    np.save(tmp_path / "x.npy", toy_input)
    run = ["run", toy_bundle.folder, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz"]
    for name, arguments in (("a, ü", run), ('b ", c', ["compile", "card-binary", "-o", tmp_path / "bundle"])):
        odd = tmp_path / name
        odd.mkdir()
        command = [sys.executable, "-m", "bitkiln", *map(str, arguments)]
        environment = {**os.environ, "TMPDIR": str(odd)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert list(odd.iterdir()) == []


@pytest.mark.parametrize("redirect", [">&-", ">&- 2>&-", "2>&-"])
def test_closed_outputs_are_no_errors(redirect):
    done = subprocess.run(
        ["sh", "-c", f"exec {shlex.quote(sys.executable)} -m bitkiln logs best {redirect}"],
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_an_output_that_is_full_is_one_line():
    command = f"exec {sys.executable} -m bitkiln logs best > /dev/full"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "No space left on device, where the output goes" in done.stderr


def test_names_that_the_locale_does_not_have_are_printed_as_they_can(tmp_path):
    name = os.fsdecode(b"caf\xe9\xff.onnx")
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "bitkiln", "inspect", str(tmp_path / name)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 2
    assert b"internal error" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_targets_models_and_files_are_completed():
    from click.shell_completion import ShellComplete

    def completed(*words: str) -> list[tuple[str, str]]:
        found = ShellComplete(cli.bitkiln, {}, "bitkiln", "_BITKILN_COMPLETE").get_completions(
            list(words[:-1]), words[-1]
        )
        return [(item.type, item.value) for item in found]

    assert ("plain", "rasp3b") in completed("compile", "--target", "ra")
    assert completed("inspect", "card-b") == [("plain", "card-binary")]
    assert completed("inspect", "net") == [("file", "net")]
    assert ("plain", "evaluate") in completed("ev")


def test_a_tracker_without_a_key_is_no_host(toy_bundle, toy_input, tmp_path, invoke):
    np.save(tmp_path / "x.npy", toy_input)
    status, _, err = invoke("run", toy_bundle.folder, "--input", tmp_path / "x.npy", "--board", "127.0.0.1:9")
    assert status == 2 and "127.0.0.1:9" in err and "HOST:PORT/KEY" in err


def test_a_folder_that_cannot_be_made_is_named(invoke):
    status, _, err = invoke("compile", "card-float", "-o", "/proc/x")
    assert status == 2 and err.startswith("bitkiln: /proc/x:") and ".bitkiln-" not in err


def test_aliases_are_listed(invoke):
    text = (REPOSITORY / "docs" / "boards.md").read_text(encoding="utf-8")
    for name in targets.known():
        assert f"`{name}`" in text
        assert all(f"`{alias}`" in text and targets.load(alias).name == name for alias in targets.aliases(name))
    assert {"pi3", "rpi3"} <= set(targets.aliases("rasp3b"))
    _, said, _ = invoke("boards", "kinds")
    assert all(name in said for name in (*targets.known(), "db410c", "pizero2"))

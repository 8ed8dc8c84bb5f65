"""runner.py: tensors in and out, files, images, bundles, with and without numpy; on this machine and on the board."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitkiln.pipeline import schema
from bitkiln.pipeline.boards.userland import userland
from bitkiln.pipeline.bundle import Bundle, describe_file
from bitkiln.pipeline.compile.link import link_library
from bitkiln.pipeline.compile.plan import make_plan, read_network
from bitkiln.pipeline.device import runner
from bitkiln.schedules import generic
from tests.conftest import FORK_CHILDREN
from tests.pipeline.test_schema import wrong

RUNNER = Path(runner.__file__)
"""The script as it stands in the repository."""


@pytest.fixture
def no_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "numpy", None)


@pytest.fixture(scope="module")
def library(host, toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network compiled for this machine."""
    network = read_network(toy.module)
    plan = make_plan(network.calls, network.inputs, network.outputs)
    functions = {call.kernel: generic.schedule(toy.module[call.kernel]) for call in network.calls}
    out = tmp_path_factory.mktemp("runner") / "model.so"
    link_library(functions, (), plan, host, out)
    return out


def on_board(bundle: Bundle, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the bundle's runner.py in the userland, as on the board."""
    system = userland(bundle.target)
    command = system.command(["python3", str(bundle.folder / "runner.py"), *arguments])
    return subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=120)


# --- Model ------------------------------------------------------------------------------------------------------------


def test_a_model_describes_itself(library: Path) -> None:
    with runner.Model(library) as model:
        assert model.inputs == [runner.TensorInfo("x", "float32", (1, 4, 4, 3), 192)]
        assert [(info.name, info.shape) for info in model.outputs] == [("lv3", (1, 48)), ("lv2", (1, 48))]
        assert model.step_names == ["lv", "lv1", "lv3"] and model.step_kinds == ["relu", "add", "softmax"]


def test_a_model_is_called_like_a_function(library: Path, toy_input: np.ndarray, toy_answer) -> None:
    scores, flat = toy_answer(toy_input)
    with runner.Model(str(library)) as model:
        answers = model(toy_input)
        np.testing.assert_allclose(answers[0], scores, rtol=1e-5)
        np.testing.assert_array_equal(answers[1], flat)
        np.testing.assert_array_equal(model.output("lv2"), flat)


def test_answers_are_the_same_without_numpy(
    library: Path, toy_input: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runner.Model(library, 1) as model:
        expected = [answer.tolist() for answer in model(toy_input)]
        monkeypatch.setattr(runner, "numpy", None)
        for given in (toy_input.tolist(), toy_input.tobytes(), toy_input):
            answers = model(given)
            assert [answer.tolist() for answer in answers] == expected
            assert isinstance(answers[0], runner.Tensor) and answers[0].shape == (1, 48)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((1, 3, 4, 4), "float32"), "input x has shape 1x4x4x3, not 1x3x4x4"),
        (np.zeros((1, 4, 4, 3)), "input x is float32, not float64"),
        (b"1234", "input x has 192 bytes, 4 were given"),
        ([[1.0, 2.0], [3.0]], "rows of different lengths"),
        ([1.0, "a"], "values that are no float32"),
        ([[1.0, 2.0], [3.0, 4.0]], "not 2x2"),
        (None, "takes an array, nested lists or bytes, not NoneType"),
        (5, "not int"),
        ("x", "not str"),
        ([["a"]], "values that are no float32"),
    ],
)
def test_wrong_inputs_are_refused(library: Path, values: object, message: str) -> None:
    with runner.Model(library) as model, pytest.raises(runner.RunnerError, match=message):
        model.set_input("x", values)


def test_wrong_names_and_numbers_are_refused(library: Path) -> None:
    with runner.Model(library) as model:
        with pytest.raises(runner.RunnerError, match="there is no input 'y': there are x"):
            model.set_input("y", b"")
        with pytest.raises(runner.RunnerError, match="there is no output 2: the network has 2"):
            model.output(2)
        with pytest.raises(runner.RunnerError, match="has 1 inputs, 2 were given"):
            model(b"", b"")


@pytest.mark.parametrize("threads", [2**40, -1, 17, 1.5, "4", None])
def test_impossible_numbers_of_threads_are_refused(library: Path, threads: object) -> None:
    with pytest.raises(runner.RunnerError, match="threads: give 1 to 16"):
        runner.Model(library, threads)


def test_an_empty_path_is_named(library: Path) -> None:
    with pytest.raises(runner.RunnerError, match="is empty"):
        runner.Model("")


def test_children_of_a_fork_may_use_a_model_close_it_or_exit(library: Path, toy_input: np.ndarray) -> None:
    """A loaded model and ``os.fork``, as multiprocessing and servers of web pages have it."""
    environment = {**os.environ, "PYTHONPATH": str(RUNNER.parent)}
    command = [sys.executable, str(FORK_CHILDREN), str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\n", done.stderr


def test_a_closed_model_says_so(library: Path) -> None:
    model = runner.Model(library)
    model.close()
    model.close()
    with pytest.raises(runner.RunnerError, match="closed"):
        model.run()
    with pytest.raises(runner.RunnerError, match="closed"):
        model.output()


def test_random_inputs_depend_on_the_seed_alone() -> None:
    for dtype in ("float32", "uint8", "int32", "bool", "int64", "uint16"):
        count = 40000
        info = runner.TensorInfo("t", dtype, (count,), count * np.dtype(dtype).itemsize)
        values = np.frombuffer(runner.random_bytes(info, 5), dtype)
        assert values.size == count and len(np.unique(values)) > (1 if dtype == "bool" else 50)
        assert runner.random_bytes(info, 5) == values.tobytes() != runner.random_bytes(info, 6)
        if dtype == "float32":
            assert -1 <= values.min() < -0.9 and 0.9 < values.max() <= 1
        if dtype == "int32":
            assert values.min() == -64 and values.max() == 64


def test_a_library_for_another_cpu_is_refused(compiled_toy: Path) -> None:
    with pytest.raises(runner.RunnerError, match=r"is for 64-bit ARM \(aarch64\), this Python is x86-64"):
        runner.Model(compiled_toy)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"hello world, this is no library"])
def test_what_is_no_library_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.so").write_bytes(content)
    with pytest.raises(runner.RunnerError, match="not a shared library"):
        runner.Model(tmp_path)
    with pytest.raises(runner.RunnerError, match="No such file"):
        runner.Model(tmp_path / "absent.so")


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", sorted(runner.DTYPES))
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (1, 0)])
@pytest.mark.parametrize("with_numpy", [True, False])
def test_npy_files_are_numpys(monkeypatch, dtype: str, shape: tuple[int, ...], with_numpy: bool) -> None:
    if not with_numpy:
        monkeypatch.setattr(runner, "numpy", None)
    values = (np.random.default_rng(0).integers(0, 2, shape)).astype(dtype)
    file = io.BytesIO()
    np.save(file, values)
    read = runner.read_npy(io.BytesIO(file.getvalue()), "x.npy")
    assert (str(read.dtype), tuple(read.shape)) == (dtype, shape) and read.tobytes() == values.tobytes()
    again = np.load(io.BytesIO(runner.npy_bytes(read)))
    assert again.dtype == values.dtype and again.shape == shape
    np.testing.assert_array_equal(again, values)
    if read.tobytes():
        assert read.tolist() == values.tolist()


def test_column_major_files_are_read(no_numpy: None) -> None:
    values = np.asfortranarray(np.arange(24, dtype="int32").reshape(2, 3, 4))
    file = io.BytesIO()
    np.save(file, values)
    file.seek(0)
    assert runner.read_npy(file, "x.npy").tolist() == values.tolist()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x10\x00{'descr': }     ", b"GIF89a"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(runner.RunnerError, match=r"x\.npy: not a \.npy file"):
        runner.read_tensors(str(tmp_path / "x.npy"))


def test_truncated_and_foreign_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros(10, "float32"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(runner.RunnerError, match="39 bytes of data, 40 expected"):
        runner.read_tensors(str(path))
    np.save(path, np.zeros(3, "complex64"))
    with pytest.raises(runner.RunnerError, match="type <c8 are not supported"):
        runner.read_tensors(str(path))
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(runner.RunnerError, match="not supported"):
        runner.read_tensors(str(path))


def test_npz_files_go_both_ways(tmp_path: Path) -> None:
    path = str(tmp_path / "x.npz")
    np.savez(path, a=np.arange(3.0), b=np.ones((2, 2), "uint8"))
    tensors = runner.read_tensors(path)
    assert sorted(tensors) == ["a", "b"]
    runner.write_tensors(path, tensors)
    assert np.load(path)["a"].tolist() == [0, 1, 2]
    (tmp_path / "y.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(runner.RunnerError, match="damaged"):
        runner.read_tensors(str(tmp_path / "y.npz"))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda *_: Full())
    with pytest.raises(runner.RunnerError, match=r"y\.npy: No space left on device"):
        runner.write_tensors(str(tmp_path / "y.npy"), {"y": np.zeros(3)})
    assert not list(tmp_path.iterdir())


def test_outputs_go_into_special_files_and_through_links(tmp_path: Path) -> None:
    tensors = {"y": np.arange(3, dtype="float32")}
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    runner.write_tensors(str(tmp_path / "pipe"), tensors)
    content = os.read(reader, 1 << 16)
    os.close(reader)
    assert list(np.load(io.BytesIO(content))) == ["y"] and (tmp_path / "pipe").is_fifo()

    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(runner.RunnerError, match="circle: Too many levels"):
        runner.write_tensors(str(tmp_path / "circle"), tensors)
    assert (tmp_path / "circle").is_symlink()
    (tmp_path / "circle").unlink()

    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "y.npy").write_bytes(b"old")
    (tmp_path / "real" / "y.npy").chmod(0o600)
    (tmp_path / "link.npy").symlink_to("real/y.npy")
    runner.write_tensors(str(tmp_path / "link.npy"), tensors)
    assert (tmp_path / "link.npy").is_symlink()
    assert np.load(tmp_path / "real" / "y.npy").tolist() == [0, 1, 2]
    assert (tmp_path / "real" / "y.npy").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link.npy", "pipe", "real", "y.npy"]


@pytest.mark.parametrize(
    "header",
    [
        b"{" * 200,
        b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }",
        b"{'descr': '<f4', 'shape': (-1,)}",
        b"\xff",
    ],
)
def test_damaged_arrays_are_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(12))
    with pytest.raises(runner.RunnerError, match=r"x\.npy: "):
        runner.read_tensors(str(path))


# --- The command line, on the board -----------------------------------------------------------------------------------


def test_check_passes_on_the_board(toy_bundle: Bundle) -> None:
    done = on_board(toy_bundle, "--check")
    assert done.returncode == 0, done.stderr
    assert "files: 8 as compiled" in done.stdout and "output scores within" in done.stdout


def test_tensors_run_on_the_board_without_numpy(
    toy_bundle: Bundle, toy_input: np.ndarray, toy_answer, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", toy_input)
    arguments = ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npz"), "--steps", "--threads", "2"]
    done = on_board(toy_bundle, *arguments)
    assert done.returncode == 0, done.stderr
    assert "(softmax)" in done.stdout and "2 threads" in done.stdout
    answers = np.load(tmp_path / "y.npz")
    scores, flat = toy_answer(toy_input)
    np.testing.assert_allclose(answers["scores"], scores, rtol=1e-5)
    np.testing.assert_array_equal(answers["flat"], flat)


def test_bench_prints_times_and_memory(toy_bundle: Bundle) -> None:
    done = on_board(toy_bundle, "--bench", "--json")
    report = json.loads(done.stdout)
    assert not wrong(report, schema.Runner)
    figures = report["bench"]
    assert figures["min_ms"] <= figures["median_ms"] <= figures["max_ms"]
    assert figures["first_answer_ms"] > 0 and figures["peak_mib"] > 1 and figures["runs"] >= 3
    assert 0 < figures["library_mib"] < figures["network_mib"] < figures["peak_mib"]
    assert sum(figures["stages_ms"].values()) == pytest.approx(figures["first_answer_ms"])
    assert list(figures["stages_ms"]) == ["python", "digest", "open", "weights", "input", "run"]
    told = on_board(toy_bundle, "--bench").stdout
    assert "start to first answer" in told and "digest" in told and "of which the network" in told


def test_an_altered_library_is_never_loaded(toy_bundle: Bundle, tmp_path: Path, toy_input: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", toy_input)
    path = toy_bundle.folder / "model.so"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for arguments in (["--check"], ["--input", str(tmp_path / "x.npy")]):
        done = on_board(toy_bundle, *arguments)
        assert done.returncode == 2
        assert done.stderr.strip() == f"runner: {path}: altered since it was compiled; copy the bundle again"


def test_a_wrong_answer_fails_the_check(toy_bundle: Bundle) -> None:
    path = toy_bundle.folder / "golden_output.npy"
    np.save(path, np.load(path) + np.float32(0.01))
    manifest = json.loads((toy_bundle.folder / "manifest.json").read_text())
    manifest["files"]["golden_output.npy"] = describe_file(path)
    (toy_bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    done = on_board(toy_bundle, "--check")
    assert done.returncode == 2 and "output scores differs from the golden one by 0.01" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--image", "a", "--input", "b"]])
def test_unclear_commands_are_usage_errors(toy_bundle: Bundle, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        runner.main([str(toy_bundle.folder), *arguments])
    assert stopped.value.code == 2


def test_errors_are_one_line_and_exit_2(toy_bundle: Bundle, tmp_path: Path, capsys) -> None:
    assert runner.main([str(tmp_path / "nowhere"), "--bench"]) == 2
    assert "this is no bundle" in capsys.readouterr().err
    assert runner.main([str(toy_bundle.folder), "--bench"]) == 2
    assert "this Python is x86-64" in capsys.readouterr().err
    (toy_bundle.folder / "manifest.json").write_text("{")
    assert runner.main([str(toy_bundle.folder), "--bench"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def damage(bundle: Bundle, change: Callable[[dict], object]) -> None:
    """Rewrite the manifest."""
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    change(manifest)
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(files=None),
        lambda m: m.update(files={"model.so": 3}),
        lambda m: m["files"].update({"model.so": {"size": "1", "sha256": 2}}),
        lambda m: m.update(files=["model.so"]),
        lambda m: m.update(inputs=3),
        lambda m: m.pop("requires"),
        lambda m: m.update(preprocessing={"mean": "a"}),
        lambda m: m.update(golden=[1]),
        lambda m: m["files"].update({"/etc/passwd": m["files"]["model.so"]}),
        lambda m: m["files"].update({"../model.so": m["files"]["model.so"]}),
        lambda m: m["files"].pop("model.so"),
        lambda m: m.update(format=[]),
    ],
)
def test_damaged_manifests_are_one_line(toy_bundle: Bundle, capsys, change: Callable[[dict], object]) -> None:
    damage(toy_bundle, change)
    assert runner.main([str(toy_bundle.folder), "--check"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "manifest.json: " in error


@pytest.mark.parametrize("text", ["3", "[]", "[" * 100000, "nul", '{"format": 1e999}'])
def test_what_is_no_manifest_is_one_line(toy_bundle: Bundle, capsys, text: str) -> None:
    (toy_bundle.folder / "manifest.json").write_text(text)
    assert runner.main([str(toy_bundle.folder), "--check"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_links_are_no_part_of_a_bundle(toy_bundle: Bundle, tmp_path: Path, capsys) -> None:
    library = toy_bundle.folder / "model.so"
    library.rename(tmp_path / "elsewhere.so")
    library.symlink_to(tmp_path / "elsewhere.so")
    assert runner.main([str(toy_bundle.folder), "--check"]) == 2
    assert "model.so: not a file" in capsys.readouterr().err


def test_programs_that_are_no_part_of_a_bundle_are_named_and_not_run(toy_bundle: Bundle) -> None:
    foreign = toy_bundle.folder / "argparse.py"
    foreign.write_text("print('imported')")
    done = on_board(toy_bundle, "--check")
    assert (done.returncode, done.stdout) == (2, "")
    assert "argparse.py: no part of the bundle" in done.stderr


def test_a_network_that_does_not_fit_is_refused_before_it_is_loaded(toy_bundle: Bundle) -> None:
    damage(toy_bundle, lambda manifest: manifest["memory"].update(running=1 << 50))
    for arguments in (["--check"], ["--bench"]):
        done = on_board(toy_bundle, *arguments)
        assert done.returncode == 2 and "the network takes 1125899907 MB of memory" in done.stderr


def test_what_is_needed_is_that_of_the_plan_for_so_many_threads(toy_bundle: Bundle) -> None:
    memory = {"running": 100, "packed_on_board": [40, 5], "unread": [10, 30]}
    damage(toy_bundle, lambda manifest: manifest.update(memory=memory))
    bundle = runner.Bundle(str(toy_bundle.folder))
    assert [bundle.running_bytes(threads) for threads in (1, 2, 4)] == [100, 45, 45]
    for older in ({"running": 100}, None):
        damage(toy_bundle, lambda manifest, older=older: manifest.update(memory=older))
        assert runner.Bundle(str(toy_bundle.folder)).running_bytes(4) == (100 if older else 0)


def test_limits_of_containers_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service within a container: the tighter limit, from which pages of files are given up."""
    system = {
        "/proc/self/cgroup": "0::/box/service\n",
        "/sys/fs/cgroup/box/service/memory.max": "max\n",
        "/sys/fs/cgroup/box/service/memory.current": "50000000\n",
        "/sys/fs/cgroup/box/service/memory.stat": "anon 1\n",
        "/sys/fs/cgroup/box/memory.max": "90000000\n",
        "/sys/fs/cgroup/box/memory.current": "80000000\n",
        "/sys/fs/cgroup/box/memory.stat": "inactive_file 20000000\nactive_file 5000000\nanon 3\n",
        "/proc/meminfo": "MemAvailable: 400000 kB\nSwapFree: 0 kB\n",
    }

    def opened(path: str, *_: object) -> io.StringIO:
        if path not in system:
            raise FileNotFoundError(path)
        return io.StringIO(system[path])

    monkeypatch.setattr("builtins.open", opened)
    assert runner.memory_bytes_free() == 35_000_000
    system["/sys/fs/cgroup/box/memory.max"] = "max"
    assert runner.memory_bytes_free() == 409_600_000


def test_too_little_memory_is_one_line(toy_bundle: Bundle, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(runner, "run", fail)
    assert runner.main([str(toy_bundle.folder), "--bench"]) == 2
    assert capsys.readouterr().err.startswith("runner: out of memory")


def test_ctrl_c_is_one_line(toy_bundle: Bundle, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupt)
    assert runner.main([str(toy_bundle.folder), "--bench"]) == 130
    assert capsys.readouterr().err == "runner: interrupted\n"


def test_top_is_stable_and_ignores_nan() -> None:
    values = np.array([[0.5, np.nan, 0.75, 0.5]], "float32")
    assert runner.best_classes(values, ["a", "b", "c"], 3) == [("c", 0.75), ("a", 0.5), ("class 3", 0.5)]


@pytest.mark.parametrize("count", [0, -1, 1.5, "a", None])
def test_impossible_numbers_of_classes_are_refused(count: object) -> None:
    with pytest.raises(runner.RunnerError, match="top"):
        runner.best_classes(np.zeros((1, 3), "float32"), [], count)


@pytest.mark.parametrize("limit", [-0.5, 1.5, float("nan"), "a"])
def test_impossible_thresholds_are_refused(limit: object) -> None:
    with pytest.raises(runner.RunnerError, match=r"within 0\.\.1"):
        runner.fraction(limit)


def test_a_difference_of_nan_or_infinity_counts() -> None:
    one, nan, infinity = (np.array([value], "float32") for value in (1, np.nan, np.inf))
    assert (
        runner.largest_error(one, one)
        == runner.largest_error(nan, nan)
        == runner.largest_error(infinity, infinity)
        == 0
    )
    assert runner.largest_error(nan, one) == runner.largest_error(one, nan) == float("inf")
    assert runner.largest_error(one, infinity) == float("inf")


# --- Old Pythons ------------------------------------------------------------------------------------------------------


def test_the_source_is_python_3_7() -> None:
    ast.parse(RUNNER.read_text(), feature_version=(3, 7))


def old_python() -> str | None:
    """A Python 3.7 of this machine, if it has one."""
    places = [*Path("/usr/bin").glob("python3.7"), *Path.home().glob(".pyenv/versions/3.7.*/bin/python")]
    return str(places[0]) if places else None


@pytest.mark.skipif(old_python() is None, reason="needs a Python 3.7 beside this one")
def test_python_3_7_gives_the_same_answer(library: Path, toy_input: np.ndarray, tmp_path: Path) -> None:
    script = "import sys, runner; m = runner.Model(sys.argv[1]); m.fill_random(3); m.run(); print(m.output(0).tolist())"
    environment = {**os.environ, "PYTHONPATH": str(RUNNER.parent)}
    answers = [
        subprocess.run(
            [python, "-c", script, str(library)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for python in (str(old_python()), sys.executable)
    ]
    assert answers[0] == answers[1] != ""

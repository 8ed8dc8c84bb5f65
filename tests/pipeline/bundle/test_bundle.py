"""Bundles on disk: complete, verified, replaced as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bitkiln.pipeline import bundle
from bitkiln.pipeline.bundle import Bundle, open_bundle
from bitkiln.pipeline.device import replace_folder
from bitkiln.pipeline.errors import BundleError
from bitkiln.pipeline.model import Model

FILES = {
    "bitkiln.c",
    "bitkiln.h",
    "golden_input.npy",
    "golden_output.npy",
    "golden_output_1.npy",
    "labels.txt",
    "model.so",
    "runner.py",
}


def test_a_bundle_holds_what_it_should(toy_bundle: Bundle, toy: Model) -> None:
    manifest = toy_bundle.manifest
    assert manifest["files"].keys() == FILES == {path.name for path in toy_bundle.files()} - {"manifest.json"}
    assert manifest["model"] == {"name": "toy", "sha256": "0" * 64} and manifest["target"] == "rasp3b"
    assert manifest["requires"] | {"glibc": ""} == {
        "cpu": "aarch64",
        "glibc": "",
        "libraries": ["libpthread.so.0", "libm.so.6", "libc.so.6"],
    }
    assert manifest["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 4, 4, 3], "layout": "NHWC"}]
    assert [output["name"] for output in manifest["outputs"]] == ["scores", "flat"]
    assert manifest["preprocessing"]["mean"] == [127.5, 100.0, 90.0]
    assert [step["chosen"] for step in manifest["steps"]] == ["generic"] * 3
    assert toy_bundle.labels == toy.labels
    assert os.access(toy_bundle.folder / "runner.py", os.X_OK)


def test_the_golden_answer_is_the_boards(toy_bundle: Bundle, toy_answer) -> None:
    x = np.load(toy_bundle.folder / "golden_input.npy")
    scores, flat = toy_answer(x)
    np.testing.assert_allclose(np.load(toy_bundle.folder / "golden_output.npy"), scores, rtol=1e-5)
    np.testing.assert_array_equal(np.load(toy_bundle.folder / "golden_output_1.npy"), flat)
    assert "qemu-aarch64" in toy_bundle.manifest["golden"]["made_by"]


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_altered_bit_is_found(toy_bundle: Bundle, name: str) -> None:
    path = toy_bundle.folder / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name}: altered since it was compiled"):
        open_bundle(toy_bundle.folder)


def test_a_link_is_no_file_of_a_bundle(toy_bundle: Bundle, tmp_path: Path) -> None:
    """It would be followed when the bundle is copied elsewhere."""
    library = toy_bundle.folder / "model.so"
    library.rename(tmp_path / "elsewhere.so")
    library.symlink_to(tmp_path / "elsewhere.so")
    with pytest.raises(BundleError, match=r"model\.so: a link"):
        open_bundle(toy_bundle.folder)


def test_missing_files_are_found(toy_bundle: Bundle) -> None:
    (toy_bundle.folder / "model.so").unlink()
    with pytest.raises(BundleError, match=r"model\.so: missing"):
        open_bundle(toy_bundle.folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 99}', '{"format": 1}', '"text"', "[" * 100_000, "9" * 9999]
)
def test_damaged_manifests_are_one_line(toy_bundle: Bundle, content: str) -> None:
    (toy_bundle.folder / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=r"manifest\.json: (damaged|format)") as caught:
        open_bundle(toy_bundle.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", {}),
        ("memory", {"running": 10**400}),
        ("preprocessing", {"height": "x"}),
        ("head", {"task": 5}),
        ("golden", []),
        ("files", {"model.so": 5}),
    ],
)
def test_what_commands_take_for_granted_is_checked(toy_bundle: Bundle, key: str, value: object) -> None:
    path = toy_bundle.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(BundleError, match=r"manifest\.json: damaged"):
        open_bundle(toy_bundle.folder)


@pytest.mark.parametrize("name", ["model.so", "runner.py"])
def test_programs_are_listed(toy_bundle: Bundle, name: str) -> None:
    path = toy_bundle.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"][name]
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=name):
        open_bundle(toy_bundle.folder)


def test_a_manifest_cannot_name_files_outside(toy_bundle: Bundle) -> None:
    manifest = json.loads((toy_bundle.folder / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"size": 0, "sha256": ""}
    (toy_bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    (toy_bundle.folder.parent / "secret").write_text("")
    with pytest.raises(BundleError, match="secret: missing"):
        open_bundle(toy_bundle.folder)


def test_what_is_no_bundle_is_said_to_be_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleError, match=r"no bundle \(it has no manifest\.json\)"):
            open_bundle(folder)


def test_a_bundle_is_replaced_as_a_whole(toy_bundle: Bundle) -> None:
    with bundle.writing(toy_bundle.folder) as fresh:
        assert not list(fresh.iterdir())
        assert open_bundle(toy_bundle.folder)
        (fresh / "manifest.json").write_text("new")
    assert [path.name for path in toy_bundle.folder.iterdir()] == ["manifest.json"]
    assert [path.name for path in toy_bundle.folder.parent.iterdir()] == ["toy"]


def test_a_failure_leaves_the_old_bundle(toy_bundle: Bundle) -> None:
    with pytest.raises(RuntimeError), bundle.writing(toy_bundle.folder) as fresh:
        (fresh / "model.so").write_text("half")
        raise RuntimeError
    assert open_bundle(toy_bundle.folder)
    assert [path.name for path in toy_bundle.folder.parent.iterdir()] == ["toy"]


def test_where_folders_cannot_be_exchanged_an_interrupt_between_two_renames_loses_nothing(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def interrupted(self: Path, destination: Path) -> Path:
        if destination == toy_bundle.folder:
            raise KeyboardInterrupt
        return rename(self, destination)

    monkeypatch.setattr(replace_folder, "exchange", lambda one, other: False)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt), bundle.writing(toy_bundle.folder):
            pass
    assert not toy_bundle.folder.exists()
    assert open_bundle(toy_bundle.folder)
    assert [path.name for path in toy_bundle.folder.parent.iterdir()] == ["toy"]


def test_a_link_leads_to_the_bundle_that_is_replaced(toy_bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(toy_bundle.folder)
    with bundle.writing(link) as fresh:
        (fresh / "manifest.json").write_text("new")
    assert link.is_symlink()
    assert (toy_bundle.folder / "manifest.json").read_text() == "new"


def test_a_name_of_any_length_that_the_file_system_has(tmp_path: Path) -> None:
    with bundle.writing(tmp_path / ("n" * 250)) as fresh:
        (fresh / "manifest.json").write_text("{}")
    assert [len(path.name) for path in tmp_path.iterdir()] == [250]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_no_bundle_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "letter.txt").write_text("dear")
    elif kind == "file":
        out.write_text("dear")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="exists and is no bundle"), bundle.writing(out):
        pass
    assert out.is_symlink() or out.exists()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with bundle.writing(tmp_path / "out") as fresh:
        (fresh / "manifest.json").write_text("{}")
    assert (tmp_path / "out/manifest.json").exists()


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_the_old_bundle(small_disk: Path) -> None:
    out = small_disk / "net"
    with bundle.writing(out) as fresh:
        (fresh / "manifest.json").write_text("old")
    with pytest.raises(OSError, match="No space left"), bundle.writing(out) as fresh:
        (fresh / "model.so").write_bytes(bytes(1 << 20))
    assert (out / "manifest.json").read_text() == "old"
    assert [path.name for path in small_disk.iterdir()] == ["net"]


def test_a_copied_bundle_is_as_good(toy_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(toy_bundle.folder, tmp_path / "copy")
    assert open_bundle(tmp_path / "copy").manifest == toy_bundle.manifest

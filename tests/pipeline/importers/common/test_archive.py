"""Model archives that are damaged, or made to do harm."""

from __future__ import annotations

import stat
import zipfile

import pytest

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.importers.common import archive


def write_zip(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_the_one_model_is_read(tmp_path):
    path = write_zip(tmp_path / "net.ell.zip", {"readme.txt": "hello", "folder/net.ell": "{}"})
    assert archive.read_model_text(path, ".ell") == b"{}"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.ell.zip"]


@pytest.mark.parametrize("name", ["../net.ell", "/net.ell", "a/../../net.ell", "..\\net.ell", "C:\\net.ell"])
def test_paths_that_leave_the_archive(tmp_path, name):
    path = write_zip(tmp_path / "net.ell.zip", {name: "{}"})
    with pytest.raises(ModelError, match=r"net\.ell\.zip: member .* points outside the archive"):
        load_model(path)


def test_symbolic_links(tmp_path):
    link = zipfile.ZipInfo("net.ell")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "net.ell.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ModelError, match="symbolic link"):
        load_model(path)


def test_none_or_several_models(tmp_path):
    with pytest.raises(ModelError, match=r"exactly one \.ell file, found none"):
        load_model(write_zip(tmp_path / "none.ell.zip", {"readme.txt": "hello"}))
    with pytest.raises(ModelError, match=r"found a\.ell, b\.ell"):
        load_model(write_zip(tmp_path / "two.ell.zip", {"a.ell": "{}", "b.ell": "{}"}))


def test_huge_members(tmp_path, monkeypatch):
    bomb = write_zip(tmp_path / "bomb.ell.zip", {"net.ell": b"0" * (1 << 20)})
    with pytest.raises(ModelError, match="over 200 times"):
        load_model(bomb)
    monkeypatch.setattr(archive, "MAX_BYTES", 1 << 10)
    plain = write_zip(tmp_path / "plain.ell.zip", {"net.ell": b"0" * 2000})
    with pytest.raises(ModelError, match="unpacks to more than"):
        load_model(plain)
    big = tmp_path / "big.ell"
    big.write_bytes(b"0" * 2000)
    with pytest.raises(ModelError, match="is larger than"):
        load_model(big)


def test_a_member_that_lies_about_its_size(tmp_path):
    path = write_zip(tmp_path / "net.ell.zip", {"net.ell": "{" + " " * 500 + "}"}, zipfile.ZIP_STORED)
    content = path.read_bytes()
    # 502 bytes, in the local header and in the directory; the directory now claims 100.
    at = content.rindex((502).to_bytes(4, "little"))
    path.write_bytes(content[:at] + (100).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(ModelError, match=r"net\.ell\.zip"):
        load_model(path)


@pytest.mark.parametrize("keep", [0, 10, 60, -10])
def test_truncated_archives(tmp_path, keep):
    path = write_zip(tmp_path / "net.ell.zip", {"net.ell": "{}" * 100})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"net\.ell\.zip: (the file is empty|is not a readable zip)"):
        load_model(path)


def test_a_damaged_member(tmp_path):
    path = write_zip(tmp_path / "net.ell.zip", {"net.ell": bytes(range(256)) * 4}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not a readable zip"):
        load_model(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        archive.check_file(tmp_path / "missing.ell")
    folder = tmp_path / "folder.ell"
    folder.mkdir()
    with pytest.raises(ModelError, match="is not a file"):
        load_model(folder)
    empty = tmp_path / "empty.onnx"
    empty.touch()
    with pytest.raises(ModelError, match="is empty"):
        load_model(empty)

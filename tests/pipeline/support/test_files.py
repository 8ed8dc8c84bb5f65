"""Atomic writes: the old file or the new one, never half of it, and never in place of a device."""

import errno
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from bitkiln.pipeline.errors import SetupError
from bitkiln.pipeline.support.files import atomic_write, cache_directory, read_file


def write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def test_the_new_content_replaces_the_old(tmp_path):
    path = tmp_path / "deep" / "file"
    for text in ("one", "two"):
        write(path, text)
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_an_error_keeps_the_old_content_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_links_stay_and_lead_to_what_is_written(tmp_path):
    file, link, chain = tmp_path / "there" / "file", tmp_path / "link", tmp_path / "chain"
    file.parent.mkdir()
    link.symlink_to("there/file")
    chain.symlink_to(link)
    for text in ("first", "second"):  # The first makes what the links promise.
        write(chain, text)
        assert file.read_text() == text
    assert chain.is_symlink()
    assert link.is_symlink()
    link.unlink()
    link.symlink_to(chain)
    with pytest.raises(OSError, match="symbolic links"):
        write(chain, "nowhere")


def test_permissions_of_what_is_replaced_stay(tmp_path):
    (tmp_path / "private").write_text("old")
    (tmp_path / "private").chmod(0o600)
    write(tmp_path / "private", "new")
    write(tmp_path / "public", "new")
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("private", "public")] == [0o600, 0o644]


def test_a_pipe_is_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    write(pipe, "through")
    reader.join(10)
    assert found == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_into(tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("may not make devices here")
    (tmp_path / "link").symlink_to(device)
    for path in (device, tmp_path / "link"):
        write(path, "nothing")
        assert stat.S_ISCHR(device.stat().st_mode)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket", "large"])
def test_what_never_ends_is_not_read(tmp_path, kind):
    path = tmp_path / "it"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        elif kind == "socket":
            listener.bind(str(path))
        else:
            path.write_bytes(bytes(1001))
        with pytest.raises(OSError, match="it"):
            read_file(path, 1000)
    (tmp_path / "file").write_bytes(b"abc")
    assert read_file(tmp_path / "file") == b"abc"


def test_a_full_device_is_named():
    with pytest.raises(OSError, match="/dev/full") as caught:
        write(Path("/dev/full"), "x")
    assert caught.value.errno == errno.ENOSPC


def test_a_full_disk_is_named_after_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(OSError, match="out") as caught, atomic_write(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "out") and list(tmp_path.iterdir()) == []


def test_an_open_file_is_written_into(tmp_path):
    """As a redirection to /dev/stdout: the descriptor's file stays the one that is written."""
    with (tmp_path / "out").open("wb") as out:
        (tmp_path / "stdout").symlink_to(f"/proc/self/fd/{out.fileno()}")
        write(tmp_path / "stdout", "printed")
        assert (tmp_path / "out").stat().st_ino == os.fstat(out.fileno()).st_ino
    assert (tmp_path / "out").read_text() == "printed"


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        write(tmp_path, "text")
    assert list(tmp_path.iterdir()) == []


def test_names_as_long_as_the_file_system_allows(tmp_path):
    write(tmp_path / ("n" * 250), "text")
    assert [len(path.name) for path in tmp_path.iterdir()] == [250]


def test_the_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "bitkiln"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "bitkiln"


def test_a_user_without_a_home_is_told(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless(_kind: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(homeless))
    with pytest.raises(SetupError, match="XDG_CACHE_HOME"):
        cache_directory()

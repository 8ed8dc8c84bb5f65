"""Opening a model archive safely: a plain file, the one model inside a zip, or an xz file, read without extracting anything.

A zip is refused when it holds absolute or ``..`` paths, symbolic links, more than one model, encrypted members, or members
whose size or compression ratio only an attack explains; an xz file likewise.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from bitkiln.pipeline.errors import ModelError

#: The largest model text we read, packed or not. The larger gallery network is 98 MB.
MAX_BYTES = 1 << 30

#: Deflate cannot do better than 1032:1, and model text (decimal digits) stays below 10:1.
MAX_RATIO = 200

_MEMBERS_LIMIT = 1000

#: What an xz file may unpack to whatever its size. Binarised weights kept as floats shrink to a thirtieth and less.
_XZ_FREE = 64 << 20

#: Memory for unpacking xz; its strongest preset takes 65 MiB.
_XZ_MEMORY = 128 << 20


def check_file(path: Path) -> None:
    """Raise ModelError unless ``path`` is a readable, non-empty file of at most ``MAX_BYTES``."""
    try:
        info = path.stat()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from None
    if not stat.S_ISREG(info.st_mode):
        raise ModelError(f"{path}: is not a file")
    if info.st_size == 0:
        raise ModelError(f"{path}: the file is empty")
    if not os.access(path, os.R_OK):
        raise ModelError(f"{path}: may not be read; check its permissions")
    if info.st_size > MAX_BYTES:
        raise ModelError(f"{path}: is larger than {MAX_BYTES >> 20} MiB")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_model_text(path: Path, suffix: str) -> bytes:
    """The content of ``path``, or of the one member ending in ``suffix`` where ``path`` is a zip."""
    check_file(path)
    if not path.name.endswith(".zip"):
        return path.read_bytes()
    with _reading(path), zipfile.ZipFile(path) as archive:
        member = _model_member(path, archive, suffix)
        with archive.open(member) as stream:
            return _read_capped(path, stream, member)


def read_xz(path: Path) -> bytes:
    """The content of the xz file ``path``, all of its streams; the caller has checked that it is a file."""
    limit = min(MAX_BYTES, max(_XZ_FREE, MAX_RATIO * path.stat().st_size))
    content = bytearray()
    with path.open("rb") as file:
        try:
            packed = file.read()
            while packed.strip(b"\0"):  # streams may be followed by padding
                unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
                content += unpacker.decompress(packed, max_length=limit + 1 - len(content))
                if len(content) > limit:
                    raise ModelError(f"{path}: unpacks to more than {limit >> 20} MiB; refused")
                if not unpacker.eof:
                    raise ModelError(f"{path}: the xz file is cut off; download it again")
                packed = unpacker.unused_data
        except lzma.LZMAError as error:
            raise ModelError(f"{path}: is not a readable xz file ({error}); download it again") from None
    return bytes(content)


def _model_member(path: Path, archive: zipfile.ZipFile, suffix: str) -> zipfile.ZipInfo:
    members = archive.infolist()
    if len(members) > _MEMBERS_LIMIT:
        raise ModelError(f"{path}: has {len(members)} members; a model archive holds one {suffix} file")
    for member in members:
        _check_member(path, member)
    models = [member for member in members if member.filename.endswith(suffix) and not member.is_dir()]
    if len(models) != 1:
        found = ", ".join(member.filename for member in models[:5]) or "none"
        raise ModelError(f"{path}: must hold exactly one {suffix} file, found {found}")
    return models[0]


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename.replace("\\", "/")
    if name.startswith("/") or name[1:2] == ":" or ".." in PurePosixPath(name).parts:
        raise ModelError(f"{path}: member {member.filename!r} points outside the archive; refused")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ModelError(f"{path}: member {member.filename!r} is a symbolic link; refused")
    if member.flag_bits & 1:
        raise ModelError(f"{path}: member {member.filename!r} is encrypted; unpack it first")
    if member.file_size > MAX_BYTES:
        raise ModelError(f"{path}: member {member.filename!r} unpacks to more than {MAX_BYTES >> 20} MiB; refused")
    if member.file_size > MAX_RATIO * max(member.compress_size, 1):
        raise ModelError(f"{path}: member {member.filename!r} unpacks to over {MAX_RATIO} times its size; refused")


def _read_capped(path: Path, stream: IO[bytes], member: zipfile.ZipInfo) -> bytes:
    # The directory's size field is the archive's own claim: never read past it.
    text = stream.read(member.file_size + 1)
    if len(text) != member.file_size:
        raise ModelError(f"{path}: member {member.filename!r} is not as long as the archive says")
    if not text:
        raise ModelError(f"{path}: member {member.filename!r} is empty")
    return text


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise ModelError(f"{path}: is not a readable zip archive ({error}); download it again") from None

"""Class names inside a model file: TensorFlow Lite's metadata keeps them in a zip archive behind the model's tables."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from bitkiln.pipeline.importers.common.archive import MAX_RATIO

#: A list of names larger than this, or among more files, is none.
_MAX_BYTES = 4 << 20
_MAX_FILES = 64


def embedded_labels(path: Path, count: int) -> tuple[str, ...]:
    """The first list of ``count`` names; none where the file carries no such list.

    Nobody asked for them, so what is damaged is passed over.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members if len(members) <= _MAX_FILES else ():
                names = _names(archive, member)
                if len(names) == count:
                    return names
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError):
        pass
    return ()


def _names(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[str, ...]:
    if not member.filename.endswith(".txt") or member.file_size > min(
        _MAX_BYTES, MAX_RATIO * max(member.compress_size, 1)
    ):
        return ()
    with archive.open(member) as stream:
        text = stream.read(_MAX_BYTES).decode("utf-8")
    return tuple(line.strip() for line in text.rstrip().splitlines())

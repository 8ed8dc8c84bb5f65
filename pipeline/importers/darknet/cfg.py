"""Reading darknet's ``.cfg``: sections of ``key=value`` lines, each remembered with its line number.

As darknet reads them: blanks inside a line mean nothing, ``#`` and ``;`` start a comment, the first of two equal keys counts.
Unlike darknet, which takes what is no number for 0, we refuse it by its line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bitkiln.pipeline.errors import ModelError, UnsupportedLayer
from bitkiln.pipeline.importers.common.archive import check_file

#: The longest cfg of darknet's own collection has 50 KB and 300 sections.
_MAX_BYTES = 1 << 20
_MAX_SECTIONS = 4096
_MAX_NUMBERS = 64
_LARGEST = 1e38

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass
class Section:
    """One ``[kind]`` and its options: key -> (value, line). ``index`` is darknet's number of the layer, -1 for ``[net]``."""

    path: Path
    kind: str
    line: int
    index: int
    options: dict[str, tuple[str, int]] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    @property
    def where(self) -> str:
        """How messages name the section."""
        number = f"layer {self.index} " if self.index >= 0 else ""
        return f"{self.path}: {number}[{self.kind}] (line {self.line})"

    def error(self, text: str, key: str = "") -> ModelError:
        """The error to raise, naming the section, and the line of ``key``."""
        return ModelError(f"{self.where}: {self._at(key)}{text}")

    def unsupported(self, text: str, key: str = "") -> UnsupportedLayer:
        """As ``error``, for what is well-formed but cannot be run."""
        return UnsupportedLayer(f"{self.where}: {self._at(key)}{text}")

    def _at(self, key: str) -> str:
        return f"line {self.options[key][1]}: " if key in self.options else ""

    def text(self, key: str, default: str = "") -> str:
        """The value of ``key``."""
        self.read.add(key)
        return self.options[key][0] if key in self.options else default

    def whole(self, key: str, default: int, low: int = 0, high: int = 1 << 20) -> int:
        """A whole number within bounds."""
        if key not in self.options:
            self.read.add(key)
            return default
        return self._whole(key, self.text(key), low, high)

    def flag(self, key: str) -> bool:
        """Is ``key`` given and not 0?"""
        return self.whole(key, 0, -(1 << 31), 1 << 31) != 0

    def wholes(self, key: str, low: int, high: int) -> list[int]:
        """Whole numbers separated by commas; empty where the key is absent."""
        parts = self.text(key).split(",") if key in self.options else []
        if len(parts) > _MAX_NUMBERS:
            raise self.error(f"{key} has {len(parts)} numbers, more than {_MAX_NUMBERS}", key)
        self.read.add(key)
        return [self._whole(key, part, low, high) for part in parts]

    def numbers(self, key: str) -> list[float]:
        """Finite numbers separated by commas; empty where the key is absent."""
        parts = self.text(key).split(",") if key in self.options else []
        values = [_parsed(part) for part in parts if part]
        if len(parts) > _MAX_NUMBERS or not all(abs(value) <= _LARGEST for value in values):
            raise self.error(f"{key}={shown(self.text(key))} is no list of numbers", key)
        return values

    def number(self, key: str, default: float) -> float:
        """A finite number that float32 can hold."""
        value = self.text(key)
        if not value:
            return default
        number = _parsed(value)
        if not abs(number) <= _LARGEST:
            raise self.error(f"{key}={shown(value)} is no number of float32", key)
        return number

    def _whole(self, key: str, value: str, low: int, high: int) -> int:
        number = _parsed(value)
        if not number.is_integer():
            raise self.error(f"{key}={shown(value)} is no whole number", key)
        if not low <= number <= high:
            raise self.error(f"{key}={shown(value)} is not within {low}..{high}", key)
        return int(number)


def read_cfg(path: Path) -> tuple[Section, list[Section]]:
    """``[net]`` and the layers behind it. Raises ModelError with the line of what is wrong."""
    check_file(path)
    if path.stat().st_size > _MAX_BYTES:
        raise ModelError(f"{path}: is too large for a darknet cfg")
    sections: list[Section] = []
    for number, line in _lines(path):
        if line.startswith("["):
            if not line.endswith("]"):
                raise ModelError(f"{path}: line {number}: {shown(line)} has no closing bracket")
            sections.append(Section(path, line[1:-1], number, len(sections) - 1))
            if len(sections) > _MAX_SECTIONS:
                raise ModelError(f"{path}: has more than {_MAX_SECTIONS} sections")
        else:
            _add_option(path, sections, number, line)
    if not sections or sections[0].kind not in ("net", "network"):
        raise ModelError(f"{path}: is no darknet cfg: its first section must be [net]")
    if len(sections) == 1:
        raise ModelError(f"{path}: has no layers")
    for section in sections:
        section.kind = shown(section.kind) if not section.kind.isidentifier() else section.kind
    return sections[0], sections[1:]


def _parsed(value: str) -> float:
    """The number that is written in decimal digits, or NaN."""
    return float(value) if _NUMBER.fullmatch(value) else math.nan


def shown(value: str) -> str:
    """A value of the file as messages show it: on one line, and short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines without blanks and comments; what is not UTF-8 may stand in comments."""
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace")
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        bare = "".join(line.split())
        for mark in "#;":
            bare = bare.partition(mark)[0]
        if bare:
            yield number, bare


def _add_option(path: Path, sections: list[Section], number: int, line: str) -> None:
    key, separator, value = line.partition("=")
    if not separator or not key:
        raise ModelError(f"{path}: line {number}: {shown(line)} is neither a [section] nor key=value")
    if not sections:
        raise ModelError(f"{path}: line {number}: {shown(line)} stands before any [section]")
    options = sections[-1].options
    if not value:
        return  # darknet takes such a key as absent
    if key not in options:
        options[key] = (value, number)
    elif options[key][0] != value:
        sections[-1].repeated.setdefault(key, number)

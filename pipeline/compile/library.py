"""What a linked library asks of the system it runs on, and the code in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import Section, SymbolTableSection

from bitkiln.pipeline.errors import BitkilnError

#: The oldest C library that bundles have to run with: Debian 10's, the oldest Raspberry Pi OS still met.
OLDEST_GLIBC = (2, 28)

_EXECUTABLE = 0x4


@dataclass(frozen=True)
class LibraryFacts:
    """What a linked library asks of the system it runs on."""

    needed: tuple[str, ...]
    glibc: str


@dataclass(frozen=True)
class Code:
    """A stretch of instructions in one function. ``kind`` says how its bytes are read: "x" A64, "a" A32, "t" T32."""

    address: int
    data: bytes
    kind: str
    symbol: str


def library_facts(library: Path) -> LibraryFacts:
    """Which libraries and which glibc ``library`` needs, read from its dynamic section. Raises BitkilnError."""
    with library.open("rb") as file:
        elf = ELFFile(file)
        tags = [
            tag for section in elf.iter_sections() if isinstance(section, DynamicSection) for tag in section.iter_tags()
        ]
        needed = tuple(tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED")
        versions = {version for section in elf.iter_sections() for version in _glibc_versions(section)}
    newest = max(versions, default=(2, 0))
    if newest > OLDEST_GLIBC:
        dotted = [".".join(map(str, version)) for version in (newest, OLDEST_GLIBC)]
        raise BitkilnError(f"the library needs glibc {dotted[0]}, boards have {dotted[1]}: a function of it is too new")
    return LibraryFacts(needed, ".".join(map(str, newest)))


def _glibc_versions(section: Section) -> Iterator[tuple[int, ...]]:
    if isinstance(section, GNUVerNeedSection):
        for _, wanted in section.iter_versions():
            for version in wanted:
                if match := re.fullmatch(r"GLIBC_([0-9.]+)", version.name):
                    yield tuple(map(int, match[1].split(".")))


def code_of(library: Path) -> list[Code]:
    """The instructions of ``library``, without the data between them, which mapping symbols mark."""
    with library.open("rb") as file:
        elf = ELFFile(file)
        first = "x" if elf.elfclass == 64 else "a"
        table = elf.get_section_by_name(".symtab")
        marks = _marks(table) if isinstance(table, SymbolTableSection) else []
        return [
            part
            for section in elf.iter_sections()
            if section["sh_flags"] & _EXECUTABLE and section["sh_type"] == "SHT_PROGBITS"
            for part in _parts(section, marks, first)
        ]


def _marks(table: SymbolTableSection) -> list[tuple[int, str, str]]:
    """(address, mapping kind or "", name of a function or "") of the symbols that tell how code is to be read, in order."""
    marks = []
    for symbol in table.iter_symbols():
        address, kind = symbol["st_value"], symbol["st_info"]["type"]
        mapping = re.fullmatch(r"\$([xatd])(\..*)?", symbol.name)
        if mapping:
            marks.append((address, mapping[1], ""))
        elif kind == "STT_FUNC" or (kind == "STT_NOTYPE" and symbol.name):
            marks.append((address & ~1 if kind == "STT_FUNC" else address, "", symbol.name))
    return sorted(marks)


def _parts(section: Section, marks: list[tuple[int, str, str]], kind: str) -> Iterator[Code]:
    begin, data = section["sh_addr"], section.data()
    end, at, symbol = begin + len(data), begin, section.name
    for address, mapping, name in [*(mark for mark in marks if begin <= mark[0] < end), (end, "", "")]:
        if address > at and kind != "d":
            yield Code(at, data[at - begin : address - begin], kind, symbol)
        at, kind, symbol = address, mapping or kind, name or symbol

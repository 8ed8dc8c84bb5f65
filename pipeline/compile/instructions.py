"""Every instruction of a library belongs to its target's architecture: a newer one would end the process with SIGILL.

Capstone, which knows instructions of all versions of the architecture, reads each one; the target's own assembler, told the
target's architecture, has to take the text, and on 64-bit targets to give the same word again.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from pathlib import Path

import capstone

from bitkiln.pipeline.compile.library import Code, code_of
from bitkiln.pipeline.compile.tools import attempt, tools_for
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.targets import Target
from bitkiln.targets.scratch import scratch_folder

_MODES = {
    "x": (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM),
    "a": (capstone.CS_ARCH_ARM, capstone.CS_MODE_ARM | capstone.CS_MODE_V8),
    "t": (capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_V8),
}

#: A64 instructions whose operand is an address beside their own, as (mask, value): of ARMv8.0 all of them, and the assembler
#: would ask for a label. B and BL; CBZ and CBNZ; TBZ and TBNZ; B.cond; ADR and ADRP; loads and prefetches of literals.
#: Arm Architecture Reference Manual (DDI 0487), C4.1.
_PC_RELATIVE = (
    (0x7C000000, 0x14000000),
    (0x7E000000, 0x34000000),
    (0x7E000000, 0x36000000),
    (0xFF000010, 0x54000000),
    (0x1F000000, 0x10000000),
    (0x3B000000, 0x18000000),
)

#: Branches, literals, and what sets up T32's conditional instructions.
_PC_RELATIVE_32 = re.compile(
    r"(bl?x?|cbn?z|adr|it[te]*|tb[bh]|(b|bl)(eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|al)?)(\.w|\.n)?"
)

#: What tells the assembler how instructions are read.
_STATES = {"x": (), "a": (".arm",), "t": (".thumb",)}

#: What has been found to belong to a target, by its name: most code is the same in every library.
_accepted: dict[str, set[tuple[str, bytes]]] = {}


def check_instructions(library: Path, target: Target) -> None:
    """Raise BitkilnError where ``library`` has an instruction that ``target``'s CPU lacks, naming it and its function."""
    if not target.llvm["mtriple"].startswith(("aarch64", "arm")):
        return
    known = _accepted.setdefault(target.name, set())
    fresh: dict[str, dict[bytes, tuple[str, str]]] = {kind: {} for kind in _MODES}
    for code in code_of(library):
        for address, word, text in _read(code, known):
            fresh[code.kind].setdefault(word, (text, f"in {code.symbol} at {address:#x}"))
    for kind, found in fresh.items():
        if found:
            _assemble(kind, found, target)
            known.update((kind, word) for word in found)


def _read(code: Code, known: Container[tuple[str, bytes]]) -> Iterator[tuple[int, bytes, str]]:
    """(address, word, text) of the instructions that are not ``known``; A64's texts are those at address 0."""
    return _read_words(code, known) if code.kind == "x" else _read_on(code, known)


def _read_words(code: Code, known: Container[tuple[str, bytes]]) -> Iterator[tuple[int, bytes, str]]:
    reader, seen = capstone.Cs(*_MODES[code.kind]), set()
    for at in range(0, len(code.data) - 3, 4):
        word = code.data[at : at + 4]
        if word in seen:
            continue
        seen.add(word)
        if ("x", word) not in known and not _pc_relative(int.from_bytes(word, "little")):
            text = next((f"{name} {operands}" for _, _, name, operands in reader.disasm_lite(word, 0)), "")
            yield code.address + at, word, text


def _read_on(code: Code, known: Container[tuple[str, bytes]]) -> Iterator[tuple[int, bytes, str]]:
    """From one to the next, since T32's are of two lengths, and conditional by what stands before."""
    at = 0
    for address, size, name, operands in capstone.Cs(*_MODES[code.kind]).disasm_lite(code.data, code.address):
        word = code.data[at : at + size]
        if (code.kind, word) not in known and not _PC_RELATIVE_32.fullmatch(name):
            yield address, word, f"{name} {operands}"
        at += size
    if at < len(code.data):
        yield code.address + at, code.data[at : at + 4], ""


def _pc_relative(word: int) -> bool:
    return any(word & mask == value for mask, value in _PC_RELATIVE)


def _assemble(kind: str, found: dict[bytes, tuple[str, str]], target: Target) -> None:
    words = list(found)
    texts = [found[word][0] or ".error" for word in words]
    header = [*target.cc["architecture"], *_STATES[kind]]
    with scratch_folder() as name:
        source, out = Path(name) / "code.s", Path(name) / "code.o"
        source.write_text("\n".join([*header, *texts, ""]))
        done = attempt(tools_for(target), ["-Wa,-mimplicit-it=always"] * (kind == "t") + ["-c", source, "-o", out])
        said = done.stderr.decode(errors="replace")
        complaint = re.search(r"code\.s:(\d+):(?:\d+:)? [Ee]rror: (.*)", said)
        if done.returncode != 0 and complaint is None:
            raise BitkilnError(f"checking the instructions for {target.name} failed: {said.strip()[:200]}")
        if complaint is not None:
            word = words[int(complaint[1]) - 1 - len(header)]
            raise _foreign(word, found[word], target, complaint[2])
        again = b"".join(code.data for code in code_of(out))
    if kind == "x":
        for at, word in enumerate(words):
            if again[4 * at : 4 * at + 4] != word:
                raise _foreign(word, found[word], target, "the assembler gives another word for it")


def _foreign(word: bytes, found: tuple[str, str], target: Target, reason: str) -> BitkilnError:
    text, where = found
    return BitkilnError(
        f"the library has an instruction that {target.name}'s CPU lacks: {text or 'unknown'} ({word[::-1].hex()}) {where}: "
        f"{' '.join(reason.split())}; this is a fault of bitkiln or of its compiler, please report it"
    )

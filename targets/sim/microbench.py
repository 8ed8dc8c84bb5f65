"""Micro-benchmarks on the simulated core: short instruction sequences whose cycles were measured on silicon.

A fact says: this sequence takes so many cycles. It is run as published cycle-counter tests do: 32 nops, a read of the
cycle counter, the sequence, another read, 30 times over so that caches and predictors are warm; the last time counts.
x20 to x22 point into a buffer (x21 = x20 + 64, x22 = x20 + 16384), x0 and x1 hold the fact's values, x25 its
`end_offset`, if need be plus x20.
"""

import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bitkiln.targets.loader import load as load_target
from bitkiln.targets.needs import Missing
from bitkiln.targets.scratch import scratch_folder
from bitkiln.targets.sim.build import qemu_command
from bitkiln.targets.sim.reports import Reports
from bitkiln.targets.toolchain import toolchain

REPETITIONS = 30


@dataclass(frozen=True)
class Fact:
    """A sequence and the cycles it took on a Cortex-A53; `source` says who measured it."""

    name: str
    asm: tuple[str, ...]
    cycles: int
    source: str = ""
    x0: int | None = None
    x1: int | None = None
    end_offset: int | None = None
    end_is_address: bool = field(default=False)
    """x25 holds the address x20 + end_offset, not the offset alone."""


def assembly(facts: Sequence[Fact]) -> str:
    """A static AArch64 program that runs every fact in a region of its own, the region's id being its index."""
    text = [".arch armv8-a+crc+crypto", ".text", ".global _start", "_start:"]
    for index, fact in enumerate(facts):
        text += ["mov x26, #0", f"ldr x27, ={REPETITIONS}", *_prctl(0x41353301, 0), "7777:", *_prepared(fact)]
        text += ["mrs x28, cntvct_el0", *fact.asm, "mrs x29, cntvct_el0"]
        text += ["sub x27, x27, #1", "cbz x27, 7778f", "b 7777b", "7778:", *_prctl(0x41353302, index), "b 7779f"]
        text += [".ltorg", "7779:"]
    text += ["mov x0, #0", "mov x8, #93", "svc #0", *_BUFFER]
    return "\n".join(text)


#: What a sequence stands between: nothing, two reads of the cycle counter, two marks for the simulator.
_AROUND = (("", ""), ("mrs x28, pmccntr_el0", "mrs x29, pmccntr_el0"), ("mrs x28, cntvct_el0", "mrs x29, cntvct_el0"))
_BUFFER = (".bss", ".balign 4096", "buffer: .skip 65536", "")
#: Facts rely on what a program starts with: zeros, in the buffer too.
_CLEARED = [f"mov x{i}, #0" for i in range(2, 18)] + [f"movi v{i}.2d, #0" for i in range(32)]
#: The registers that a function must give back as they were.
_KEPT = [(f"x{i}", f"x{i + 1}") for i in range(19, 31, 2)] + [(f"d{i}", f"d{i + 1}") for i in range(8, 16, 2)]


def functions(facts: Sequence[Fact]) -> str:
    """The facts as functions of a C program (guests/evidence.c): a table of three for each, by what stands around it.

    A function runs its fact as many times as its argument says, and gives the difference of the last two reads.
    """
    text = [".arch armv8-a+crc+crypto", ".text", ".balign 64"]
    for index, fact in enumerate(facts):
        for kind, (before, after) in enumerate(_AROUND):
            text += [f"sequence_{index}_{kind}:", f"sub sp, sp, #{16 * len(_KEPT)}"]
            text += [f"stp {a}, {b}, [sp, #{16 * i}]" for i, (a, b) in enumerate(_KEPT)]
            text += ["mov x27, x0", *_CLEARED, "7777:", *_prepared(fact), before, *fact.asm, after]
            text += ["sub x27, x27, #1", "cbz x27, 7778f", "b 7777b", "7778:", "sub x0, x29, x28"]
            text += [f"ldp {a}, {b}, [sp, #{16 * i}]" for i, (a, b) in enumerate(_KEPT)]
            text += [f"add sp, sp, #{16 * len(_KEPT)}", "ret", ".ltorg"]
    text += ['.section .data.rel.ro, "aw"', ".balign 8", ".global sequences, n_sequences, buffer", "sequences:"]
    text += [f".quad sequence_{index}_{kind}" for index in range(len(facts)) for kind in range(len(_AROUND))]
    text += ["n_sequences:", f".word {len(facts)}", '.section .note.GNU-stack, "", %progbits', *_BUFFER]
    return "\n".join(text)


def _prepared(fact: Fact) -> list[str]:
    """Registers as a fact wants them, and 32 nops."""
    text = [
        "adrp x20, buffer",
        "add x20, x20, :lo12:buffer",
        "add x21, x20, #64",
        "mov x22, #16384",
        "add x22, x20, x22",
    ]
    text += ["mov x23, #0", "mov x24, #0", f"ldr x0, ={fact.x0 or 0}", f"ldr x1, ={fact.x1 or 0}"]
    text += [f"ldr x25, ={fact.end_offset or 0}", *(["add x25, x25, x20"] if fact.end_is_address else [])]
    return [*text, *["nop"] * 32]


def _prctl(option: int, argument: int) -> list[str]:
    return [f"ldr x0, ={option}", f"ldr x1, ={argument}", "mov x8, #167", "svc #0"]


@dataclass(frozen=True)
class Dialect:
    """The instruction set that facts are written in: `assembly` makes a program of them for `target`'s toolchain."""

    target: str
    assembly: Callable[[Sequence[Fact]], str]


A64 = Dialect("rasp3b", assembly)


def build(facts: Sequence[Fact], program: Path, dialect: Dialect = A64) -> None:
    """Assembles and links the facts' program. Raises Missing or, for bad text, ValueError."""
    cross = toolchain(load_target(dialect.target))
    with scratch_folder() as scratch:
        source = Path(scratch) / "facts.s"
        source.write_text(dialect.assembly(facts))
        command = [*cross.command, "-nostdlib", "-static", str(source), "-o", str(program)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=cross.environment)
    if done.returncode:
        raise ValueError(f"micro-benchmarks do not assemble: {done.stderr.strip().splitlines()[-1]}")


def run(
    facts: Sequence[Fact],
    params: Mapping[str, object] | None = None,
    options: Sequence[str] = (),
    program: Path | None = None,
    dialect: Dialect = A64,
) -> list[int]:
    """Simulated cycles of each fact, in order. `program`: built before by `build`, else built here and thrown away.

    Raises Missing.
    """
    with scratch_folder() as scratch:
        if program is None:
            program = Path(scratch) / "facts"
            build(facts, program, dialect)
        out = Path(scratch) / "reports"
        machine = {"userland": load_target(dialect.target).userland}
        command, env = qemu_command(
            {**machine, **(params or {})}, [str(program)], options=["marks=1", f"out={out}", *options]
        )
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
            raise Missing(f"a program does not run under the model ({said})", "check the options of the model")
        reports = Reports(out).new()
    return [report["marks"][-1] for report in reports]


def gnu_syntax(instruction: str) -> str:
    """Turns LLVM's short form `fadd.4s v0, v1, v2` into the GNU assembler's `fadd v0.4s, v1.4s, v2.4s`."""
    match = re.match(r"(\w+)\.(\d+[bhsd])\s+(.*)", instruction)
    if not match:
        return instruction
    mnemonic, arrangement, operands = match.groups()
    return f"{mnemonic} " + re.sub(r"\bv(\d+)\b(?!\.)", rf"v\1.{arrangement}", operands)


def load(path: Path) -> list[Fact]:
    """Facts from a JSON list of objects with those fields of Fact that matter."""
    rows = json.loads(path.read_text())
    return [Fact(**{**row, "asm": tuple(gnu_syntax(line) for line in row["asm"])}) for row in rows]

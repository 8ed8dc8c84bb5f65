"""What the model says of AArch32, as sequences with the cycles they must take.

Nobody has published a table of the Cortex-A53's A32 instructions, so most facts are pairs: an A32 sequence takes as long as
the A64 sequence of the same operations, whose cycles were measured (facts.py). The others pin the columns that rules32.c has
of its own: they prove nothing about silicon.
"""

from __future__ import annotations

from collections.abc import Sequence

from bitkiln.targets.sim.microbench import REPETITIONS, Dialect, Fact

N = 8
"""Instructions of a chain or a run."""

#: An A32 instruction, the A64 instruction of the same operation: {d} and {s} are the numbers of destination and source. Where
#: the destination's halves are d registers, {e} is the number of the first.
PAIRS = [
    ("vmla.f32 q{d}, q{s}, q15", "fmla v{d}.4s, v{s}.4s, v15.4s"),
    ("vmla.f32 q{d}, q{s}, d15[1]", "fmla v{d}.4s, v{s}.4s, v15.s[1]"),
    ("vfma.f32 q{d}, q{s}, q15", "fmla v{d}.4s, v{s}.4s, v15.4s"),
    ("vadd.f32 q{d}, q{s}, q15", "fadd v{d}.4s, v{s}.4s, v15.4s"),
    ("vmul.f32 q{d}, q{s}, q15", "fmul v{d}.4s, v{s}.4s, v15.4s"),
    ("vmax.f32 q{d}, q{s}, q15", "fmax v{d}.4s, v{s}.4s, v15.4s"),
    ("vcgt.f32 q{d}, q{s}, q15", "fcmgt v{d}.4s, v{s}.4s, v15.4s"),
    ("vcvt.s32.f32 q{d}, q{s}", "fcvtzs v{d}.4s, v{s}.4s"),
    ("vrecps.f32 q{d}, q{s}, q15", "frecps v{d}.4s, v{s}.4s, v15.4s"),
    ("veor q{d}, q{s}, q15", "eor v{d}.16b, v{s}.16b, v15.16b"),
    ("vbsl q{d}, q{s}, q15", "bsl v{d}.16b, v{s}.16b, v15.16b"),
    ("vcnt.8 q{d}, q{s}", "cnt v{d}.16b, v{s}.16b"),
    ("vadd.i8 q{d}, q{s}, q15", "add v{d}.16b, v{s}.16b, v15.16b"),
    ("vcgt.u16 q{d}, q{s}, q15", "cmhi v{d}.8h, v{s}.8h, v15.8h"),
    ("vext.8 q{d}, q{s}, q15, #4", "ext v{d}.16b, v{s}.16b, v15.16b, #4"),
    ("vshl.i16 q{d}, q{s}, #3", "shl v{d}.8h, v{s}.8h, #3"),
    ("vpaddl.u8 q{d}, q{s}", "uaddlp v{d}.8h, v{s}.16b"),
    ("vpadal.u8 q{d}, q{s}", "uadalp v{d}.8h, v{s}.16b"),
    ("vmla.i16 q{d}, q{s}, q15", "mla v{d}.8h, v{s}.8h, v15.8h"),
    ("vmul.i16 q{d}, q{s}, q15", "mul v{d}.8h, v{s}.8h, v15.8h"),
    ("vaba.u8 q{d}, q{s}, q15", "uaba v{d}.16b, v{s}.16b, v15.16b"),
    ("vqshl.s16 q{d}, q{s}, q15", "sqshl v{d}.8h, v{s}.8h, v15.8h"),
    ("vdup.16 q{d}, r1", "dup v{d}.8h, w1"),
    ("vadd.f32 d{d}, d{s}, d15", "fadd v{d}.2s, v{s}.2s, v15.2s"),
    ("veor d{d}, d{s}, d15", "eor v{d}.8b, v{s}.8b, v15.8b"),
    ("vldr d{d}, [r8, #8]", "ldr d{d}, [x20, #8]"),
    ("vld1.32 {{d{e}[], d{f}[]}}, [r8]", "ld1r {{v{d}.4s}}, [x20]"),
    ("vld1.32 {{d{e}, d{f}}}, [r8]", "ld1 {{v{d}.4s}}, [x20]"),
    ("vst1.32 {{d{e}, d{f}}}, [r8]", "st1 {{v{d}.4s}}, [x20]"),
    ("vstr d{d}, [r8, #8]", "str d{d}, [x20, #8]"),
    ("vmov d{d}, r1, r2", "ins v{d}.d[1], x1"),
    ("add r{d}, r{s}, #1", "add w{d}, w{s}, #1"),
    ("add r{d}, r{s}, r8, lsl #2", "add w{d}, w{s}, w15, lsl #2"),
    ("ubfx r{d}, r{s}, #3, #4", "ubfx w{d}, w{s}, #3, #4"),
    ("mul r{d}, r{s}, r8", "mul w{d}, w{s}, w15"),
    ("ldr r{d}, [r8, #4]", "ldr w{d}, [x20, #4]"),
    ("ldrh r{d}, [r8, #4]", "ldrh w{d}, [x20, #4]"),
    ("str r{d}, [r8, #4]", "str w{d}, [x20, #4]"),
]

#: Sequences whose A64 counterpart is another one, or whose cycles stand in rules32.c alone.
OWN = [
    Fact("ldrd issues alone", ("ldrd r0, r1, [r8]", "add r2, r2, #1") * 4, 8, "C"),
    Fact("ldm of four takes two cycles", ("ldm r8, {r0-r3}",) * 4, 8, "C"),
    Fact("stm of four takes two cycles", ("stm r8, {r0-r3}",) * 4, 8, "C"),
    Fact("vldm loads 64 bits a cycle", ("vldm r8, {d0-d7}",) * 2, 16, "E"),
    Fact("vstm stores 128 bits a cycle", ("vstm r8, {d8-d15}",) * 2, 8, "E"),
    Fact("vzip of q registers takes two cycles", ("vzip.8 q0, q1", "vzip.8 q2, q3"), 4, "E"),
    Fact("vmov d, r, r pairs with vldr d", ("vldr d0, [r8]", "vmov d3, r0, r1") * 4, 4, "K"),
    Fact("ldr pairs after a q operation", ("veor q0, q1, q2", "ldr r0, [r8]") * 4, 4, "as Q for A64"),
    Fact("a condition waits for the flags", ("cmp r0, #3", "addeq r1, r1, #1") * 4, 5, "E"),
]


def shadows() -> list[tuple[Fact, Fact]]:
    """Each of PAIRS as a chain, where one depends on the one before, and as a run of independent ones: A32 and A64."""
    result = []
    for a32, a64 in PAIRS:
        for name, source in (("chain", None), ("run", 8)):
            first, second = (_sequence(text, source) for text in (a32, a64))
            result.append((Fact(f"{name} of {a32}", first, 0), Fact(f"{name} of {a64}", second, 0)))
    return result


def _sequence(text: str, source: int | None) -> tuple[str, ...]:
    """N times ``text``: all on register 0, or from ``source`` to registers of their own."""
    integers = text.split()[1].startswith(("r", "w"))
    numbers = [0] * N if source is None else [i % (6 if integers else N) for i in range(N)]
    read = source if source is not None and not integers else (7 if source is not None else 0)
    return tuple(text.format(d=d, s=read, e=2 * d, f=2 * d + 1) for d in numbers)


def assembly(facts: Sequence[Fact]) -> str:
    """A static A32 program that runs every fact as microbench.assembly does. r8 points into a buffer; `dbg #15` is the mark."""
    text = [".syntax unified", ".arch armv8-a", ".fpu neon-fp-armv8", ".arm", ".text", ".global _start", "_start:"]
    for index, fact in enumerate(facts):
        text += [f"mov r10, #{REPETITIONS}", *_prctl(0x41353301, 0), "7777:"]
        text += ["ldr r8, =buffer", "mov r0, #0", "mov r1, #0", *["nop"] * 32]
        text += ["dbg #15", *fact.asm, "dbg #15"]
        text += ["subs r10, r10, #1", "beq 7778f", "b 7777b", "7778:", *_prctl(0x41353302, index)]
        text += ["b 7779f", ".ltorg", "7779:"]
    text += ["mov r0, #0", "mov r7, #1", "svc #0", ".bss", ".balign 4096", "buffer: .skip 65536", ""]
    return "\n".join(text)


def _prctl(option: int, argument: int) -> list[str]:
    return [f"ldr r0, ={option}", f"ldr r1, ={argument}", "mov r7, #172", "svc #0"]


A32 = Dialect("rasp3b32", assembly)

"""What is known of the Cortex-A53's instructions, as micro-benchmarks with the cycles they must take on the model.

Every row of the rule table (rules.c) is pinned here. For most rows sequences are generated: a chain of dependent
instructions, which takes the latency of each, a run of independent ones, which shows how many issue in a cycle, and
pairs with other instructions. Sources:

- I: insn_bench_aarch64 (github ocxtal), latencies and throughputs of a Raspberry Pi 3, rounded to whole cycles;
- Q: qsdr (github daniestevez), cycle-counter tests on a Cortex-A53;
- L: llvm-exegesis on a Raspberry Pi 3 (github llvm/llvm-project, pull requests 213238 and 219478). They say in words only how
  `madd x` came out, 4.01 cycles; the other measurements are in an attached archive that no store of public text has;
- E: not measured by anyone we know of: the sequence pins the model's estimate and proves nothing about silicon.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from bitkiln.targets.sim.microbench import Fact

N = 8
"""Instructions in a generated chain or run."""


@dataclass(frozen=True)
class Timing:
    """Published timing of one instruction: `asm` with {d} for the destination's number and {s} for a source's.

    `rate`: how many issue in a cycle; `accumulate`: asm of a chain through the accumulator and the cycles a link of it
    takes; `source`: who says so, `latency_source` if another says it of the latency.
    """

    row: str
    asm: str
    latency: int | None
    rate: Fraction
    source: str = "I"
    accumulate: tuple[str, int] | None = None
    latency_source: str | None = None

    @property
    def held(self) -> int:
        """Cycles for which one instruction keeps the next of its kind away."""
        return -(-self.rate.denominator // self.rate.numerator)


def _t(
    row: str,
    asm: str,
    latency: int | None,
    rate: str,
    source: str = "I",
    accumulate: tuple[str, int] | None = None,
    latency_source: str | None = None,
) -> Timing:
    return Timing(row, asm, latency, Fraction(rate), source, accumulate, latency_source)


TIMINGS = [
    # floating point
    _t("FMLA", "fmla v{d}.4s, v{s}.4s, v31.4s", 8, "1", accumulate=("fmla v0.4s, v30.4s, v31.4s", 4)),
    _t("FMLA", "fmls v{d}.2s, v{s}.2s, v31.s[1]", 8, "2"),
    _t("FMADD", "fmadd s{d}, s{s}, s31, s30", 8, "2", accumulate=("fmadd s0, s30, s31, s0", 4)),
    _t("FRECPS", "frecps v{d}.4s, v{s}.4s, v31.4s", 8, "1"),
    _t("FRECPS", "frsqrts s{d}, s{s}, s31", 8, "2"),
    _t("FDIV_D", "fdiv d{d}, d{s}, d31", 22, "1/19", "E"),
    _t("FDIV_S", "fdiv s{d}, s{s}, s31", 13, "1/10", "E"),
    _t("FDIV_D", "fdiv v{d}.2d, v{s}.2d, v31.2d", 22, "1/19", "E"),
    _t("FDIV_S", "fdiv v{d}.4s, v{s}.4s, v31.4s", 13, "1/10", "E"),
    _t("FSQRT_D", "fsqrt d{d}, d{s}", 22, "1/20"),
    _t("FSQRT_D", "fsqrt v{d}.2d, v{s}.2d", 22, "1/20"),
    _t("FSQRT_S", "fsqrt v{d}.4s, v{s}.4s", 12, "1/9"),
    _t("FSQRT_S", "fsqrt s{d}, s{s}", 12, "1/9"),
    _t("FCMP", "fcmp s{d}, s31", None, "1"),
    _t("FCSEL", "fcsel s{d}, s{s}, s31, eq", 2, "1"),
    _t("FP_COMPARE", "fcmgt v{d}.4s, v{s}.4s, v31.4s", 2, "1"),
    _t("FP_COMPARE", "facge s{d}, s{s}, s31", 2, "2"),
    _t("FCVT_LONG", "fcvtl v{d}.2d, v{s}.2s", 4, "1"),
    _t("FCVT_LONG", "fcvtn v{d}.2s, v{s}.2d", 4, "1"),
    _t("FCVT_TO_GPR", "fcvtzs w{d}, s31", None, "2"),
    _t("FP", "fadd v{d}.4s, v{s}.4s, v31.4s", 4, "1"),
    _t("FP", "fmul v{d}.2d, v{s}.2d, v31.2d", 4, "1"),
    _t("FP", "fmaxnm v{d}.4s, v{s}.4s, v31.4s", 4, "1"),
    _t("FP", "fabs s{d}, s{s}", 4, "2"),
    _t("FP", "fcvtzs v{d}.4s, v{s}.4s", 4, "1"),
    _t("FMOV", "fmov s{d}, s{s}", 2, "2", "E"),
    _t("FMOV", "fmov v{d}.4s, #1.0", None, "1", "E"),
    # NEON moves
    _t("INS_GPR", "ins v{d}.d[1], x9", None, "2", "Q", accumulate=("ins v0.d[1], x9", 1)),
    _t("INS_LANE", "ins v{d}.s[1], v{s}.s[0]", 2, "1", "E", accumulate=("ins v0.s[1], v31.s[0]", 1)),
    _t("UMOV", "umov x{d}, v31.d[0]", None, "2", "E"),
    _t("DUP_GPR", "dup v{d}.4s, w9", None, "2"),
    _t("DUP_LANE", "dup v{d}.4s, v{s}.s[3]", 2, "1"),
    _t("MOVI", "movi v{d}.4s, #1", None, "1"),
    # NEON integer and logic
    _t("LOGIC", "eor v{d}.16b, v{s}.16b, v31.16b", 1, "1"),
    _t("LOGIC", "mvn v{d}.8b, v{s}.8b", 1, "2"),
    _t("SELECT", "bsl v{d}.16b, v{s}.16b, v31.16b", 2, "1", accumulate=("bit v0.16b, v30.16b, v31.16b", 2)),
    _t("NEON_2", "add v{d}.16b, v{s}.16b, v31.16b", 2, "1"),
    _t("NEON_2", "cnt v{d}.16b, v{s}.16b", 2, "1"),
    _t("NEON_2", "zip1 v{d}.4s, v{s}.4s, v31.4s", 2, "1"),
    _t("NEON_2", "cmgt v{d}.8b, v{s}.8b, v31.8b", 2, "2"),
    _t("NEON_3", "abs v{d}.4s, v{s}.4s", 3, "1"),
    _t("NEON_3", "uaddlp v{d}.8h, v{s}.16b", 3, "1"),
    _t("NEON_3", "addp v{d}.8b, v{s}.8b, v31.8b", 3, "2", "E", latency_source="I"),
    _t("NEON_4", "sqabs v{d}.4s, v{s}.4s", 4, "1"),
    _t("NEON_MUL", "mul v{d}.4s, v{s}.4s, v31.4s", 4, "1"),
    _t("NEON_MLA", "mla v{d}.4s, v{s}.4s, v31.4s", 4, "1", accumulate=("smlal v0.4s, v30.4h, v31.4h", 1)),
    _t("SQDMLAL", "sqdmlal v{d}.4s, v{s}.4h, v31.4h", 4, "1", accumulate=("sqdmlal v0.4s, v30.4h, v31.4h", 4)),
    _t("ABA", "uaba v{d}.16b, v{s}.16b, v31.16b", 4, "1/2", accumulate=("uaba v0.16b, v30.16b, v31.16b", 2)),
    _t("ADALP", "uadalp v{d}.8h, v{s}.16b", 4, "1/2"),
    _t("ROUND_HALF", "raddhn v{d}.8b, v{s}.8h, v31.8h", 4, "1/2"),
    _t("NARROW", "xtn v{d}.8b, v{s}.8h", 2, "2"),
    _t("NARROW", "shrn v{d}.4h, v{s}.4s, #2", 2, "2"),
    _t("NARROW_ROUND", "rshrn v{d}.4h, v{s}.4s, #2", 3, "2"),
    _t("NARROW_SAT", "sqxtn v{d}.4h, v{s}.4s", 4, "2"),
    _t("TBL", "tbl v{d}.16b, {{v31.16b}}, v{s}.16b", 2, "1"),
    _t("TBL", "tbl v{d}.16b, {{v28.16b-v31.16b}}, v{s}.16b", 5, "1/4"),
    _t("TBX", "tbx v{d}.16b, {{v31.16b}}, v{s}.16b", 3, "1/2"),
    _t("TBX", "tbx v{d}.16b, {{v29.16b-v31.16b}}, v{s}.16b", 5, "1/4", "E", latency_source="I"),
    # integer
    _t("ALU", "sub x{d}, x{s}, x9", None, "2"),
    _t("ALU", "csel x{d}, x{s}, x9, eq", None, "2"),
    _t("ALU_SHIFTED", "add x{d}, x{s}, x9, lsl #2", 2, "2"),
    _t("BITFIELD", "lsl x{d}, x{s}, #3", 2, "2"),
    _t("BITFIELD_2", "ubfx x{d}, x{s}, #3, #5", 2, "2"),
    _t("BITFIELD_2", "crc32x w{d}, w{s}, x9", 2, "2"),
    _t("SHIFT_BY_REG", "lsl x{d}, x{s}, x9", 1, "1"),
    _t("MUL_X", "mul x{d}, x{s}, x9", 4, "1/2"),
    _t("MUL", "smull x{d}, w{s}, w9", 3, "1"),
    _t("MULH", "umulh x{d}, x{s}, x9", 6, "1/4"),
    _t("DIV_X", "udiv x{d}, x{s}, x9", 12, "1/10", "E"),
    _t("DIV_W", "udiv w{d}, w{s}, w9", 8, "1/6", "E"),
    # loads; a chain goes through the address, which is x20 plus the zero that is loaded
    _t("LDR", "ldr x{d}, [x20, x{s}]", 3, "1"),
    _t("LDR_NARROW", "ldrb w{d}, [x20, x{s}]", 4, "1"),
    _t("LDP_X", "ldp x{d}, x10, [x20]", None, "1/2"),
    _t("LDP_W", "ldp w{d}, w10, [x20]", None, "1/2", "E"),
    _t("LDR_Q", "ldr q{d}, [x20]", None, "1/2", "Q"),
    _t("LDR_Q", "ldp q{d}, q31, [x20]", None, "1/4", "Q"),
    _t("LDR_D", "ldr d{d}, [x20]", None, "1", "Q"),
    _t("LDR_D", "ldp d{d}, d31, [x20]", None, "1/2", "Q"),
    _t("LD1_Q", "ld1 {{v{d}.4s}}, [x20]", None, "1/2", "Q"),
    _t("LD1_Q", "ld1 {{v28.4s-v31.4s}}, [x20]", None, "1/8", "Q"),
    _t("LD1_Q", "ld3 {{v28.4s-v30.4s}}, [x20]", None, "1/6"),
    _t("LD1_D", "ld1 {{v28.2s-v29.2s}}, [x20]", None, "1/2", "E"),
    _t("LD34_E8_16", "ld3 {{v28.16b-v30.16b}}, [x20]", None, "1/7"),
    _t("LD34_E8_16", "ld4 {{v28.8h-v31.8h}}, [x20]", None, "1/9"),
    _t("LD_REP", "ld1r {{v{d}.4s}}, [x20]", None, "1"),
    _t("LD_REP_34", "ld4r {{v28.4s-v31.4s}}, [x20]", None, "1/2"),
    _t("LD_REP_E64", "ld1r {{v{d}.2d}}, [x20]", None, "1"),
    _t("LD_REP_E64", "ld3r {{v28.2d-v30.2d}}, [x20]", None, "1/3"),
    _t("LD_LANE", "ld1 {{v{d}.s}}[3], [x20]", None, "1", accumulate=("ld1 {{v0.s}}[3], [x20]", 1)),
    _t("LD_LANE_34", "ld4 {{v28.s-v31.s}}[3], [x20]", None, "1/2"),
    _t("LD_LANE_E64", "ld1 {{v{d}.d}}[1], [x20]", None, "1"),
    _t("LD_LANE_E64", "ld4 {{v28.d-v31.d}}[1], [x20]", None, "1/4"),
    _t("LOAD_EXCLUSIVE", "ldar x{d}, [x20]", None, "1/3", "E"),
    _t("PREFETCH", "prfm pldl1keep, [x20]", None, "1", "E"),
    # stores
    _t("STR", "str x{d}, [x20]", None, "1"),
    _t("STR", "stp x{d}, x9, [x20]", None, "1"),
    _t("STR_Q", "str q{d}, [x20]", None, "1", "Q"),
    _t("STR_Q", "stp q{d}, q31, [x20]", None, "1/2", "Q"),
    _t("STR_D", "str d{d}, [x20]", None, "1", "Q"),
    _t("STP_D", "stp d{d}, d31, [x20]", None, "1", "E"),
    _t("ST1_Q", "st1 {{v{d}.4s}}, [x20]", None, "1", "Q"),
    _t("ST1_Q", "st1 {{v28.4s-v31.4s}}, [x20]", None, "1/4", "Q"),
    _t("ST3_Q", "st3 {{v28.4s-v30.4s}}, [x20]", None, "1/4"),
    _t("ST4_Q", "st4 {{v28.4s-v31.4s}}, [x20]", None, "1/5"),
    _t("ST34_E64", "st3 {{v28.2d-v30.2d}}, [x20]", None, "1/3"),
    _t("ST_LANE", "st1 {{v{d}.s}}[3], [x20]", None, "1"),
    _t("ST_LANE_34", "st4 {{v28.s-v31.s}}[3], [x20]", None, "1/2"),
    _t("ST12_D", "st1 {{v28.2s-v29.2s}}, [x20]", None, "1", "E"),
    _t("ST13_D", "st3 {{v28.2s-v30.2s}}, [x20]", None, "1/2", "E"),
    _t("ST4_D", "st4 {{v28.2s-v31.2s}}, [x20]", None, "1/3", "E"),
    _t("STORE_EXCLUSIVE", "stxr w{d}, x9, [x20]", None, "1/3", "E"),
    # system
    _t("HINT", "nop", None, "2", "Q"),
    _t("SYSREG", "mrs x{d}, tpidr_el0", None, "2", "E"),
    _t("BARRIER", "dmb ish", None, "1/4", "E"),
    _t("UNKNOWN", "aesmc v{d}.16b, v{s}.16b", 3, "2", "E"),
]
"""Chains and runs of single instructions."""

_ADDRESS = "ldr x11, [x20, x{0}]"
"""A consumer that needs the integer register {0} at issue; the register must hold zero."""

# (row, name, sequence, cycles, source)
SEQUENCES: list[tuple[str, str, tuple[str, ...], int, str]] = [
    ("MUL_X", "madd's chain through a factor", ("madd x0, x0, x1, x2",) * N, 4 * (N - 1) + 1, "L"),
    # results to consumers of another kind
    ("FCMP", "to flags", ("fccmp s0, s1, #0, eq",) * N, 8, "I"),
    ("FCVT_TO_GPR", "to address", ("fcvtzs x0, d31", _ADDRESS.format(0)), 4, "I"),
    ("FMOV", "to address", ("fmov x0, d31", _ADDRESS.format(0)), 3, "E"),
    ("INS_GPR", "to fadd", ("ins v0.d[1], x9", "fadd v0.4s, v0.4s, v0.4s"), 3, "Q"),
    ("UMOV", "to address", ("umov x0, v31.d[0]", _ADDRESS.format(0)), 4, "I"),
    ("DUP_GPR", "to fadd", ("dup v0.4s, w9", "fadd v0.4s, v0.4s, v0.4s"), 3, "I"),
    ("MOVI", "to eor", ("movi v0.4s, #1", "eor v0.16b, v0.16b, v0.16b"), 2, "E"),
    ("ALU", "chain: two of it share a cycle", ("add x0, x0, x0",) * N, N - 1, "Q"),
    ("ALU", "late result to address", ("and x0, x0, xzr", "and x0, x0, x0", _ADDRESS.format(0)), 3, "E"),
    ("ALU", "early result to address", ("and x0, x0, xzr", _ADDRESS.format(0)), 2, "E"),
    ("ALU", "flags to a dependent", ("cmp x0, x9", "csel x0, x0, x9, eq"), 2, "E"),
    ("ADALP", "accumulator", ("uadalp v0.8h, v31.16b",) * N, 16, "E"),
    ("SYSREG", "to address", ("mrs x0, tpidr_el0", "and x0, x0, xzr", _ADDRESS.format(0)), 3, "E"),
    ("ALU_SHIFTED", "flags", ("cmp x0, x9, lsl #2", "ccmp x0, x9, #0, eq"), 3, "I"),
    # loads to consumers
    ("LDR_Q", "to fadd", ("ldr q0, [x20]", "fadd v0.4s, v0.4s, v0.4s"), 5, "Q"),
    ("LDR_Q", "second to fadd", ("ldp q0, q1, [x20]", "fadd v1.4s, v1.4s, v1.4s"), 7, "Q"),
    ("LDR_D", "to fadd", ("ldr d0, [x20]", "fadd v0.4s, v0.4s, v0.4s"), 4, "Q"),
    (
        "LDR_D",
        "fourth to fadd",
        ("ldp d0, d1, [x20]", "ldp d2, d3, [x20]", "fadd v3.4s, v3.4s, v3.4s"),
        7,
        "Q",
    ),
    ("LDP_X", "first to address", ("ldp x0, x1, [x20]", _ADDRESS.format(0)), 4, "I"),
    ("LDP_X", "second to address", ("ldp x0, x1, [x20]", _ADDRESS.format(1)), 5, "I"),
    ("LDP_W", "first to address", ("ldp w0, w1, [x20]", _ADDRESS.format(0)), 5, "I"),
    ("LDP_W", "second to address", ("ldp w0, w1, [x20]", _ADDRESS.format(1)), 5, "I"),
    ("LD1_Q", "fourth to fadd", ("ld1 {v0.4s-v3.4s}, [x20]", "fadd v3.4s, v3.4s, v3.4s"), 11, "Q"),
    ("LD1_Q", "first to fadd", ("ld1 {v0.4s}, [x20]", "fadd v0.4s, v0.4s, v0.4s"), 5, "Q"),
    ("LD1_D", "first to fadd", ("ld1 {v0.2s}, [x20]", "fadd v0.4s, v0.4s, v0.4s"), 4, "E"),
    ("LD1_D", "second to fadd", ("ld1 {v0.2s-v1.2s}, [x20]", "fadd v1.4s, v1.4s, v1.4s"), 5, "E"),
    ("LD34_E8_16", "last to fadd", ("ld4 {v0.16b-v3.16b}, [x20]", "fadd v3.4s, v3.4s, v3.4s"), 11, "E"),
    ("LD_REP", "to fadd", ("ld1r {v0.4s}, [x20]", "fadd v0.4s, v0.4s, v0.4s"), 4, "I"),
    ("LD_REP_34", "to fadd", ("ld3r {v0.4s-v2.4s}, [x20]", "fadd v0.4s, v0.4s, v0.4s"), 5, "I"),
    ("LD_REP_E64", "to fadd", ("ld2r {v0.2d-v1.2d}, [x20]", "fadd v0.4s, v0.4s, v0.4s"), 5, "I"),
    ("LD_LANE", "to fadd", ("ld1 {v0.s}[3], [x20]", "fadd v0.4s, v0.4s, v0.4s"), 4, "I"),
    ("LD_LANE", "into a result", ("fadd v0.4s, v0.4s, v0.4s", "ld1 {v0.s}[3], [x20]"), 3, "E"),
    ("LD_LANE_34", "to fadd", ("ld3 {v0.s-v2.s}[3], [x20]", "fadd v0.4s, v0.4s, v0.4s"), 5, "I"),
    ("LD_LANE_34", "into a result", ("fadd v0.4s, v0.4s, v0.4s", "ld3 {v0.s-v2.s}[3], [x20]"), 4, "E"),
    ("LD_LANE_E64", "to fadd", ("ld2 {v0.d-v1.d}[1], [x20]", "fadd v0.4s, v0.4s, v0.4s"), 5, "I"),
    ("LD_LANE_E64", "into a result", ("fadd v0.4s, v0.4s, v0.4s", "ld1 {v0.d}[1], [x20]"), 3, "E"),
    ("LOAD_EXCLUSIVE", "to address", ("ldar x0, [x20]", _ADDRESS.format(0)), 4, "E"),
    ("INS_GPR", "into a result", ("fadd v0.4s, v0.4s, v0.4s", "ins v0.d[1], x9"), 3, "E"),
    ("INS_LANE", "into a result", ("fadd v0.4s, v0.4s, v0.4s", "ins v0.s[1], v1.s[0]"), 3, "E"),
    # results to stores: when the data are needed
    ("STR", "of a load", ("ldr x0, [x20]", "str x0, [x20, #8]"), 3, "E"),
    ("STR_Q", "of a sum", ("fadd v0.4s, v0.4s, v0.4s", "str q0, [x20]"), 5, "E"),
    ("STR_Q", "second of a sum", ("fadd v1.4s, v1.4s, v1.4s", "stp q0, q1, [x20]"), 5, "E"),
    ("STR_D", "of a sum", ("fadd v0.4s, v0.4s, v0.4s", "str d0, [x20]"), 5, "E"),
    ("STP_D", "of a sum", ("fadd v1.4s, v1.4s, v1.4s", "stp d0, d1, [x20]"), 5, "E"),
    ("ST1_Q", "of a sum", ("fadd v0.4s, v0.4s, v0.4s", "st1 {v0.4s}, [x20]"), 5, "E"),
    ("ST1_Q", "second of a sum", ("fadd v1.4s, v1.4s, v1.4s", "st1 {v0.4s-v1.4s}, [x20]"), 5, "E"),
    ("ST3_Q", "of a sum", ("fadd v0.4s, v0.4s, v0.4s", "st3 {v0.4s-v2.4s}, [x20]"), 8, "E"),
    ("ST3_Q", "third of a sum", ("fadd v2.4s, v2.4s, v2.4s", "st3 {v0.4s-v2.4s}, [x20]"), 6, "E"),
    ("ST4_Q", "of a sum", ("fadd v0.4s, v0.4s, v0.4s", "st4 {v0.4s-v3.4s}, [x20]"), 9, "E"),
    ("ST4_Q", "third of a sum", ("fadd v2.4s, v2.4s, v2.4s", "st4 {v0.4s-v3.4s}, [x20]"), 7, "E"),
    ("ST34_E64", "of a sum", ("fadd v0.4s, v0.4s, v0.4s", "st3 {v0.2d-v2.2d}, [x20]"), 7, "E"),
    ("ST34_E64", "third of a sum", ("fadd v2.4s, v2.4s, v2.4s", "st3 {v0.2d-v2.2d}, [x20]"), 5, "E"),
    ("ST_LANE", "of a sum", ("fadd v0.4s, v0.4s, v0.4s", "st1 {v0.s}[3], [x20]"), 5, "E"),
    ("ST_LANE_34", "of a sum", ("fadd v0.4s, v0.4s, v0.4s", "st3 {v0.s-v2.s}[3], [x20]"), 6, "E"),
    ("ST12_D", "of a sum", ("fadd v0.4s, v0.4s, v0.4s", "st1 {v0.2s}, [x20]"), 5, "E"),
    ("ST13_D", "of a sum", ("fadd v0.4s, v0.4s, v0.4s", "st3 {v0.2s-v2.2s}, [x20]"), 6, "E"),
    ("ST4_D", "of a sum", ("fadd v0.4s, v0.4s, v0.4s", "st4 {v0.2s-v3.2s}, [x20]"), 7, "E"),
    ("STORE_EXCLUSIVE", "status", ("stxr w0, x9, [x20]", "lsl x0, x0, #1"), 4, "E"),
    # branches
    ("B", "taken as second", ("fadd v0.4s, v0.4s, v0.4s", "b 0f", "0:", "fadd v1.4s, v1.4s, v1.4s"), 2, "Q"),
    ("B", "taken alone", ("b 0f", "0:", "fadd v1.4s, v1.4s, v1.4s"), 2, "E"),
    ("B", "run of taken", ("b 0f", "0:") * N, 22, "I"),
    ("B_COND", "run of taken", ("tbz xzr, #0, 0f", "nop", "0:") * 4, 10, "I"),
    ("B_COND", "not taken, two", ("cbnz xzr, 0f", "cbnz xzr, 0f", "0:"), 2, "I"),
    ("B_COND", "pairs with compare", ("cmp x0, #1", "b.eq 0f", "nop", "nop", "0:"), 2, "Q"),
    ("BL", "link", ("bl 0f", "0:", "lsl x30, x30, #1"), 2, "E"),
    ("BL", "link at once", ("fadd v0.4s, v0.4s, v0.4s", "bl 0f", "0:", "lsl x1, x30, #1", "lsl x2, x30, #1"), 2, "E"),
    ("RET", "of a call, and a branch", ("bl 0f", "b 1f", "0:", "ret", "1:"), 7, "E"),
    ("RET", "pairs as second", ("bl 0f", "b 1f", "0:", "fadd v0.4s, v0.4s, v0.4s", "ret", "1:"), 7, "E"),
    ("BR", "steady target", ("adr x0, 0f", "br x0", "0:"), 1, "E"),
    ("BR", "pairs as second", ("adr x0, 0f", "fadd v0.4s, v0.4s, v0.4s", "br x0", "0:"), 2, "E"),
    ("BLR", "steady target", ("adr x0, 0f", "blr x0", "0:", "lsl x30, x30, #1"), 2, "E"),
    ("B_COND", "after a q operation", ("fadd v27.4s, v27.4s, v27.4s", "cbnz xzr, 0f", "0:"), 1, "E"),
    ("BLR", "after a q operation", ("adr x0, 0f", "fadd v27.4s, v27.4s, v27.4s", "blr x0", "0:", "nop"), 3, "E"),
    (
        "RET",
        "after a q operation",
        ("bl 0f", "b 1f", "0:", *("nop",) * 15, "fadd v27.4s, v27.4s, v27.4s", "ret", "nop", "1:"),
        13,
        "E",
    ),
    ("BARRIER", "before a d operation", ("dmb ish", "fadd v27.2s, v27.2s, v27.2s"), 4, "E"),
    ("mispredict", "return to elsewhere", ("adr x30, 0f", "ret", "nop", "0:"), 8, "E"),
    # loads that touch a 64-bit word more than they need to, stores across cache lines
    ("unaligned_load", "ldr x, run", ("ldur x0, [x20, #1]",) * N, 16, "I"),
    ("unaligned_load", "ldr x to address", ("ldur x0, [x20, #1]", _ADDRESS.format(0)), 6, "I"),
    ("unaligned_load", "ldr q, run", ("ldur q0, [x20, #1]",) * N, 24, "I"),
    ("unaligned_load", "ldr q to fadd", ("ldur q0, [x20, #1]", "fadd v0.4s, v0.4s, v0.4s"), 6, "I"),
    ("unaligned_load", "ldp q, run", ("add x12, x20, #1", *("ldp q0, q1, [x12]",) * N), 41, "I"),
    ("unaligned_load", "ldr q at 8 bytes, run", ("ldur q0, [x20, #8]",) * N, 16, "E"),
    ("unaligned_load", "ldrh, run", ("ldurh w0, [x20, #1]",) * N, 8, "I"),
    ("split_store", "str x within a line, run", ("stur x0, [x20, #1]",) * N, 8, "I"),
    ("split_store", "str x across lines, run", ("stur x0, [x20, #60]",) * N, 16, "I"),
    # the gap that an fmla keeps from vector loads
    ("fma_load_gap", "load 4 cycles after", ("fmla v0.4s, v1.4s, v2.4s", *("nop",) * 7, "ldr d3, [x20]"), 6, "E"),
]
"""Sequences that single instructions do not show."""


_ONE_HALF = {
    *("FMADD", "FCMP", "FCVT_TO_GPR", "INS_GPR", "UMOV", "DUP_GPR", "NARROW", "NARROW_ROUND", "NARROW_SAT"),
    *("LDR_D", "LD1_D", "STR_D", "ST4_D", "ST13_D", "ST12_D"),
}
"""Rows whose instructions take one half of the NEON datapath whatever their operands; others do if all are 64 bits."""

_PAIRS_MEASURED = ("FP", "LDR", "LDR_D", "LDR_Q", "STR", "STR_D", "STR_Q", "INS_GPR")
"""Rows whose pairing Q measured; that other instructions pair alike is an inference."""

_MEMORY = ("LD", "ST", "PREFETCH", "LOAD")
"""How the names of rows start whose instructions may be second in a pair though they take both halves."""


def _pairs(timing: Timing) -> Iterator[tuple[str, str, bool]]:
    """Instructions that may or may not share a cycle with one of `timing` after them, and whether they do.

    Q: an operation on both halves is the first of its pair and pairs with integer work alone; two on one half pair.
    """
    neon = re.search(r"\b[vqdsb]({d}|\d)", timing.asm) is not None and timing.row != "UNKNOWN"
    wide = re.search(r"\.(16b|8h|4s|2d)|\bq", timing.asm) is not None or timing.row in ("STP_D", "FCSEL")
    both = neon and timing.row not in _ONE_HALF and (wide or timing.row.startswith(("LD_LANE", "ST_LANE", "INS_LANE")))
    may_follow = timing.row.startswith(_MEMORY) or timing.row in ("FCSEL",)
    yield "an add", "add x12, x12, x12", timing.row != "BARRIER" and (not both or may_follow)
    yield "a q operation", "fadd v27.4s, v27.4s, v27.4s", not neon and timing.row != "BARRIER"
    yield "a d operation", "fadd v27.2s, v27.2s, v27.2s", not both and timing.row != "BARRIER"


def _cycles(chain: int, link: int, held: int) -> int:
    """A chain of `chain` links of `link` cycles each, of which the last holds the issue stage for `held`."""
    return (chain - 1) * max(link, held) + held


def _of_timing(timing: Timing) -> Iterator[Fact]:
    name = f"{timing.row}: {timing.asm.replace('{{', '{').replace('}}', '}')}"
    iterative = timing.row.startswith(("FDIV", "FSQRT", "MUL", "DIV"))
    held = 1 if iterative else timing.held
    if timing.latency is not None:
        asm = tuple(timing.asm.format(d=i + 1, s=i) for i in range(N))
        yield Fact(f"{name}, chain", asm, _cycles(N, timing.latency, held), timing.latency_source or timing.source)
    asm = tuple(timing.asm.format(d=i, s=9 if timing.row not in ("LDR", "LDR_NARROW") else 13) for i in range(N))
    run = -(-N * timing.rate.denominator // timing.rate.numerator) if not iterative else (N - 1) * timing.held + 1
    yield Fact(f"{name}, run", asm, run, timing.source)
    for what, before, together in _pairs(timing):
        asm = (before, timing.asm.format(d=0, s=13))
        yield Fact(
            f"{name}, after {what}", asm, held if together else 1 + held, "Q" if timing.row in _PAIRS_MEASURED else "E"
        )
    if timing.accumulate:
        link_asm, link = timing.accumulate
        asm = (link_asm.format(),) * N
        yield Fact(f"{timing.row}: {asm[0]}, accumulator chain", asm, _cycles(N, link, held), timing.source)


def all_facts() -> list[Fact]:
    """Every fact, measured or estimated; `source` starts with I, Q, L or E."""
    facts = [fact for timing in TIMINGS for fact in _of_timing(timing)]
    facts += [Fact(f"{row}: {name}", asm, cycles, source) for row, name, asm, cycles, source in SEQUENCES]
    return facts

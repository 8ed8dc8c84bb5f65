"""Instructions that a target's CPU lacks are found, in objects and in what the linker adds; all others pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitkiln import targets
from bitkiln.pipeline.compile.instructions import check_instructions
from bitkiln.pipeline.compile.tools import compile_with
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.targets import Target, zig
from bitkiln.targets.toolchain import CHOICE

#: Words as Arm's manual gives them, so that no assembler has to know them: atomics and half floats of ARMv8.1 and 8.2, products
#: of bytes, pointer authentication that is no hint, SVE, and the cryptography that a Raspberry Pi's CPU was made without.
FOREIGN = {
    "ldadd w0, w1, [x2]": 0xB8200041,
    "cas w0, w1, [x2]": 0x88A07C41,
    "sqrdmlah v0.4s, v1.4s, v2.4s": 0x6E828420,
    "sdot v0.4s, v1.16b, v2.16b": 0x4E829420,
    "fmlal v0.4s, v1.4h, v2.4h": 0x4E22EC20,
    "fadd v0.8h, v1.8h, v2.8h": 0x4E421420,
    "fadd h0, h1, h2": 0x1EE22820,
    "ldapr w0, [x1]": 0xB8BFC020,
    "fcmla v0.4s, v1.4s, v2.4s, #90": 0x6E82CC20,
    "retaa": 0xD65F0BFF,
    "smmla v0.4s, v1.16b, v2.16b": 0x4E82A420,
    "add z0.s, z1.s, z2.s": 0x04A20020,
    "smax w0, w1, w2": 0x1AC26020,
    "aese v0.16b, v1.16b": 0x4E284820,
}
FOREIGN_32 = {
    "vsdot.s8 q0, q1, q2": 0xFC220D44,
    "vadd.f16 q0, q1, q2": 0xF2120D44,
    "vcmla.f32 q0, q1, q2, #90": 0xFCB20844,
    "vjcvt.s32.f64 s0, d1": 0xEEB90BC1,
    "aese.8 q0, q1": 0xF3B00302,
}

#: Of ARMv8.0, with the optional checksums that a Cortex-A53 has, and what later CPUs alone act on but all run.
OWN = """\
    adrp x0, 1f
    ldr x0, [x0, :lo12:1f]
    ldr q3, 1f
    tbnz w1, #3, 1f
    crc32cx w0, w1, x2
    fmla v0.4s, v1.4s, v2.s[3]
    fcvt h0, s1
    fcvtl v0.4s, v1.4h
    ldaxr w0, [x1]
    stlxr w2, w0, [x1]
    ld4 {v0.16b, v1.16b, v2.16b, v3.16b}, [x0], #64
    cnt v0.16b, v1.16b
    mrs x0, cntvct_el0
    mrs x0, tpidr_el0
    hint #34
    prfm pldl1keep, [x0, #64]
    movi v0.2d, #0xff00ff00ff00ff00
    fmov v0.4s, #-1.5
    dmb ish
1:  ret
"""
OWN_32 = """\
    sdiv r0, r1, r2
    vfma.f32 q0, q1, q2
    vmaxnm.f32 s0, s1, s2
    vrintz.f32 q0, q1
    vcvt.f32.f16 q0, d1
    ldaex r0, [r1]
    crc32b r0, r1, r2
    vldmia r0!, {d0-d7}
    ldr r0, 1f
    bne 1f
    push {r4, lr}
    vmov.f32 s0, #1.0
1:  bx lr
"""


@pytest.fixture(params=["gcc", "zig"])
def tools(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each toolchain in turn."""
    if request.param == "zig" and not zig.installed():
        pytest.skip("needs ziglang, of the extra toolchain")
    monkeypatch.setenv(CHOICE, request.param)
    return request.param


def assembled(text: str, target: Target, folder: Path) -> Path:
    """An object with ``text`` in the function bk_made."""
    source = folder / "made.S"
    state = [] if target.architecture == "aarch64" else [".arm"]
    wide = "".join(f"{line}\n" for line in (*target.cc["architecture"], *state))
    source.write_text(f"{wide}.text\n.globl bk_made\n.type bk_made, %function\nbk_made:\n{text}\n")
    return compile_with(target, ["-c", source], folder / "made.o")


@pytest.mark.parametrize("name", ["rasp3b", "rasp3b32"])
def test_foreign_instructions_are_named_with_their_function(name: str, tools: str, tmp_path: Path) -> None:
    target = targets.load(name)
    for text, word in (FOREIGN if target.architecture == "aarch64" else FOREIGN_32).items():
        made = assembled(f"    nop\n    .inst {word:#010x}", target, tmp_path)
        with pytest.raises(BitkilnError, match="in bk_made at") as caught:
            check_instructions(made, target)
        assert f"{word:08x}" in str(caught.value), text
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("rasp3b", OWN), ("rasp3b32", OWN_32)])
def test_the_architectures_own_instructions_pass(name: str, text: str, tools: str, tmp_path: Path) -> None:
    target = targets.load(name)
    check_instructions(assembled(text, target, tmp_path), target)


def test_data_between_instructions_is_none(tools: str, tmp_path: Path) -> None:
    target = targets.load("rasp3b")
    check_instructions(assembled(f"    ret\n    .word {FOREIGN['retaa']:#x}", target, tmp_path), target)


def test_what_the_linker_adds_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, "gcc")
    target = targets.load("rasp3b")
    source = tmp_path / "atomic.c"
    source.write_text("int bk_add(int *x) { return __atomic_fetch_add(x, 1, __ATOMIC_ACQUIRE); }\n")
    flags = ["-O2", "-shared", "-fPIC", source]
    check_instructions(compile_with(target, flags, tmp_path / "plain.so"), target)
    outlined = compile_with(target, ["-moutline-atomics", *flags], tmp_path / "outlined.so")
    with pytest.raises(BitkilnError, match=r"ldadd.* in __aarch64_ldadd4_acq at"):
        check_instructions(outlined, target)

"""From kernels and a plan to a shared library: TVM compiles the kernels, the target's gcc everything else, and links."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tvm
from tvm import tirx

from bitkiln.pipeline.compile.errata import erratum_843419
from bitkiln.pipeline.compile.instructions import check_instructions
from bitkiln.pipeline.compile.launches import launches
from bitkiln.pipeline.compile.library import LibraryFacts, code_of, library_facts
from bitkiln.pipeline.compile.packing_source import packing_source
from bitkiln.pipeline.compile.plan import COPY, ExecutionPlan, PlacedStep
from bitkiln.pipeline.compile.tools import compile_with, tools_for
from bitkiln.pipeline.errors import BitkilnError, SetupError
from bitkiln.pipeline.meaning.tables import head_source, preprocessing_source
from bitkiln.pipeline.support.files import atomic_write, cache_directory, require_space
from bitkiln.schedules import exponentials
from bitkiln.schedules.kernel import MicroKernel
from bitkiln.targets import Target
from bitkiln.targets.cache import is_whole, stamp
from bitkiln.targets.scratch import scratch_folder

DEVICE = Path(__file__).parents[1] / "device"

#: What every model.so is made of beside its network.
RUNTIME_SOURCES = ("runtime.c", "packing.c", "image.c", "heads.c")

#: Products and sums are kept apart, so that preparing an image gives the same bytes on every machine.
_RUNTIME_FLAGS = (
    "-std=gnu11",
    "-O2",
    "-ffp-contract=off",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffunction-sections",
    "-fdata-sections",
)

#: DLPack's type codes.
_DLPACK_CODE = {"int": 0, "uint": 1, "float": 2, "bool": 6}

#: Functions whose newest version in libm is younger than the systems we support; runtime.c leads them to the oldest.
_WRAPPED_MATH = ("expf", "exp2f", "logf", "log2f", "powf", "exp", "exp2", "log", "log2", "pow")

_EXPORTS = "{ global: bk_*; local: *; };\n"


def link_library(
    functions: Mapping[str, tirx.PrimFunc],
    microkernels: Iterable[MicroKernel],
    plan: ExecutionPlan,
    target: Target,
    out: Path,
) -> LibraryFacts:
    """Compile and link everything a network consists of into the shared library ``out``.

    ``functions`` are the kernels by the name that the plan's steps give them.
    """
    with scratch_folder() as name:
        folder = Path(name)
        try:
            objects = _objects(functions, microkernels, plan, target, folder)
            with atomic_write(out, mode=0o755) as temporary:
                _link(target, objects, _soname(objects), folder, temporary)
                return library_facts(temporary)
        except (OSError, BitkilnError):
            require_space(folder)  # What compilers say of a full disk is nobody's to understand.
            raise


def _objects(
    functions: Mapping[str, tirx.PrimFunc],
    microkernels: Iterable[MicroKernel],
    plan: ExecutionPlan,
    target: Target,
    folder: Path,
) -> list[Path]:
    """The object files of a library, in ``folder`` or the cache."""
    objects = [_runtime_object(target, name) for name in RUNTIME_SOURCES]
    if functions:
        objects.append(compile_functions(functions, target, folder / "kernels.o"))
    assembly = assembly_text(microkernels)
    if assembly:
        (folder / "microkernels.S").write_text(assembly, encoding="utf-8")
        objects.append(compile_with(target, ["-c", folder / "microkernels.S"], folder / "microkernels.o"))
    # The assembler looks into the working folder first: a name that no other file has. Its folder's may need quotes.
    blob = folder / f"{folder.name}.constants"
    blob.write_bytes(plan.constants)
    (folder / "constants.S").write_text(_constants_source(blob.name, target))
    (folder / "plan.c").write_text(plan_source(plan, {name: launches(func) for name, func in functions.items()}))
    objects.append(compile_with(target, [f"-I{folder}", "-c", folder / "constants.S"], folder / "constants.o"))
    flags = ["-std=gnu11", "-O1", "-fPIC", "-fvisibility=hidden", f"-I{DEVICE}"]
    return [*objects, compile_with(target, [*flags, "-c", folder / "plan.c"], folder / "plan.o")]


def compile_functions(functions: Mapping[str, tirx.PrimFunc], target: Target, out: Path) -> Path:
    """Compile kernels to one object file; each is exported as ``__tvm_ffi_<name>``."""
    exponentials.register()
    module = tvm.IRModule({name: func.with_attr("global_symbol", name) for name, func in functions.items()})
    # That pass shrinks a buffer to the elements it sees used, and does not see what micro-kernels use by its address.
    with tvm.transform.PassContext(disabled_pass=["s_tir.CompactBufferAllocation"]):
        executable = tvm.compile(module, target=target.tvm_target())
    # LLVM ends the process where a disk is full. Memory takes it first, from where we write ourselves.
    with os.fdopen(os.memfd_create("kernels"), "rb") as memory:
        executable.mod.write_to_file(f"/proc/self/fd/{memory.fileno()}", "o")
        out.write_bytes(memory.read())
    return out


def assembly_text(microkernels: Iterable[MicroKernel]) -> str:
    """The assembly of all micro-kernels, each symbol once, in the order of their names."""
    unique = {micro.symbol: micro for micro in microkernels}
    return "\n".join(unique[symbol].assembly() for symbol in sorted(unique))


def plan_source(plan: ExecutionPlan, extents: Mapping[str, Sequence[int]] | None = None) -> str:
    """The plan as the C tables of plan.h; ``extents`` of the kernels' parallel loops, as ``launches`` gives them."""
    extents = extents or {}
    lines = ['#include "plan.h"', "extern const unsigned char bk_constants[];"]
    steps = (*plan.steps, *plan.several)
    kernels = sorted({step.kernel for step in steps} - {COPY})
    lines += [f"int {_symbol(name)}(void *, const bk_any *, int32_t, bk_any *);" for name in kernels]
    lines += ["static const int64_t shapes[] = {" + _row(d for t in plan.tensors for d in t.shape) + "};"]
    numbers = (n for step in steps for n in (*step.arguments, *extents.get(step.kernel, ())))
    lines += [f"static const int32_t arguments[] = {{{_row(numbers)}}};"]
    lines += ["static const int32_t inputs[] = {" + _row(plan.inputs) + "};"]
    lines += ["static const int32_t outputs[] = {" + _row(plan.outputs) + "};"]
    lines += ["static const bk_tensor tensors[] = {", *_tensor_rows(plan), "};"]
    lines += ["static const bk_step steps[] = {", *_step_rows(steps, extents), "};"]
    outputs = {t.name: (t.shape, t.dtype) for t in (plan.tensors[index] for index in plan.outputs)}
    lines += [
        preprocessing_source(plan.preprocessing),
        head_source(plan.head, outputs, plan.image),
        packing_source(plan),
    ]
    counts = ", ".join(str(len(rows)) for rows in (plan.tensors, plan.steps, plan.inputs, plan.outputs))
    lines += [
        f"const bk_plan bk_network = {{tensors, steps, steps + {len(plan.steps) if plan.several else 0}, inputs, outputs, "
        f"{counts}, {plan.arena_bytes}u, {plan.boundary_bytes}u, bk_constants, preprocessing, head, "
        f"{f'packings, {len(plan.packings)}, bk_pack' if plan.packings else '0, 0, 0'}, "
        f"{plan.made_bytes}u, {plan.raw_from}u, {len(plan.constants) - plan.raw_from}u}};"
    ]
    return "\n".join(lines) + "\n"


def _tensor_rows(plan: ExecutionPlan) -> list[str]:
    rows, at = [], 0
    for tensor in plan.tensors:
        kind = tensor.dtype.rstrip("0123456789")
        bits = 8 if kind == "bool" else re.sub(r"\D", "", tensor.dtype)
        rows.append(
            f'{{{_string(tensor.name)}, "{tensor.dtype}", {_DLPACK_CODE[kind]}, {bits}, BK_{tensor.place.upper()}, '
            f"{len(tensor.shape)}, shapes + {at}, {tensor.nbytes}u, {tensor.offset}u}},"
        )
        at += len(tensor.shape)
    return rows


def _step_rows(steps: Sequence[PlacedStep], extents: Mapping[str, Sequence[int]]) -> list[str]:
    rows, at = [], 0
    for step in steps:
        launched = len(extents.get(step.kernel, ()))
        rows.append(
            f"{{{_string(step.name)}, {_string(step.kind)}, {_symbol(step.kernel)}, {len(step.arguments)}, "
            f"{step.outputs}, arguments + {at}, {launched}}},"
        )
        at += len(step.arguments) + launched
    return rows


def _symbol(kernel: str) -> str:
    return kernel if kernel == COPY else f"__tvm_ffi_{kernel}"


def _row(values: Iterable[int]) -> str:
    return ", ".join(map(str, values)) or "0"


def _string(text: str) -> str:
    """``text`` as a C string literal."""
    plain = (
        c if c.isascii() and c.isprintable() and c not in '"\\?' else "".join(f"\\{b:03o}" for b in c.encode())
        for c in text
    )
    return '"' + "".join(plain) + '"'


def _constants_source(blob: str, target: Target) -> str:
    # "@" begins a comment in 32-bit ARM assembly.
    mark = "%" if target.architecture.startswith("arm") else "@"
    return f"""\
    .section .rodata.bk_constants, "a", {mark}progbits
    .balign 4096
    .hidden bk_constants
    .global bk_constants
bk_constants:
    .incbin "{blob}"
    .byte 0
    .section .note.GNU-stack, "", {mark}progbits
"""


def _runtime_object(target: Target, name: str) -> Path:
    """A source of the runtime compiled for ``target``, kept in the cache under a digest of all it depends on."""
    sources = b"".join((DEVICE / source).read_bytes() for source in (name, "runtime.h", "plan.h", "bitkiln.h"))
    tools = tools_for(target)
    settings = (tools.name, tools.command[1:], _RUNTIME_FLAGS)
    digest = hashlib.sha256(sources + repr(settings).encode()).hexdigest()[:16]
    out = cache_directory() / "runtime" / f"{target.name}-{Path(name).stem}-{digest}.o"
    if not is_whole(out):
        try:
            with atomic_write(out) as temporary:
                compile_with(target, [*_RUNTIME_FLAGS, "-x", "c", "-c", DEVICE / name], temporary)
            stamp(out)
        except OSError as error:
            raise SetupError(
                f"{out}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to another folder"
            ) from None
    return out


def _soname(objects: Sequence[Path]) -> str:
    """A name for the library that no other network's has: the loader takes libraries of one name for one library."""
    digest = hashlib.sha256()
    for path in objects:
        digest.update(path.read_bytes())
    return f"bitkiln-{digest.hexdigest()[:16]}.so"


def _link(target: Target, objects: Sequence[Path], soname: str, folder: Path, out: Path) -> None:
    (folder / "exports.map").write_text(_EXPORTS)
    flags = [
        "-shared",
        f"-Wl,-soname,{soname}",
        "-Wl,-Bsymbolic",
        "-static-libgcc",
        "-Wl,--no-undefined",
        "-Wl,--gc-sections",
        "-Wl,-z,noexecstack",
    ]
    flags += ["-Xlinker", f"--version-script={folder / 'exports.map'}", "-Wl,--build-id=none", "-Wl,-z,now"]
    if tools_for(target).is_zig:
        # It links to the first versions of all functions, by the glibc in its triple.
        libraries = ["-lm", "-lpthread"]
    else:
        flags += [f"-Wl,--wrap={name}" for name in _WRAPPED_MATH]
        # libpthread is named even where libc has taken it in: on older systems the threads are there.
        libraries = ["-Wl,--no-as-needed", "-l:libpthread.so.0", "-Wl,--as-needed", "-lm"]
    inputs: list[str | Path] = [*flags, *objects, *libraries]
    if tools_for(target).is_zig:  # GNU's linker mends the erratum itself.
        inputs = [*_padding_against_erratum(target, inputs, folder), *inputs]
    # Linked first with all names, which tell code from data.
    check_instructions(compile_with(target, inputs, folder / "named.so"), target)
    compile_with(target, ["-s", *inputs], out)


def _padding_against_erratum(target: Target, inputs: Sequence[str | Path], folder: Path) -> Sequence[str | Path]:
    """Further inputs of the link: as much padding before all code as keeps erratum 843419 of the Cortex-A53 out of it."""
    padding: Sequence[str | Path] = ()
    for size in range(64, 64 * 16, 64):
        linked = compile_with(target, [*padding, *inputs], folder / "looked-at.so")
        if not any(erratum_843419(code_of(linked))):
            return padding
        source = folder / "padding.S"
        source.write_text(f"    .text\n    .global bitkiln_padding\nbitkiln_padding:\n    .zero {size}\n")
        # Named as needed: nothing refers to it.
        padding = ("-Wl,-u,bitkiln_padding", compile_with(target, ["-c", source], folder / "padding.o"))
    raise BitkilnError(
        f"{target.name}: the library holds instructions that a Cortex-A53 may execute wrongly (erratum 843419): install "
        "a cross gcc, whose linker mends them"
    )

"""Float convolution: its definition, and which schedule implements a workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tvm import te, tirx

from bitkiln.schedules import definition as stages
from bitkiln.schedules.conv2d import depthwise as conv2d_depthwise
from bitkiln.schedules.conv2d import depthwise_a53 as conv2d_depthwise_a53
from bitkiln.schedules.conv2d import depthwise_in_place as conv2d_depthwise_in_place
from bitkiln.schedules.conv2d import direct as conv2d_direct
from bitkiln.schedules.conv2d import images as conv2d_images
from bitkiln.schedules.conv2d import packed as conv2d_packed
from bitkiln.schedules.conv2d import panels as conv2d_panels
from bitkiln.schedules.conv2d import patches as conv2d_patches
from bitkiln.schedules.conv2d import stem as conv2d_stem
from bitkiln.schedules.conv2d import stem_winograd as conv2d_stem_winograd
from bitkiln.schedules.conv2d import strassen as conv2d_strassen
from bitkiln.schedules.conv2d import winograd as conv2d_winograd
from bitkiln.schedules.conv2d import winograd_lean as conv2d_winograd_lean
from bitkiln.schedules.conv2d import winograd_rows as conv2d_winograd_rows
from bitkiln.schedules.kernel import Kernel, Knobs, size_of, size_text
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

_IN_PLACE = "depthwise in place"
#: Behind the name of an algorithm: its weights are halves in memory.
_HALVES = "bf16"
#: Behind Winograd's: its weights are transformed along y alone in memory.
_LEAN = "lean"


def reference(workload: Conv2d) -> tirx.PrimFunc:
    """The plain definition: arguments as ``workload.shapes`` lists them, the outputs last."""
    (data_shape, _), (weight_shape, _), *_ = workload.shapes
    data = te.placeholder(data_shape, "float32", name="data")
    weight = te.placeholder(weight_shape, "float32", name="weight")
    operands = stages.operand_tensors(workload.epilogue, (*workload.conv_size, workload.out_channels))
    shift = [te.placeholder((workload.channels,), "float32", name="shift")] if workload.shift else []
    images = [data]
    for argument in conv2d_images.arguments(workload)[1:]:
        images.append(te.placeholder(argument.shape, "float32", name=f"data{len(images)}"))
    image = _image(workload, data, shift) if len(images) == 1 else _side_by_side(workload, images)
    result = convolved(workload, image, weight, operands)
    if workload.pool:
        result = stages.pool(result, workload.pool)
    if workload.out == "bits":
        result = stages.signs(result, workload.sign_zero)
    more, bits = stages.beside(result, workload.signs, (*workload.out_size, workload.out_channels))
    return te.create_prim_func([data, weight, *operands, *more, *shift, *images[1:], result, *bits])


def space(workload: Conv2d, target: Target) -> dict[str, list[int | str]]:
    """The tuning space: the algorithm, the register tile and the tiles of a block (0: all)."""
    if is_stem(workload, target):
        return {"algorithm": ["stem", *(["stem winograd"] if conv2d_stem_winograd.applies(workload) else [])]}
    if _is_tiled_depthwise(workload, target):
        kernels = kernel_set(target)
        in_place = conv2d_patches.tiles(workload, kernels) if _in_place(workload, target) else ()
        sizes = dict.fromkeys((*conv2d_depthwise_a53.tiles(workload, kernels), *in_place))
        return {"algorithm": ["depthwise", *([_IN_PLACE] if in_place else [])], "tile": list(sizes)}
    if conv2d_depthwise.applies(workload):
        return {"algorithm": ["depthwise"], "pixels": list(conv2d_depthwise.PIXELS)}
    winograd = [f"winograd {size_text(outputs)}" for outputs in _winograd_outputs(workload, target)]
    winograd += [f"winograd {size_text(outputs)} {_LEAN}" for outputs in _lean_outputs(workload, target)]
    strassen = ["strassen"] if _strassen(workload, target) else []
    panels = ["panels"] if _panels(workload, target) else []
    packed = ["packed"] if conv2d_packed.applies(workload, target) else []
    halves = [f"{name} {_HALVES}" for name in ("direct", *panels)] if _halves(workload, target) else []
    algorithms: list[int | str] = ["direct", *winograd, *strassen, *panels, *packed, *halves]
    space = {"algorithm": algorithms, **conv2d_direct.space(workload, target)}
    return {**space, "block": [*conv2d_packed.BLOCKS, 0]} if packed else space


def default(workload: Conv2d, target: Target, threads: int = 1) -> dict[str, int | str]:
    """The untuned default: the algorithm with the lowest estimate."""
    if is_stem(workload, target):
        return {"algorithm": "stem winograd" if conv2d_stem_winograd.applies(workload) else "stem"}
    if _is_tiled_depthwise(workload, target):
        kernels = kernel_set(target)
        if _in_place(workload, target) and conv2d_depthwise_in_place.pays(workload, kernels, threads):
            return {"algorithm": _IN_PLACE, "tile": conv2d_patches.tiles(workload, kernels, threads)[0]}
        return {"algorithm": "depthwise", "tile": conv2d_depthwise_a53.tiles(workload, kernels, threads)[0]}
    if conv2d_depthwise.applies(workload):
        return {"algorithm": "depthwise", "pixels": 4}
    # Threads share memory: a byte takes as long as ever, and the sums of all threads are done meanwhile.
    cycles_per_byte = threads * target.mhz / target.dram_mb_s(threads)
    whole = conv2d_direct.estimate(workload, cycles_per_byte)
    # Halves take less from memory, and some cycles to widen.
    halved = conv2d_direct.estimate(workload, cycles_per_byte, True) if _halves(workload, target) else whole
    halves = halved < whole
    estimates: dict[tuple[int, int] | None, float] = {None: min(whole, halved)}
    for outputs in _winograd_outputs(workload, target):
        estimates[outputs] = conv2d_winograd.estimate(workload, outputs, cycles_per_byte, target, threads)
    best = min(estimates, key=lambda outputs: estimates[outputs])
    if threads > 1 and (lean := _lean_default(workload, cycles_per_byte, target, estimates[best])):
        return lean
    # L2 and memory do not give several threads its V and its greater weights fast enough (docs/kernels.md).
    fits = threads == 1 and _strassen(workload, target)
    if fits and conv2d_strassen.estimate(workload, cycles_per_byte) < estimates[best]:
        return {"algorithm": "strassen", **conv2d_strassen.default(workload, target)}
    storage = f" {_HALVES}" if halves else ""
    if best is None and _panels(workload, target) and conv2d_panels.pays(workload, target, threads, halves):
        return {"algorithm": "panels" + storage, **conv2d_panels.default()}
    if best is None and conv2d_packed.applies(workload, target):
        return {"algorithm": "packed", **conv2d_packed.default(workload, target)}
    if best is None:
        return {"algorithm": "direct" + storage, **conv2d_direct.default(workload, target, threads, halves)}
    return {"algorithm": f"winograd {size_text(best)}", **conv2d_winograd.default(workload, best, target, threads)}


def _lean_default(
    workload: Conv2d, cycles_per_byte: float, target: Target, cycles: float
) -> dict[str, int | str] | None:
    """Winograd's algorithm with lean weights, where it takes fewer than ``cycles``."""
    rows = conv2d_winograd_rows
    estimates = {
        outputs: rows.estimate(workload, cycles_per_byte, target)
        if outputs == rows.OUTPUTS
        else conv2d_winograd_lean.estimate(workload, outputs, cycles_per_byte, target)
        for outputs in _lean_outputs(workload, target)
    }
    best = min(estimates, key=lambda outputs: estimates[outputs], default=None)
    if best is None or estimates[best] >= cycles:
        return None
    if best == rows.OUTPUTS:
        knobs = rows.default(workload, target)
    else:
        knobs = conv2d_winograd_lean.default(workload, best, cycles_per_byte, target)
    return {"algorithm": f"winograd {size_text(best)} {_LEAN}", **knobs}


def halves_pay(workload: Conv2d, target: Target) -> bool:
    """Whether ``workload`` is faster with weights in halves, on one thread or on all that the board has cores for."""
    halved = replace(workload, halves=True)
    counts = (1, int(target.cpu["cores"]))
    return not workload.binary and any(_HALVES in str(default(halved, target, count)["algorithm"]) for count in counts)


def emit(workload: Conv2d, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """The implementation at one point of the space, for so many threads; any number may run it."""
    algorithm = str(knobs["algorithm"]).split()
    if algorithm == ["stem"]:
        return conv2d_stem.emit(workload, kernel_set(target), threads)
    if algorithm == ["stem", "winograd"]:
        return conv2d_stem_winograd.emit(workload, kernel_set(target), threads)
    if workload.shift or workload.layout != "NHWC":
        raise ValueError(f"only first layers take a shift or another layout: {workload.key()}")
    if algorithm == _IN_PLACE.split():
        return conv2d_depthwise_in_place.emit(workload, str(knobs["tile"]), kernel_set(target), threads)
    if algorithm == ["depthwise"]:
        if "tile" in knobs:
            return conv2d_depthwise_a53.emit(workload, str(knobs["tile"]), kernel_set(target), threads)
        return conv2d_depthwise.emit(workload, int(knobs["pixels"]))
    tile, block = size_of(knobs["tile"]), int(knobs["block"])
    if algorithm == ["strassen"]:
        return conv2d_strassen.emit(workload, tile, block)
    halves = algorithm[-1] == _HALVES
    if algorithm[0] == "panels":
        return conv2d_panels.emit(workload, tile, target, threads, halves)
    if algorithm == ["packed"]:
        return conv2d_packed.emit(workload, block, target)
    if algorithm == ["winograd", size_text(conv2d_winograd_rows.OUTPUTS), _LEAN]:
        return conv2d_winograd_rows.emit(workload, tile, block, target, threads)
    if algorithm[0] == "winograd" and algorithm[-1] == _LEAN:
        return conv2d_winograd_lean.emit(workload, size_of(algorithm[1]), tile, block, target, threads)
    if algorithm[0] == "winograd":
        return conv2d_winograd.emit(workload, size_of(algorithm[1]), tile, block, target, threads)
    return conv2d_direct.emit(workload, tile, block, target, threads, halves)


def is_stem(workload: Conv2d, target: Target) -> bool:
    """Whether it is a first layer, which has one schedule that none of the others comes near."""
    return conv2d_stem.applies(workload, kernel_set(target))


def packs_signs(workload: Conv2d, target: Target) -> bool:
    """Whether all kernels of ``workload`` can pack signs of its floats while these are in the caches."""
    return workload.out == "float32" and is_stem(workload, target)


def _is_tiled_depthwise(workload: Conv2d, target: Target) -> bool:
    return bool(kernel_set(target).depthwise) and conv2d_depthwise_a53.applies(workload, kernel_set(target))


def _in_place(workload: Conv2d, target: Target) -> bool:
    return conv2d_depthwise_in_place.applies(workload, kernel_set(target))


def _winograd_outputs(workload: Conv2d, target: Target) -> Sequence[tuple[int, int]]:
    """The tiles of Winograd's algorithm that the target has kernels for; none where it does not apply."""
    kernels = kernel_set(target)
    fits = conv2d_winograd.applies(workload) and workload.out_channels % kernels.channels == 0
    return kernels.winograd if fits else ()


def _lean_outputs(workload: Conv2d, target: Target) -> list[tuple[int, int]]:
    """Tiles whose weights may be transformed along y alone in memory, or not at all."""
    outputs = _winograd_outputs(workload, target)
    lean = [each for each in outputs if conv2d_winograd_lean.applies(each, target)]
    return [*lean, conv2d_winograd_rows.OUTPUTS] if lean else []


def _strassen(workload: Conv2d, target: Target) -> bool:
    return kernel_set(target).stacks and conv2d_strassen.applies(workload)


def _halves(workload: Conv2d, target: Target) -> bool:
    return workload.halves and bool(kernel_set(target).sgemm_halves)


def _panels(workload: Conv2d, target: Target) -> bool:
    return kernel_set(target).stacks and conv2d_panels.applies(workload)


def _image(workload: Conv2d, data: te.Tensor, shift: Sequence[te.Tensor]) -> te.Tensor:
    """The data as NHWC, shifted."""
    if workload.layout == "NHWC" and not shift:
        return data

    def element(n: tirx.Var, y: tirx.Var, x: tirx.Var, c: tirx.Var) -> tirx.PrimExpr:
        value = data[n, y, x, c] if workload.layout == "NHWC" else data[n, c, y, x]
        return value + shift[0][c] if shift else value

    return te.compute((1, workload.height, workload.width, workload.channels), element, name="image")


def _side_by_side(workload: Conv2d, images: Sequence[te.Tensor]) -> te.Tensor:
    pieces = conv2d_images.pieces(workload)
    taken = [(image, piece.first, piece.count) for image, piece in zip(images, pieces, strict=True)]
    return stages.side_by_side(taken, (1, workload.height, workload.width, workload.channels), "image")


def convolved(workload: Conv2d, data: te.Tensor, weight: te.Tensor, operands: Sequence[te.Tensor]) -> te.Tensor:
    """The convolution with its epilogue, before any pooling."""
    padded = stages.pad(data, workload.padding, tirx.const(0, "float32"))
    sums = stages.convolve(workload, padded, lambda o, ry, rx, rc: weight[o, ry, rx, rc], "conv")
    return stages.apply_epilogue(sums, workload.epilogue, operands)

"""Signs beside a result of floats: packed while the floats are in the cache, instead of in a pass that reads them again.

Where a micro-kernel has the comparison, the floats meet thresholds (see ``binarize``); elsewhere plain loops apply the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.binarize.a53 import ChannelSigns, FlatSigns
from bitkiln.schedules.kernel import Argument, Constant, MicroKernel
from bitkiln.schedules.microkernels.a53.binarize import BATCH, BLOCKS
from bitkiln.schedules.microkernels.a53.binarize import Binarize as Comparisons
from bitkiln.schedules.steps import straight
from bitkiln.schedules.workload import Binarize, Conv2d, Pool2d, Signs, argument_specs, packed, result_specs


@dataclass(frozen=True)
class _Plain:
    """Loops that apply the steps, pixel by pixel. ``arguments`` are the steps' operands."""

    layer: Binarize
    arguments: tuple[Argument | Constant, ...]
    micro: MicroKernel | None = None

    def emit_run(self, source: Any, to: Any, target: Any, first: Any, pixels: Any, operands: Sequence[Any]) -> None:
        layer = self.layer
        with T.serial(pixels) as index:
            pixel, floats, start = first + index, source, to + index * layer.channels
            if layer.epilogue:
                floats = T.alloc_buffer((layer.channels,), "float32")
                where = pixel // layer.width, pixel % layer.width
                loops.apply_epilogue(floats, 0, source, start, layer.channels, layer.epilogue, operands, where, 0)
                start = 0
            loops.pack_signs(target, pixel * packed(layer.channels), floats, start, layer.channels, layer.sign_zero)


class _Flat:
    """A comparison of all floats alike."""

    def __init__(self, layer: Binarize, micro: type[Comparisons]) -> None:
        self._channels = layer.channels
        self._signs = FlatSigns(layer.sign_zero, micro)
        self.arguments, self.micro = self._signs.constants, self._signs.micro

    def emit_run(self, source: Any, to: Any, target: Any, first: Any, pixels: Any, tables: Sequence[Any]) -> None:
        size = self._channels
        self._signs.emit_run(source, to, target, first * (size // 8), pixels * size, tables)


def outputs(work: Conv2d | Pool2d) -> list[Any]:
    """Declares the outputs of the kernel under construction that hold signs, behind that of its floats."""
    return [T.arg(f"bits{i}", T.buffer(*spec)) for i, spec in enumerate(result_specs(work)[1:])]


class Beside:
    """The ``signs`` of ``work``, packed run by run, of ``least`` pixels at least; of ``Binarize`` its own, too.

    ``arguments`` of its kernel are what they need; ``micro``: the target's micro-kernel for them, if it has one.
    """

    def __init__(
        self, work: Conv2d | Pool2d | Binarize, least: int = 1, micro: type[Comparisons] | None = None
    ) -> None:
        self.work = work
        height, width = work.out_size
        channels = work.out_channels if isinstance(work, Conv2d) else work.channels
        own = [Signs(work.epilogue, work.sign_zero)] if isinstance(work, Binarize) else []
        layers = [Binarize(height, width, channels, each.epilogue, each.sign_zero) for each in (*own, *work.signs)]
        at = len(argument_specs(work)) - bool(getattr(work, "shift", False))
        at -= sum(step.operand != "" for layer in layers for step in layer.epilogue)
        self._packers: list[_Plain | _Flat | ChannelSigns] = []
        for layer in layers:
            count = sum(step.operand != "" for step in layer.epilogue)
            self._packers.append(_packer(work, layer, tuple(range(at, at + count)), least, micro))
            at += count
        self._channels, self._bytes = channels, height * width * packed(channels)

    @property
    def arguments(self) -> list[Argument | Constant]:
        """Those of all signs, in order."""
        return [argument for packer in self._packers for argument in packer.arguments]

    @property
    def microkernels(self) -> list[MicroKernel]:
        """Those that the loops call."""
        return [packer.micro for packer in self._packers if packer.micro is not None]

    def emit(self, floats: Any, buffers: Sequence[Any], bits: Sequence[Any]) -> None:
        """All signs of ``floats`` [1, H, W, C], whose rows are long enough; threads share the rows."""
        if not self._packers:
            return
        height, width = self.work.out_size
        source = loops.flat(floats, height * width * self._channels)
        with T.parallel(height) as y:
            self.emit_run(source, y * width * self._channels, y * width, width, buffers, bits)

    def emit_run(
        self, floats: Any, to: Any, first: Any, pixels: Any, buffers: Sequence[Any], bits: Sequence[Any]
    ) -> None:
        """The signs of ``pixels`` neighbours from pixel ``first`` on, whose channels begin at ``to`` of the flat ``floats``.

        ``buffers`` are those of ``arguments``, ``bits`` what ``outputs`` declared.
        """
        remaining = list(buffers)
        for packer, out in zip(self._packers, bits, strict=True):
            own = [remaining.pop(0) for _ in packer.arguments]
            packer.emit_run(floats, to, loops.flat(out, self._bytes, "uint8"), first, pixels, own)


def _packer(
    work: Conv2d | Pool2d | Binarize,
    layer: Binarize,
    sources: tuple[int, ...],
    least: int,
    micro: type[Comparisons] | None,
) -> _Plain | _Flat | ChannelSigns:
    if micro and layer.channels % 8 == 0 and all(map(straight, layer.epilogue)):
        if not layer.epilogue and least * layer.channels >= BATCH:
            return _Flat(layer, micro)
        # The narrower a block, the fewer thresholds it loads; one of 8 channels has too many stores of a byte.
        blocks = [block for block in sorted(BLOCKS) if layer.channels % block == 0 and BATCH // block <= least]
        if layer.epilogue and blocks:
            block = next((block for block in blocks if block > BLOCKS[-1]), blocks[0])
            return ChannelSigns(layer, sources, block, micro)
    return _Plain(layer, tuple(Argument((at,), *work.shapes[at]) for at in sources))

"""Which epilogues of a binary convolution its micro-kernel computes, and what it takes for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules.bconv2d.geometry import LANES, Geometry
from bitkiln.schedules.binarize.a53 import thresholds
from bitkiln.schedules.kernel import Argument, Constant
from bitkiln.schedules.microkernels.a53 import bgemm_float as floats
from bitkiln.schedules.microkernels.a53 import steps as steps_a53
from bitkiln.schedules.steps import Order, order, straight
from bitkiln.schedules.workload import Binarize, argument_specs


@dataclass(frozen=True)
class Epilogue:
    """The epilogue of ``where.workload`` as the micro-kernel's operations.

    With ``tiles``, all those that the product has (pixels, vectors), it packs the signs beside, too, and stores the floats
    only where ``stores``.
    """

    where: Geometry
    tiles: tuple[tuple[int, int], ...] = ()
    stores: bool = True

    @staticmethod
    def applies(where: Geometry) -> bool:
        """Whether the micro-kernel can compute it: whole vectors, even bases, steps it has, few enough pointers."""
        work = where.workload
        if work.out != "float32" or work.out_channels % LANES or work.channels % 2:
            return False
        if where.channel_groups % 2 and any(step.operand == "half" for step in work.epilogue):
            return False
        if not all(map(steps_a53.known, work.epilogue)):
            return False
        if not floats.Needs(Epilogue(where).operations, where.uniform_base is None).fit:
            return False
        tensors = sum(step.operand in ("tensor", "element", "half") for step in work.epilogue)
        return tensors <= (floats.MAX_TENSORS if where.uniform_base is not None else floats.MAX_TENSORS_WITH_BASES)

    @staticmethod
    def packs_signs(where: Geometry, tiles: tuple[tuple[int, int], ...]) -> bool:
        """Whether the micro-kernels of ``tiles`` can pack the signs beside: one comparison for each float."""
        work = where.workload
        if len(work.signs) != 1 or work.pool or not all(map(straight, work.signs[0].epilogue)):
            return False
        return all(Epilogue(where, tiles).microkernel(*tile, words=1).possible for tile in tiles)

    @cached_property
    def sign(self) -> floats.Sign | None:
        """The comparison beside."""
        if not self.tiles:
            return None
        (signs,) = self.where.workload.signs
        falls = any(np.any(order(step) != Order.RISES) for step in signs.epilogue)
        return floats.Sign(bool(signs.epilogue), signs.sign_zero > 0, falls)

    @cached_property
    def operations(self) -> tuple[floats.Operation, ...]:
        """The micro-kernel's operations."""
        kinds = {"element": "tensor"}
        return tuple(
            floats.Operation(step.op, kinds.get(step.operand, step.operand)) for step in self.where.workload.epilogue
        )

    def fits(self, vectors: int) -> bool:
        """Whether tiles of so many vectors lie inside a half of the channels, or hold both, where the epilogue has halves."""
        half = self.where.channel_groups // 2
        return not self._halves or vectors == 2 * half or half % vectors == 0

    def microkernel(self, pixels: int, vectors: int, words: int) -> floats.Floats:
        """That of a tile."""
        both = self._halves and vectors == self.where.channel_groups
        return floats.Floats(
            pixels, vectors, words, self.where.uniform_base, self.operations, both, self.sign, self.stores
        )

    @property
    def _halves(self) -> bool:
        return any(operation.operand == "half" for operation in self.operations)

    @property
    def arguments(self) -> list[Argument | Constant]:
        """The table of channels' values, the bases with the row of each pixel, the tensors; then what signs take."""
        where, shapes = self.where, self.where.workload.shapes
        operands = [(step, i) for i, step in enumerate((s for s in where.workload.epilogue if s.operand), 2)]
        signs = tuple(range(2 + len(operands), len(argument_specs(where.workload)))) if self.tiles else ()
        sources = (*(i for step, i in operands if step.operand == "channel"), *signs)
        constants = self._table([])
        table = Argument(sources, constants.shape, "float32", self._table) if sources else Constant(constants)
        result: list[Argument | Constant] = [table]
        if where.uniform_base is None:
            shape = (int(where.classes.max()) + 1, where.workload.out_channels)
            result += [Argument((1,), shape, "float32", self._bases), Constant(where.classes)]
        result += [Argument((i,), *shapes[i]) for step, i in operands if step.operand != "channel"]
        if self.tiles:
            constant = b"".join(floats.sign_constants(*tile) for tile in self.tiles)
            result.append(Constant(np.frombuffer(constant, "uint8").reshape(len(self.tiles), -1)))
        if self.sign and self.sign.flips:
            # A micro-kernel reads the flips of up to 8 vectors.
            result.append(Argument(signs, (where.channel_groups + 8,), "uint8", self._flips))
        return result

    def addresses(self, buffers: Sequence[Any], first: Any, group: Any) -> list[Any]:
        """The micro-kernel's arguments behind its stride, for the tile of pixel ``first`` and channel group ``group``."""
        table, *rest = buffers[: len(buffers) - self._for_signs]
        addresses = [T.address_of(table[group, 0, 0])]
        if self.where.uniform_base is None:
            bases, rows, *rest = rest
            addresses += [T.address_of(bases[0, group * LANES]), T.address_of(rows[first])]
        y, x = first // self.where.workload.conv_size[1], first % self.where.workload.conv_size[1]
        for tensor in rest:
            leading = (0,) if len(tensor.shape) == 4 else ()
            addresses.append(T.address_of(tensor[(*leading, y, x, group * LANES % int(tensor.shape[-1]))]))
        return addresses

    def sign_addresses(self, buffers: Sequence[Any], bits: Any, group: Any, tile: tuple[int, int]) -> list[Any]:
        """Its arguments on the stack: where ``bits`` of the ``tile`` (pixels, vectors) begin, and what makes them."""
        constants, *flips = buffers[len(buffers) - self._for_signs :]
        addresses = [bits, T.address_of(constants[self.tiles.index(tile), 0])]
        return [*addresses, *(T.address_of(each[group]) for each in flips)]

    @property
    def _for_signs(self) -> int:
        """How many of the arguments signs take."""
        return bool(self.tiles) + bool(self.sign and self.sign.flips)

    def _table(self, operands: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [channel groups][rows][LANES]. Without operands: only its shape and constants count."""
        channels = self.where.workload.out_channels
        steps = [step for step in self.where.workload.epilogue if step.operand in ("", "channel")]
        count = sum(step.operand != "" for step in steps)
        own = operands[:count] or [np.zeros(channels, "float32")] * count
        rows = steps_a53.operand_rows(steps, own, channels)
        if self.sign and self.sign.rows:
            least = self._thresholds(operands[count:])[0] if operands else np.zeros(channels, "float32")
            rows = np.concatenate([rows, least[None]])
        if not len(rows):
            return np.zeros((self.where.channel_groups, 1, LANES), "float32")
        return np.ascontiguousarray(rows.reshape(len(rows), -1, LANES).transpose(1, 0, 2))

    def _thresholds(self, operands: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        (signs,) = self.where.workload.signs
        channels = self.where.workload.out_channels
        return thresholds(Binarize(1, 1, channels, signs.epilogue, signs.sign_zero), operands)

    def _flips(self, operands: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.packbits(self._thresholds(operands)[1], bitorder="little"), np.zeros(8, "uint8")])

    def _bases(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return (self.where.bases(arrays[0]) + floats.ZERO_COUNT).astype("float32")

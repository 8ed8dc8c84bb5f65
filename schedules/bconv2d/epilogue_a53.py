"""Which epilogues of a binary convolution its micro-kernel computes, and what it takes for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules.bconv2d.geometry import LANES, Geometry
from bitkiln.schedules.kernel import Argument, Constant
from bitkiln.schedules.microkernels.a53 import bgemm_float as floats
from bitkiln.schedules.microkernels.a53 import steps as steps_a53


@dataclass(frozen=True)
class Epilogue:
    """The epilogue of ``where.workload`` as the micro-kernel's operations."""

    where: Geometry

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
        return floats.Floats(pixels, vectors, words, self.where.uniform_base, self.operations, both)

    @property
    def _halves(self) -> bool:
        return any(operation.operand == "half" for operation in self.operations)

    @property
    def arguments(self) -> list[Argument | Constant]:
        """The table of channels' values, the bases with the row of each pixel, the tensors."""
        where, shapes = self.where, self.where.workload.shapes
        operands = list(zip([s for s in where.workload.epilogue if s.operand], range(2, len(shapes) - 1), strict=True))
        sources = tuple(i for step, i in operands if step.operand == "channel")
        constants = self._table([])
        table = Argument(sources, constants.shape, "float32", self._table) if sources else Constant(constants)
        result: list[Argument | Constant] = [table]
        if where.uniform_base is None:
            shape = (int(where.classes.max()) + 1, where.workload.out_channels)
            result += [Argument((1,), shape, "float32", self._bases), Constant(where.classes)]
        return result + [Argument((i,), *shapes[i]) for step, i in operands if step.operand != "channel"]

    def addresses(self, buffers: Sequence[Any], first: Any, group: Any) -> list[Any]:
        """The micro-kernel's arguments behind its stride, for the tile of pixel ``first`` and channel group ``group``."""
        table, *rest = buffers
        addresses = [T.address_of(table[group, 0, 0])]
        if self.where.uniform_base is None:
            bases, rows, *rest = rest
            addresses += [T.address_of(bases[0, group * LANES]), T.address_of(rows[first])]
        y, x = first // self.where.workload.conv_size[1], first % self.where.workload.conv_size[1]
        for tensor in rest:
            leading = (0,) if len(tensor.shape) == 4 else ()
            addresses.append(T.address_of(tensor[(*leading, y, x, group * LANES % int(tensor.shape[-1]))]))
        return addresses

    def _table(self, operands: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [channel groups][rows][LANES]. Without operands: only its shape and constants count."""
        channels = self.where.workload.out_channels
        steps = [step for step in self.where.workload.epilogue if step.operand in ("", "channel")]
        missing = [np.zeros(channels, "float32")] * (sum(step.operand != "" for step in steps) - len(operands))
        rows = steps_a53.operand_rows(steps, [*operands, *missing], channels)
        if not len(rows):
            return np.zeros((self.where.channel_groups, 1, LANES), "float32")
        return np.ascontiguousarray(rows.reshape(len(rows), -1, LANES).transpose(1, 0, 2))

    def _bases(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return (self.where.bases(arrays[0]) + floats.ZERO_COUNT).astype("float32")

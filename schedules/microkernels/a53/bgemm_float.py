"""The binary product with an epilogue of floats, for the Cortex-A53: dot products to float32, then a step at a time.

A count of 16 bits becomes a float by standing under the upper half of 2**24 (``zip`` with 0x4b80): 2**24 + 2 * count, exactly.
One subtraction from 2**24 + base makes it the dot product base - 2 * count. Four chains of operations, the halves of two
pixels' vectors, run side by side, as many as the latency of a float operation has cycles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitkiln.schedules.microkernels.a53 import asm
from bitkiln.schedules.microkernels.a53 import steps as steps_a53
from bitkiln.schedules.microkernels.a53.bgemm_tile import Tile, Touch
from bitkiln.schedules.steps import Assembly

#: What a count of zero is as a float, and the upper half of its bits.
ZERO_COUNT = 1 << 24
_UPPER_HALF = 0x4B80

#: Tensors that a kernel has pointers for, and those beside a table of bases.
MAX_TENSORS, MAX_TENSORS_WITH_BASES = 3, 1

_OUT, _STRIDE, _TABLE, _HALF_STRIDE, _AHEAD = "x2", "x3", "x4", "x22", "x24"
#: Registers for the pointers to pixels' bases, free behind the product; the last one has pointed to their rows until then.
_BASE_POINTERS = ("x0", "x1", "x8", "x15", "x16", "x6")
#: Cycles of a product that hides the fetching of what its own end needs; shorter ones fetch for the tile after them.
_LONG = 1000


@dataclass(frozen=True)
class Operation:
    """A step that ``steps_a53`` knows, and where its operand lies: "channel", "tensor", "half", or "" without one.

    A "tensor" lies as the result does, a "half" has half as many channels.
    """

    op: str
    operand: str = ""

    @property
    def code(self) -> Assembly:
        """Its instructions."""
        return steps_a53.assembly(self.op)

    @property
    def tensor(self) -> bool:
        """Whether it has a pointer to its operand, rather than rows of the table."""
        return self.operand in ("tensor", "half")

    @property
    def rows(self) -> int:
        """Rows of the table that it reads."""
        return 0 if self.tensor else self.code.rows

    @property
    def word(self) -> str:
        """Its part of a symbol's name."""
        return self.op + {"tensor": "_t", "half": "_h"}.get(self.operand, "")


@dataclass(frozen=True)
class Floats:
    """``void symbol(panel, weights, float *out, int64 strides, table, [bases, const int32 *rows,] [tensors...])``.

    Panel and weights as for ``bgemm_a53.Counts``. Writes ``vectors`` * 8 floats for each pixel, the lower half of ``strides``
    bytes apart; its upper half is how many pixels further on the tensors' next pixels lie, 0 where there are none.
    ``operations`` in order; those of channels read their rows of ``table`` float32 [vectors][rows][8], those of tensors each
    a pointer to elements that lie as those of ``out`` do, or to pixels of half as many channels: with ``both`` the tile's
    second half of vectors reads the same ones as its first.
    The dot product of pixel i is base - 2 * count, with ``base`` or, where that is None, the row rows[i] of ``bases``
    float32 [..][stride / 4], which holds ``ZERO_COUNT`` + base. Bases are even.
    """

    pixels: int
    vectors: int
    words: int
    base: int | None
    operations: tuple[Operation, ...]
    both: bool = False

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        base = "rows" if self.base is None else f"b{self.base}"
        steps = "".join("_" + operation.word for operation in self.operations)
        both = "_both" if self.both else ""
        return f"bk_bgemm_{self.pixels}x{self.vectors * 8}_k{self.words}_{base}_f32{steps}{both}_a53"

    def assembly(self) -> str:
        """The routine."""
        tensors = sum(operation.tensor for operation in self.operations)
        tile = Tile(self.pixels, self.vectors, self.words)
        enter, leave = tile.saved(first=19 if tensors else 23)
        finish = _Finish(self, tile)
        pointers = zip([_OUT, *finish.tensor_arguments], ["x17", "x19", "x20", "x21"], strict=False)
        touches = [
            Touch(start, pointer, stride, -(-self.vectors // (4 if stride == _HALF_STRIDE and self.both else 2)))
            for (start, pointer), stride in zip(pointers, finish.strides, strict=False)
        ]
        halves = [f"lsr {_HALF_STRIDE}, {_STRIDE}, #1"] if _HALF_STRIDE in finish.strides else []
        end, start = list(finish.lines()), []
        if tensors and tile.cycles < _LONG:
            end, start = self._fetching(end, finish), [f"lsr {_AHEAD}, {_STRIDE}, #32"]
        lines = [*start, "mov w3, w3", *halves, *tile.segments("sp", touches), *end]
        registers = {
            **tile.registers,
            _OUT: "result",
            _STRIDE: "bytes from pixel to pixel of the result",
            _TABLE: "rows of the channels' numbers",
            **{
                start: f"tensor of {tensor.op}"
                for start, tensor in zip(finish.tensor_arguments, finish.tensors, strict=True)
            },
            **({finish.bases: "bases", finish.base_rows: "rows of the pixels' bases"} if self.base is None else {}),
            "sp": "room for counts",
        }
        return asm.routine(self.symbol, [*enter, *tile.with_scratch(lines), *leave, "ret"], registers)

    def _fetching(self, lines: Sequence[str], finish: _Finish) -> list[str]:
        """``lines`` with loads beside their arithmetic, of the cache lines that the tensors' next pixels will need."""
        hints = []
        for start, stride in zip(finish.tensor_arguments, finish.strides[1:], strict=True):
            vectors = self.vectors // 2 if self.both and stride == _HALF_STRIDE else self.vectors
            hints += [f"madd x17, {_AHEAD}, {stride}, {start}"]
            for pixel in range(self.pixels):
                hints += [f"add x17, x17, {stride}"] if pixel else []
                hints += [f"prfm pldl1keep, [x17, #{at}]" for at in range(0, 32 * vectors, 64)]
        room, seen = sum(line.startswith("f") for line in lines), 0
        result = []
        for line in lines:
            result.append(line)
            if line.startswith("f"):
                result += hints[-(len(hints) * -seen // room) : -(len(hints) * -(seen + 1) // room)]
                seen += 1
        return result


@dataclass(frozen=True)
class Needs:
    """What ``operations`` take, with ``bases`` in memory or in a register."""

    operations: tuple[Operation, ...]
    bases: bool

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return sum(operation.rows for operation in self.operations)

    @property
    def helpers(self) -> int:
        """Registers of each value beside its own: for its base or a tensor's element, then for a step's temporaries."""
        elements = self.bases or any(operation.tensor for operation in self.operations)
        return max([int(elements), *(operation.code.temporaries for operation in self.operations)])

    @property
    def immediates(self) -> tuple[float, ...]:
        """The numbers that stand in registers all the time."""
        return tuple(dict.fromkeys(value for operation in self.operations for value in operation.code.immediates))

    @property
    def registers(self) -> int:
        """Registers beside those of the counts, for two pixels side by side."""
        return 1 + (not self.bases) + len(self.immediates) + 2 * self.rows + 2 + 4 * self.helpers

    @property
    def fit(self) -> bool:
        """Whether there are so many, with two counts that come back from memory."""
        return self.registers + 2 <= 32


class _Finish:
    """From counts in the accumulators to floats in memory, a vector of channels after the other.

    Registers come from those free behind the product, and from accumulators as they are used up. Where that is too few to
    begin with, the last counts wait in the scratch memory at the stack pointer.
    """

    def __init__(self, kernel: Floats, tile: Tile) -> None:
        self.kernel, self.tile = kernel, tile
        self.free = list(tile.free)
        self.tensors = [operation for operation in kernel.operations if operation.tensor]
        arguments = iter(["x5", "x6", "x7"])
        self.bases, self.base_rows = (next(arguments), next(arguments)) if kernel.base is None else ("", "")
        own = kernel.base is None and kernel.pixels <= len(_BASE_POINTERS)
        self.base_pointers = _BASE_POINTERS[: kernel.pixels] if own else ()
        self.tensor_arguments = [next(arguments) for _ in self.tensors]
        #: Bytes from pixel to pixel of the result and of each tensor.
        self.strides = [_STRIDE, *(_HALF_STRIDE if tensor.operand == "half" else _STRIDE for tensor in self.tensors)]
        self.needs = Needs(kernel.operations, kernel.base is None)

    def lines(self) -> Iterator[str]:
        """The whole of it."""
        waiting = self._spill()
        yield from (f"str q{self.tile.accumulators[i]}, [sp, #{16 * i}]" for i in sorted(waiting))
        self.free += [self.tile.accumulators[i] for i in waiting]
        yield from self._constants()
        yield from self._base_pointers()
        for vector in range(self.kernel.vectors):
            loaded = {}
            for i in range(self.needs.rows):
                loaded[i] = (self._take(), self._take())
                for half, register in enumerate(loaded[i]):
                    at = 32 * (vector * self.needs.rows + i) + 16 * half
                    yield f"ldr q{register}, [{_TABLE}, #{at}]"
            for first in range(0, self.kernel.pixels, 2):
                yield from self._pair(vector, first, loaded, waiting)
            self.free += [register for pair in loaded.values() for register in pair]

    def _spill(self) -> set[int]:
        """Indices of the counts that wait in memory."""
        count = max(0, self.needs.registers - len(self.free))
        order = [p * self.kernel.vectors + v for v in range(self.kernel.vectors) for p in range(self.kernel.pixels)]
        return set(order[len(order) - count :])

    def _take(self) -> int:
        return self.free.pop()

    def _constants(self) -> Iterator[str]:
        self.upper = self._take()
        yield f"mov w8, #{_UPPER_HALF}"
        yield f"dup v{self.upper}.8h, w8"
        if self.kernel.base is not None:
            self.base = self._take()
            yield f"mov w8, #{_UPPER_HALF << 16:#x}"
            yield f"mov w9, #{self.kernel.base // 2}"
            yield "add w8, w8, w9"
            yield f"dup v{self.base}.4s, w8"
        self.constants = {value: self._take() for value in self.needs.immediates}
        yield from (steps_a53.immediate(register, value) for value, register in self.constants.items())

    def _pair(self, vector: int, first: int, loaded: dict[int, tuple[int, int]], waiting: set[int]) -> Iterator[str]:
        """Two pixels' vectors, or the last one's: four chains or two."""
        pixels = range(first, min(first + 2, self.kernel.pixels))
        counts = []
        for pixel in pixels:
            index = pixel * self.kernel.vectors + vector
            counts.append(self._take() if index in waiting else self.tile.accumulators[index])
            if index in waiting:
                yield f"ldr q{counts[-1]}, [sp, #{16 * index}]"
        chains = [register for count in counts for register in (self._take(), count)]
        helpers = [[self._take() for _ in chains] for _ in range(self.needs.helpers)]
        yield from self._pointers(first, len(pixels))
        if self.kernel.base is None:
            yield from self._load_bases(pixels, vector, helpers[0])
        for low, high in zip(chains[::2], chains[1::2], strict=True):
            yield f"zip1 v{low}.8h, v{high}.8h, v{self.upper}.8h"
            yield f"zip2 v{high}.8h, v{high}.8h, v{self.upper}.8h"
        bases = helpers[0] if self.kernel.base is None else [self.base] * len(chains)
        yield from (f"fsub v{x}.4s, v{base}.4s, v{x}.4s" for x, base in zip(chains, bases, strict=True))
        yield from self._steps(vector, chains, helpers, loaded)
        for i, register in enumerate(chains):
            yield f"str q{register}, [{_pointer(0, i // 2)}, #{32 * vector + 16 * (i % 2)}]"
        self.free += [*chains, *(register for each in helpers for register in each)]

    def _pointers(self, first: int, count: int) -> Iterator[str]:
        """Where the pair's elements lie in the result and in the tensors."""
        for i, start in enumerate([_OUT, *self.tensor_arguments]):
            if first == 0:
                yield f"mov {_pointer(i, 0)}, {start}"
            else:
                yield f"add {_pointer(i, 0)}, {_pointer(i, 1)}, {self.strides[i]}"
            if count == 2:
                yield f"add {_pointer(i, 1)}, {_pointer(i, 0)}, {self.strides[i]}"

    def _base_pointers(self) -> Iterator[str]:
        """Pointers to the bases of all pixels, where there are registers for them."""
        pairs = list(zip(self.base_pointers, range(self.kernel.pixels), strict=False))
        yield from (f"ldrsw {pointer}, [{self.base_rows}, #{4 * pixel}]" for pointer, pixel in pairs)
        yield from (f"madd {pointer}, {pointer}, {_STRIDE}, {self.bases}" for pointer, _ in pairs)

    def _load_bases(self, pixels: Sequence[int], vector: int, helpers: Sequence[int]) -> Iterator[str]:
        for i, pixel in enumerate(pixels):
            row = self.base_pointers[pixel] if self.base_pointers else ("x15", "x16")[i]
            if not self.base_pointers:
                yield f"ldrsw {row}, [{self.base_rows}, #{4 * pixel}]"
                yield f"madd {row}, {row}, {_STRIDE}, {self.bases}"
            for half in (0, 1):
                yield f"ldr q{helpers[2 * i + half]}, [{row}, #{32 * vector + 16 * half}]"

    def _steps(
        self,
        vector: int,
        chains: Sequence[int],
        helpers: Sequence[Sequence[int]],
        loaded: dict[int, tuple[int, int]],
    ) -> Iterator[str]:
        row = tensor = 0
        for operation in self.kernel.operations:
            roles = [{"x": x} | {f"t{t}": each[i] for t, each in enumerate(helpers)} for i, x in enumerate(chains)]
            if operation.tensor:
                half = self.kernel.both and operation.operand == "half"
                own = vector % (self.kernel.vectors // 2) if half else vector
                for i, each in enumerate(roles):
                    yield f"ldr q{each['t0']}, [{_pointer(1 + tensor, i // 2)}, #{32 * own + 16 * (i % 2)}]"
                    each["v0"] = each["t0"]
                tensor += 1
            for i, each in enumerate(roles):
                each |= {f"v{number}": loaded[row + number][i % 2] for number in range(operation.rows)}
                each |= {f"k{k}": self.constants[value] for k, value in enumerate(operation.code.immediates)}
            row += operation.rows
            yield from asm.named(operation.word, list(steps_a53.side_by_side(operation.code, roles)))


def _pointer(tensor: int, pixel: int) -> str:
    """The register that points to a tensor's (the result's: 0) elements of the pair's pixel."""
    return f"x{9 + 2 * tensor + pixel}"

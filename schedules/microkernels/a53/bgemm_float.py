"""The binary product with an epilogue of floats, for the Cortex-A53: dot products to float32, then a step at a time.

A count of 16 bits becomes a float by standing under the upper half of 2**24 (``zip`` with 0x4b80): 2**24 + 2 * count, exactly.
One subtraction from 2**24 + base makes it the dot product base - 2 * count. Four chains of operations, the halves of two
pixels' vectors, run side by side, as many as the latency of a float operation has cycles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from bitkiln.schedules.microkernels.a53 import asm
from bitkiln.schedules.microkernels.a53.bgemm_tile import Tile, Touch

#: What a count of zero is as a float, and the upper half of its bits.
ZERO_COUNT = 1 << 24
_UPPER_HALF = 0x4B80

#: Operations with a value of each channel, and with a value of each element of a tensor like the result.
CHANNEL_OPERATIONS = frozenset({"mul", "add", "max", "min", "leaky", "prelu"})
HALF_OPERATIONS = frozenset({"mul_h", "add_h", "prelu_h"})
TENSOR_OPERATIONS = frozenset({"mul_t", "add_t", "prelu_t"}) | HALF_OPERATIONS
#: Tensors that a kernel has pointers for, and those beside a table of bases.
MAX_TENSORS, MAX_TENSORS_WITH_BASES = 3, 1

_OUT, _STRIDE, _TABLE, _HALF_STRIDE, _AHEAD = "x2", "x3", "x4", "x22", "x24"
#: Registers for the pointers to pixels' bases, free behind the product; the last one has pointed to their rows until then.
_BASE_POINTERS = ("x0", "x1", "x8", "x15", "x16", "x6")
#: Cycles of a product that hides the fetching of what its own end needs; shorter ones fetch for the tile after them.
_LONG = 1000
_BINARY = {"mul": "fmul", "add": "fadd", "max": "fmax", "min": "fmin"}


@dataclass(frozen=True)
class Floats:
    """``void symbol(panel, weights, float *out, int64 strides, table, [bases, const int32 *rows,] [tensors...])``.

    Panel and weights as for ``bgemm_a53.Counts``. Writes ``vectors`` * 8 floats for each pixel, the lower half of ``strides``
    bytes apart; its upper half is how many pixels further on the tensors' next pixels lie, 0 where there are none.
    ``operations`` in order; those of channels read ``table`` float32 [vectors][operations of channels][8], those of
    tensors each a pointer to elements that lie as those of ``out`` do (``_t``), or to pixels of half as many channels (``_h``):
    with ``both`` the tile's second half of vectors reads the same ones as its first. ``max``/``min`` are with the table's
    value, ``leaky`` is max(x, value * x), ``prelu`` x > 0 ? x : value * x.
    The dot product of pixel i is base - 2 * count, with ``base`` or, where that is None, the row rows[i] of ``bases``
    float32 [..][stride / 4], which holds ``ZERO_COUNT`` + base. Bases are even.
    """

    pixels: int
    vectors: int
    words: int
    base: int | None
    operations: tuple[str, ...]
    both: bool = False

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        base = "rows" if self.base is None else f"b{self.base}"
        steps = "".join("_" + name for name in self.operations)
        both = "_both" if self.both else ""
        return f"bk_bgemm_{self.pixels}x{self.vectors * 8}_k{self.words}_{base}_f32{steps}{both}_a53"

    def assembly(self) -> str:
        """The routine."""
        tensors = sum(name in TENSOR_OPERATIONS for name in self.operations)
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
        return asm.routine(self.symbol, [*enter, *tile.with_scratch(lines), *leave, "ret"])

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


class _Finish:
    """From counts in the accumulators to floats in memory, a vector of channels after the other.

    Registers come from those free behind the product, and from accumulators as they are used up. Where that is too few to
    begin with, the last counts wait in the scratch memory at the stack pointer.
    """

    def __init__(self, kernel: Floats, tile: Tile) -> None:
        self.kernel, self.tile = kernel, tile
        self.free = list(tile.free)
        self.rows = [name for name in kernel.operations if name in CHANNEL_OPERATIONS]
        self.tensors = [name for name in kernel.operations if name in TENSOR_OPERATIONS]
        arguments = iter(["x5", "x6", "x7"])
        self.bases, self.base_rows = (next(arguments), next(arguments)) if kernel.base is None else ("", "")
        own = kernel.base is None and kernel.pixels <= len(_BASE_POINTERS)
        self.base_pointers = _BASE_POINTERS[: kernel.pixels] if own else ()
        self.tensor_arguments = [next(arguments) for _ in self.tensors]
        #: Bytes from pixel to pixel of the result and of each tensor.
        self.strides = [_STRIDE, *(_HALF_STRIDE if name in HALF_OPERATIONS else _STRIDE for name in self.tensors)]
        self.needs_helpers = kernel.base is None or self.tensors or {"leaky", "prelu"} & set(self.rows)
        self.needs_zero = bool({"relu", "prelu", "prelu_t", "prelu_h"} & set(kernel.operations))
        self.needs_masks = bool({"prelu", "prelu_t", "prelu_h"} & set(kernel.operations))

    def lines(self) -> Iterator[str]:
        """The whole of it."""
        waiting = self._spill()
        yield from (f"str q{self.tile.accumulators[i]}, [sp, #{16 * i}]" for i in sorted(waiting))
        self.free += [self.tile.accumulators[i] for i in waiting]
        yield from self._constants()
        yield from self._base_pointers()
        for vector in range(self.kernel.vectors):
            loaded = {}
            for i in range(len(self.rows)):
                loaded[i] = (self._take(), self._take())
                for half, register in enumerate(loaded[i]):
                    at = 32 * (vector * len(self.rows) + i) + 16 * half
                    yield f"ldr q{register}, [{_TABLE}, #{at}]"
            for first in range(0, self.kernel.pixels, 2):
                yield from self._pair(vector, first, loaded, waiting)
            self.free += [register for pair in loaded.values() for register in pair]

    def _spill(self) -> set[int]:
        """Indices of the counts that wait in memory."""
        fixed = 1 + (self.kernel.base is not None) + self.needs_zero
        need = fixed + 2 * len(self.rows) + 2 + (4 if self.needs_helpers else 0) + (4 if self.needs_masks else 0)
        count = max(0, need - len(self.free))
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
        if self.needs_zero:
            self.zero = self._take()
            yield f"movi v{self.zero}.4s, #0"

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
        helpers = [self._take() for _ in chains] if self.needs_helpers else []
        masks = [self._take() for _ in chains] if self.needs_masks else []
        yield from self._pointers(first, len(pixels))
        if self.kernel.base is None:
            yield from self._load_bases(pixels, vector, helpers)
        for low, high in zip(chains[::2], chains[1::2], strict=True):
            yield f"zip1 v{low}.8h, v{high}.8h, v{self.upper}.8h"
            yield f"zip2 v{high}.8h, v{high}.8h, v{self.upper}.8h"
        bases = helpers if self.kernel.base is None else [self.base] * len(chains)
        yield from (f"fsub v{x}.4s, v{base}.4s, v{x}.4s" for x, base in zip(chains, bases, strict=True))
        yield from self._steps(vector, chains, helpers, masks, loaded)
        for i, register in enumerate(chains):
            yield f"str q{register}, [{_pointer(0, i // 2)}, #{32 * vector + 16 * (i % 2)}]"
        self.free += [*chains, *helpers, *masks]

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
        helpers: Sequence[int],
        masks: Sequence[int],
        loaded: dict[int, tuple[int, int]],
    ) -> Iterator[str]:
        row = tensor = 0
        for name in self.kernel.operations:
            if name == "relu":
                yield from (f"fmax v{x}.4s, v{x}.4s, v{self.zero}.4s" for x in chains)
                continue
            if name in TENSOR_OPERATIONS:
                half = self.kernel.both and name in HALF_OPERATIONS
                own = vector % (self.kernel.vectors // 2) if half else vector
                for i, helper in enumerate(helpers):
                    yield f"ldr q{helper}, [{_pointer(1 + tensor, i // 2)}, #{32 * own + 16 * (i % 2)}]"
                values: Sequence[int] = helpers
                tensor += 1
            else:
                values = [loaded[row][i % 2] for i in range(len(chains))]
                row += 1
            yield from self._step(name.removesuffix("_t").removesuffix("_h"), chains, values, helpers, masks)

    def _step(
        self, name: str, chains: Sequence[int], values: Sequence[int], helpers: Sequence[int], masks: Sequence[int]
    ) -> Iterator[str]:
        each = partial(zip, strict=True)
        if name in _BINARY:
            yield from (f"{_BINARY[name]} v{x}.4s, v{x}.4s, v{value}.4s" for x, value in each(chains, values))
            return
        yield from (f"fmul v{t}.4s, v{x}.4s, v{value}.4s" for t, x, value in each(helpers, chains, values))
        if name == "leaky":
            yield from (f"fmax v{x}.4s, v{x}.4s, v{t}.4s" for x, t in each(chains, helpers))
            return
        yield from (f"fcmgt v{mask}.4s, v{x}.4s, v{self.zero}.4s" for mask, x in each(masks, chains))
        yield from (f"bif v{x}.16b, v{t}.16b, v{mask}.16b" for x, t, mask in each(chains, helpers, masks))


def _pointer(tensor: int, pixel: int) -> str:
    """The register that points to a tensor's (the result's: 0) elements of the pair's pixel."""
    return f"x{9 + 2 * tensor + pixel}"

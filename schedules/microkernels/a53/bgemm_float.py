"""The binary product with an epilogue of floats, for the Cortex-A53: dot products to float32, then a step at a time.

A count of 16 bits becomes a float by standing under the upper half of 2**24 (``zip`` with 0x4b80): 2**24 + 2 * count, exactly.
One subtraction from 2**24 + base makes it the dot product base - 2 * count. Four chains of operations, the halves of two
pixels' vectors, run side by side, as many as the latency of a float operation has cycles.

Signs beside the floats are compared in the same registers. The masks of 8 channels of a pixel, all bits of a lane alike, go to
two nibbles of an accumulator (``sli``), 4 such bytes to each; then lane i keeps bit i of its nibbles, and the sum of the lanes
is the bytes. They stand there by vectors and then pixels; a ``tbl`` puts each pixel's side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

from bitkiln.schedules.microkernels.a53 import asm
from bitkiln.schedules.microkernels.a53 import steps as steps_a53
from bitkiln.schedules.microkernels.a53.bgemm_tile import Tile, Touch
from bitkiln.schedules.steps import Assembly

#: What a count of zero is as a float, and the upper half of its bits.
ZERO_COUNT = 1 << 24
_UPPER_HALF = 0x4B80

#: Tensors that a kernel has pointers for, and those beside a table of bases.
MAX_TENSORS, MAX_TENSORS_WITH_BASES = 3, 1

#: Lanes by their bytes.
_LANE = {1: "b", 2: "h", 4: "s", 8: "d"}
_OUT, _STRIDE, _TABLE, _HALF_STRIDE, _AHEAD = "x2", "x3", "x4", "x22", "x24"
#: Registers for the pointers to pixels' bases, free behind the product; the last one has pointed to their rows until then.
_BASE_POINTERS = ("x0", "x1", "x8", "x15", "x16", "x6")
#: Where there are too few of them, those of a pair.
_BASE_ROWS = ("x15", "x16")
#: Carriers of upper halves of vectors, free behind the product; those without tensors, of which nothing is saved.
_CARRIERS, _CARRIERS_ALONE = ("x19", "x20", "x21"), ("x13", "x14", "x17")
#: Arguments in registers; those of signs follow on the stack.
IN_REGISTERS = 8
#: Bytes of signs that an accumulator holds.
_BYTES = 4
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
class Sign:
    """Signs of the results: ``rows`` compares with a threshold of each channel, the last row of the table, else with zero.

    Zero itself has a set bit where ``zero``; with ``rows`` what equals the threshold has one. With ``flips`` bits are
    exclusive-ored with those of the channels.
    """

    rows: bool
    zero: bool = True
    flips: bool = False

    @property
    def word(self) -> str:
        """Its part of a symbol's name."""
        return "_sign" + ("_rows" if self.rows else "_zero" * self.zero) + "_flips" * self.flips

    def compare(self, target: int, value: int, threshold: int) -> str:
        """The mask of ``value``; ``threshold`` is the register of the row's."""
        if self.rows:
            return f"fcmge v{target}.4s, v{value}.4s, v{threshold}.4s"
        return f"{'fcmge' if self.zero else 'fcmgt'} v{target}.4s, v{value}.4s, #0.0"


def pitch(vectors: int) -> int:
    """Bytes of a register that a pixel's signs take: a power of two, so that they are a lane."""
    return 1 << (vectors - 1).bit_length()


def sign_constants(pixels: int, vectors: int) -> bytes:
    """What the routine of a tile takes to make bytes of masks: which bit a lane keeps, then where each byte comes from."""
    lanes = b"".join((0x11111111 << lane).to_bytes(4, "little") for lane in range(4))
    places = bytearray(b"\xff" * 32)
    for pixel in range(pixels):
        for vector in range(vectors):
            places[pixel * pitch(vectors) + vector] = vector * pixels + pixel
    return lanes + bytes(places)


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
    With ``sign``, the ninth argument and those behind it, on the stack, are ``uint8 *bits``, stride / 32 bytes apart, the
    ``sign_constants`` of the tile and, with flips, those of its channels, of which ``pitch`` bytes are read.
    Floats are written only if it ``stores`` them.
    """

    pixels: int
    vectors: int
    words: int
    base: int | None
    operations: tuple[Operation, ...]
    both: bool = False
    sign: Sign | None = None
    stores: bool = True

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        base = "rows" if self.base is None else f"b{self.base}"
        steps = "".join("_" + operation.word for operation in self.operations)
        both = "_both" if self.both else ""
        sign = (self.sign.word if self.sign else "") + "_alone" * (not self.stores)
        return f"bk_bgemm_{self.pixels}x{self.vectors * 8}_k{self.words}_{base}_f32{steps}{both}{sign}_a53"

    @property
    def possible(self) -> bool:
        """Whether registers of counts are there for the signs' accumulators, rather than all of them waiting in memory."""
        needs = Needs(self.operations, self.base is None, self.sign)
        counts = self.pixels * self.vectors
        waiting = max(0, needs.registers - (32 - counts))
        return needs.fit and (self.sign is None or counts - waiting >= -(-counts // _BYTES))

    def assembly(self) -> str:
        """The routine."""
        tensors = sum(operation.tensor for operation in self.operations)
        tile = Tile(self.pixels, self.vectors, self.words)
        enter, leave = tile.saved(first=19 if tensors else 23)
        # What ``enter`` saved and the room for counts lie between the stack pointer and the arguments on the stack.
        finish = _Finish(self, tile, 16 * (sum(line.startswith("stp") for line in enter) + len(tile.accumulators)))
        pointers = zip([_OUT, *finish.tensor_arguments], ["x17", "x19", "x20", "x21"], strict=False)
        touches = [
            Touch(start, pointer, stride, -(-self.vectors // (4 if stride == _HALF_STRIDE and self.both else 2)))
            for (start, pointer), stride in zip(pointers, finish.strides, strict=False)
        ]
        touches = touches if self.stores else touches[1:]
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
class _Load:
    """A vector to load: its register is free behind group ``after`` of the arithmetic, and read by group ``before``."""

    register: int
    address: str
    offset: int
    after: int
    before: int

    def low(self) -> str:
        """Its lower half, in one cycle."""
        return f"ldr d{self.register}, [{self.address}, #{self.offset}]"

    def high(self, carrier: str) -> str:
        """Its upper half, to an integer register, beside arithmetic."""
        return f"ldr {carrier}, [{self.address}, #{self.offset + 8}]"


def _woven(groups: Sequence[Sequence[str]], loads: Sequence[_Load], carriers: Sequence[str]) -> Iterator[str]:
    """``groups`` of arithmetic with ``loads`` in between.

    A vector in three instructions takes one cycle where arithmetic issues beside its integer load; ``ldr q`` takes two.
    """
    pending = sorted(loads, key=lambda load: load.before)
    joins: list[tuple[int, str]] = []
    carrier = cycle(carriers)

    def begin(load: _Load) -> tuple[str, str]:
        pending.remove(load)
        high = next(carrier)
        joins.append((load.before, f"ins v{load.register}.d[1], {high}"))
        return load.low(), load.high(high)

    for index, group in enumerate(groups):
        for load in [load for load in pending if load.before <= index]:
            yield from begin(load)
            yield from (joins.pop(0)[1] for _ in joins[: max(0, len(joins) - len(carriers) + 1)])
        while any(before <= index for before, _ in joins):
            yield joins.pop(0)[1]
        for operation in group:
            ready = next((load for load in pending if load.after < index), None)
            if ready is None:
                yield operation
                continue
            low, high = begin(ready)
            yield low
            # The integer load before the last has come.
            yield from (joins.pop(0)[1] for _ in joins[: max(0, len(joins) - len(carriers) + 1)])
            yield from (operation, high)
    assert not pending and not joins, "every vector has a reader"


@dataclass(frozen=True)
class Needs:
    """What ``operations`` take, with ``bases`` in memory or in a register."""

    operations: tuple[Operation, ...]
    bases: bool
    sign: Sign | None = None

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return sum(operation.rows for operation in self.operations) + bool(self.sign and self.sign.rows)

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
        own = 1 + (not self.bases) + len(self.immediates) + bool(self.sign)
        return own + 2 * self.rows + 2 + 4 * self.helpers

    @property
    def fit(self) -> bool:
        """Whether there are so many, with two counts that come back from memory."""
        return self.registers + 2 <= 32


class _Finish:
    """From counts in the accumulators to floats in memory, a vector of channels after the other.

    Registers come from those free behind the product, and from accumulators as they are used up. Where that is too few to
    begin with, the last counts wait in the scratch memory at the stack pointer.
    """

    def __init__(self, kernel: Floats, tile: Tile, stack: int) -> None:
        self.kernel, self.tile = kernel, tile
        #: Where arguments on the stack lie, from the stack pointer.
        self.stack = stack
        #: Accumulators of masks that are full, and the one that is filled.
        self.masks: list[int] = []
        self.free = list(tile.free)
        self.tensors = [operation for operation in kernel.operations if operation.tensor]
        arguments = iter(["x5", "x6", "x7"])
        self.bases, self.base_rows = (next(arguments), next(arguments)) if kernel.base is None else ("", "")
        own = kernel.base is None and kernel.pixels <= len(_BASE_POINTERS)
        self.base_pointers = _BASE_POINTERS[: kernel.pixels] if own else ()
        self.tensor_arguments = [next(arguments) for _ in self.tensors]
        #: Bytes from pixel to pixel of the result and of each tensor.
        self.strides = [_STRIDE, *(_HALF_STRIDE if tensor.operand == "half" else _STRIDE for tensor in self.tensors)]
        self.needs = Needs(kernel.operations, kernel.base is None, kernel.sign)

    def lines(self) -> Iterator[str]:
        """The whole of it."""
        waiting = self._spill()
        yield from (f"str q{self.tile.accumulators[i]}, [sp, #{16 * i}]" for i in sorted(waiting))
        self.free += [self.tile.accumulators[i] for i in waiting]
        yield from self._constants()
        yield from self._base_pointers()
        for vector in range(self.kernel.vectors):
            loaded = {i: (self._take(), self._take()) for i in range(self.needs.rows)}
            for first in range(0, self.kernel.pixels, 2):
                yield from self._pair(vector, first, loaded, waiting)
            self.free += [register for pair in loaded.values() for register in pair]
        if self.kernel.sign:
            yield from asm.named("signs", list(self._signs(self.kernel.sign)))

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
            yield from self._base_rows(pixels)
        groups = [
            [
                f"zip{half} v{(low, high)[half - 1]}.8h, v{high}.8h, v{self.upper}.8h"
                for low, high in zip(chains[::2], chains[1::2], strict=True)
                for half in (1, 2)
            ]
        ]
        bases = helpers[0] if self.kernel.base is None else [self.base] * len(chains)
        groups.append([f"fsub v{x}.4s, v{base}.4s, v{x}.4s" for x, base in zip(chains, bases, strict=True)])
        groups += self._steps(chains, helpers, loaded)
        loads = self._loads(pixels, vector, helpers, loaded if first == 0 else {})
        stores = [
            f"str q{register}, [{_pointer(0, i // 2)}, #{32 * vector + 16 * (i % 2)}]"
            for i, register in enumerate(chains)
        ]
        if self.kernel.sign:
            stores = stores if self.kernel.stores else [""] * len(chains)
            first_byte = vector * self.kernel.pixels + first
            stores = self._compare(self.kernel.sign, first_byte, chains, loaded.get(self.needs.rows - 1), stores)
        groups.append(stores)
        yield from _woven(groups, loads, _CARRIERS if self.tensors else _CARRIERS_ALONE)
        self.free += [*chains, *(register for each in helpers for register in each)]

    def _compare(
        self, sign: Sign, byte: int, chains: Sequence[int], row: tuple[int, int] | None, stores: Sequence[str]
    ) -> list[str]:
        """``stores``, and behind each the comparison of what it stored; the masks go to the bytes from number ``byte`` on."""
        compares, inserts = [], []
        for i, register in enumerate(chains):
            nibble = 2 * ((byte + i // 2) % _BYTES) + i % 2
            if nibble == 0:
                self.masks.append(self._take())
            threshold = row[i % 2] if row else 0
            compares.append(sign.compare(register if nibble else self.masks[-1], register, threshold))
            if nibble:
                inserts.append(f"sli v{self.masks[-1]}.4s, v{register}.4s, #{4 * nibble}")
        text: list[str] = []
        for i, (store, compare) in enumerate(zip(stores, compares, strict=True)):
            text += [store, compare] if store else [compare]
            if i >= 2 and inserts:
                text.append(inserts.pop(0))
        return text + inserts

    def _signs(self, sign: Sign) -> Iterator[str]:
        """From masks to bytes of bits to memory."""
        pixels, vectors = self.kernel.pixels, self.kernel.vectors
        lanes, size = self._take(), pitch(vectors)
        yield from (f"ldr x{9 + i}, [sp, #{self.stack + 8 * i}]" for i in range(2 + sign.flips))
        yield f"ldr q{lanes}, [x10]"
        yield from (f"and v{mask}.16b, v{mask}.16b, v{lanes}.16b" for mask in self.masks)
        table = next(i for i in range(31) if not {i, i + 1} & set(self.masks))
        groups = [self.masks[i : i + 4] for i in range(0, len(self.masks), 4)]
        for group in groups:
            # One that is left over is added to itself.
            yield from (
                f"addp v{a}.4s, v{a}.4s, v{b}.4s" for a, b in zip(group[::2], [*group[1::2], group[-1]], strict=False)
            )
        for i, group in enumerate(groups):
            yield f"addp v{table + i}.4s, v{group[0]}.4s, v{group[2 if len(group) > 2 else 0]}.4s"
        packed = [table + i for i in range(len(groups))]
        if pixels > 1 and vectors > 1:
            packed = [i for i in range(32) if i not in (table, table + 1)][: -(-pixels * size // 16)]
            source = ", ".join(f"v{table + i}.16b" for i in range(len(groups)))
            for i, register in enumerate(packed):
                yield f"ldr q{register}, [x10, #{16 * (1 + i)}]"
                yield f"tbl v{register}.16b, {{{source}}}, v{register}.16b"
        if sign.flips:
            flips = next(i for i in range(32) if i not in (*packed, table, table + 1))
            yield f"ld1r {{v{flips}.{16 // size}{_LANE[size]}}}, [x11]"
            yield from (f"eor v{register}.16b, v{register}.16b, v{flips}.16b" for register in packed)
        yield f"lsr x12, {_STRIDE}, #5"
        for pixel in range(pixels):
            register, at = packed[pixel * size // 16], pixel * size % 16
            if vectors == size:
                yield f"st1 {{v{register}.{_LANE[size]}}}[{at // size}], [x9], x12"
                continue
            yield f"st1 {{v{register}.h}}[{at // 2}], [x9]"
            yield "add x13, x9, #2"
            yield f"st1 {{v{register}.b}}[{at + 2}], [x13]"
            yield "add x9, x9, x12"

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

    def _base_rows(self, pixels: Sequence[int]) -> Iterator[str]:
        """Pointers to the bases of a pair's pixels, where they have no registers of their own."""
        for i, pixel in enumerate(pixels):
            if not self.base_pointers:
                yield f"ldrsw {_BASE_ROWS[i]}, [{self.base_rows}, #{4 * pixel}]"
                yield f"madd {_BASE_ROWS[i]}, {_BASE_ROWS[i]}, {_STRIDE}, {self.bases}"

    def _loads(
        self,
        pixels: Sequence[int],
        vector: int,
        helpers: Sequence[Sequence[int]],
        rows: dict[int, tuple[int, int]],
    ) -> list[_Load]:
        """What a pair's arithmetic reads: bases, elements of tensors and, of the first pair, ``rows`` of the table."""
        found = []
        if self.kernel.base is None:
            for i, pixel in enumerate(pixels):
                row = self.base_pointers[pixel] if self.base_pointers else _BASE_ROWS[i]
                found += [_Load(helpers[0][2 * i + k], row, 32 * vector + 16 * k, -1, 1) for k in (0, 1)]
        readers = []
        tensor, last = 0, 1 if self.kernel.base is None else -1
        for group, operation in enumerate(self.kernel.operations, 2):
            readers += [group] * operation.rows
            if operation.tensor:
                half = self.kernel.both and operation.operand == "half"
                at = 32 * (vector % (self.kernel.vectors // 2) if half else vector)
                for i, register in enumerate(helpers[0]):
                    address = _pointer(1 + tensor, i // 2)
                    found.append(_Load(register, address, at + 16 * (i % 2), last, group))
                tensor += 1
            if operation.tensor or operation.code.temporaries:
                last = group
        readers += [2 + len(self.kernel.operations)] * (self.needs.rows - len(readers))
        for i, registers in rows.items():
            at = 32 * (vector * self.needs.rows + i)
            found += [_Load(register, _TABLE, at + 16 * k, -1, readers[i]) for k, register in enumerate(registers)]
        return found

    def _steps(
        self, chains: Sequence[int], helpers: Sequence[Sequence[int]], loaded: dict[int, tuple[int, int]]
    ) -> Iterator[list[str]]:
        """The arithmetic of each operation."""
        row = 0
        for operation in self.kernel.operations:
            roles = [{"x": x} | {f"t{t}": each[i] for t, each in enumerate(helpers)} for i, x in enumerate(chains)]
            for i, each in enumerate(roles):
                each |= {"v0": each["t0"]} if operation.tensor else {}
                each |= {f"v{number}": loaded[row + number][i % 2] for number in range(operation.rows)}
                each |= {f"k{k}": self.constants[value] for k, value in enumerate(operation.code.immediates)}
            row += operation.rows
            yield asm.named(operation.word, list(steps_a53.side_by_side(operation.code, roles)))


def _pointer(tensor: int, pixel: int) -> str:
    """The register that points to a tensor's (the result's: 0) elements of the pair's pixel."""
    return f"x{9 + 2 * tensor + pixel}"

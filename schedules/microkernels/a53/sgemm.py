"""Float matrix tiles for the Cortex-A53: ``tile_m`` pixels x ``tile_n`` output channels, all sums in registers.

C call: ``(float *out, int64 out_pitch, const float *image, const int32 *pixels, const float *weights, const int32 *rows,
int64 row_count, int64 row_steps, int64 panels, int64 panel_pitch, const float *bias, int64 image_pitch, float *claimed)``,
pitches and offsets in bytes.

For each panel ``out[m][n] = sum over rows r, k < 4*row_steps of image[pixels[m] + rows[r] + k] * weights[r][k][n]``; then
``out`` goes on by ``panel_pitch``, ``image`` by ``image_pitch`` and ``weights`` to what follows. ``rows`` has one entry more
than ``row_count``, any valid offset: it is loaded from ahead. So are ``AHEAD_BYTES`` bytes behind the last weights. A
``Finish`` is applied before the results are stored; without a bias its pointer is not used. Where it claims, as many bytes as a
panel's results have are written to ``claimed``, which goes on from panel to panel.

Registers: sums of 4 output channels each; pixels two to a register, each with 2 consecutive values; weights of one k. Per 4
values of k the vector pipe is busy tile_m*tile_n cycles with arithmetic and 2*ceil(tile_m/2) + tile_n cycles with loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import ClassVar

import numpy as np

from bitkiln.schedules.microkernels.a53 import asm
from bitkiln.schedules.microkernels.a53 import steps as steps_a53

#: Vector registers that the sums of every tile leave to the finish.
FREE_REGISTERS = 8
#: Values of k that an iteration consumes; rows are multiples of it.
STEP = 4
#: Bytes behind the packed weights that may be read.
AHEAD_BYTES = 1536
#: How far ahead lines of weights and, with ``reach``, of the image are fetched. At 140 ns a line from memory is 168 cycles
#: away, two iterations; the core's own prefetcher follows four lines further.
_WEIGHTS_AHEAD, IMAGE_AHEAD = 768, 64
#: Bytes behind the last value of each pixel that ``reach`` may read.
REACH_BYTES = IMAGE_AHEAD + 32
#: Registers: of the pixels' pointers; of byte offsets from them: this step, its second half, the next, lines further on.
POINTERS = [*range(8, 16), 19, 20, 21, 22]
CURRENT, CURRENT_HALF, NEXT, LEFT = "x16", "x17", "x23", "x24"
_SCRATCH = ("x25", "x26", "x27", "x28")
FAR, FOLLOWING = "x22", "x21"
#: Points to lines of the results that are fetched.
_RESULTS = "x30"


@dataclass(frozen=True)
class Finish:
    """What happens to the sums in their registers.

    They begin with ``bias`` of the channel. The largest of every ``window`` consecutive pixels is taken, which leaves fewer
    rows of ``out``; then comes ``activation``, a step without operand that ``steps_a53`` knows, with ``values``.
    ``claims``: beside its arithmetic a tile writes whole lines of the result that a later tile will store in pieces.
    ``goes_on``: sums begin with others, [pixel][channel] one after the other, which the call has where the bias would be.
    """

    bias: bool = False
    activation: str = ""
    values: tuple[float, ...] = ()
    window: int = 1
    claims: bool = False
    goes_on: bool = False

    @property
    def words(self) -> str:
        """The finish as a part of a symbol's name."""
        bits = "".join(f"_{pattern:08x}" for pattern in np.array(self.values, "float32").view("uint32"))
        parts = ["bias" if self.bias else "", self.activation + bits, f"max{self.window}" if self.window > 1 else ""]
        parts += ["claims" if self.claims else "", "on" if self.goes_on else ""]
        return "".join("_" + part for part in parts if part)


@dataclass(frozen=True)
class Sgemm:
    """The micro-kernel of one tile size.

    ``reach``: ``REACH_BYTES`` behind the last value of each pixel may be read; the kernel then fetches cache lines of the image
    ``ahead`` bytes further on. That may lie behind the image: a fetch never faults. With ``evenly``, so many bytes an iteration
    are fetched in the order of memory, from ``ahead`` bytes behind the first pixel on, over all panels of a call.
    With ``following``, so many bytes an iteration are fetched from ``claimed`` on, where weights of later calls lie; with
    ``afar`` into the L2 cache alone.
    With ``turns`` pixels' lines are fetched in so many iterations one after the other, not all in one: a core waits for three
    lines at a time. With ``stored``, a power of two, lines of the results are fetched before they are stored: those of pixel
    n while ``stored`` times n iterations are left.
    With ``halves`` weights are bfloat16, the upper halves of floats: a register of eight is widened by a shift for each four.
    """

    tile_m: int
    tile_n: int
    finish: Finish = Finish()
    reach: bool = False
    ahead: int = IMAGE_AHEAD
    evenly: int = 0
    following: int = 0
    afar: bool = False
    halves: bool = False
    turns: int = 1
    stored: int = 0
    #: Vector registers.
    file: ClassVar[int] = 32

    @property
    def symbol(self) -> str:
        """Its name."""
        lines = f"x{self.evenly}" if self.evenly else ""
        reach = f"_reach{self.ahead if self.ahead != IMAGE_AHEAD else ''}{lines}" if self.reach else ""
        following = f"_following{self.following}{'afar' if self.afar else ''}" if self.following else ""
        turns = f"_turns{self.turns}" if self.turns > 1 else ""
        stored = f"_stored{self.stored}" if self.stored else ""
        halves = "_bf16" if self.halves else ""
        return f"bk_sgemm_{self.tile_m}x{self.tile_n}{self.finish.words}{reach}{following}{turns}{stored}{halves}_a53"

    def assembly(self) -> str:
        """Its text."""
        return _assembly(self)

    @property
    def cycles_per_step(self) -> int:
        """Cycles of 4 values of k in the loop."""
        return self.loop.cycles

    @property
    def loop(self) -> asm.Loop:
        """The loop over ``STEP`` values of k."""
        return inner_loop(replace(self, finish=Finish()))

    @cached_property
    def vectors(self) -> int:
        """Registers of output channels."""
        return self.tile_n // 4

    @property
    def step_bytes(self) -> int:
        """Bytes of an iteration's weights."""
        return self.tile_n * STEP * (2 if self.halves else 4)

    @property
    def fetches_image(self) -> bool:
        """Whether the kernel fetches the image ahead: needs a register, and room beside its arithmetic."""
        return self.reach and self.tile_m < len(POINTERS) and self.tile_m * self.tile_n >= 32

    @property
    def pairs(self) -> int:
        """Registers of pixels."""
        return -(-self.tile_m // 2)

    def sum(self, m: int, vector: int) -> int:
        """Register of a sum."""
        return m * self.vectors + vector

    def places(self, weights: int, pixels: int) -> tuple[int, int]:
        """The first registers of so many registers of pixels and of weights; both are behind the sums."""
        return self.file - weights - pixels, self.file - weights

    def multiply(self, total: int, weight: int, pixel: int, lane: int) -> str:
        """A vector of sums plus weights times a value of a pixel."""
        return asm.Product(total, f"v{weight}.4s", f"v{pixel}.s[{lane}]")

    def load(self, key: tuple[str, int, int], register: int, after: int, before: int) -> asm.Load:
        """The load of a register, by what it holds.

        Weights are ("weight", k, vector) or ("halves", 0, number), two pixels' values ("pixel", k / 2, pair).
        """
        kind, k, number = key
        ahead: tuple[str, str | None] | None
        if kind in ("weight", "halves"):
            at = 16 * (k * self.vectors + number)
            ahead = (f"[x4, #{at + self.step_bytes}]", f"[x4, #{at + self.step_bytes + 8}]")
            return asm.Load(register, f"[x4, #{at}]", f"[x4, #{at + 8}]", ahead, after, before)
        low = f"x{POINTERS[2 * number]}"
        high = f"x{POINTERS[2 * number + 1]}" if 2 * number + 1 < self.tile_m else None
        offset = CURRENT_HALF if k else CURRENT
        ahead = None if k else (f"[{low}, {NEXT}]", f"[{high}, {NEXT}]" if high else None)
        return asm.Load(register, f"[{low}, {offset}]", f"[{high}, {offset}]" if high else None, ahead, after, before)

    def weave(self, arithmetic: Sequence[str], loads: Sequence[asm.Load], idle: int) -> asm.Loop:
        """The loop of these."""
        control = [
            f"mov {CURRENT}, {NEXT}",
            f"add {CURRENT_HALF}, {NEXT}, #8",
            f"subs {LEFT}, {LEFT}, #1",
            f"add x4, x4, #{self.step_bytes}",
            f"add {NEXT}, {NEXT}, #16",
        ]
        hints = [f"prfm pldl1keep, [x4, #{_WEIGHTS_AHEAD + at}]" for at in range(0, self.step_bytes, 64)]
        if self.following:
            control.insert(2, f"add {FOLLOWING}, {FOLLOWING}, #{self.following}")
            kept = "pldl2keep" if self.afar else "pldl1keep"
            hints += [f"prfm {kept}, [{FOLLOWING}, #{at}]" for at in range(0, self.following, 64)]
        if self.stored:
            hints += [f"lsr {_RESULTS}, {LEFT}, #{self.stored.bit_length() - 1}"]
            hints += [f"madd {_RESULTS}, {_RESULTS}, x1, x0"]
            hints += [f"prfm pstl1keep, [{_RESULTS}, #{4 * self.tile_n - 16}]"]
        if self.fetches_image and self.evenly:
            control.insert(2, f"add {FAR}, {FAR}, #{self.evenly}")
            hints += [f"prfm pldl1keep, [{FAR}, #{at}]" for at in range(0, self.evenly, 64)]
        elif self.fetches_image and self.turns > 1:
            for turn in range(self.turns):
                hints += asm.add(FAR, NEXT, self.ahead + 64 * turn // self.turns)
                hints += [
                    f"prfm pldl1keep, [x{pointer}, {FAR}]" for pointer in POINTERS[turn : self.tile_m : self.turns]
                ]
        elif self.fetches_image:
            control[2:2] = asm.add(FAR, NEXT, self.ahead)
            hints += [f"prfm pldl1keep, [x{pointer}, {FAR}]" for pointer in POINTERS[: self.tile_m]]
        return asm.Loop(arithmetic, loads, control, "b.ge", "1", _SCRATCH, idle, hints)


@cache
def _assembly(tile: Sgemm) -> str:
    enter, leave = asm.saved(19, 30, vectors=True)
    frame = asm.frame_bytes(19, 30, vectors=True)
    pointers = POINTERS[: tile.tile_m]
    loop = tile.loop
    lines = [
        *enter,
        f"ldp x29, x30, [sp, #{frame}]",
        *(f"ldr w{x}, [x3, #{4 * m}]" for m, x in enumerate(pointers)),
        *(f"add x{x}, x2, w{x}, sxtw" for x in pointers),
        *(asm.add(FAR, f"x{pointers[0]}", tile.ahead) if tile.fetches_image and tile.evenly else []),
        *([f"ldr {FOLLOWING}, [sp, #{frame + 32}]"] if tile.following else []),
        "4:",
        *asm.named("begin", _begin(tile, frame)),
        f"subs {LEFT}, x7, #2",
        "b.ge 1f",
        "2:",
        "subs x3, x3, #1",
        "b.mi 3f",
        f"ldrsw {NEXT}, [x2], #4",
        f"sub {LEFT}, x7, #1",
        f"csel {LEFT}, xzr, {LEFT}, eq",
        ".p2align 4",
        *loop.body(),
        "b 2b",
        "3:",
        *asm.named("finish", _finish(tile)),
        "mov x2, x0",
        f"ldr x17, [sp, #{frame + 24}]",
        *(line for m in range(0, tile.tile_m, tile.finish.window) for line in _store(tile, m)),
        *([f"ldr x30, [sp, #{frame + 8}]"] if tile.stored else []),
        "add x0, x0, x30",
        "subs x29, x29, #1",
        "b.gt 4b",
        *leave,
        "ret",
    ]
    return asm.routine(tile.symbol, lines, registers(tile))


def _begin(tile: Sgemm, frame: int) -> list[str]:
    """The sums at their bias or zero, claims and the loop's first loads beside that; x2, x3, x16 and x17 are free before."""
    sums = range(tile.tile_m * tile.vectors)
    lines, guests = [f"ldrsw {CURRENT}, [x5]"], []
    if tile.finish.bias:
        # The third argument on the stack; it moves on from panel to panel.
        lines += [f"ldr x17, [sp, #{frame + 16}]", *(f"ldr q{v}, [x17, #{16 * v}]" for v in range(tile.vectors))]
        guests += [f"add x17, x17, #{tile.tile_n * 4}", f"str x17, [sp, #{frame + 16}]"]
        starts = [f"mov v{r}.16b, v{r % tile.vectors}.16b" for r in sums[tile.vectors :]]
    elif tile.finish.goes_on:
        lines += [f"ldr x17, [sp, #{frame + 16}]", *(f"ldr q{r}, [x17, #{16 * r}]" for r in sums)]
        starts = []
    else:
        starts = [f"movi v{r}.16b, #0" for r in sums]
    if tile.finish.claims:
        size = tile.tile_m // tile.finish.window * tile.tile_n * 4
        lines.append(f"ldr x3, [sp, #{frame + 32}]")
        guests += [f"stp xzr, xzr, [x3, #{at}]" for at in range(0, size, 16)]
        guests += [f"add x3, x3, #{size}", f"str x3, [sp, #{frame + 32}]"]
    guests += ["add x2, x5, #4", "mov x3, x6", f"add {CURRENT_HALF}, {CURRENT}, #8", f"add {NEXT}, {CURRENT}, #16"]
    if tile.fetches_image and not tile.evenly:
        guests += asm.add(FAR, CURRENT, tile.ahead)
    return [*lines, *asm.beside(starts, guests), *tile.loop.head()]


def registers(tile: Sgemm) -> dict[str, str]:
    """What the loop keeps where."""
    sums = range(tile.tile_m * tile.vectors)
    far = {FAR: "what is fetched: a place, or an offset from the pixels"} if tile.fetches_image else {}
    return {
        "x0": "result",
        "x1": "bytes from pixel to pixel of the result",
        "x4": "weights",
        ", ".join(f"x{pointer}" for pointer in POINTERS[: tile.tile_m]): "pixels",
        f"{CURRENT}, {CURRENT_HALF}": "offset of this step's k from a pixel, and of its second half",
        NEXT: "offset of the next step",
        LEFT: "steps left of a row",
        **far,
        **({FOLLOWING: "weights that are fetched for later"} if tile.following else {}),
        **({_RESULTS: "results that are fetched"} if tile.stored else {}),
        ", ".join(_SCRATCH): "upper halves of vectors on their way",
        asm.span(sums): f"sums, {tile.tile_m} pixels x {tile.vectors} vectors of 4 channels",
        "other v": "pixels, then weights",
    }


def _finish(tile: Sgemm) -> list[str]:
    """The finish of a panel; registers of pixels and weights are free by now, and so are x2, x3, x16 and x17."""
    finish = tile.finish
    rows = range(0, tile.tile_m, finish.window)
    sums = [tile.sum(m, v) for m in rows for v in range(tile.vectors)]
    spare = tile.tile_m * tile.vectors
    lines, step = [], finish.window // 2
    while step:
        lines += [
            f"fmax v{a}.4s, v{a}.4s, v{b}.4s"
            for i in range(step)
            for m in rows
            for v in range(tile.vectors)
            for a, b in [(tile.sum(m + i, v), tile.sum(m + i + step, v))]
        ]
        step //= 2
    if finish.activation:
        constants = (*finish.values, *steps_a53.assembly(finish.activation).constants)
        rows_of = range(spare, spare + len(constants))
        for register, pattern in zip(rows_of, np.array(constants, "float32").view("uint32").tolist(), strict=True):
            lines += _constant(register, pattern)
        lines += steps_a53.lines(finish.activation, [(r, rows_of) for r in sums], range(rows_of.stop, 32))
    return lines


def _constant(register: int, pattern: int) -> list[str]:
    """Four times the 32 bits of ``pattern``."""
    if not pattern:
        return [f"movi v{register}.16b, #0"]
    low = [f"movk w16, #{pattern & 0xFFFF}"] if pattern & 0xFFFF else []
    return [f"movz w16, #{pattern >> 16}, lsl #16", *low, f"dup v{register}.4s, w16"]


def _store(tile: Sgemm, m: int) -> list[str]:
    """Stores a row of results; the pointers of its pixels go on to the next panel's image beside that."""
    pointers = POINTERS[m : min(m + tile.finish.window, tile.tile_m)]
    return [
        *(f"str q{tile.sum(m, v)}, [x2, #{16 * v}]" for v in range(tile.vectors)),
        "add x2, x2, x1",
        *(f"add x{x}, x{x}, x17" for x in pointers),
    ]


@cache
def inner_loop(tile: Sgemm) -> asm.Loop:
    """The loop over ``STEP`` values of k: the best of those that differ in the order of the sums within one k and in the use
    of spare registers.
    """
    best: asm.Loop | None = None
    for even, odd in [(even, odd) for even in (_by_vector, _pairs_first) for odd in (_by_vector, _pairs_last)]:
        if tile.halves and (even, odd) != (_by_vector, _by_vector):
            continue
        order = [(k, *which) for k in range(STEP) for which in (odd if k % 2 else even)(tile)]
        for sets in (1, 2):
            loop = _loop_of_halves(tile, sets) if tile.halves else _loop_in_order(tile, order, sets)
            if loop and (best is None or loop.cycles < best.cycles):
                best = loop
    if best is None:
        raise ValueError(f"no registers for a tile of {tile.tile_m}x{tile.tile_n}")
    return best


def _by_vector(tile: Sgemm) -> list[tuple[int, int]]:
    return [(m, v) for v in range(tile.vectors) for m in range(tile.tile_m)]


def _pairs_last(tile: Sgemm) -> list[tuple[int, int]]:
    """The last vectors pixel pair by pixel pair, so that the pairs' registers become free one after the other."""
    head = [(m, v) for v in range(tile.vectors - 2) for m in range(tile.tile_m)]
    return head + _pairwise(tile, range(max(0, tile.vectors - 2), tile.vectors))


def _pairs_first(tile: Sgemm) -> list[tuple[int, int]]:
    """The first vectors pair by pair: the last pair is needed late."""
    tail = [(m, v) for v in range(2, tile.vectors) for m in range(tile.tile_m)]
    return _pairwise(tile, range(min(2, tile.vectors))) + tail


def _pairwise(tile: Sgemm, vectors: range) -> list[tuple[int, int]]:
    pairs = [range(first, min(first + 2, tile.tile_m)) for first in range(0, tile.tile_m, 2)]
    return [(m, v) for pair in pairs for v in vectors for m in pair]


def _loop_in_order(tile: Sgemm, order: list[tuple[int, int, int]], sets: int) -> asm.Loop | None:
    """The loop with ``sets`` sets of pixel registers and all that is left for weights; None if it cannot be."""
    spare = tile.file - tile.tile_m * tile.vectors - tile.pairs * sets - tile.vectors
    if spare < 0:
        return None
    # Weight registers take turns; the turn must close within the loop.
    weights = next(n for n in range(min(tile.vectors + spare, 4 * tile.vectors), 0, -1) if tile.vectors * STEP % n == 0)
    first_pixel, first_weight = tile.places(weights, tile.pairs * sets)

    def weight(k: int, v: int) -> int:
        return first_weight + (k * tile.vectors + v) % weights

    def pixel(k: int, pair: int) -> int:
        return first_pixel + (k // 2 % sets) * tile.pairs + pair

    arithmetic = [tile.multiply(tile.sum(m, v), weight(k, v), pixel(k, m // 2), m % 2 * 2 + k % 2) for k, m, v in order]
    uses: dict[tuple[str, int, int], list[int]] = {}
    for index, (k, m, v) in enumerate(order):
        uses.setdefault(("weight", k, v), []).append(index)
        uses.setdefault(("pixel", k // 2, m // 2), []).append(index)
    registers = {key: weight(*key[1:]) if key[0] == "weight" else pixel(2 * key[1], key[2]) for key in uses}
    loop = tile.weave(arithmetic, _loads(tile, uses, registers, len(order)), first_pixel)
    return loop if loop.feasible else None


def _loads(
    tile: Sgemm, uses: dict[tuple[str, int, int], list[int]], registers: dict[tuple[str, int, int], int], count: int
) -> list[asm.Load]:
    """The loads of what ``uses`` names, each used at those places of ``count``, into its register."""
    loads = []
    for key, indices in uses.items():
        # The value that the register held before: of another use in this iteration, or of one in the last.
        last = [
            other[-1] for name, other in uses.items() if registers[name] == registers[key] and other[-1] < indices[0]
        ]
        wrapped = [other[-1] for name, other in uses.items() if registers[name] == registers[key]]
        after = max(last) if last else max(wrapped) - count
        loads.append(tile.load(key, registers[key], after, indices[0]))
    return loads


def _loop_of_halves(tile: Sgemm, sets: int) -> asm.Loop | None:
    """The same with weights that are widened, each vector while products take the one before: two registers are enough."""
    sums, pixel_registers = tile.tile_m * tile.vectors, tile.pairs * sets
    first_pixel = sums
    wide = sums + pixel_registers
    raw = tile.file - wide - 2
    count = STEP * tile.vectors
    if raw < 1 or count % 2:
        return None
    raw = next(n for n in range(min(raw, count // 2), 0, -1) if count // 2 % n == 0)
    first_raw = tile.file - raw

    def pixel(k: int, pair: int) -> int:
        return first_pixel + (k // 2 % sets) * tile.pairs + pair

    arithmetic: list[str] = []
    uses: dict[tuple[str, int, int], list[int]] = {}

    def widen(vector: int) -> None:
        uses.setdefault(("halves", 0, vector // 2), []).append(len(arithmetic))
        which = ("shll", "4h") if vector % 2 == 0 else ("shll2", "8h")
        arithmetic.append(f"{which[0]} v{wide + vector % 2}.4s, v{first_raw + vector // 2 % raw}.{which[1]}, #16")

    widen(0)
    for vector in range(count):
        if vector + 1 < count:
            widen(vector + 1)
        k, v = divmod(vector, tile.vectors)
        for m in range(tile.tile_m):
            uses.setdefault(("pixel", k // 2, m // 2), []).append(len(arithmetic))
            lane = m % 2 * 2 + k % 2
            arithmetic.append(tile.multiply(tile.sum(m, v), wide + vector % 2, pixel(k, m // 2), lane))
    registers = {key: first_raw + key[2] % raw if key[0] == "halves" else pixel(2 * key[1], key[2]) for key in uses}
    loop = tile.weave(arithmetic, _loads(tile, uses, registers, len(arithmetic)), first_pixel)
    return loop if loop.feasible else None

"""Values of pixels side by side, in A32 for the Cortex-A53: what ``panels`` multiplies, from rows of taps in an image.

C call: ``(float *panel, const float *image, const int32 *pixels, const int32 *rows, int32 row_count, int32 row_steps)``,
offsets in bytes: ``panel[row][k][m] = image[pixels[m] + rows[row] + k]`` for k < 4*row_steps and 6 pixels.

Four values of a pixel are loaded to a place in each of four rows of registers, whose neighbours then exchange values: 12 loads,
6 exchanges and 3 stores of 32 bytes for 24 values.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitkiln.schedules.microkernels.a53_32 import asm
from bitkiln.schedules.microkernels.a53_32.panels import Panels

_OUT, _IMAGE, _TABLE, _ROWS = "r0", "r1", "r2", "r3"
_PIXELS = tuple(f"r{4 + m}" for m in range(Panels.tile_m))
_LEFT, _COUNT, _OFFSET = "r10", "r11", "r12"
#: Arguments on the stack, in bytes from its top at the call.
_ROW_COUNT, _ROW_STEPS = 0, 4
#: The first of the registers of 64 bits that hold four values of all pixels, [k][pair of pixels].
_FIRST = 16


@dataclass(frozen=True)
class PackPixels:
    """The micro-kernel."""

    @property
    def symbol(self) -> str:
        """Its name."""
        return f"bk_pack_pixels_{Panels.tile_m}_a53_32"

    def assembly(self) -> str:
        """Its text."""
        # The frame without vector registers, none of which has to be kept.
        arguments = 4 * len(_SAVED)
        lines = [
            f"push {{{', '.join(_SAVED)}}}",
            f"ldr {_COUNT}, [sp, #{arguments + _ROW_COUNT}]",
            "1:",
            f"ldr {_OFFSET}, [{_ROWS}], #4",
            *(f"ldr {pixel}, [{_TABLE}, #{4 * m}]" for m, pixel in enumerate(_PIXELS)),
            f"ldr {_LEFT}, [sp, #{arguments + _ROW_STEPS}]",
            f"add {_OFFSET}, {_OFFSET}, {_IMAGE}",
            *(f"add {pixel}, {pixel}, {_OFFSET}" for pixel in _PIXELS),
            "2:",
            *_step(),
            "bgt 2b",
            f"subs {_COUNT}, {_COUNT}, #1",
            "bgt 1b",
            f"pop {{{', '.join(_SAVED[:-1])}, pc}}",
        ]
        registers = {
            _OUT: "panel",
            _IMAGE: "image",
            _TABLE: "offsets of pixels",
            _ROWS: "offsets of rows",
            f"{_PIXELS[0]}-{_PIXELS[-1]}": "pixels",
            f"{_LEFT}, {_COUNT}": "steps left of a row, rows left",
            f"d{_FIRST}-d{_FIRST + 11}": "four values of all pixels",
        }
        return asm.routine(self.symbol, lines, registers)


_SAVED = (*(f"r{i}" for i in range(4, 12)), "lr")


def _step() -> list[str]:
    """Four values of each pixel."""
    lines = []
    pairs = Panels.tile_m // 2
    for pair in range(pairs):
        for half in range(2):
            for m in range(2):
                register = _FIRST + (2 * half + m) * pairs + pair
                lines.append(f"vldr d{register}, [{_PIXELS[2 * pair + m]}, #{8 * half}]")
                if half:
                    lines.append(f"add {_PIXELS[2 * pair + m]}, {_PIXELS[2 * pair + m]}, #16")
    for pair in range(pairs):
        lines += [f"vtrn.32 d{_FIRST + k * pairs + pair}, d{_FIRST + (k + 1) * pairs + pair}" for k in (0, 2)]
    lines.append(f"subs {_LEFT}, {_LEFT}, #1")
    lines += [f"vst1.32 {{{asm.doubles((at, at + 1))}}}, [{_OUT}]!" for at in range(_FIRST // 2, _FIRST // 2 + 6, 2)]
    return lines

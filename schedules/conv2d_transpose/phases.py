"""Where the taps of a transposed convolution lie, by phase.

Result pixel j*stride + r, with phase r fixed, meets the same taps for every j: those k for which r + padding - k*dilation is a
multiple of the stride, at input pixel j + (r + padding - k*dilation) / stride. A phase is therefore a convolution of stride 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitkiln.schedules.workload import ConvTranspose2d


@dataclass(frozen=True)
class Phase:
    """One phase along one axis: pixel ``first`` and every ``stride``-th after it, ``count`` in all.

    ``taps`` are indices of the kernel, ``places`` where in the input they lie for pixel 0, ascending.
    """

    first: int
    count: int
    taps: tuple[int, ...]
    places: tuple[int, ...]


def phases(workload: ConvTranspose2d, axis: int) -> list[Phase]:
    """The phases along ``axis`` (0: y, 1: x) that have any pixels."""
    stride, step, before = workload.strides[axis], workload.dilation[axis], workload.padding[axis]
    extent = workload.out_size[axis]
    found = []
    for first in range(min(stride, extent)):
        taps = [k for k in range(workload.kernel[axis]) if (first + before - k * step) % stride == 0]
        # The last tap lies first in the input.
        pairs = sorted(((first + before - k * step) // stride, k) for k in taps)
        places, order = tuple(place for place, _ in pairs), tuple(k for _, k in pairs)
        found.append(Phase(first, -(-(extent - first) // stride), order, places))
    return found


def border(workload: ConvTranspose2d) -> tuple[int, int, int, int]:
    """How far the taps of any phase reach over the image: top, left, bottom, right."""
    before, after = [], []
    for axis, extent in enumerate((workload.height, workload.width)):
        reached = [phase for phase in phases(workload, axis) if phase.places]
        before.append(max([0, *(-phase.places[0] for phase in reached)]))
        after.append(max([0, *(phase.places[-1] + phase.count - extent for phase in reached)]))
    return before[0], before[1], after[0], after[1]

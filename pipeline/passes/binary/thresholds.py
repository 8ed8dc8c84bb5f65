"""Finds the integer thresholds that equal a chain of float32 steps and a sign, element by element.

The steps are evaluated on the whole numbers that a binary convolution can give, so the thresholds are exact by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitkiln.schedules.steps import Order, Step, compute, order

#: Thresholds that a kernel compares a sum with, at most: enough for a bit that is set but for sums between two.
MOST_THRESHOLDS = 3


#: Sums evaluated at once where every value of v has to be looked at; bounds the memory of the search.
CHUNK = 1 << 22


class NotMonotone(Exception):
    """Why a layer cannot become a threshold."""


@dataclass(frozen=True)
class Thresholds:
    """bit = (flip ? -v : v) >= value: ``value`` is int32 [O] or [OH, OW, O], ``flip`` bool [O].

    Or ``value`` is int32 [n, O] or [n, OH, OW, O], and the bit is set where v reaches an odd number of the n.
    """

    value: np.ndarray
    flip: np.ndarray

    @property
    def count(self) -> int:
        """Thresholds of each element."""
        return len(self.value) if self.value.ndim in (2, 4) else 1

    @property
    def kind(self) -> str:
        """Whether each "channel" or each "element" has its own."""
        return "channel" if self.value.ndim < 3 else "element"


def find_thresholds(
    steps: Sequence[tuple[Step, np.ndarray | None]],
    sign_zero: int,
    invert: np.ndarray,
    size: tuple[int, int, int],
    reach: int,
) -> Thresholds:
    """The thresholds that stand for the sign of ``steps``, over all whole numbers from -reach to reach.

    ``size`` is (OH, OW, O), the shape of the sums; ``invert`` bool [O] asks for thresholds of the inverted bit. Raises
    NotMonotone if a bit changes too often, or if the steps make something that is no number of any sum: where steps are
    monotone, they do so of the least or greatest sum first.
    """
    by_element = any(step.operand == "element" for step, _ in steps)
    shape = size if by_element else (1, 1, size[2])
    search = _Search(steps, sign_zero, np.broadcast_to(invert, shape).reshape(-1), shape)
    every = np.arange(np.prod(shape))
    ends = search.values(every, np.array([[-reach], [reach]]))
    _check_numbers(ends)
    lowest, highest = search.bits_of(ends, every)
    changes = np.full((len(every), MOST_THRESHOLDS), reach + 1)
    safe = search.monotone()
    once = np.flatnonzero(safe & (lowest != highest))
    changes[once, 0] = _bisect(search, once, lowest[once], reach)
    bent = np.flatnonzero(~safe)
    changes[bent] = _all_changes(search, bent, reach)
    found = _one_each(changes, lowest, shape, reach) or _several_each(changes, lowest, shape, reach)
    if (found.value == found.value[..., :1, :1, :]).all():
        found = Thresholds(found.value[..., 0, 0, :], found.flip)
    return found


class _Search:
    """The bit of every element as a function of the sum."""

    def __init__(
        self,
        steps: Sequence[tuple[Step, np.ndarray | None]],
        sign_zero: int,
        invert: np.ndarray,
        shape: tuple[int, ...],
    ) -> None:
        self.steps = [step for step, _ in steps]
        self.operands = [
            np.broadcast_to(values, shape).reshape(-1) for step, values in steps if step.operand and values is not None
        ]
        self.sign_zero = sign_zero
        self.invert = invert

    def values(self, elements: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """What the steps make of ``sums``, [n] or [m, 1], at ``elements`` [n]: float32 [n] or [m, n]."""
        values = np.broadcast_to(sums.astype(np.float32), np.broadcast_shapes(sums.shape, elements.shape))
        return compute(self.steps, values, [operand[elements] for operand in self.operands])

    def bits_of(self, values: np.ndarray, elements: np.ndarray) -> np.ndarray:
        """The bits of ``values`` [..., n] at ``elements`` [n]."""
        return (values >= 0 if self.sign_zero > 0 else values > 0) ^ self.invert[elements]

    def monotone(self) -> np.ndarray:
        """Elements whose steps each keep or turn the order of numbers, so that the bit changes at most once."""
        safe = np.ones(len(self.invert), bool)
        operands = iter(self.operands)
        for step in self.steps:
            safe &= order(step, next(operands) if step.operand else None) != Order.BENDS
        return safe


def _check_numbers(values: np.ndarray) -> None:
    """NotMonotone if there is NaN among ``values``."""
    if np.isnan(values).any():
        raise NotMonotone("an infinity meets a zero or another infinity: some sums give NaN")


def _all_changes(search: _Search, elements: np.ndarray, reach: int) -> np.ndarray:
    """The sums [n, MOST_THRESHOLDS] where the bits of ``elements`` [n] change, in order; reach + 1 behind the last one."""
    sums = np.arange(-reach, reach + 1)
    found = np.full((len(elements), MOST_THRESHOLDS), reach + 1)
    many = max(1, CHUNK // len(sums))
    wrong = 0
    for start in range(0, len(elements), many):
        chosen = elements[start : start + many]
        values = search.values(chosen, sums[:, None])
        _check_numbers(values)
        bits = search.bits_of(values, chosen).T
        element, at = np.nonzero(bits[:, 1:] != bits[:, :-1])
        order = np.arange(len(element)) - np.searchsorted(element, element)
        wrong += len(np.unique(element[order >= MOST_THRESHOLDS]))
        kept = order < MOST_THRESHOLDS
        found[start + element[kept], order[kept]] = sums[at[kept] + 1]
    if wrong:
        raise NotMonotone(f"the bits of {wrong} of {len(search.invert)} elements go up and down as the sum grows")
    return found


def _bisect(search: _Search, elements: np.ndarray, lowest: np.ndarray, reach: int) -> np.ndarray:
    """The sums where the bits of ``elements``, which are ``lowest`` for the least sum, change; each does so once."""
    before, behind = np.full(len(elements), -reach), np.full(len(elements), reach)
    while np.any(behind - before > 1):
        middle = (before + behind) // 2
        changed = search.bits_of(search.values(elements, middle), elements) != lowest
        behind, before = np.where(changed, middle, behind), np.where(changed, before, middle)
    return behind


def _one_each(changes: np.ndarray, lowest: np.ndarray, shape: tuple[int, ...], reach: int) -> Thresholds | None:
    """One threshold for each element: of the sum where its bit rises, of the negated sum where it falls.

    None where a bit changes twice, or where the pixels of a channel need both directions.
    """
    first, never = changes[:, 0], changes[:, 0] > reach
    falls, rises = (np.asarray(way.reshape(shape).any(axis=(0, 1))) for way in (lowest & ~never, ~lowest & ~never))
    if (changes[:, 1] <= reach).any() or (falls & rises).any():
        return None
    # v < t is -v >= 1 - t; a bit that never changes is always or never set.
    value = np.where(never, np.where(lowest, -reach, reach + 1), np.where(lowest, 1 - first, first))
    return Thresholds(value.reshape(shape).astype(np.int32), falls)


def _several_each(changes: np.ndarray, lowest: np.ndarray, shape: tuple[int, ...], reach: int) -> Thresholds:
    """All changes as thresholds; a bit that is set at first begins with one that every sum reaches."""
    thresholds = np.where(lowest[:, None], np.roll(changes, 1, axis=1), changes)
    thresholds[lowest, 0] = -reach
    lost = int((lowest & (changes[:, -1] <= reach)).sum())
    if lost:
        raise NotMonotone(
            f"the bits of {lost} of {len(lowest)} elements go down and up again and down as the sum grows"
        )
    count = int((thresholds <= reach).sum(axis=1).max(initial=1))
    value = thresholds[:, :count].T.reshape(count, *shape)
    return Thresholds(value.astype(np.int32), np.zeros(shape[2], bool))

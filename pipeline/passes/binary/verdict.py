"""What is found out about a convolution: how it computes with bits, or why it does not; and the same in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BinaryFacts:
    """How a binary convolution makes its sums.

    ``levels`` are the two values of its activation, lower first. ``padding`` is the level that the image is padded with, None
    without padding. ``scaled``: the weights are +-s with an s of each output channel. ``zeros_count_as`` is the level of an
    exact zero before a sign that is 0 there in the file, None where a zero has one of the two levels in the file too.
    ``exact_zeros``: such zeros stay 0, as half the sum of two convolutions. ``zero_weights`` are as many weights, which stay 0
    by two convolutions too. ``stored``: the file itself holds bits.
    """

    levels: tuple[float, float] = (-1.0, 1.0)
    padding: float | None = None
    scaled: bool = False
    zeros_count_as: float | None = None
    exact_zeros: bool = False
    zero_weights: int = 0
    stored: bool = False

    @property
    def convolutions(self) -> int:
        """How many convolutions of bits make the sums."""
        return 2 ** len(self.causes())

    def causes(self) -> list[str]:
        """Why there are several convolutions, in words; each doubles them."""
        causes = [f"{self.zero_weights} weights are zero"] if self.zero_weights else []
        if self.exact_zeros:
            causes.append("Sign(0) = 0 in the file and the whole numbers before it are often 0")
        return causes

    def in_words(self) -> str:
        """What `bitkiln inspect` says."""
        signs = self.levels == (-1, 1)
        text = f"{self._operands(signs)}, {self._padding(signs)}"
        if self.zeros_count_as is not None:
            text += f", zeros count as {self._level(self.zeros_count_as, signs)}"
        if self.causes():
            text += f", in {self.convolutions} convolutions, since {' and '.join(self.causes())}"
        return f"{text}: where(x >= 0, 1, -1) would need half of them" if self.exact_zeros else text

    def _operands(self, signs: bool) -> str:
        if self.stored:
            return "stored as binary"
        if not signs:
            return "levels {:g} and {:g} x +-s".format(*self.levels)
        return f"signs x {'0 and ' if self.zero_weights else ''}{'scaled +-1' if self.scaled else '+-1'}"

    def _padding(self, signs: bool) -> str:
        if self.padding is None:
            return "no padding"
        return "true zero padding" if signs and not self.padding else f"padding {self._level(self.padding, signs)}"

    @staticmethod
    def _level(value: float, signs: bool) -> str:
        return f"{value:+g}" if signs else f"{value:g}"


@dataclass(frozen=True)
class Verdict:
    """What the convolution ``name`` is: binary as ``facts`` say, or not binary because of ``refusal``.

    ``suspicious`` when half of the binary pattern is there, so that the user will want to know.
    """

    name: str
    facts: BinaryFacts | None = None
    refusal: str = ""
    suspicious: bool = False

    @property
    def binary(self) -> bool:
        """Does it compute with bits?"""
        return self.facts is not None

    @property
    def reason(self) -> str:
        """Why it is binary or not, in words."""
        return self.facts.in_words() if self.facts else self.refusal


class NotBinary(Exception):
    """Why a convolution is none; ``suspicious`` tells whether it looks as if it had been meant to be one."""

    def __init__(self, reason: str, suspicious: bool) -> None:
        super().__init__(reason)
        self.suspicious = suspicious

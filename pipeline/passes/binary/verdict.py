"""What is said of a convolution: binary, or not and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """What a convolution is. ``suspicious`` when half of the binary pattern is there, so that the user will want to know."""

    name: str
    binary: bool
    reason: str
    suspicious: bool = False


class NotBinary(Exception):
    """Why a convolution is none; ``suspicious`` tells whether it looks as if it had been meant to be one."""

    def __init__(self, reason: str, suspicious: bool) -> None:
        super().__init__(reason)
        self.suspicious = suspicious

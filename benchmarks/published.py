"""What others have published of the same networks on the same boards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """Milliseconds of a frame, and who says so of what."""

    ms: float
    source: str


_ELL = (
    "Published: by ELL's gallery, for a Raspberry Pi 3 with Raspbian at 700 MHz, four threads; of card-binary the network "
    "alone, where its card says 1.05 s with the preparation of the image"
)

#: By work, target and threads.
_CLAIMS = {
    ("card-binary", "rasp3b32-700", 4): Claim(520, _ELL),
    ("card-float", "rasp3b32-700", 4): Claim(590, _ELL),
}


def of(work: str, target: str, threads: int) -> Claim | None:
    """The published time of ``work`` on the board that ``target`` is, or None."""
    return _CLAIMS.get((work, target, threads))

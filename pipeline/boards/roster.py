"""Which boards of a farm are fit to measure: what each did, why one is set aside, and when it may come back.

A board that gives wrong results, is throttled or loses its connection too often is set aside for a while. Then it has to
measure the common kernel again, as all boards did before their first figure counted. Of two boards that differ the first is
believed; of three and more the one in the middle, so that one that lies from the beginning does not set the others aside.
What was learned is kept in a file of this user for ``bitkiln boards list``; nothing depends on that file.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from bitkiln.pipeline.boards.answers import Clock, Health, Measurement
from bitkiln.pipeline.errors import SetupError
from bitkiln.pipeline.support.checked import Line, Malformed, Name, Positive, decode
from bitkiln.pipeline.support.files import atomic_write, state_directory
from bitkiln.pipeline.support.text import printable

#: Boards that take so much more or less for the common kernel than their like are reported; set aside.
REPORTED, BEYOND = 0.03, 0.25
#: So many losses within so many seconds, and so many throttled or unsteady figures in a row, set a board aside.
MOST_LOSSES, LOSS_SECONDS, MOST_UNFIT = 3, 600.0, 3
#: Seconds aside the first time; twice as many each further time, up to the second figure.
ASIDE, LONGEST_ASIDE = 60.0, 960.0
#: Bytes of the file, and how many boards it remembers.
MOST_BYTES, MOST_BOARDS = 1 << 20, 500


class Standing(msgspec.Struct):
    """What is known of a board, as it is kept."""

    aside: Line = ""
    failure: Line = ""
    failed_at: Annotated[float, Meta(ge=0, le=1e12)] = 0.0
    sample_cycles: Positive | None = None
    clock_mhz: Clock | None = None
    health: Health = {}


@dataclass
class _Member:
    standing: Standing = field(default_factory=Standing)
    checked: bool = False
    until: float = 0.0
    times_aside: int = 0
    unfit: int = 0
    #: Set aside for no other reason than that it differs from its like.
    differs: bool = False
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_LOSSES))


class Roster:
    """The boards that a run has met, by address. Threads may share it.

    ``say`` is told, in a line, what its user should know; ``now`` is a clock in seconds.
    """

    def __init__(
        self, say: Callable[[str], None], now: Callable[[], float] = time.monotonic, file: Path | None = None
    ) -> None:
        self._say, self._now, self._file = say, now, file
        self._members: dict[str, _Member] = {}
        self._lock = threading.Lock()

    def aside(self, board: str) -> str:
        """Why the board must not measure now; empty where it may."""
        with self._lock:
            member = self._members.get(board)
            return member.standing.aside if member and self._now() < member.until else ""

    def all_aside(self, boards: Collection[str]) -> str:
        """Why none of these boards may measure; empty where one may, or nobody knows."""
        with self._lock:
            now = self._now()
            reasons = {name: each.standing.aside for name, each in self._members.items() if now < each.until}
            if not boards or not all(board in reasons for board in boards):
                return ""
            return "; ".join(f"{board}: {reasons[board]}" for board in boards)

    def must_check(self, board: str) -> bool:
        """Whether the board has to measure the common kernel before its figures count."""
        with self._lock:
            member = self._members.get(board)
            return member is None or not member.checked

    def checked(self, board: str, found: Measurement, problem: str) -> bool:
        """Take in what the board made of the common kernel, ``problem`` saying what is wrong; whether it may measure."""
        with self._lock:
            member = self._members.setdefault(board, _Member())
            self._note(member, found)
            # One that was set aside comes back when it behaves.
            problem = problem or (_unfitness(found) if member.times_aside else "")
            member.standing.sample_cycles = None if problem else found.cycles
            if problem:
                self._set_aside(board, member, problem)
                return False
            back = bool(member.times_aside) and not member.checked
            self._take_back(member)
            self._compare(board)
            self._keep()
            fit = member.checked
        if back and fit:
            self._say(f"board {board} is back")
        return fit

    def refuse(self, board: str, reason: str) -> None:
        """Set the board aside for what it is."""
        with self._lock:
            self._set_aside(board, self._members.setdefault(board, _Member()), reason)

    def measured(self, board: str, found: Measurement) -> None:
        """The board has measured something: too often throttled or unsteady, it is set aside."""
        with self._lock:
            member = self._members.setdefault(board, _Member())
            self._note(member, found)
            what = _unfitness(found)
            member.unfit = member.unfit + 1 if what else 0
            if member.unfit >= MOST_UNFIT:
                self._set_aside(board, member, what)

    def lost(self, board: str, why: str) -> None:
        """The board was lost while it measured; too often, it is set aside."""
        with self._lock:
            member = self._members.setdefault(board, _Member())
            member.standing.failure, member.standing.failed_at = printable(why, 300), time.time()
            member.losses.append(self._now())
            if len(member.losses) == MOST_LOSSES and self._now() - member.losses[0] < LOSS_SECONDS:
                member.losses.clear()
                self._set_aside(board, member, f"it was lost {MOST_LOSSES} times ({member.standing.failure})")
            else:
                # It may have come back as another, or without its fan.
                member.checked = False
                self._keep()

    def _compare(self, latest: str) -> None:
        """Set aside who differs too much from its like, take back who does not after all, and report ``latest``."""
        known = {name: each.standing.sample_cycles for name, each in self._members.items()}
        samples = {name: cycles for name, cycles in known.items() if cycles}
        if latest not in samples or len(samples) < 2:
            return
        others = statistics.median(cycles for name, cycles in samples.items() if name != latest)
        usual = statistics.median(samples.values()) if len(samples) > 2 else others
        for name, cycles in samples.items() if len(samples) > 2 else [(latest, samples[latest])]:
            member, difference = self._members[name], cycles / usual - 1
            if abs(difference) > BEYOND and member.checked:
                why = f"it takes {difference:+.0%} cycles for the common kernel, against the other boards"
                self._set_aside(name, member, why)
                member.differs = True
            elif abs(difference) <= BEYOND and member.differs:
                self._take_back(member)
                self._say(f"board {name} is back: others take as many cycles for the common kernel")
        difference = samples[latest] / others - 1
        if self._members[latest].checked and abs(difference) > REPORTED:
            self._say(
                f"warning: board {latest} takes {difference:+.1%} cycles for the common kernel, against the other boards"
            )

    def _take_back(self, member: _Member) -> None:
        member.checked, member.differs, member.until, member.standing.aside = True, False, 0.0, ""

    def _note(self, member: _Member, found: Measurement) -> None:
        member.standing.clock_mhz, member.standing.health = found.clock_mhz, dict(found.health)

    def _set_aside(self, board: str, member: _Member, reason: str) -> None:
        seconds = min(ASIDE * 2**member.times_aside, LONGEST_ASIDE)
        member.until = self._now() + seconds
        member.times_aside += 1
        member.checked, member.differs, member.unfit = False, False, 0
        member.standing.aside = printable(reason, 300)
        self._say(f"warning: board {board} is set aside for {seconds:.0f} s: {member.standing.aside}")
        self._keep()

    def _keep(self) -> None:
        if self._file is None:
            return
        with suppress(OSError, Malformed):  # It is for people to look at; measuring goes on without.
            known = {**read_standings(self._file), **{name: each.standing for name, each in self._members.items()}}
            kept = dict(list(known.items())[-MOST_BOARDS:])
            with atomic_write(self._file) as temporary:
                temporary.write_text(json.dumps(msgspec.to_builtins(kept)), encoding="utf-8")


def _unfitness(found: Measurement) -> str:
    """Why a board was not fit when it measured ``found``; empty where it was."""
    if found.health.get("throttled"):
        return "it is throttled: cool it, or give it a better power supply"
    return "" if found.steady else "its clock does not hold still"


def standings_file() -> Path | None:
    """Where what was learned of boards is kept; None where this user has no home."""
    try:
        return state_directory() / "boards.json"
    except SetupError:
        return None


def read_standings(path: Path | None) -> Mapping[str, Standing]:
    """What was learned of boards, by address; nothing where there is no such file, or a damaged one."""
    try:
        return decode(path.read_bytes(), dict[Name, Standing], MOST_BYTES) if path else {}
    except (OSError, Malformed):
        return {}

"""Which record of a workload decides, and why.

Figures of one *rig* (a simulated board of one model and clock, or real boards of the target's CPU, on one number of threads)
compare with each other. Real boards compare in cycles at the clock that was measured under them: a kernel is not better for a
cooler board. A rig that has only measured the untuned default says nothing of other kernels, and hides no rig that has
searched. Nothing depends on when a record says it was made, or in which order logs are read.

Records of another number of threads do not decide for kernels of ours, whose defaults know their number. Where the committed
records of rasp3b hold both times, the fastest kernel of one number lost to the other's own default in 13 of 17 layers, by up to
2.4 times (model v2): it shares out other blocks, and claims other parts of the caches. General kernels are the same loops on
every number: what was tuned on one was 1.16 and 1.60 times faster than the default on the other, in a network of volumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitkiln.targets import Target

if TYPE_CHECKING:
    from bitkiln.pipeline.records import Record

#: What counts more: real boards over a model, and emulated time never.
KINDS = ("board", "simulated")
#: With what the keys of functions begin that no operator of ours computes: ``Generic.tag``, whose module brings TVM with it.
GENERAL = "tir"


@dataclass(frozen=True)
class Choice:
    """The record that decides, and why it does, in words."""

    record: Record
    why: str


def choose(measured: Iterable[Record], target: Target, threads: int = 1) -> Choice | None:
    """The best of the records of one workload, for so many ``threads``; None where none of them has a time that counts.

    Those of another number of threads serve for general kernels alone, where there are none of this number, and there only if
    they beat that number's default. Those of another timing model serve where there is nothing else.
    """
    usable = [record for record in measured if record.ok and record.kind in KINDS and of_the_cpu(record, target)]
    own = [record for record in usable if record.threads == threads]
    usable = own or [record for record in usable if record.workload.split(maxsplit=1)[0] == GENERAL]
    usable = [record for record in usable if not record.superseded] or usable
    rigs = _rigs(usable)
    if not rigs:
        return None
    searched = [rig for rig in rigs if rig.tuned]
    rig = min(searched or rigs, key=lambda rig: rig.rank(target))
    winner = min(rig.fit, key=lambda record: (record.cost, record.default, sorted(record.knobs.items(), key=str)))
    if winner.default and winner.threads != threads:
        return None
    return Choice(winner, _why(rig, rigs, winner, threads))


def of_the_cpu(record: Record, target: Target) -> bool:
    """Whether the CPU that measured is the target's; models are made for it."""
    if record.kind != "board":
        return True
    name = record.cpu or record.measured_by.rpartition(", ")[2]
    return name.lower() == cpu_of(target).lower()


def cpu_of(target: Target) -> str:
    """The name of a target's CPU as boards give it: "Cortex-A53"."""
    return "-".join(part.capitalize() for part in str(target.llvm["mcpu"]).split("-"))


@dataclass(frozen=True)
class _Rig:
    """Records that compare with each other."""

    kind: str
    name: str
    records: Sequence[Record]

    @property
    def fit(self) -> Sequence[Record]:
        """Those whose clock held still and whose board was not throttled; all, where there are no such."""
        return [record for record in self.records if record.fit] or self.records

    @property
    def tuned(self) -> int:
        """How many points beside the default it has measured."""
        return len({str(sorted(record.knobs.items())) for record in self.records if not record.default})

    def rank(self, target: Target) -> tuple[int, bool, int, int, str]:
        """Smaller goes first: real boards, the target's own clock, the wider search."""
        other_clock = self.kind == "simulated" and self.records[0].clock_mhz != target.mhz
        return KINDS.index(self.kind), other_clock, -self.tuned, -len(self.records), self.name


def _rigs(records: Sequence[Record]) -> list[_Rig]:
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        # Times without a clock compare only with each other.
        real = "real boards" if record.cycles else f"{record.measured_by} without a clock"
        name = f"{real if record.kind == 'board' else record.measured_by}, {record.threads} threads"
        found.setdefault((record.kind, name), []).append(record)
    return [_Rig(kind, name, members) for (kind, name), members in found.items()]


def _why(rig: _Rig, rigs: Sequence[_Rig], winner: Record, threads: int) -> str:
    count = len(rig.records)
    text = f"fastest of {count} measured" if count > 1 else "the only one measured"
    text += f" by {'real boards, in cycles' if rig.kind == 'board' and winner.cycles else winner.measured_by}"
    passed = [other for other in rigs if other is not rig]
    if any(other.kind == "board" for other in passed) and rig.kind != "board":
        text += "; real boards have measured the default alone"
    if len(rig.fit) < count:
        text += f"; {count - len(rig.fit)} throttled or of an unsteady clock do not count"
    elif not winner.fit:
        text += "; throttled or of an unsteady clock, and there is no better"
    if winner.threads != threads:
        text += f"; on {winner.threads} thread{'s' * (winner.threads > 1)}, for want of records of {threads}"
    if winner.superseded:
        text += "; of an older timing model, for want of newer ones"
    return text

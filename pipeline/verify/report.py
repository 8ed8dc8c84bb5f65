"""What verification found, as values and as JSON: a row for each step, the verdict and its reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bitkiln.pipeline import schema
from bitkiln.pipeline.verify.compare import TOLERANCE
from bitkiln.pipeline.verify.constants import Damage
from bitkiln.pipeline.verify.explain import Cause, Spot
from bitkiln.pipeline.verify.outputs import Decision
from bitkiln.pipeline.verify.rivals import EXPECTED, IMPORTED, REFERENCE
from bitkiln.pipeline.verify.zeros import ExactZeros

#: Layers of the model's file that a line of the report names; the JSON has all.
NAMED = 4

#: How the text calls those that the outputs are compared with.
_CALLED = {REFERENCE: "the reference", IMPORTED: "the model as imported", EXPECTED: "the expected outputs"}


def called(against: str) -> str:
    """What the outputs were compared with, in the text's words."""
    return _CALLED.get(against, against)


@dataclass(frozen=True)
class StepReport:
    """One step on the inputs it had. ``layers`` of the model's file went into it.

    ``differing`` of its ``elements`` (bits, or floats) differ, floats by more than the tolerance; ``undecided`` of them are
    bits that rounding excuses. ``error`` is the largest difference of floats relative to the largest magnitude. ``drift`` is
    the share of bits, or the relative error of floats, by which it differs from the reference run from the network's inputs:
    what differences in earlier steps made of it. ``compiled_as`` is its workload where the model asks for another.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    exact: bool
    passed: bool
    bits: bool
    elements: int
    differing: int = 0
    undecided: int = 0
    error: float = 0.0
    drift: float = 0.0
    cause: Cause = Cause.EQUAL
    reason: str = ""
    worst: Spot | None = None
    compiled_as: str = ""
    model_asks: str = ""

    @property
    def count(self) -> str:
        """How much differs, in words."""
        what = "bits" if self.bits else "values"
        share = f"{100 * self.differing / max(1, self.elements):.2g} %"
        beyond = "differ" if self.bits or self.exact else f"differ by more than {TOLERANCE:g} of the largest"
        text = f"{self.differing:,} of {self.elements:,} {what} {beyond} ({share})"
        far = self.differing - self.undecided
        if self.bits and self.undecided and far:
            text += f", {far:,} of them beyond what rounding may turn"
        return text if self.bits or not self.error else f"{text}, the worst by {self.error:.1e}"

    @property
    def difference(self) -> str:
        """How much differs, in a cell of a table."""
        if not self.differing:
            return f"{self.error:.1e}" if self.error else "none"
        if not self.bits:
            return f"{self.differing:,} of {self.elements:,} ({self.error:.1e})"
        excused = f" ({self.undecided:,} by rounding)" if self.undecided else ""
        return f"{self.differing:,} of {self.elements:,} bits{excused}"


@dataclass(frozen=True)
class Report:
    """What was compared. ``mismatch`` says why nothing was: the bundle is of another model. ``damage`` are constants that
    are not as compiled. ``advice`` is what to do.
    """

    model: str
    rows: tuple[StepReport, ...] = ()
    decisions: tuple[Decision, ...] = ()
    zeros: tuple[ExactZeros, ...] = ()
    inputs: str = ""
    measured_by: str = ""
    labels: tuple[str, ...] = field(default=(), repr=False)
    mismatch: str = ""
    same_file: bool = True
    notes: tuple[str, ...] = ()
    disagreements: tuple[str, ...] = ()
    damage: tuple[Damage, ...] = ()
    advice: str = ""

    @property
    def wrong(self) -> tuple[StepReport, ...]:
        """The steps that do not compute what the model says, whatever came before them."""
        return tuple(row for row in self.rows if not row.passed)

    @property
    def passed(self) -> bool:
        """Did everything agree?"""
        found = self.mismatch or self.wrong or self.disagreements or self.damage
        return not found and all(each.passed for each in self.decisions)

    @property
    def flips(self) -> int:
        """Bits that rounding turned, each on the inputs its step had."""
        return sum(row.undecided for row in self.rows)

    @property
    def verdict(self) -> str:
        """One line: does the bundle agree with the model, and where not first?"""
        if self.passed:
            return "agrees: the bundle computes what the model says" + self._but()
        if self.damage:
            return "disagrees: weights or constants in the bundle's library are not the model's"
        if self.mismatch:
            return f"disagrees: this is no bundle of {self.model}"
        if self.wrong and not self.same_file:
            return f"disagrees: the bundle has other weights than {self.model}, first in {self.wrong[0].name}"
        if self.wrong:
            return f"disagrees: the bundle computes something else than the model, first in {self.wrong[0].name}"
        failed = next((each for each in self.decisions if not each.passed), None)
        if failed is not None:
            return f"disagrees: output {failed.output} is not that of {called(failed.against)}"
        return "disagrees: the bundle prepares images or names classes otherwise"

    def reasons(self) -> list[str]:
        """What is behind the verdict, most important first."""
        lines = [self.mismatch] if self.mismatch else []
        lines += map(str, self.damage)
        lines += self.disagreements
        if self.wrong:
            lines += _first_wrong(self.wrong[0])
            lines += _others_wrong(self.rows, self.wrong)
        elif self.damage:
            lines.append("no step shows it on this input")
        elif not self.passed and self.rows and not self.disagreements:
            lines.append(f"each of the {len(self.rows)} steps is right about the inputs it had; see the outputs below")
        lines += [self._rounding()] if self.flips else []
        lines += [self._zeros()] if self.zeros else []
        lines += [f"note: {text}" for text in self.notes]
        return [*lines, *([self.advice] if self.advice else [])]

    def _but(self) -> str:
        changed = [each for each in self.decisions if each.changed]
        return f", though the first choice is not that of {called(changed[0].against)}" if changed else ""

    def _rounding(self) -> str:
        first = next(row for row in self.rows if row.undecided)
        text = f"{self.flips:,} bits fell otherwise by rounding next to a sign, first in {first.name}"
        return f"{text}; that began what differs at the outputs" if any(each.why for each in self.decisions) else text

    def _zeros(self) -> str:
        count, first = sum(each.count for each in self.zeros), self.zeros[0]
        where = f"{first.layer} ({first.count:,} of {first.elements:,})"
        where += f" and {len(self.zeros) - 1} more layers" if len(self.zeros) > 1 else ""
        return f"{count:,} exact zeros stand before the signs of {where}: Sign gives 0 there, in bits they count as +1"

    def as_json(self) -> schema.Verify:
        """The report as plain values; numbers that JSON has not, infinite ones and NaN, are null."""
        return {
            "schema": "bitkiln.verify/1",
            "model": self.model,
            "passed": self.passed,
            "verdict": self.verdict,
            "reasons": self.reasons(),
            "mismatch": self.mismatch,
            "same_file": self.same_file,
            "inputs": self.inputs,
            "measured_by": self.measured_by,
            "flips": self.flips,
            "advice": self.advice,
            "first_wrong": self.wrong[0].name if self.wrong else None,
            "cause": "damage" if self.damage else self.wrong[0].cause if self.wrong else None,
            "damage": schema.plain(self.damage),
            "notes": list(self.notes),
            "disagreements": list(self.disagreements),
            "exact_zeros": schema.plain(self.zeros),
            "steps": schema.plain(self.rows),
            "decisions": [schema.plain(each) | {"changed": each.changed} for each in self.decisions],
        }


def _first_wrong(row: StepReport) -> list[str]:
    lines = [f"{row.name} ({row.kind}) is made of {layer_names(row.layers)}"] if row.layers else []
    if row.compiled_as:
        lines.append(f"it was compiled as {row.compiled_as!r}, the model asks for {row.model_asks!r}")
    lines += [f"{row.count}: {row.reason}", f"worst at {row.worst}" if row.worst else ""]
    return [text for text in lines if text]


def _others_wrong(rows: Sequence[StepReport], wrong: Sequence[StepReport]) -> list[str]:
    lines = []
    if len(wrong) > 1:
        names = ", ".join(row.name for row in wrong[1 : 1 + NAMED])
        more = (
            "1 more step is wrong by itself"
            if len(wrong) == 2
            else f"{len(wrong) - 1} more steps are wrong by themselves"
        )
        lines.append(f"{more}: {names}{' ...' if len(wrong) > 5 else ''}")
    after = rows[rows.index(wrong[0]) + 1 :]
    led = sum(row.passed and row.drift > TOLERANCE for row in after)
    if led:
        steps = "1 later step differs" if led == 1 else f"{led} later steps differ"
        lines.append(f"{steps} only because of what came before; what was given there is computed right")
    return lines


def layer_names(layers: Sequence[str]) -> str:
    """The layers that a step was made of, those in the middle left out where they are many."""
    if len(layers) <= NAMED:
        return ", ".join(layers)
    return f"{', '.join(layers[: NAMED - 1])} ... {layers[-1]} ({len(layers)} layers)"

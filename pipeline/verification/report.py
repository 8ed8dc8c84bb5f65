"""What verification found, as values, as JSON and as text: the verdict first, then the reason, then the steps that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from rich.console import Console
from rich.table import Table

from bitkiln.pipeline.verification.compare import TOLERANCE
from bitkiln.pipeline.verification.constants import Damage
from bitkiln.pipeline.verification.explain import Cause, Spot
from bitkiln.pipeline.verification.outputs import Decision
from bitkiln.pipeline.verification.rivals import EXPECTED, IMPORTED, REFERENCE
from bitkiln.pipeline.verification.zeros import ExactZeros

#: Layers of the model's file that a line of the report names; the JSON has all.
NAMED = 4

#: How the text calls those that the outputs are compared with.
_CALLED = {REFERENCE: "the reference", IMPORTED: "the model as imported", EXPECTED: "the expected outputs"}


def called(against: str) -> str:
    """What the outputs were compared with, in the text's words."""
    return _CALLED.get(against, against)


@dataclass(frozen=True)
class Row:
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
    rows: tuple[Row, ...] = ()
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
    def wrong(self) -> tuple[Row, ...]:
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

    def as_json(self) -> dict[str, Any]:
        """The report as plain values; numbers that JSON has not, infinite ones and NaN, are null."""
        own = ("model", "passed", "verdict", "mismatch", "same_file", "inputs", "measured_by", "flips", "advice")
        values = {
            **{name: getattr(self, name) for name in own},
            "reasons": self.reasons(),
            "first_wrong": self.wrong[0].name if self.wrong else None,
            "cause": "damage" if self.damage else self.wrong[0].cause if self.wrong else None,
            "damage": [asdict(each) for each in self.damage],
            "notes": list(self.notes),
            "disagreements": list(self.disagreements),
            "exact_zeros": [asdict(each) for each in self.zeros],
            "steps": [asdict(row) for row in self.rows],
            "decisions": [asdict(each) | {"changed": each.changed} for each in self.decisions],
        }
        return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def print_report(report: Report, console: Console, every: bool = False) -> None:
    """Print the verdict, the reasons, the outputs and the steps that differ (``every``: all)."""

    def line(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    line(report.verdict)
    for reason in report.reasons():
        line(f"  {reason}")
    for text in _outputs(report):
        line(f"  {text}")
    if report.rows:
        line(f"  {_summary(report)}")
    rows = [row for row in report.rows if every or not row.passed or row.differing]
    if rows:
        console.print(_table(rows))


def _summary(report: Report) -> str:
    exact = sum(row.exact for row in report.rows)
    floats = [row.error for row in report.rows if not row.bits and row.passed and not row.exact]
    worst = f" (largest difference {max(floats):.1e})" if floats else ""
    steps = (
        f"{len(report.rows)} steps, each on the inputs it had: {exact} compared exactly, {len(report.rows) - exact} to "
    )
    return f"{steps}{TOLERANCE:g}{worst}; input: {report.inputs}; {report.measured_by.partition(':')[0]}"


def _first_wrong(row: Row) -> list[str]:
    lines = [f"{row.name} ({row.kind}) is made of {_names(row.layers)}"] if row.layers else []
    if row.compiled_as:
        lines.append(f"it was compiled as {row.compiled_as!r}, the model asks for {row.model_asks!r}")
    lines += [f"{row.count}: {row.reason}", f"worst at {row.worst}" if row.worst else ""]
    return [text for text in lines if text]


def _others_wrong(rows: Sequence[Row], wrong: Sequence[Row]) -> list[str]:
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


def _names(layers: Sequence[str]) -> str:
    if len(layers) <= NAMED:
        return ", ".join(layers)
    return f"{', '.join(layers[: NAMED - 1])} ... {layers[-1]} ({len(layers)} layers)"


def _outputs(report: Report) -> list[str]:
    """A line for each output on which all agree, and one for each decision that takes some explaining."""
    several = len({each.sample for each in report.decisions}) > 1
    if report.wrong:
        return [_consequence(each, report.labels, several) for each in report.decisions if each.against == REFERENCE]
    plain: dict[str, list[Decision]] = {}
    for each in report.decisions:
        if each.passed and not each.why and not each.changed:
            plain.setdefault(each.output, []).append(each)
    lines = [_agreement(output, found, report.labels) for output, found in plain.items()]
    others = [each for each in report.decisions if not (each.passed and not each.why and not each.changed)]
    return lines + [_decision(each, report.labels, several) for each in others]


def _agreement(output: str, found: Sequence[Decision], labels: Sequence[str]) -> str:
    names = list(dict.fromkeys(called(each.against) for each in found))
    others = " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])
    samples = len({each.sample for each in found})
    text = f"{output}: as {others} {'have' if names[1:] else 'has'} it" + (
        f" for {samples} inputs" if samples > 1 else ""
    )
    if found[0].top and samples == 1:
        text += f", first choice {_class(found[0].top[0], labels)} (ahead by {found[0].margin:.2g})"
    return f"{text}; largest difference {max(each.error for each in found):.1e}"


def _decision(decision: Decision, labels: Sequence[str], named: bool) -> str:
    text = f"{decision.output} against {called(decision.against)}" + (f" for {decision.sample}: " if named else ": ")
    if decision.top:
        order = "as there" if not decision.changed else f"there {_class(decision.expected_top[0], labels)}"
        text += f"first choice {_class(decision.top[0], labels)}, {order} (ahead by {decision.margin:.2g}); "
    text += f"largest difference {decision.error:.1e}"
    if decision.passed:
        return f"{text} ({decision.why}): ok" if decision.why else f"{text}: ok"
    return (
        f"{text}, allowed {decision.allowed:.1e}"
        + (f" for {decision.why}" if decision.why else "")
        + f": WRONG{decision.hint}"
    )


def _consequence(decision: Decision, labels: Sequence[str], named: bool) -> str:
    """What wrong steps make of an output."""
    text = decision.output + (f" for {decision.sample}" if named else "")
    if decision.top:
        best = _class(decision.expected_top[0], labels)
        other = (
            f"becomes {_class(decision.top[0], labels)} instead of {best}" if decision.changed else f"is still {best}"
        )
        text += f": the first choice {other} (ahead by {decision.margin:.2g} in the model)"
    return f"{text}; the output differs by {decision.error:.1e} of its largest value"


def _class(index: int, labels: Sequence[str]) -> str:
    label = labels[index] if index < len(labels) else ""
    return f"{index} ({label})" if label and str(index) not in label else label or str(index)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("step", "kind", "layers", "difference", "from the start", ""):
        table.add_column(column)
    for row in rows:
        drift = (
            f"{100 * row.drift:.2g} % of bits" if row.bits and row.drift else f"{row.drift:.1e}" if row.drift else ""
        )
        state = "WRONG" if not row.passed else "rounding" if row.undecided else "ok"
        table.add_row(row.name, row.kind, _names(row.layers), row.difference, drift or "none", state)
    return table

"""The report on a terminal: the verdict first, then the reasons, the outputs, and the steps that differ."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bitkiln.pipeline.verify.compare import TOLERANCE
from bitkiln.pipeline.verify.outputs import Decision
from bitkiln.pipeline.verify.report import Report, StepReport, called, layer_names
from bitkiln.pipeline.verify.rivals import REFERENCE


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


def _table(rows: Sequence[StepReport]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("step", "kind", "layers", "difference", "from the start", ""):
        table.add_column(column)
    for row in rows:
        drift = (
            f"{100 * row.drift:.2g} % of bits" if row.bits and row.drift else f"{row.drift:.1e}" if row.drift else ""
        )
        state = "WRONG" if not row.passed else "rounding" if row.undecided else "ok"
        table.add_row(row.name, row.kind, layer_names(row.layers), row.difference, drift or "none", state)
    return table

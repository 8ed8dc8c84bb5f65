"""``scripts/fuzz``: make cases, run them, print what became of them, keep the defects."""

from __future__ import annotations

import collections
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import click

from fuzzing.bytes_mutation import damage
from fuzzing.case import Case, Format, Outcome, judge
from fuzzing.forkserver import Limits, import_everything, run
from fuzzing.formats import FORMATS, damage_of

#: Exit statuses with which commands answer, by command: some say no with 1.
_PASSING = {"verify": (0, 1), "logs": (0, 1)}


@dataclass
class Tally:
    """What became of the cases of one format."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest: float = 0.0
    largest: float = 0.0

    def add(self, verdict: str, outcome: Outcome) -> None:
        """Count one outcome."""
        self.counts[verdict] += 1
        self.slowest = max(self.slowest, outcome.seconds)
        self.largest = max(self.largest, outcome.peak_mib)

    def describe(self) -> str:
        """One line."""
        counts = ", ".join(f"{self.counts[name]} {name}" for name in ("accepted", "compiled", "refused", "DEFECT"))
        return f"{counts}; the slowest took {self.slowest:.1f} s, the largest {self.largest:.0f} MiB"


@dataclass(frozen=True)
class Session:
    """The settings of a run. Every ``compile_every``-th model that is accepted is compiled as well; 0: none."""

    keep: Path
    limits: Limits
    compile_every: int
    show: bool

    def run(self, label: str, case: Case, tally: Tally) -> bool:
        """Run one case; False where it shows a defect, which is kept in the folder of that label."""
        with tempfile.TemporaryDirectory(prefix="bitkiln-fuzz-") as scratch:
            folder = Path(scratch)
            case.write(folder)
            for arguments in self._commands(case):
                outcome = run(arguments, folder, self.limits)
                verdict: str
                verdict, reason = judge(outcome, case.model, self.limits.memory_mib, _PASSING.get(arguments[0], (0,)))
                if verdict == "accepted" and arguments[0] == "compile":
                    verdict = "compiled"
                tally.add(verdict, outcome)
                if self.show:
                    click.echo(f"{label} {arguments[0]} {outcome.seconds:.1f} s {verdict}: {reason or case.how}")
                if verdict == "DEFECT":
                    self._keep(label, case, arguments, outcome, reason)
                    return False
                if not case.commands and (verdict == "refused" or not self._compiles(tally)):
                    return True
        return True

    def _commands(self, case: Case) -> Iterator[Sequence[str]]:
        yield from case.commands or (["inspect", case.model], ["compile", case.model, "-o", "bundle"])

    def _compiles(self, tally: Tally) -> bool:
        return self.compile_every > 0 and tally.counts["accepted"] % self.compile_every == 0

    def _keep(self, label: str, case: Case, arguments: Sequence[str], outcome: Outcome, reason: str) -> None:
        folder = self.keep / label.replace(" ", "-")
        case.write(folder)
        note = {"how": case.how, "arguments": list(arguments), "reason": reason, "status": outcome.status}
        (folder / "defect.json").write_text(json.dumps(note, indent=1))
        (folder / "stderr.txt").write_text(outcome.stderr)
        click.echo(f"DEFECT {label} [{case.how[:100]}] {reason}\n  bitkiln {' '.join(arguments)}  in {folder}")


def _given(path: Path) -> Format:
    """A format that damages one file of the user's."""
    content, damaging = path.read_bytes(), damage_of(path)

    def make(random: Random, index: int) -> Case:
        damaged, how = damaging(random, content) if index % 2 else damage(random, content)
        return Case({path.name: damaged}, how)

    return Format(path.name, make)


def _formats(context: click.Context, parameter: click.Parameter, value: str) -> list[Format]:
    chosen = value.split(",") if value else list(FORMATS)
    unknown = [name for name in chosen if name not in FORMATS]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)} is not among: {', '.join(FORMATS)}")
    return [Format(name, FORMATS[name]) for name in chosen]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--cases", type=click.IntRange(min=1), default=200, show_default=True, help="For each format or file.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed makes the same cases.")
@click.option("--formats", metavar="NAME,...", default="", callback=_formats, help="Only these formats.")
@click.option("--first", type=click.IntRange(min=0), default=0, help="The number of the first case, to repeat one.")
@click.option(
    "--keep", type=click.Path(path_type=Path), default=Path("build/fuzz"), show_default=True, help="For defects."
)
@click.option("--seconds", type=float, default=60, show_default=True, help="For each command.")
@click.option("--memory", type=int, default=2048, show_default=True, help="MiB for each command.")
@click.option("--compile-every", type=int, default=20, show_default=True, help="Compile one in so many; 0: none.")
@click.option("--show", is_flag=True, help="Print every case.")
def main(
    files: tuple[Path, ...],
    cases: int,
    seed: int,
    formats: list[Format],
    first: int,
    keep: Path,
    seconds: float,
    memory: int,
    compile_every: int,
    show: bool,
) -> None:
    """Damage model files in many ways; each must be imported or refused in one line, soon and in little memory.

    Without FILES small models of every format are made and damaged; with them, the FILES.
    """
    import_everything()
    session = Session(keep, Limits(seconds, memory), compile_every, show)
    sound = True
    for kind in [_given(path) for path in files] or formats:
        tally, start = Tally(), time.monotonic()
        for index in range(first, first + cases):
            case = kind.make(Random(f"{seed}/{kind.name}/{index}"), index)
            sound &= session.run(f"{kind.name} {seed} {index}", case, tally)
        click.echo(f"{kind.name}: {cases} cases in {time.monotonic() - start:.0f} s: {tally.describe()}")
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()

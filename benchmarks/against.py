"""``scripts/validate_sim --against FILE``: the timing model against what ``bitkiln boards measure`` found on a board."""

from __future__ import annotations

import hashlib
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.assumptions import ASSUMPTIONS, Assumption
from bitkiln import targets
from bitkiln.pipeline import api
from bitkiln.pipeline.boards.board import LocalBoard, Request
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.evidence import read_part
from bitkiln.pipeline.evidence.file import Evidence, Network, read_evidence
from bitkiln.targets import Target
from bitkiln.targets.needs import Missing
from bitkiln.targets.sim import MODEL_VERSION, evidence

#: A sequence agrees when it is nearer than this, in cycles; a loop's ends are not sharp.
NEAR_CYCLES = 0.6
#: Rows whose figures an assumption changes by less, as a share or in cycles, say nothing of it.
LEAST_CHANGE, LEAST_CYCLES = 0.05, 0.4
#: A board settles an assumption when it is so many times nearer to one side than to the other.
CLEARLY = 2.0

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    board: str
    model: str
    difference: str


@dataclass(frozen=True)
class Verdict:
    """What a board says of an assumption; ``rows`` are those that tell the sides apart."""

    assumption: Assumption
    says: str
    rows: tuple[str, ...]


def figures(found: Evidence) -> dict[str, float]:
    """The steady figures of a file in cycles, by names that say what they are."""
    values = {f"{row.name}, loop": row.loop for row in found.facts if row.steady}
    values |= {row.name: row.shot for row in found.facts if row.shot is not None}
    return values | {row.name: row.cycles for row in (*found.memory, *found.probes) if row.steady}


class Model:
    """The timing model at a board's clock."""

    def __init__(self, found: Evidence, program: Path) -> None:
        self.found, self.program = found, program
        self.target = targets.load(found.target)
        self.clock = (f"mhz={round(found.mhz)}",) if found.mhz else ()

    def figures(self, options: Sequence[str] = ()) -> dict[str, float]:
        """The same figures as the board's, with ``options`` of the model. Raises Missing, BitkilnError."""
        values: dict[str, float] = {}
        for part in evidence.PARTS:
            text = evidence.on_model(self.program, part, self.target, (*self.clock, *options))
            _, _, rows = read_part(part, text, "the timing model")
            for row in rows:
                if part == "facts":
                    values |= {f"{row.name}, loop": row.loop, row.name: row.shot}
                else:
                    values[row.name] = row.cycles
        return values


def sequence_rows(found: Evidence, board: Figures, model: Figures) -> Iterator[Row]:
    """One line for all sequences that agree, and one for each other."""
    names = [name for row in found.facts for name in (row.name, f"{row.name}, loop") if name in board and name in model]
    off = [name for name in names if abs(board[name] - model[name]) > NEAR_CYCLES]
    yield Row("sequences of instructions", f"{len(names)} figures", f"{len(names) - len(off)} the same", "")
    for name in off:
        difference = f"{model[name] - board[name]:+.1f} cycles"
        yield Row(f"  {name}", f"{board[name]:.1f}", f"{model[name]:.1f}", difference)


def memory_rows(found: Evidence, board: Figures, model: Figures) -> Iterator[Row]:
    """Memory and probes, in cycles of a unit of their work."""
    for name in (row.name for row in (*found.memory, *found.probes)):
        if name not in board:
            yield Row(name, "unsteady", f"{model[name]:.1f}" if name in model else "", "")
        elif name in model:
            share = model[name] / board[name] - 1 if board[name] else 0.0
            yield Row(name, f"{board[name]:.1f} cycles", f"{model[name]:.1f} cycles", f"{share:+.1%}")


def network_rows(found: Evidence, target: Target) -> Iterator[Row]:
    """Networks that can be compiled here, at the board's clock."""
    libraries: dict[str, Path | None] = {}
    with tempfile.TemporaryDirectory(prefix="bitkiln-against-") as folder:
        for network in found.networks:
            if network.name not in libraries:
                libraries[network.name] = _library(network.name, target, Path(folder) / str(len(libraries)))
            yield _network_row(network, libraries[network.name], target)


def _library(name: str, target: Target, folder: Path) -> Path | None:
    if name not in api.BUILTIN:
        return None
    return api.compile(name, folder, target).folder / "model.so"


def _network_row(network: Network, library: Path | None, target: Target) -> Row:
    threads = "1 thread" if network.threads == 1 else f"{network.threads} threads"
    what = f"{network.name}, {threads}" + ("" if network.steady else ", unsteady clock")
    board = f"{network.ms:.2f} ms"
    if library is None:
        return Row(what, board, "its file is not here", "")
    if hashlib.sha256(library.read_bytes()).hexdigest() != network.library:
        what += " (compiled to other code here)"
    options = (f"mhz={round(network.clock_mhz)}",) if network.clock_mhz else ()
    request = Request(threads=network.threads, per_step=True, limit_seconds=900)
    ms = 1e3 * LocalBoard(target, options=options).measure(library, request).seconds
    return Row(what, board, f"{ms:.2f} ms", f"{ms / network.ms - 1:+.1%}" if network.ms else "")


def verdict(assumption: Assumption, board: Figures, model: Figures, other: Figures) -> Verdict:
    """Which side the board is on: the ``model`` as it is, or ``other``, which has what the assumption says."""
    common = [name for name in board if name in model and name in other]
    told = [name for name in common if _differ(other[name], model[name])]
    if not told:
        return Verdict(assumption, "not measured", ())
    as_is, as_said = (sum(abs(_log(board[name]) - _log(side[name])) for name in told) for side in (model, other))
    says = "undecided"
    if as_is * CLEARLY < as_said:
        says = "no: as the model has it"
    elif as_said * CLEARLY < as_is:
        says = "yes: the model should change"
    return Verdict(assumption, says, tuple(told))


def _differ(one: float, other: float) -> bool:
    return abs(one - other) > LEAST_CYCLES and abs(_log(one) - _log(other)) > LEAST_CHANGE


def _log(cycles: float) -> float:
    # Sequences may take no cycle at all.
    return math.log1p(max(cycles, 0.0))


def main(path: Path, markdown: bool) -> int:
    """Print the comparison; the exit status is 0, or 2 where it cannot be made."""
    try:
        found = read_evidence(path)
        with tempfile.TemporaryDirectory(prefix="bitkiln-against-") as folder:
            program = Path(folder) / "evidence"
            evidence.build(program, targets.load("rasp3b"))
            model, board = Model(found, program), figures(found)
            plain = model.figures()
            _print_head(found, markdown)
            for row in (*sequence_rows(found, board, plain), *memory_rows(found, board, plain)):
                _print([row.what, row.board, row.model, row.difference], markdown)
            for row in network_rows(found, model.target):
                _print([row.what, row.board, row.model, row.difference], markdown)
            print()
            _print(["if on silicon", "the board says", "rows that tell", ""], markdown)
            if markdown:
                _print(["---"] * 4, markdown)
            for assumption in ASSUMPTIONS[1:]:
                says = verdict(assumption, board, plain, model.figures(assumption.options))
                _print([assumption.text, says.says, str(len(says.rows)), "; ".join(says.rows[:2])], markdown)
    except (BitkilnError, Missing, targets.UnknownTarget) as problem:
        print(f"validate_sim: {problem}", file=sys.stderr)
        return 2
    return 0


def _print_head(found: Evidence, markdown: bool) -> None:
    board = found.board
    clock = f"{found.mhz:g} MHz" if found.mhz else "clock unknown"
    print(f"{board.model}, {board.cpu} {board.revision}, {clock}, timed by its {found.timing}, {found.day}")
    print(f"against the simulated Cortex-A53, model {MODEL_VERSION}\n")
    _print(["", "board", "model", "difference"], markdown)
    if markdown:
        _print(["---"] * 4, markdown)


def _print(cells: Sequence[str], markdown: bool) -> None:
    widths = (62, 24, 18, 10)
    text = f"| {' | '.join(cells)} |" if markdown else " ".join(map(str.ljust, cells, widths)).rstrip()
    print(text, flush=True)

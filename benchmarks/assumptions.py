"""How far our networks' times move under each assumption of the timing model that nothing published settles.

scripts/assumptions [--model FILE]... [--threads 1,4] [--markdown FILE]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bitkiln import targets
from bitkiln.pipeline.boards.board import LocalBoard, Request
from bitkiln.pipeline.compile import compile_model
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.records import Records
from bitkiln.pipeline.support.files import atomic_write
from bitkiln.targets import Target

#: Lines of a document between which the table belongs.
BEGIN, END = "<!-- assumptions -->", "<!-- /assumptions -->"
#: Seconds for one measurement.
LIMIT = 900.0


@dataclass(frozen=True)
class Assumption:
    """What may be so on silicon, and the model's options that make it so."""

    text: str
    options: tuple[str, ...] = ()


ASSUMPTIONS = (
    Assumption("as the model has it"),
    Assumption("8 instructions issue past a load that misses, then all wait", ("past_miss=8",)),
    Assumption("L1 and L2 replace at random", ("l1_random=1", "l2_random=1")),
    Assumption("both, and the TLBs, and 8 instructions", ("past_miss=8", "l1_random=1", "l2_random=1", "tlb_random=1")),
    Assumption("prefetch instructions do not train the prefetcher", ("prefetch_hints=2",)),
    Assumption("prefetch instructions do nothing", ("prefetch_hints=0",)),
    Assumption("L2 takes 28 cycles, not 16", ("l2_latency=28",)),
    Assumption("memory takes 200 ns, not 160", ("dram_latency_ns=200",)),
    Assumption("a load of what was just stored comes 2 cycles later", ("store_forward=2",)),
    Assumption("`ins` from a general register takes both halves", ("rule=INS_GPR.halves:2",)),
    Assumption("all cores together get 2700 MB/s, not 2200", ("dram_total_mb_s=2700",)),
    Assumption("L2 serves other cores every 10 cycles, not 5", ("l2_port=10",)),
)


def measure(library: Path, target: Target, assumption: Assumption, threads: int) -> float:
    """Milliseconds of a warm frame. Raises BoardError."""
    board = LocalBoard(target, options=assumption.options)
    return 1e3 * board.measure(library, Request(threads=threads, limit_seconds=LIMIT)).seconds


def rows(libraries: Sequence[Path], target: Target, threads: Sequence[int]) -> Iterator[list[str]]:
    """For each assumption its text and the times of each library on so many threads."""
    for assumption in ASSUMPTIONS:
        times = [measure(library, target, assumption, count) for library in libraries for count in threads]
        line = [assumption.text, *(f"{time:.1f}" for time in times)]
        print(": ".join([line[0], " ".join(line[1:])]), file=sys.stderr, flush=True)
        yield line


def markdown(names: Sequence[str], threads: Sequence[int], lines: Sequence[Sequence[str]]) -> str:
    """The table."""
    heads = [f"{name}, {'1 thread' if count == 1 else f'{count} threads'}" for name in names for count in threads]
    table = [["ms, if on silicon", *heads], ["---", *["---:"] * len(heads)], *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in table)


def into(document: str, section: str) -> str:
    """``document`` with ``section`` between its marks. Raises BitkilnError where it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BitkilnError(f"the document has no lines {BEGIN} and {END}")
    return f"{before}{begin}\n{section}{end}{after}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--target", "target_name", default="rasp3b", show_default=True, help="The board that is simulated.")
@click.option("--model", multiple=True, default=("card-binary", "card-float"), show_default=True, help="May repeat.")
@click.option("--threads", default="1,4", show_default=True, help="Numbers of threads, with commas between.")
@click.option("--markdown", "document", type=click.Path(dir_okay=False, path_type=Path), help="Put the table there.")
def main(target_name: str, model: Sequence[str], threads: str, document: Path | None) -> None:
    """Show how far networks' simulated times move under each assumption that nothing published settles.

    Example: scripts/assumptions --model card-float --threads 4
    """
    try:
        target = targets.load(target_name)
        counts = [int(word) for word in threads.split(",")]
        with tempfile.TemporaryDirectory(prefix="bitkiln-assumptions-") as folder:
            loaded = [load_model(source) for source in model]
            bundles = [
                compile_model(each, target, Records.open(None), Path(folder) / str(index), threads=counts)
                for index, each in enumerate(loaded)
            ]
            lines = list(rows([bundle / "model.so" for bundle in bundles], target, counts))
        text = markdown([each.name for each in loaded], counts, lines)
        if document:
            with atomic_write(document) as temporary:
                temporary.write_text(into(document.read_text(encoding="utf-8"), text), encoding="utf-8")
    except (BitkilnError, targets.UnknownTarget, ValueError, OSError) as error:
        print(f"assumptions: {error}", file=sys.stderr)
        raise SystemExit(2)
    print(text, end="")


if __name__ == "__main__":
    main()

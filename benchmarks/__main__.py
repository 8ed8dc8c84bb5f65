"""``scripts/bench``: measure works with engines, print the table, write it as JSON and Markdown."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import click
from rich.console import Console

from benchmarks import networks, peers, picture, report
from benchmarks.bounds import bound_ms
from benchmarks.measurements import Bench, Figure
from benchmarks.networks import Work
from benchmarks.report import Row
from benchmarks.reuse import Known
from bitkiln import targets
from bitkiln.pipeline.boards.remote import SshBoard
from bitkiln.pipeline.boards.ssh import Remote
from bitkiln.pipeline.cli.options import ThreadCounts
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.support.files import atomic_write
from bitkiln.pipeline.support.threads import counts_for

ENGINES = (*report.OWN, *peers.PEERS)


def _engines(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    """Split a list of engines at commas."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    unknown = [name for name in names if name not in ENGINES]
    if unknown or not names:
        raise click.BadParameter(f"{', '.join(unknown) or 'nothing'} is not among: {', '.join(ENGINES)}")
    return names


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--target", "target_name", default="rasp3b", show_default=True, help="The board that is simulated.")
@click.option(
    "--only", metavar="WORK,...", help="Only these works, or those whose name starts so, e.g. 'card-,float conv'."
)
@click.option(
    "--engines",
    metavar="NAME,...",
    callback=_engines,
    help=f"Of {', '.join(ENGINES)}; default: all that the board has.",
)
@click.option("--no-peers", is_flag=True, help="Only bitkiln.")
@click.option(
    "--model", type=click.Path(path_type=Path), multiple=True, help="An ONNX network to measure as well (.xz allowed)."
)
@click.option(
    "--threads",
    type=ThreadCounts(),
    metavar="N[,N]",
    default="1",
    show_default=True,
    help="Threads of each engine; a table each.",
)
@click.option(
    "--reuse",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Rows that --json wrote: other engines' figures of the same model, wheel and work are taken from there.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=min(os.cpu_count() or 1, 4),
    show_default=True,
    help="Other engines measured at a time; simulated cycles do not depend on it.",
)
@click.option(
    "--board", metavar="USER@HOST", help="Measure bitkiln on this board, over ssh; the other engines run on none."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the rows here.")
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(path_type=Path),
    help="Write the table here; in a file with a part of the name of --section, as that part.",
)
@click.option(
    "--summary",
    "summary_file",
    type=click.Path(path_type=Path),
    help="Write a table of the whole networks here, for all numbers of threads; likewise.",
)
@click.option(
    "--section",
    default=report.SECTION,
    show_default=True,
    help="The part of those documents: from a line `<!-- NAME -->` to a line `<!-- /NAME -->`.",
)
@click.option("--svg", "svg_file", type=click.Path(path_type=Path), help="Write a picture of the whole networks here.")
def main(
    target_name: str,
    only: str | None,
    engines: list[str] | None,
    no_peers: bool,
    model: tuple[Path, ...],
    threads: tuple[int, ...],
    reuse: Path | None,
    jobs: int,
    board: str | None,
    json_file: Path | None,
    markdown_file: Path | None,
    summary_file: Path | None,
    section: str,
    svg_file: Path | None,
) -> None:
    """Measure networks and layers on a simulated Cortex-A53, with bitkiln and with other engines' PyPI wheels.

    With --board bitkiln alone is measured, on a real one; --target says what to compile for.

    Every figure is of the second run of a network, warm. An engine that cannot run a network gets a row that says why.

    Example: scripts/bench --only card-binary --engines bitkiln,ncnn --json rows.json
    """
    holding = ExitStack()
    try:
        target = targets.load(target_name)
        counts = counts_for(target, threads)
        known = Known(reuse)
        works = chosen([*networks.known(), *map(networks.from_file, model)], only)
        real = holding.enter_context(SshBoard(Remote(board))) if board else None
        benches = [Bench(target, count, real) for count in counts]
        bounds = [[bound_ms(work.onnx(False), target, count) for work in works] for count in counts]
    except (BitkilnError, targets.UnknownTarget) as error:
        print(f"bench: {error}", file=sys.stderr)
        raise SystemExit(2)
    wanted = engines or [*report.OWN, *peers.of(target.architecture)]
    what = f"{board}, kernels for {target.description}" if board else f"Simulated {target.description}"
    tables: list[tuple[str, list[Row]]] = []
    with holding:
        try:
            for bench, least in zip(benches, bounds, strict=True):
                cores = "1 thread" if bench.threads == 1 else f"{bench.threads} threads on {bench.threads} cores"
                rows: list[Row] = []
                tables.append((f"{what}: one frame, warm, {cores}", rows))
                wanted = [each for each in wanted if each in report.OWN] if no_peers or board else wanted
                rows.extend(run(zip(works, least, strict=True), wanted, bench, jobs, known))
        except KeyboardInterrupt:
            print("bench: interrupted: these are the rows until here", file=sys.stderr)
    console = Console()
    for title, rows in tables:
        # A file or a pipe has no width: what rich assumes of one would cut names.
        report.show(rows, title, console if console.is_terminal else Console(width=120))
    every = [row for _, rows in tables for row in rows]
    if json_file:
        _write(json_file, report.to_json(every))
    if markdown_file:
        _insert(markdown_file, section, "\n".join(report.to_markdown(rows, title) for title, rows in tables if rows))
    if summary_file:
        _insert(summary_file, section, f"{what}: one frame, warm\n\n{report.summary([rows for _, rows in tables])}")
    if svg_file:
        title, rows = tables[0]
        _write(svg_file, picture.to_svg(rows, title))
    raise SystemExit(0 if any(row.ms is not None for row in every) else 1)


def chosen(works: Sequence[Work], only: str | None) -> list[Work]:
    """The works whose names start with one of the words of ``only``; all without it."""
    if only is None:
        return list(works)
    words = tuple(word.strip() for word in only.split(",") if word.strip())
    found = [work for work in works if work.name.startswith(words)]
    if not found:
        raise BitkilnError(f"no work starts with {only!r}: there are {', '.join(work.name for work in works)}")
    return found


def run(
    works: Iterable[tuple[Work, float]], engines: Sequence[str], bench: Bench, jobs: int = 1, known: Known | None = None
) -> Iterator[Row]:
    """Measure every work, which comes with its bound, with every engine; a failure becomes a row without figures.

    Other engines are programs of their own, of which ``jobs`` run at a time, but for rows that are ``known``; ours compiles in
    this thread.
    """
    known = known or Known(None)
    pool = ThreadPoolExecutor(jobs)
    try:
        due = []
        for work, bound in works:
            for engine in engines:
                measured = known.row(work.name, engine, bound, bench.target, bench.threads)
                other = engine not in report.OWN and measured is None
                due.append(
                    (work, engine, bound, measured, pool.submit(row, work, engine, bound, bench) if other else None)
                )
        for work, engine, bound, measured, running in due:
            yield measured or (running.result() if running else row(work, engine, bound, bench))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def row(work: Work, engine: str, bound: float, bench: Bench) -> Row:
    """One measurement."""
    print(f"{work.name}: {engine} ...", file=sys.stderr, flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="bitkiln-bench-") as folder:
            figure = bench.measure(work, engine, Path(folder))
    except BitkilnError as error:
        figure = Figure(None, None, f"{report.FAILED}{error}")
    except Exception as error:  # Whatever else an engine or a converter trips over must not cost the other rows.
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        figure = Figure(None, None, f"{report.FAILED}{said}")
    name, threads = bench.target.name, bench.threads
    return Row(work.name, engine, figure.cycles, figure.ms, bound, name, figure.how, threads, figure.error)


def _insert(path: Path, section: str, text: str) -> None:
    """Make ``text`` the part ``section`` of the document at ``path``."""
    document = path.read_text(encoding="utf-8") if path.exists() else ""
    _write(path, report.into_document(document, text, section))


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(prog_name="scripts/bench")

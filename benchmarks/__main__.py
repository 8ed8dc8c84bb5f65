"""``scripts/bench``: measure works with engines, print the table, write it as JSON and Markdown."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich.console import Console

from benchmarks import networks, peers, report
from benchmarks.bounds import bound_ms
from benchmarks.measurements import Bench
from benchmarks.networks import Work
from benchmarks.report import Row
from bitkiln import targets
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.files import atomic_write

ENGINES = (report.OURS, *peers.PEERS)


def _names(
    known: Callable[[], Sequence[str]],
) -> Callable[[click.Context, click.Parameter, str | None], list[str] | None]:
    """A click callback that splits a list at commas and refuses names that are not known."""

    def split(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
        if value is None:
            return None
        names = [name.strip() for name in value.split(",") if name.strip()]
        unknown = [name for name in names if name not in known()]
        if unknown or not names:
            raise click.BadParameter(f"{', '.join(unknown) or 'nothing'} is not among: {', '.join(known())}")
        return names

    return split


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--target", "target_name", default="rasp3b", show_default=True, help="The board that is simulated.")
@click.option(
    "--only", metavar="WORK,...", help="Only these works, or those whose name starts so, e.g. 'card-,float conv'."
)
@click.option("--engines", metavar="NAME,...", callback=_names(lambda: ENGINES), help=f"Of {', '.join(ENGINES)}.")
@click.option("--no-peers", is_flag=True, help="Only bitkiln.")
@click.option(
    "--model", type=click.Path(path_type=Path), multiple=True, help="An ONNX network to measure as well (.xz allowed)."
)
@click.option("--threads", type=click.IntRange(1, 4), default=1, show_default=True, help="Threads of each engine.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the rows here.")
@click.option("--markdown", "markdown_file", type=click.Path(path_type=Path), help="Write the table here.")
def main(
    target_name: str,
    only: str | None,
    engines: list[str] | None,
    no_peers: bool,
    model: tuple[Path, ...],
    threads: int,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure networks and layers on a simulated Cortex-A53, with bitkiln and with other engines' PyPI wheels.

    Every figure is of the second run of a network, warm. An engine that cannot run a network gets a row that says why.

    Example: scripts/bench --only card-binary --engines bitkiln,ncnn --json rows.json
    """
    if no_peers and engines:
        raise click.UsageError("--no-peers and --engines exclude each other")
    try:
        target = targets.load(target_name)
        works = chosen([*networks.built_in(), *map(networks.from_file, model)], only)
        chosen_engines = [report.OURS] if no_peers else engines or list(ENGINES)
        rows = run(works, chosen_engines, Bench(target, threads))
    except (BitkilnError, targets.UnknownTarget) as error:
        print(f"bench: {error}", file=sys.stderr)
        raise SystemExit(2)
    title = f"Simulated {target.description}: one frame, warm, {threads} thread{'s' if threads > 1 else ''}"
    report.show(rows, title, Console())
    _write(json_file, report.to_json(rows))
    _write(markdown_file, report.to_markdown(rows, title))
    raise SystemExit(0 if any(row.cycles is not None for row in rows) else 1)


def chosen(works: Sequence[Work], only: str | None) -> list[Work]:
    """The works whose names start with one of the words of ``only``; all without it."""
    if only is None:
        return list(works)
    words = tuple(word.strip() for word in only.split(",") if word.strip())
    found = [work for work in works if work.name.startswith(words)]
    if not found:
        raise BitkilnError(f"no work starts with {only!r}: there are {', '.join(work.name for work in works)}")
    return found


def run(works: Sequence[Work], engines: Sequence[str], bench: Bench) -> list[Row]:
    """Measure every work with every engine; a failure becomes a row without figures."""
    rows = []
    for work in works:
        bound = bound_ms(work.onnx(False), bench.target)
        for engine in engines:
            print(f"{work.name}: {engine} ...", file=sys.stderr, flush=True)
            rows.append(row(work, engine, bound, bench))
    return rows


def row(work: Work, engine: str, bound: float, bench: Bench) -> Row:
    """One measurement."""
    cycles, ms = None, None
    try:
        with tempfile.TemporaryDirectory(prefix="bitkiln-bench-") as folder:
            cycles, how = bench.measure(work, engine, Path(folder))
        ms = cycles / (bench.target.mhz * 1e3)
    except BitkilnError as error:
        how = f"{report.FAILED}{error}"
    return Row(work.name, engine, cycles, ms, bound, bench.target.name, how)


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        with atomic_write(path) as aside:
            aside.write_text(text)


if __name__ == "__main__":
    main(prog_name="scripts/bench")

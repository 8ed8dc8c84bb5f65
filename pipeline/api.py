"""The public Python interface: what each command does, as a typed function. ``import bitkiln`` gives these names.

Stages are imported inside the functions: TVM takes a second to import, and ``import bitkiln`` should not. All errors that a
user can mend are ``BitkilnError``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitkiln import targets
from bitkiln.pipeline.errors import BitkilnError

if TYPE_CHECKING:
    from rich.console import Console

    from bitkiln.pipeline import schema
    from bitkiln.pipeline.boards.emulated import Answer, Tensors
    from bitkiln.pipeline.bundle import Bundle
    from bitkiln.pipeline.evidence.file import Evidence
    from bitkiln.pipeline.inspect.result import Inspection
    from bitkiln.pipeline.model import Model
    from bitkiln.pipeline.profile import Profile
    from bitkiln.pipeline.records import Records
    from bitkiln.pipeline.run.deploy import Deployed
    from bitkiln.pipeline.tune import TaskState
    from bitkiln.pipeline.verify.report import Report
    from bitkiln.pipeline.verify.samples import Sample

__all__ = [
    "DEFAULT_TARGET",
    "BitkilnError",
    "build",
    "card",
    "compare",
    "compile",
    "deploy",
    "evaluate",
    "gallery",
    "inspect",
    "load",
    "measure_board",
    "open_bundle",
    "profile",
    "records",
    "remove_board",
    "run",
    "set_up_board",
    "sign",
    "target",
    "trust_signers",
    "tune",
    "verify",
]

DEFAULT_TARGET = "rasp3b"
#: The networks that ``tune`` tunes when it is given none.
BUILTIN = ("card-binary", "card-float")

TargetLike = str | targets.Target


def target(name: TargetLike) -> targets.Target:
    """The target with that name. Raises BitkilnError, which lists those there are."""
    if isinstance(name, targets.Target):
        return name
    try:
        return targets.load(name)
    except targets.UnknownTarget as error:
        raise BitkilnError(str(error)) from None


def load(model: str | Path, **options: Any) -> Model:
    """Import a model file, or the built-in network of that name.

    ``options`` are the fields of ``ImportOptions``: shapes, labels, channel_order, mean, scale, resize, ... Raises ModelError.
    """
    from bitkiln.pipeline.importers import ImportOptions, load_model

    return load_model(model, ImportOptions(**options))


def records(logs: Path | None = None) -> Records:
    """The tuning records of the folder ``logs``, then the committed ones."""
    from bitkiln.pipeline.records import Records

    return Records.open(logs)


def inspect(model: str | Path | Model, targets: Sequence[TargetLike] = (DEFAULT_TARGET,)) -> Inspection:
    """What ``model`` consists of: layers, which of them are binary and why not, and the bound on each of ``targets``."""
    from bitkiln.pipeline.inspect import inspect_model

    return inspect_model(_loaded(model), [target(each) for each in targets])


def tune(
    *models: str | Path | Model,
    target: TargetLike = DEFAULT_TARGET,
    logs: Path = Path("tuning_logs"),
    trials: int = 400,
    minutes: float | None = None,
    tracker: str | None = None,
    key: str | None = None,
    boards: int | None = None,
    console: Console | None = None,
    threads: Sequence[int] | None = None,
) -> list[TaskState]:
    """Search the fastest kernels for ``models`` (the built-in networks unless given), appending records to ``logs``.

    They are searched for each number of ``threads``, which is the board's cores unless given.
    Boards are those with ``key`` at ``tracker`` ("HOST:PORT"); without a tracker, ``boards`` simulated ones. Ends after
    ``trials`` measurements or ``minutes``. Raises BoardError, SetupError, RecordError; finished trials are on disk by then.
    """
    from bitkiln.pipeline import tune as stage

    networks = [_loaded(model) for model in models or BUILTIN]
    budget = stage.Budget(trials=trials, minutes=minutes)
    return stage.tune(networks, _target(target), logs, budget, tracker, key, boards, console, threads)


def compile(
    model: str | Path | Model,
    output: Path,
    target: TargetLike = DEFAULT_TARGET,
    logs: Path | None = None,
    console: Console | None = None,
    threads: Sequence[int] | None = None,
    bf16: bool = False,
) -> Bundle:
    """Compile ``model`` into the bundle ``output`` with the best kernels known from ``logs`` and the committed records.

    ``threads``: the number that they are to be best for, the board's cores unless given; or 1 and another, for a bundle with
    a plan for one thread and one for several. ``bf16``: weights that caches do not hold are rounded to bfloat16.
    ``output`` is replaced only when everything has succeeded. Raises BitkilnError.
    """
    from bitkiln.pipeline.compile import compile_model

    return open_bundle(compile_model(_loaded(model), _target(target), records(logs), output, console, threads, bf16))


def build(
    model: str | Path | Model,
    folder: Path | None = None,
    target: TargetLike = DEFAULT_TARGET,
    trials: int | None = 400,
    minutes: float = 3.0,
    source: Path | None = None,
    console: Console | None = None,
) -> schema.Build:
    """Check, tune, compile, verify and profile ``model`` in ``folder`` (build/NAME-TARGET unless given).

    ``trials`` None leaves tuning out; ``source`` is the model's file, where ``model`` was loaded from one. What an
    interrupted build had done is taken over. Raises BitkilnError.
    """
    from rich.console import Console

    from bitkiln.pipeline.verdict import build as stage

    loaded, board = _loaded(model), _target(target)
    name = "".join(each if each.isalnum() or each in "-_." else "_" for each in loaded.name) or "model"
    wanted = stage.Wanted(board, trials, minutes)
    where = folder or Path("build") / f"{name}-{board.name}"
    return stage.build(loaded, source or _source(model), where, wanted, console or Console(quiet=True))


def compare(
    *items: str | Path | Model,
    target: TargetLike = DEFAULT_TARGET,
    measure: bool = True,
    load: Callable[[str], Model] = load,
) -> schema.Compare:
    """``items`` side by side, layer by layer: models, folders of bundles or builds, or files of profiles.

    Bundles are measured on the simulated board if ``measure``; ``target`` is for models, which have bounds alone.
    Raises BitkilnError.
    """
    from bitkiln.pipeline.verdict import compare as stage

    def item(what: str | Path | Model) -> stage.Item:
        if not isinstance(what, str | Path):
            return stage.of_model(what, _target(target), what.name)
        path = Path(what)
        if path.suffix == ".json":
            return stage.of_profile(path, str(what))
        if path.is_dir():
            return stage.of_bundle(path / "bundle" if (path / "bundle").is_dir() else path, measure, str(what))
        return stage.of_model(load(str(what)), _target(target), str(what))

    return stage.compare([item(each) for each in items])


def card(*folders: Path, download: str = "", notes: Sequence[str] = ()) -> schema.Card:
    """The card of a bundle, or of builds of one model for several boards. Raises BundleError, InputError."""
    from bitkiln.pipeline.verdict.card import make_card

    return make_card([Path(folder) for folder in folders], download, notes)


def gallery(folder: Path, output: Path | None = None, title: str = "Networks") -> schema.Gallery:
    """Write a page of all cards below ``folder`` to ``output`` (index.html in it unless given). Raises InputError."""
    from bitkiln.pipeline.support.files import atomic_write
    from bitkiln.pipeline.verdict import gallery as stage

    out = output or folder / "index.html"
    found = stage.entries(folder, out)
    with atomic_write(out) as temporary:
        temporary.write_text(stage.page(title, found), encoding="utf-8")
    return stage.as_json(out, found)


def evaluate(
    bundle: Path,
    images: Path,
    listing: Path | None = None,
    board: str = "sim",
    jobs: int | None = None,
    results: Path | None = None,
    limit: int | None = None,
    console: Console | None = None,
) -> schema.Evaluate:
    """Count the right answers of ``bundle`` on the photos in ``images``: a folder for each class, or those of ``listing``.

    ``board`` as in ``run``, where "sim" is emulated boards, whose values are a board's; ``jobs`` of them are asked at once.
    Answers are kept in the file ``results`` and not asked for again. Raises BundleError, InputError, BoardError.
    """
    from bitkiln.pipeline.verdict import evaluate as stage

    return stage.evaluate(bundle, images, listing, board, jobs, results, limit, console)


def open_bundle(folder: Path) -> Bundle:
    """The bundle in ``folder``, its manifest checked. Raises BundleError."""
    from bitkiln.pipeline.bundle import open_bundle

    return open_bundle(folder)


def run(
    bundle: Path,
    image: Path | None = None,
    tensor: Path | None = None,
    board: str = "sim",
    threads: int = 1,
    **options: Any,
) -> Answer:
    """Run the bundle on an ``image`` or a ``tensor`` file (.npy, .npz), on "sim", an ssh host or "HOST:PORT/KEY".

    Raises BundleError, InputError, BoardError.
    """
    from bitkiln.pipeline import run as stage

    return stage.run(bundle, image, tensor, board=board, threads=threads, **options)


def profile(
    bundle: Path, board: str = "sim", cold: bool = False, layer: str | None = None, threads: int = 1
) -> Profile:
    """Where the time of the bundle goes, layer by layer, on so many threads. Raises BundleError, InputError, BoardError."""
    from bitkiln.pipeline.profile import profile_bundle

    return profile_bundle(bundle, board, cold, layer, threads)


def verify(
    bundle: Path,
    model: str | Path | Model,
    samples: Sequence[Sample] = (),
    board: str = "sim",
    threads: int = 1,
    source: Path | None = None,
    stated: Sequence[str] = (),
) -> Report:
    """Hold every layer of the bundle, and its outputs, against ``model``, on identical inputs.

    ``samples`` default to random numbers of a plausible range; ``source`` is the model's file, where ``model`` was loaded from
    one, for engines that run it themselves; ``stated`` names the options of the import that the user gave.
    Raises BundleError, VerifyError, BoardError.
    """
    from bitkiln.pipeline.run import trace_on
    from bitkiln.pipeline.verify import verify_bundle

    def traced(made: Bundle, inputs: Tensors) -> Answer:
        return trace_on(board, made, inputs, threads)

    return verify_bundle(bundle, _loaded(model), samples, source or _source(model), traced, stated)


def deploy(bundle: Path, destination: str, port: int | None = None, console: Console | None = None) -> Deployed:
    """Copy the bundle to ``destination`` (USER@HOST[:DIR]) over ssh and check it there."""
    from bitkiln.pipeline.run.deploy import deploy

    return deploy(bundle, destination, port=port, console=console)


def set_up_board(
    board: str,
    tracker: str,
    key: str | None = None,
    tunnel: bool = False,
    port: int | None = None,
    console: Console | None = None,
) -> None:
    """Make the board USER@HOST measure for the tracker "HOST:PORT", over ssh at ``port``; with ``tunnel`` hold that open.

    The tracker and the board share this user's secret, which is made where there is none. Raises BoardError, SetupError.
    """
    from bitkiln.pipeline.boards import access, setup
    from bitkiln.pipeline.boards.ssh import Remote

    def say(text: str) -> None:
        if console:
            console.print(text, highlight=False, markup=False)

    def sample(name: str) -> Any:
        from bitkiln.pipeline.tune.sample import sample_kernel  # Brings the compiler with it.

        return sample_kernel(_target(name))

    address = access.Address.parse(tracker)
    setup.set_up(Remote(board, port), address, key, tunnel, sample, say)


def remove_board(board: str, port: int | None = None) -> None:
    """Stop what ``set_up_board`` started on USER@HOST and delete it there. Raises BoardError, SetupError."""
    from bitkiln.pipeline.boards import setup
    from bitkiln.pipeline.boards.ssh import Remote

    setup.take_off(Remote(board, port))


def sign(bundle: Path, key: Path | None = None) -> Path:
    """Sign the bundle with an ssh key, the user's own unless given; gives the signature's file.

    Raises BundleError, InputError, SetupError.
    """
    from bitkiln.pipeline.bundle import signing

    return signing.sign(bundle, key)


def trust_signers(board: str, keys: Sequence[Path], port: int | None = None, console: Console | None = None) -> None:
    """Have the board USER@HOST take only bundles that one of the public ``keys`` has signed. Raises BoardError, InputError."""
    from bitkiln.pipeline.boards import setup
    from bitkiln.pipeline.boards.ssh import Remote
    from bitkiln.pipeline.bundle.signing import allowed_signers

    setup.install_signers(Remote(board, port), allowed_signers(keys))
    if console:
        console.print(f"{board}: takes bundles signed by {', '.join(map(str, keys))}", highlight=False, markup=False)


def measure_board(
    board: str,
    output: Path,
    models: Sequence[str | Path | Model] = BUILTIN,
    target: TargetLike | None = None,
    port: int | None = None,
    console: Console | None = None,
) -> Evidence:
    """Measure what the board USER@HOST does, or "sim", and write it to the file ``output`` (docs/evidence.md).

    ``models`` are compiled with the committed records, for the ``target`` that fits the board unless given.
    Raises BoardError, SetupError.
    """
    from bitkiln.pipeline import evidence
    from bitkiln.pipeline.evidence.file import write_evidence

    def build(model: Model, board: targets.Target, folder: Path) -> Path:
        return compile(model, folder, board).folder / "model.so"

    def say(text: str) -> None:
        if console:
            console.print(text, highlight=False, markup=False)

    wanted = evidence.Wanted([_loaded(model) for model in models], build)
    found = evidence.measure(board, wanted, None if target is None else _target(target), port, say)
    write_evidence(output, found)
    return found


_target = target


def _loaded(model: str | Path | Model) -> Model:
    return load(model) if isinstance(model, str | Path) else model


def _source(model: str | Path | Model) -> Path | None:
    return Path(model) if isinstance(model, str | Path) else None

"""What commands print with ``--json``: one type for each, in one vocabulary. docs/json.md explains them to users.

A *layer* is an operation of the model's file, a *step* a kernel call of a bundle. ``ms`` are milliseconds of one frame,
``bound_ms`` the least that peak rates and memory bandwidth allow, ``share`` goes from 0 to 1, ``*_bytes`` are bytes, and
``measured_by`` names the clock behind every time. ``schema`` names the command and counts up when a field changes its meaning
or goes away; new fields may appear at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import isfinite
from typing import Any, Literal, NotRequired, TypedDict


class Tensor(TypedDict):
    """An input or output; ``layout`` is "NHWC", "NCHW" or "".

    Where integers stand for reals, ``quantization`` is scale and zero point of a model's tensor; a bundle's has them apart.
    """

    name: str
    dtype: str
    shape: list[int]
    layout: str
    quantization: NotRequired[list[float] | None]
    scale: NotRequired[float]
    zero_point: NotRequired[int]


class Remark(TypedDict):
    """A warning or note, with the layers it is about."""

    layers: list[str]
    text: str


class Layer(TypedDict):
    """A row of ``bitkiln inspect``: see ``inspect.result.Row``. ``binary`` is null for what is no convolution."""

    schema: Literal["bitkiln.layer/1"]
    name: str
    kind: str
    shape: list[int]
    macs: int
    binary: bool | None
    reason: str
    suspicious: bool
    input_shape: list[int]
    bits: int
    input_bits: int
    inputs: list[str]
    kernel: list[int]
    strides: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    weight_bytes: int
    packed_bytes: int
    constant_bytes: int
    sign_zero: int | None
    pad_value: int | None
    result: str
    absorbed: bool
    warnings: list[str]
    notes: list[str]
    bound_ms: float | None
    share: float | None


class Totals(TypedDict):
    """Sums over a network."""

    convolutions: int
    binary: int
    binary_macs: int
    float_macs: int
    weight_bytes: int
    packed_bytes: int
    constant_bytes: int
    activation_bytes: int | None


class Bound(TypedDict):
    """The least time of a frame on one core of ``target``."""

    target: str
    description: str
    bound_ms: float
    binary_ms: float
    float_ms: float


class Inspect(TypedDict):
    """``bitkiln inspect --summary --json``."""

    schema: Literal["bitkiln.inspect/1"]
    model: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    totals: Totals
    bounds: list[Bound]
    problems: list[str]
    warnings: list[Remark]
    notes: list[Remark]


class Task(TypedDict):
    """A workload that was tuned for a number of threads: ``occurrences`` steps have it."""

    workload: str
    threads: int
    occurrences: int
    default_ms: float | None
    best_ms: float | None
    gain: float | None
    trials: int
    failures: int
    knobs: dict[str, int | str]


class Tune(TypedDict):
    """``bitkiln tune --json``. ``default_ms``, ``best_ms`` and ``gain`` are of the largest of ``threads``."""

    schema: Literal["bitkiln.tune/1"]
    models: list[str]
    target: str
    logs: str
    threads: list[int]
    default_ms: float
    best_ms: float
    gain: float | None
    measured_by: str
    tasks: list[Task]


class CompiledStep(TypedDict):
    """A step of a new bundle, known by its ``layer`` ("" for a part of the next step).

    ``chosen`` is "tuned", "default", "generic", or "copy" for what only moves data.
    """

    name: str
    kind: str
    macs: int
    binary: bool
    weight_bytes: int
    layer: str
    layers: list[str]
    chosen: str


class Compile(TypedDict):
    """``bitkiln compile --json``.

    ``memory_bytes``: what the network took when it was run for its golden answer; ``None`` where no emulator could run it.
    """

    schema: Literal["bitkiln.compile/1"]
    bundle: str
    model: str
    sha256: str
    target: str
    threads: list[int]
    inputs: list[Tensor]
    outputs: list[Tensor]
    preprocessing: dict[str, Any] | None
    labels: int
    file_bytes: int
    activation_bytes: int
    memory_bytes: int | None
    steps: list[CompiledStep]
    warnings: list[str]


class Class(TypedDict):
    """A class and its score."""

    label: str
    score: float


class TimedStep(TypedDict):
    """A step and its time."""

    name: str
    kind: str
    layer: str
    ms: float


class Box(TypedDict):
    """Something that was found; its sides are in pixels of the image, ``number`` is the class's."""

    label: str
    score: float
    left: float
    top: float
    right: float
    bottom: float
    number: int


class Share(TypedDict):
    """A class of a mask and its share of the pixels that the network has seen."""

    label: str
    share: float


class Run(TypedDict):
    """``bitkiln run --json``."""

    schema: Literal["bitkiln.run/1"]
    bundle: str
    top: list[Class]
    boxes: NotRequired[list[Box]]
    classes: NotRequired[list[Share]]
    ms: float
    threads: int
    measured_by: str
    steps: list[TimedStep]


class RunnerStep(TypedDict):
    """A step of a run on a board."""

    name: str
    kind: str
    ms: float


class Stages(TypedDict):
    """The first answer's time: Python's start, the library's digest, its opening, packing of weights, input, run."""

    python: float
    digest: float
    open: float
    weights: float
    input: float
    run: float


class Bench(TypedDict):
    """What ``runner.py --bench`` measured of repeated runs."""

    runs: int
    min_ms: float
    median_ms: float
    max_ms: float
    load_ms: float
    first_answer_ms: float
    stages_ms: Stages
    storage_read_mib: float | None
    peak_mib: float
    network_mib: float
    library_mib: float
    threads: int
    chosen_for_threads: list[int]


class Runner(TypedDict):
    """``runner.py --json`` on a board; what the outputs say is there where an image or tensors were given."""

    schema: Literal["bitkiln.runner/1"]
    ms: float
    threads: int
    memory_bytes: int
    steps: list[RunnerStep]
    top: NotRequired[list[Class]]
    boxes: NotRequired[list[Box]]
    classes: NotRequired[list[Share]]
    bench: NotRequired[Bench]


class ProfiledStep(TypedDict):
    """A step of a profile; ``causes`` and ``mix`` are cycles by cause and instructions by class where the board can tell.

    ``busy_cycles``: of each simulated core, those in which it did not wait for another; empty for one thread.
    ``dram_share``: of DRAM's bandwidth, where the board can tell.
    """

    name: str
    kind: str
    layer: str
    layers: list[str]
    macs: int
    binary: bool
    weight_bytes: int
    cycles: float
    ms: float
    share: float
    mac_per_cycle: float
    bound_ms: float | None
    roof_share: float | None
    causes: dict[str, float]
    mix: dict[str, int]
    blocks: list[dict[str, Any]]
    busy_cycles: list[float]
    dram_share: float | None


class Profile(TypedDict):
    """``bitkiln profile --json``; ``complete`` is false where the simulator met instructions it has no rule for."""

    schema: Literal["bitkiln.profile/1"]
    bundle: str
    model: str
    target: str
    measured_by: str
    clock_mhz: float
    cycles: float
    ms: float
    bound_ms: float
    threads: int
    complete: bool
    steps: list[ProfiledStep]


class VerifiedStep(TypedDict):
    """A step held against the reference: see ``verify.report.Row``."""

    name: str
    kind: str
    layers: list[str]
    exact: bool
    passed: bool
    bits: bool
    elements: int
    differing: int
    undecided: int
    error: float | None
    drift: float | None
    cause: str
    reason: str
    worst: dict[str, Any] | None
    compiled_as: str
    model_asks: str


class Verify(TypedDict):
    """``bitkiln verify --json``."""

    schema: Literal["bitkiln.verify/1"]
    model: str
    passed: bool
    verdict: str
    reasons: list[str]
    mismatch: str
    same_file: bool
    inputs: str
    measured_by: str
    flips: int
    advice: str
    first_wrong: str | None
    cause: str | None
    damage: list[dict[str, Any]]
    notes: list[str]
    disagreements: list[str]
    exact_zeros: list[dict[str, Any]]
    steps: list[VerifiedStep]
    decisions: list[dict[str, Any]]


class Deploy(TypedDict):
    """``bitkiln deploy --json``: what the check on the board said, line by line."""

    schema: Literal["bitkiln.deploy/1"]
    bundle: str
    host: str
    folder: str
    checks: list[str]


class TrackedBoard(TypedDict):
    """A board of a tracker. ``state`` is "free", "busy", "set aside" or "gone".

    ``board`` and ``health`` are what it says now; the rest is what this user's runs have learned of it: the clock that was
    measured, cycles of the common kernel, why it is or was set aside, the last failure and when, in seconds since 1970.
    """

    address: str
    state: str
    board: str
    health: dict[str, Any]
    clock_mhz: float | None
    sample_cycles: float | None
    aside: str
    failure: str
    failed_at: float | None


class TrackedBoards(TypedDict):
    """The boards of one key at a tracker."""

    key: str
    count: int
    free: int
    waiting: int
    addresses: list[str]
    members: list[TrackedBoard]


class BoardsList(TypedDict):
    """``bitkiln boards list --json``."""

    schema: Literal["bitkiln.boards-list/1"]
    tracker: str
    boards: list[TrackedBoards]


class Kind(TypedDict):
    """A kind of board that bitkiln compiles for, and what else it may be called."""

    target: str
    aliases: list[str]
    description: str
    cpu: str
    cores: int
    mhz: int
    bits: int
    simulated: bool


class BoardsKinds(TypedDict):
    """``bitkiln boards kinds --json``."""

    schema: Literal["bitkiln.boards-kinds/1"]
    kinds: list[Kind]


class Sign(TypedDict):
    """``bitkiln sign --json``."""

    schema: Literal["bitkiln.sign/1"]
    bundle: str
    signature: str


class Fetch(TypedDict):
    """``bitkiln fetch --json``: what was done, a line each."""

    schema: Literal["bitkiln.fetch/1"]
    done: list[str]


class Check(TypedDict):
    """One thing that this machine needs; ``serves`` names the commands that need it."""

    name: str
    ok: bool
    explanation: str
    serves: str


class Doctor(TypedDict):
    """``bitkiln doctor --json``."""

    schema: Literal["bitkiln.doctor/1"]
    ok: bool
    checks: list[Check]


class BadLine(TypedDict):
    """A line of a log that is no record."""

    line: int
    reason: str


class CheckedLog(TypedDict):
    """A log: of its ``records``, ``current`` ones are of this version, ``superseded`` by another timing model, ``failed``
    of trials that failed."""

    path: str
    records: int
    current: int
    superseded: int
    failed: int
    bad_lines: list[BadLine]


class LogsCheck(TypedDict):
    """``bitkiln logs check --json``."""

    schema: Literal["bitkiln.logs-check/1"]
    ok: bool
    logs: list[CheckedLog]


class LogsMerge(TypedDict):
    """``bitkiln logs merge --json``."""

    schema: Literal["bitkiln.logs-merge/1"]
    output: str
    logs: int
    records: int
    duplicates: int


class TuningRecord(TypedDict):
    """A record as logs hold it: empty fields are left out."""

    workload: str
    target: str
    knobs: dict[str, int | str]
    status: str
    value: float | None
    unit: NotRequired[str]
    clock_mhz: NotRequired[float]
    kind: NotRequired[str]
    measured_by: NotRequired[str]
    cpu: NotRequired[str]
    threads: NotRequired[int]
    default: NotRequired[bool]
    unsteady: NotRequired[bool]
    message: NotRequired[str]
    health: NotRequired[dict[str, Any]]
    time: NotRequired[str]
    tvm: NotRequired[str]
    schedule: NotRequired[int]


class LogsBest(TypedDict):
    """``bitkiln logs best --json``; ``why`` has a sentence for each record."""

    schema: Literal["bitkiln.logs-best/1"]
    target: str
    records: list[TuningRecord]
    why: list[str]


class Stage(TypedDict):
    """A stage of a build; ``kept`` if it was taken over from an earlier one."""

    name: str
    kept: bool
    seconds: float


class Dear(TypedDict):
    """One of the steps that take most of the time, and why it does."""

    name: str
    layers: list[str]
    kind: str
    ms: float
    share: float
    bound_ms: float | None
    why: str


class Speed(TypedDict):
    """A time of a frame and what measured it."""

    target: str
    threads: int
    ms: float
    measured_by: str


class Gain(TypedDict):
    """Of so many kernels together: their time by default and by the best that are known, and the quotient."""

    kernels: int
    default_ms: float
    best_ms: float
    gain: float


class Build(TypedDict):
    """``bitkiln build --json``. ``ms`` and what follows from it are null where nothing could measure the time."""

    schema: Literal["bitkiln.build/1"]
    model: str
    sha256: str
    target: str
    folder: str
    bundle: str
    stages: list[Stage]
    passed: bool
    verdict: str
    reasons: list[str]
    totals: Totals
    ms: float | None
    bound_ms: float
    roof_share: float | None
    speeds: list[Speed]
    kernels: dict[str, int]
    tuning: Tune | None
    by_records: Gain | None
    dearest: list[Dear]
    preprocessing: dict[str, Any] | None
    labels: int
    file_bytes: int
    pages: list[str]
    warnings: list[str]
    next: list[str]


class Rate(TypedDict):
    """How many answers were right, as a share, and the bounds of its confidence interval."""

    value: float
    right: int
    low: float
    high: float


class Span(TypedDict):
    """A share, and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


class ClassPrecision(TypedDict):
    """Average precision of one class: at an overlap of 0.5, and the mean of 0.5 to 0.95; ``objects`` are to be found."""

    label: str
    objects: int
    ap50: float
    ap: float


class Failure(TypedDict):
    """A photo that could not be looked at."""

    image: str
    reason: str


class Evaluate(TypedDict):
    """``bitkiln evaluate --json``: ``count`` photos were looked at; ``results`` is the file of all answers.

    ``top1`` and ``top5`` are null of detectors (``task`` "detect"), ``objects``, ``map50`` and ``map`` of classifiers.
    """

    schema: Literal["bitkiln.evaluate/1"]
    bundle: str
    model: str
    network_sha256: str
    images: str
    task: str
    count: int
    classes: int
    confidence: float
    top1: Rate | None
    top5: Rate | None
    objects: int | None
    map50: Span | None
    map: Span | None
    by_class: list[ClassPrecision]
    failed: list[Failure]
    measured_by: str
    results: str


class Compared(TypedDict):
    """One of the things that are compared; ``kind`` is "model", "bundle" or "profile"."""

    name: str
    kind: str
    target: str
    ms: float | None
    measured_by: str | None
    bound_ms: float
    macs: int
    binary_macs: int
    weight_bytes: int
    file_bytes: int | None


class Cell(TypedDict):
    """A layer of one of them; ``ms`` is null where nothing was measured, ``bound_ms`` where it has no MACs."""

    name: str
    kind: str
    binary: bool
    macs: int
    weight_bytes: int
    bound_ms: float | None
    ms: float | None


class Compare(TypedDict):
    """``bitkiln compare --json``: ``layers`` has rows with a cell for each of ``items``, null where one lacks the layer."""

    schema: Literal["bitkiln.compare/1"]
    items: list[Compared]
    layers: list[list[Cell | None]]


class Reference(TypedDict):
    """A figure that others published, and where; ``here`` is what stands for it here, empty where nothing does."""

    what: str
    value: str
    source: str
    here: str


class ArchitectureRow(TypedDict):
    """A layer on a card; shapes are empty where only the bundle is known."""

    name: str
    operation: str
    input_shape: list[int]
    shape: list[int]
    padding: list[int]
    binary: bool | None
    macs: int


class Card(TypedDict):
    """``bitkiln card --json``."""

    schema: Literal["bitkiln.card/1"]
    model: str
    sha256: str
    task: str
    download: str
    accuracy: Evaluate | None
    speeds: list[Speed]
    published: list[Reference]
    file_bytes: int
    weight_bytes: int
    activation_bytes: int
    macs: int
    binary_macs: int
    inputs: list[Tensor]
    preprocessing: dict[str, Any] | None
    architecture: list[ArchitectureRow]
    labels: list[str]
    notes: list[str]


class GalleryEntry(TypedDict):
    """A card on one board with one number of cores; ``best``: none is both faster and more often right."""

    name: str
    link: str
    target: str
    threads: int | None
    ms: float | None
    measured_by: str
    top1: float | None
    top5: float | None
    map: float | None
    file_bytes: int
    bits: float
    best: bool


class Gallery(TypedDict):
    """``bitkiln gallery --json``."""

    schema: Literal["bitkiln.gallery/1"]
    page: str
    entries: list[GalleryEntry]


def plain(value: Any) -> Any:
    """``value`` as JSON has it: tuples as lists, dataclasses as objects, numbers that JSON has not (NaN, infinite) as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value

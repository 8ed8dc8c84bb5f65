"""One command from a model to a verdict: import, check, tune, compile, verify, profile, and what came of it.

A build's folder holds ``bundle/``, tuning records in ``logs/``, pages, ``build.json`` and, in ``stages/``, what each stage
found: run again after an interruption it goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bitkiln.pipeline import bundle as bundles
from bitkiln.pipeline import profile, schema
from bitkiln.pipeline.boards.emulated import Answer
from bitkiln.pipeline.compile import compile_model
from bitkiln.pipeline.compile.manifest import on_most_threads
from bitkiln.pipeline.errors import BundleError, ModelError
from bitkiln.pipeline.inspect import inspect_model
from bitkiln.pipeline.inspect import page as inspect_page
from bitkiln.pipeline.inspect.result import Inspection
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.profile import page as profile_page
from bitkiln.pipeline.records import Records, log_files
from bitkiln.pipeline.run import timed, trace_on
from bitkiln.pipeline.support import interrupts
from bitkiln.pipeline.support.files import atomic_write
from bitkiln.pipeline.tune import Budget, tune
from bitkiln.pipeline.tune.result import as_json as tuned_as_json
from bitkiln.pipeline.verdict.stages import Stages, digest
from bitkiln.pipeline.verify import verify_bundle
from bitkiln.schedules.workload import QConv2d
from bitkiln.targets import Target
from bitkiln.targets.sim import unlike

#: How many of the dearest steps a verdict names.
DEAREST = 3
#: Threads beside one whose time is measured where a board can.
THREADS = 4


@dataclass(frozen=True)
class Wanted:
    """What a build is to do: ``minutes`` and ``trials`` bound tuning, None of ``trials`` leaves it out."""

    target: Target
    trials: int | None = 400
    minutes: float = 3.0
    boards: int | None = None


def build(model: Model, source: Path | None, folder: Path, wanted: Wanted, console: Console) -> schema.Build:
    """Build ``model``, loaded from the file ``source``, in ``folder``. Raises BitkilnError; what was done is kept."""
    _refuse_foreign(folder)
    return _Build(model, source, folder, wanted, console).run()


def _refuse_foreign(folder: Path) -> None:
    """Raise BundleError where ``folder`` holds what no build made."""
    ours = (folder / "stages").is_dir() or (folder.is_dir() and not any(folder.iterdir()))
    if folder.exists() and not ours:
        raise BundleError(f"{folder}: exists and no build made it; name another folder with -o or remove it")


class _Build:
    def __init__(self, model: Model, source: Path | None, folder: Path, wanted: Wanted, console: Console) -> None:
        self.model, self.source, self.folder, self.wanted, self.console = model, source, folder, wanted, console
        self.target = wanted.target
        self.identity = digest(
            model.source_digest, model.inputs, model.preprocessing, model.labels, model.head, self.target.name
        )
        self.logs, self.made = folder / "logs", folder / "bundle"
        (folder / "stages").mkdir(parents=True, exist_ok=True)
        self.stages = Stages(folder, console, total=5)

    def run(self) -> schema.Build:
        found = self._check()
        tuning = self._tune()
        compiled = self._compile()
        sealed = digest(hashlib.sha256((self.made / bundles.MANIFEST).read_bytes()).hexdigest())
        measured = self._measure_ahead(sealed)
        verified = self.stages.run("verify", sealed, self._verify, lambda report: report["verdict"])
        profiled = self.stages.run("profile", sealed, lambda: self._profile(measured), _say_profile)
        result = self._result(found, tuning, compiled, verified, profiled)
        with atomic_write(self.folder / "build.json") as temporary:
            temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
        return result

    def _check(self) -> Inspection:
        """Look at the network; what cannot be compiled ends the build here, before minutes of tuning."""
        found = inspect_model(self.model, [self.target])
        _write(self.folder / "inspect.html", inspect_page.render(found))
        _write(self.folder / "layers.json", json.dumps(found.layers(), indent=1))
        if found.problems:
            raise ModelError(f"{self.model.name} cannot be compiled: {found.problems[0]}")
        totals = found.totals
        line = (
            f"{len(found.rows)} layers, {totals.binary} of {totals.convolutions} convolutions and dense layers binary"
        )
        self.stages.run("check", self.identity, lambda: line, str)
        return found

    def _tune(self) -> schema.Tune | None:
        if self.wanted.trials is None or unlike(self.target) is not None:
            why = "left out" if self.wanted.trials is None else f"records of {self.target.records[0]} serve this board"
            self.stages.skip("tune", why)
            return None
        key = digest(self.identity, self.wanted.trials, self.wanted.minutes)
        result: schema.Tune = self.stages.run("tune", key, self._search, _say_tuning)
        return result

    def _search(self) -> schema.Tune:
        """Tune for what is left of the time: an interrupted run's counts."""
        spent = self.folder / "stages" / "tuned-seconds"
        before = float(spent.read_text()) if spent.is_file() else 0.0
        began = time.monotonic()
        minutes = max(self.wanted.minutes - before / 60, 0.05)
        try:
            budget = Budget(trials=self.wanted.trials or 1, minutes=minutes)
            states = tune([self.model], self.target, self.logs, budget, boards=self.wanted.boards, console=self.console)
        finally:
            spent.write_text(f"{before + time.monotonic() - began:.1f}")
        spent.unlink()
        return tuned_as_json(states, [self.model.name], self.target, self.logs)

    def _compile(self) -> schema.Compile:
        from bitkiln.pipeline.compile.manifest import as_json

        self.logs.mkdir(exist_ok=True)
        records = [hashlib.sha256(path.read_bytes()).hexdigest() for path in log_files([self.logs])]
        key = digest(self.identity, records, self._sealed())

        def work() -> Any:
            threads = sorted({1, self.target.cores})
            compile_model(self.model, self.target, Records.open(self.logs), self.made, threads=threads)
            return as_json(bundles.open_bundle(self.made))

        result: schema.Compile = self.stages.run("compile", key, work, _say_compiled)
        if self._sealed() is None or key != digest(self.identity, records, self._sealed()):
            # The key holds the digest of what was made, which is known only now.
            self.stages.keep("compile", digest(self.identity, records, self._sealed()), result)
        return result

    def _sealed(self) -> str | None:
        """The digest of the bundle's manifest; None where there is no sound bundle."""
        try:
            opened = bundles.open_bundle(self.made)
        except BundleError:
            return None
        return hashlib.sha256((opened.folder / bundles.MANIFEST).read_bytes()).hexdigest()

    def _verify(self) -> schema.Verify:
        def traced(made: bundles.Bundle, inputs: Any) -> Answer:
            return trace_on("sim", made, inputs, 1)

        return verify_bundle(self.made, self.model, source=self.source, tracer=traced).as_json()

    def _measure_ahead(self, key: str) -> dict[int, Future[profile.Profile]]:
        """Profiles by their threads, which are measured from now on, beside what else is done; none that are kept."""
        threads = [count for count in (1, THREADS) if timed(self.target, count)]
        if not threads or self.stages.knows("profile", key):
            return {}
        pool = ThreadPoolExecutor(len(threads))
        begun = {count: pool.submit(profile.profile_bundle, self.made, threads=count) for count in threads}
        pool.shutdown(wait=False)
        return begun

    def _profile(self, measured: Mapping[int, Future[profile.Profile]]) -> dict[str, Any]:
        """One thread step by step, and the whole frame on more threads, where the board can time them."""
        with interrupts.waiting():
            found = {threads: future.result() for threads, future in measured.items()}
        for threads, each in found.items():
            others = {f"On {count} cores" if count > 1 else "On one core": f"{_profile_name(count)}.html"
                      for count in found if count != threads}  # fmt: skip
            _write(self.folder / f"{_profile_name(threads)}.html", profile_page.render(each, self.target, others))
            _write(self.folder / f"{_profile_name(threads)}.json", json.dumps(each.as_json(), indent=1))
        return {
            "profile": found[1].as_json() if 1 in found else None,
            "speeds": [_speed(self.target, threads, each.ms, each.measured_by) for threads, each in found.items()],
        }

    def _by_records(self) -> schema.Gain | None:
        """What tuning records gain over the defaults that the same clock has measured; None where they tell nothing."""
        known = Records.open(self.logs)
        pairs = []
        for step in bundles.open_bundle(self.made).manifest["steps"]:
            if step["chosen"] != "tuned":
                continue
            record = step["record"]
            of_it = [each for target in self.target.records for each in known.of(record["workload"], target) if each.ok]
            rivals = [each for each in of_it if each.measured_by == record["measured_by"]]
            default = min((each.seconds for each in rivals if each.default), default=None)
            best = min((each.seconds for each in rivals if dict(each.knobs) == record["knobs"]), default=None)
            if default and best:
                pairs.append((1e3 * default, 1e3 * best))
        if not pairs:
            return None
        default_ms, best_ms = (sum(times) for times in zip(*pairs, strict=True))
        return schema.Gain(kernels=len(pairs), default_ms=default_ms, best_ms=best_ms, gain=default_ms / best_ms)

    def _result(
        self,
        found: Inspection,
        tuning: schema.Tune | None,
        compiled: schema.Compile,
        verified: schema.Verify,
        profiled: dict[str, Any],
    ) -> schema.Build:
        measured: schema.Profile | None = profiled["profile"]
        image = "photo.jpg" if compiled["preprocessing"] else None
        given = f"--image {image}" if image else "--input x.npy"
        pages = [self.folder / f"{name}.html" for name in ("inspect", _profile_name(1), _profile_name(THREADS))]
        return {
            "schema": "bitkiln.build/1",
            "model": self.model.name,
            "sha256": self.model.source_digest,
            "target": self.target.name,
            "folder": str(self.folder),
            "bundle": str(self.made),
            "stages": self.stages.done,
            "passed": verified["passed"],
            "verdict": verified["verdict"],
            "reasons": verified["reasons"],
            "totals": found.as_json()["totals"],
            "ms": measured["ms"] if measured else None,
            "bound_ms": found.bounds[0].ms,
            "roof_share": found.bounds[0].ms / measured["ms"] if measured and measured["ms"] else None,
            "speeds": profiled["speeds"],
            "kernels": dict(Counter(on_most_threads(step)["chosen"] for step in compiled["steps"])),
            "tuning": tuning,
            "by_records": self._by_records(),
            "dearest": _dearest(measured, compiled) if measured else [],
            "preprocessing": compiled["preprocessing"],
            "labels": compiled["labels"],
            "file_bytes": compiled["file_bytes"],
            "pages": [str(page) for page in pages if page.is_file()],
            "warnings": compiled["warnings"],
            "next": [
                f"bitkiln run {self.made} {given}",
                f"bitkiln deploy {self.made} pi@raspberrypi",
            ],
        }


def _profile_name(threads: int) -> str:
    """What the profile on so many threads is called in the build's folder."""
    return "profile" if threads == 1 else f"profile-{threads}"


def _speed(target: Target, threads: int, ms: float, measured_by: str) -> schema.Speed:
    return {"target": target.name, "threads": threads, "ms": ms, "measured_by": measured_by}


def _dearest(measured: schema.Profile, compiled: schema.Compile) -> list[schema.Dear]:
    chosen = {step["name"]: step["chosen"] for step in compiled["steps"]}
    steps = sorted(measured["steps"], key=lambda step: -step["ms"])[:DEAREST]
    return [
        {
            "name": step["layer"] or step["name"],
            "layers": step["layers"],
            "kind": step["kind"],
            "ms": step["ms"],
            "share": step["share"],
            "bound_ms": step["bound_ms"],
            "why": why(step, chosen.get(step["name"], "")),
        }
        for step in steps
    ]


#: What a share of a step's cycles is spent on, by the cause that profiles name.
SPENT = {
    "issue": "issue instructions",
    "dependency": "wait for results",
    "l1": "wait for L1",
    "l2": "wait for L2",
    "dram": "wait for DRAM",
    "branch": "go into branches",
    "fetch": "wait for code",
    "system": "go into the system",
}


def why(step: schema.ProfiledStep, chosen: str) -> str:
    """What a step's time is made of, and what may make it less."""
    whole = step["kind"] == QConv2d.tag
    parts = ["on bits" if step["binary"] else "in 8 bits" if whole else "in floats"] if step["macs"] else []
    if step["roof_share"] is not None:
        beyond = ", by Winograd's method" if step["roof_share"] > 1 and not step["binary"] and not whole else ""
        roof = "the roof of floats" if whole else "its roof"
        parts.append(f"{step['roof_share']:.0%} of {roof}{beyond}")
    causes = sorted(((cycles, cause) for cause, cycles in step["causes"].items()), reverse=True)[:2]
    spent = [
        f"{cycles / step['cycles']:.0%} {SPENT.get(cause, cause)}"
        for cycles, cause in causes
        if cycles > 0.1 * step["cycles"]
    ]
    parts += [f"of its cycles {' and '.join(spent)}"] if spent else []
    if chosen == "default":
        parts.append("its kernel is untuned")
    elif chosen == "generic":
        parts.append("no schedule of ours has it")
    return ", ".join(parts)


def _say_tuning(tuning: schema.Tune) -> str:
    if not tuning["tasks"]:
        return "no layer leaves a choice"
    trials = sum(task["trials"] for task in tuning["tasks"])
    gain = f", {tuning['gain']:.2f} times faster" if tuning["gain"] else ""
    return f"{len(tuning['tasks'])} kernels, {trials} trials{gain}"


def _say_compiled(compiled: schema.Compile) -> str:
    return f"{len(compiled['steps'])} steps, {compiled['file_bytes'] / 1e6:.1f} MB"


def _say_profile(profiled: dict[str, Any]) -> str:
    speeds = [
        f"{each['ms']:.2f} ms on {each['threads']} core{'s' * (each['threads'] > 1)}" for each in profiled["speeds"]
    ]
    return ", ".join(speeds) or "no simulated board times 32-bit code"


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

"""Checks whether a simulated board can run here, for `bitkiln boards doctor`."""

from collections.abc import Callable
from dataclasses import dataclass

from bitkiln.targets.needs import Missing
from bitkiln.targets.sim import build, emulator, microbench


@dataclass(frozen=True)
class Check:
    """One thing looked at: `explanation` says what was found, or what is missing and how to get it."""

    name: str
    ok: bool
    explanation: str


def doctor() -> list[Check]:
    """Every piece of the simulated board, in the order they are needed."""
    return [
        _check("emulator", lambda: emulator.emulator().folder),
        _check("timing model", build.plugin),
        _check("simulated Cortex-A53", _runs),
    ]


def _check(name: str, look: Callable[[], object]) -> Check:
    try:
        return Check(name, True, str(look()))
    except Missing as problem:
        return Check(name, False, f"{problem.message}: {problem.remedy}")


def _runs() -> str:
    """Runs eight dependent multiply-adds: 4 cycles from accumulator to accumulator, and one for the last to issue."""
    chain = microbench.Fact("chain of fmla", ("fmla v0.4s, v1.4s, v2.4s",) * 8, 29)
    cycles = microbench.run([chain])[0]
    if cycles != chain.cycles:
        raise Missing(
            f"8 dependent fmla took {cycles} cycles, not {chain.cycles}", "the cached plugin is damaged: remove it"
        )
    return f"{build.MODEL_VERSION}: 8 dependent fmla take {cycles} cycles"

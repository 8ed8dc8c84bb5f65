"""Sets of micro-kernels, a package for each CPU. A package's ``__init__`` is the CPU's page: what there is, in which sizes."""

from __future__ import annotations

from bitkiln.schedules.microkernels import a53, a53_32
from bitkiln.schedules.microkernels.sets import PLAIN, KernelSet
from bitkiln.targets import Target, UnknownTarget

__all__ = ["SETS", "KernelSet", "kernel_set"]

#: The sets by the names that targets know them by.
SETS = {each.name: each for each in (PLAIN, a53.SET, a53_32.SET)}


def kernel_set(target: Target) -> KernelSet:
    """The set of ``target``, whose page names it; raises UnknownTarget."""
    if target.kernels not in SETS:
        names = ", ".join(name for name in SETS if name)
        raise UnknownTarget(f"target {target.name}: no set of kernels {target.kernels!r}; there are: {names}")
    return SETS[target.kernels]

"""The simulated Cortex-A53: a timing model in C that runs in qemu-aarch64 or qemu-arm, and how to build and use it.

What it models, how well, and the protocol of its guest programs: docs/simulator.md.
"""

from bitkiln.targets.loader import Target
from bitkiln.targets.needs import Missing
from bitkiln.targets.sim.build import MODEL_VERSION, plugin, qemu_command
from bitkiln.targets.sim.doctor import Check, doctor
from bitkiln.targets.sim.identity import write_cpu_identity
from bitkiln.targets.sim.reports import Reports


def unlike(target: Target) -> str | None:
    """Why the timing model cannot stand for ``target``; None where it can."""
    if target.architecture in ("aarch64", "armv7l") and target.cpu_name == "cortex-a53":
        return None
    return (
        f"the simulator is a Cortex-A53, {target.name} a {target.cpu_name} that runs {target.architecture} code: "
        "measure on a board of that kind"
    )


__all__ = [
    "MODEL_VERSION",
    "Check",
    "Missing",
    "Reports",
    "doctor",
    "plugin",
    "qemu_command",
    "unlike",
    "write_cpu_identity",
]

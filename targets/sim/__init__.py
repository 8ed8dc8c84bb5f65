"""The simulated Cortex-A53: a timing model in C that runs in qemu-aarch64, and how to build and use it.

What it models, how well, and the protocol of its guest programs: docs/simulator.md.
"""

from bitkiln.targets.needs import Missing
from bitkiln.targets.sim.build import MODEL_VERSION, plugin, qemu_command
from bitkiln.targets.sim.doctor import Check, doctor
from bitkiln.targets.sim.identity import write_cpu_identity
from bitkiln.targets.sim.reports import Reports

__all__ = [
    "MODEL_VERSION",
    "Check",
    "Missing",
    "Reports",
    "doctor",
    "plugin",
    "qemu_command",
    "write_cpu_identity",
]

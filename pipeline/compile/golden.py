"""The golden answer of a bundle: what the compiled network gives for a seeded input, run as the board would run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bitkiln.pipeline.boards.emulated import on_emulator
from bitkiln.pipeline.compile.plan import ExecutionPlan
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.errors import SetupError
from bitkiln.targets import Target

SEED = 2016


def make(
    folder: Path, target: Target, plan: ExecutionPlan, console: Console
) -> tuple[dict[str, Any] | None, int | None]:
    """Write golden_input*.npy and golden_output*.npy into ``folder``; gives their names, and the bytes that the network took.

    Nothing of both, and a line on the console, where this machine has no emulator for the target.
    """
    inputs: dict[str, np.ndarray] = {}
    for index in plan.inputs:
        tensor = plan.tensors[index]
        info = runner.TensorInfo(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes)
        data = runner.random_bytes(info, f"{SEED}/{len(inputs)}")
        inputs[tensor.name] = runner.make_array(tensor.dtype, tensor.shape, data)
    try:
        answer = on_emulator(folder, target, inputs)
    except SetupError as error:
        console.print(f"no golden answer in the bundle: {error}", highlight=False)
        return None, None
    names = {
        "inputs": [_write(folder, "golden_input", at, values) for at, values in enumerate(inputs.values())],
        "outputs": [_write(folder, "golden_output", at, values) for at, values in enumerate(answer.outputs.values())],
        "made_by": answer.measured_by,
    }
    return names, answer.memory_bytes


def _write(folder: Path, stem: str, at: int, values: Any) -> str:
    name = f"{stem}.npy" if at == 0 else f"{stem}_{at}.npy"
    (folder / name).write_bytes(runner.npy_bytes(values))
    return name

"""The constants of a bundle's library against those that the model's weights are packed to today, bit for bit.

A flipped bit of a weight may show on few inputs. The constants are one block of the library: packing the weights again with
the bundle's own knobs gives the block, and says which step a damaged byte belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.compile.arguments import plan_network
from bitkiln.pipeline.compile.kernels import choose_kernels, where_they_differ
from bitkiln.pipeline.compile.plan import ExecutionPlan, PlacedTensor, read_network
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.passes.pipeline import Lowered
from bitkiln.targets import Target

#: Floats folded on another machine may be rounded otherwise, by this much of their size.
ROUNDED = 1e-5

#: What differs in more than this share of a tensor's bytes was packed otherwise; it is no damage.
PACKED_OTHERWISE = 0.02


@dataclass(frozen=True)
class Damage:
    """``bits`` of the ``nbytes`` bytes of constants that ``step`` reads are not as the model's weights are packed."""

    step: str
    bits: int
    nbytes: int

    def __str__(self) -> str:
        count, verb = ("1 bit", "differs") if self.bits == 1 else (f"{self.bits:,} bits", "differ")
        return f"{count} of the weights and constants of {self.step} ({self.nbytes:,} bytes) {verb} from the model's"


@dataclass(frozen=True)
class _Knobs:
    """The knobs that a bundle was compiled with, as a tuning record."""

    knobs: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {"knobs": dict(self.knobs)}


class _Recorded:
    """The bundle's own choice of knobs, in the place of tuning records."""

    def __init__(self, bundle: Bundle) -> None:
        rows = [row for row in bundle.manifest["steps"] if row.get("workload")]
        self._known = {row["workload"]: row["knobs"] for row in rows}
        self._several = self._known | {row["workload"]: row["several"]["knobs"] for row in rows if "several" in row}

    def best(self, workload: str, target: Target, threads: int) -> _Knobs | None:
        """As the bundle was compiled."""
        known = self._known if threads == 1 else self._several
        return _Knobs(known[workload]) if workload in known else None


def find_damage(bundle: Bundle, model: Model, lowered: Lowered) -> list[Damage]:
    """The steps whose constants were altered; nothing where this version packs them otherwise, so that none can be told."""
    library = bundle.folder / "model.so"
    if not library.is_file():
        return []
    try:
        network = read_network(lowered.module)
        one, several = (
            choose_kernels(lowered.module, network, bundle.target, _Recorded(bundle), threads) for threads in (1, 2)
        )
        # Bundles whose manifest does not say so had all weights packed.
        packs = "packed_on_board" in bundle.manifest.get("memory", {})
        plan = plan_network(model, network, one, where_they_differ(several, one), packs)
    except BitkilnError:
        return []
    data = library.read_bytes()
    if plan.constants in data:
        return []
    start = _start(plan, data)
    return list(_damaged(plan, data[start : start + len(plan.constants)])) if start is not None else []


def _constants(plan: ExecutionPlan, tensors: Sequence[PlacedTensor]) -> list[PlacedTensor]:
    """Of ``tensors`` the constants, and what the board makes the others of that are no activations."""
    sources = {packed.offset: packed.source for packed in plan.packings}
    made = [sources[tensor.offset] for tensor in tensors if tensor.place == "made"]
    return [tensor for tensor in tensors if tensor.place == "constant"] + made


def _start(plan: ExecutionPlan, data: bytes) -> int | None:
    """Where the block of constants begins: the largest constant that is whole tells."""
    for tensor in sorted(_constants(plan, plan.tensors), key=lambda tensor: -tensor.nbytes)[:16]:
        at = data.find(plan.constants[tensor.offset : tensor.offset + tensor.nbytes])
        if at >= tensor.offset and tensor.nbytes >= 64 and at - tensor.offset + len(plan.constants) <= len(data):
            return at - tensor.offset
    return None


def _damaged(plan: ExecutionPlan, block: bytes) -> Iterator[Damage]:
    for step in dict.fromkeys((*plan.steps, *plan.several)):
        tensors = _constants(plan, [plan.tensors[i] for i in step.arguments])
        counts = [_differing(tensor, plan.constants, block) for tensor in tensors]
        if None in counts:
            continue
        bits = sum(count or 0 for count in counts)
        if bits:
            yield Damage(step.name, bits, sum(tensor.nbytes for tensor in tensors))


def _differing(tensor: PlacedTensor, wanted: bytes, block: bytes) -> int | None:
    """How many bits of the tensor differ; None where so much does that it was packed otherwise."""
    ours, theirs = (
        np.frombuffer(source, tensor.dtype, count=int(np.prod(tensor.shape)), offset=tensor.offset)
        for source in (wanted, block)
    )
    differs = ours.view(np.uint8).reshape(ours.size, -1) != theirs.view(np.uint8).reshape(ours.size, -1)
    differs = differs.any(axis=1)
    if ours.dtype.kind == "f":
        differs &= ~np.isclose(ours, theirs, rtol=ROUNDED, atol=0, equal_nan=True)
    if differs.sum() > max(1, PACKED_OTHERWISE * ours.size):
        return None
    changed = ours[differs].view(np.uint8) ^ theirs[differs].view(np.uint8)
    return int(np.unpackbits(changed).sum())

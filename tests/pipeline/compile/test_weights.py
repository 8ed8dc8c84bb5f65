"""Weights that the board packs: the same bits as here, by any number of threads, and only where the file becomes smaller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.boards.board import LocalBoard, Request
from bitkiln.pipeline.compile.link import link_library
from bitkiln.pipeline.compile.plan import (
    COPY,
    PAGE,
    ExecutionPlan,
    Made,
    PlannedCall,
    Storage,
    View,
    constant_view,
    make_plan,
    new_view,
)
from bitkiln.pipeline.compile.weights import settle
from bitkiln.schedules.conv2d.geometry import split
from bitkiln.schedules.conv2d.packing import Chunk, Packing, panels_alone
from bitkiln.schedules.conv2d.strassen import strassen_packing
from bitkiln.schedules.conv2d.winograd_transforms import FOUR_TAPS, TRANSFORMS, Transform, weight_sums


def winograd(channels: int, depth: int, y: Transform, x: Transform, chunk: int, panel: int) -> Packing:
    """As the schedule of that name packs 3x3 kernels, in ``chunk``s of channels."""
    count = y.weight.shape[1] * x.weight.shape[1]
    chunks = tuple(Chunk(run, tuple(split(run.used, panel, 4))) for run in split(channels, chunk, 4))
    taps = tuple(tap * depth for tap in range(count))
    return Packing(channels, depth, count * depth, taps, weight_sums(y.weight, x.weight), chunks, spare=16, zero=0.0)


#: Whole and broken panels, chunks and strips; 9 and 16 taps; groups.
PACKINGS = {
    "F(4x4)": winograd(20, 24, TRANSFORMS[4], TRANSFORMS[4], 12, 12),
    "F(2x4), chunks of panels": winograd(44, 7, TRANSFORMS[2], TRANSFORMS[4], 32, 16),
    "F(1x2)": winograd(8, 16, TRANSFORMS[1], TRANSFORMS[2], 8, 8),
    "four taps": winograd(12, 9, FOUR_TAPS, FOUR_TAPS, 8, 8),
    "Strassen": strassen_packing(20, 40, split(20, 12, 4)),
    "panels": panels_alone(26, 19, split(26, 12, 4), spare=5),
    "panels of groups": panels_alone(6, 10, split(6, 4, 4), groups=3),
}


def weights_of(packing: Packing, seed: int) -> np.ndarray:
    """Normal numbers among zeros of both signs, very small and very large ones."""
    generator = np.random.default_rng(seed)
    count = max(packing.taps) + (packing.channels - 1) * packing.pitch + packing.depth
    values = generator.normal(size=-(-count // packing.pitch) * packing.pitch).astype("float32")
    odd = np.array([0.0, -0.0, 1e-42, -3e-39, 1e30, -1e-20], "float32")
    values[::11] = odd[generator.integers(0, len(odd), len(values[::11]))]
    return values


def copies(made: dict[str, View]) -> ExecutionPlan:
    """A network that gives out its weights as the board has them."""
    outputs = [new_view(name, view.shape, view.dtype) for name, view in made.items()]
    calls = [
        PlannedCall(out.name, "copy", COPY, (view,), (out,)) for view, out in zip(made.values(), outputs, strict=True)
    ]
    return make_plan(calls, [], outputs)


def made_view(packing: Packing, source: Storage) -> View:
    floats = packing.floats + packing.spare
    return View("made", (floats,), "float32", Storage(4 * floats, made=Made(packing, source)))


@pytest.mark.parametrize("name", ["rasp3b", "rasp3b32"])
def test_the_board_packs_to_the_same_bits(name: str, tmp_path: Path) -> None:
    target = targets.load(name)
    sources = {label: weights_of(packing, seed) for seed, (label, packing) in enumerate(PACKINGS.items())}
    views = {label: made_view(p, constant_view("raw", sources[label]).storage) for label, p in PACKINGS.items()}
    link_library({}, [], copies(views), target, tmp_path / "model.so")
    for threads in (1, 4):
        answer = LocalBoard(target, timing=False).measure(
            tmp_path / "model.so", Request(outputs=True, threads=threads), {}
        )
        for output, (label, packing) in zip(answer.outputs, PACKINGS.items(), strict=True):
            assert bytes(output.data) == packing([sources[label]]).tobytes(), f"{label} on {threads} threads"


def test_what_grows_is_packed_on_the_board_and_what_does_not_is_stored() -> None:
    def kept(*forms: Packing, read: bool = False) -> list[bool]:
        """Whether the forms of the same weights are made; ``read``: a step reads these as they are."""
        source = constant_view("raw", weights_of(forms[0], 1))
        plans = [[PlannedCall("a", "k", "k", (made_view(form, source.storage),), ())] for form in forms]
        plans.append([PlannedCall("b", "k", "k", (source,), ())] if read else [])
        return [bool(calls[0].inputs[0].storage.made) for calls in settle(plans) if calls][: len(forms)]

    large = winograd(20, 24, TRANSFORMS[4], TRANSFORMS[4], 12, 12)
    narrow, wide = (panels_alone(24, 9 * 24, split(24, size, 4)) for size in (8, 12))
    assert kept(large) == [True]
    assert kept(narrow) == [False]
    assert kept(narrow, wide) == [True, True], "two plans share the weights"
    assert kept(narrow, read=True) == [True], "they are in the file already"
    call = PlannedCall("a", "k", "k", (made_view(large, constant_view("raw", weights_of(large, 2)).storage),), ())
    assert not settle([[call]], packs=False)[0][0].inputs[0].storage.made


def test_raw_weights_have_pages_of_their_own_and_only_readers_plans_pack() -> None:
    packing = winograd(20, 24, TRANSFORMS[4], TRANSFORMS[4], 12, 12)
    source = constant_view("raw", weights_of(packing, 1))
    table = constant_view("table", np.arange(5))
    one, several = (made_view(packing, source.storage) for _ in range(2))
    out = new_view("out", (4,), "float32")
    calls = [[PlannedCall("out", "k", "k", (table, view), (out,))] for view in (one, several)]
    plan = make_plan(calls[0], [], [out], calls[1])
    assert plan.raw_from % PAGE == 0 and plan.constants[plan.raw_from :] == source.storage.constant.tobytes()
    readers = [(packed.source.offset, packed.one, packed.several) for packed in plan.packings]
    assert readers == [(plan.raw_from, True, False), (plan.raw_from, False, True)]
    assert plan.made_bytes >= sum(packed.nbytes for packed in plan.packings)

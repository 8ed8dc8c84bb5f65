"""JSON that comes from outside, mutated: a slice in each run of the suite, a million by scripts/test_kills."""

from __future__ import annotations

import os

import pytest

from fuzzing import mutations


def test_a_slice() -> None:
    tally = mutations.run(3000, "suite")
    with mutations.readers() as known:
        for name in known:
            assert tally[f"{name}: taken"], f"nothing good of {name} was taken: its seed is none"
            assert name == "standings" or tally[f"{name}: refused"]


@pytest.mark.kills
def test_a_million() -> None:
    count = int(os.environ.get("BITKILN_MUTATIONS", "1000000"))
    print(mutations.run(count, os.environ.get("BITKILN_SEED", "kills")))

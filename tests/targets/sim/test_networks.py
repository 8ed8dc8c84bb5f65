"""The networks of the validation, as ncnn's parameter text."""

from __future__ import annotations

from collections import Counter

import pytest

from bitkiln.targets.sim.networks import PUBLISHED, Net


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_blob_is_made_once_and_read_once(name: str) -> None:
    magic, counts, *layers = PUBLISHED[name].text().splitlines()
    assert magic == "7767517"
    made, read = [], []
    for line in layers:
        _, _, inputs, outputs, *rest = line.split()
        read += rest[: int(inputs)]
        made += rest[int(inputs) : int(inputs) + int(outputs)]
    assert counts.split() == [str(len(layers)), str(len(made))]
    assert max(Counter(made).values()) == max(Counter(read).values()) == 1
    assert set(made) - set(read) == {"prob"}
    assert set(read) <= set(made)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("squeezenet", 1.24), ("mobilenet", 4.23), ("mobilenet_v2", 3.5), ("resnet18", 11.7), ("alexnet", 60.9)],
)
def test_networks_have_the_weights_of_the_papers(name: str, millions: float) -> None:
    net = Net()
    PUBLISHED[name].build(net)
    weights = 0
    for kind, _, _, _, parameters in net.layers:
        values = dict(pair.split("=") for pair in parameters.split())
        weights += int(values.get({"InnerProduct": "2"}.get(kind, "6"), 0))
    assert weights / 1e6 == pytest.approx(millions, rel=0.03)

"""The layered drawing: nothing overlaps, edges lead downwards, long paths are straight."""

import itertools
import random

import pytest

from bitkiln.pipeline.inspect import layered


def overlap(drawing, sizes):
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(drawing.tops, sizes, strict=True)]
    return any(
        a[0] < b[2] - 1e-6 and b[0] < a[2] - 1e-6 and a[1] < b[3] - 1e-6 and b[1] < a[3] - 1e-6
        for a, b in itertools.combinations(boxes, 2)
    )


def test_nothing_to_draw():
    assert layered.draw([], []) == layered.Drawing(0, 0, (), ())


def test_a_chain_with_a_skip_stays_straight():
    sizes = [(100, 30), (200, 60), (200, 60), (80, 30)]
    drawing = layered.draw(sizes, [(0, 1), (1, 2), (2, 3), (0, 3)])
    middles = [x + size[0] / 2 for (x, _), size in zip(drawing.tops, sizes, strict=True)]
    assert middles == pytest.approx([middles[0]] * 4, abs=0.5)
    skip = drawing.paths[3]
    left, right = drawing.tops[1][0], drawing.tops[1][0] + 200
    assert len(skip) == 6
    assert all(x < left or x > right for x, _ in skip[1:-1])


@pytest.mark.parametrize("seed", range(8))
def test_random_graphs(seed):
    draw = random.Random(seed)
    count = draw.randint(1, 60)
    sizes = [(draw.choice([90, 170, 250]), draw.choice([28, 46, 70])) for _ in range(count)]
    edges = [
        (start, end) for end in range(1, count) for start in {draw.randrange(max(0, end - 9), end) for _ in range(2)}
    ]
    drawing = layered.draw(sizes, edges)
    assert not overlap(drawing, sizes)
    for (x, y), (width, height) in zip(drawing.tops, sizes, strict=True):
        assert x >= -1e-6 and y >= -1e-6
        assert x + width <= drawing.width + 1e-6 and y + height <= drawing.height + 1e-6
    for (start, end), path in zip(edges, drawing.paths, strict=True):
        assert path[0][1] == pytest.approx(drawing.tops[start][1] + sizes[start][1])
        assert path[-1][1] == pytest.approx(drawing.tops[end][1])
        assert [y for _, y in path] == sorted(y for _, y in path)


def test_more_edges_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(layered, "MOST_LANES", 10)
    count = 30
    edges = list(itertools.combinations(range(count), 2))
    drawing = layered.draw([(50, 20)] * count, edges)
    assert all(len(path) == 2 for path in drawing.paths)
    assert drawing.height == pytest.approx(count * 20 + (count - 1) * layered.ROW_GAP)

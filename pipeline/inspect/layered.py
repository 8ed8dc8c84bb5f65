"""A directed graph drawn from top to bottom in layers, after Sugiyama: which layer, in what order, where across.

Edges that pass layers go through a lane in each, those from one node through the same. Nodes and lanes of a layer are
ordered so that edges cross little, then moved sideways to where their neighbours are, as near as their order and widths
allow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Pixels between neighbours of a layer, between lanes, and between layers.
GAP, LANE_GAP, ROW_GAP = 26.0, 12.0, 30.0
#: Rounds of ordering and of moving; both settle well before.
ORDER_ROUNDS, MOVE_ROUNDS = 6, 10
#: How much nodes on a longest path, other nodes and lanes resist being moved: the longest path is drawn straight.
SPINE, SIDE, EDGE = 1e4, 20.0, 1.0
#: Lanes in all, above which edges no longer get any: they then run straight, behind the nodes.
MOST_LANES = 20_000

Point = tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """``tops`` are the left upper corners of the nodes; ``paths`` the points each edge goes through, ends included."""

    width: float
    height: float
    tops: tuple[Point, ...]
    paths: tuple[tuple[Point, ...], ...]


def draw(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]) -> Drawing:
    """Place nodes of ``sizes`` (width, height). ``edges`` lead from a lower to a higher position in ``sizes``."""
    if not sizes:
        return Drawing(0, 0, (), ())
    graph = _Graph(sizes, edges)
    graph.order()
    graph.move()
    return graph.drawing()


class _Graph:
    """Nodes are numbered as in ``sizes``; the lanes of edges follow."""

    def __init__(self, sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]) -> None:
        self.sizes = list(sizes)
        self.edges = edges
        self.nodes = len(sizes)
        self.layer = _layers(len(sizes), edges)
        self.weight = _weights(self.layer, edges)
        self.above: dict[int, list[int]] = defaultdict(list)
        self.below: dict[int, list[int]] = defaultdict(list)
        self.lanes: dict[tuple[int, int], int] = {}
        last = list(self.layer)
        for start, end in edges:
            last[start] = max(last[start], self.layer[end])
        passed = sum(max(end - begin - 1, 0) for begin, end in zip(self.layer, last, strict=True))
        self.chains = [self._chain(a, b, lanes=passed <= MOST_LANES) for a, b in edges]
        self.rows: list[list[int]] = [[] for _ in range(max(self.layer) + 1)]
        for item, layer in enumerate(self.layer):
            self.rows[layer].append(item)
        self.x = [0.0] * len(self.layer)

    def _chain(self, start: int, end: int, lanes: bool) -> list[int]:
        """The items an edge goes through."""
        passed = range(self.layer[start] + 1, self.layer[end])
        chain = [start]
        chain += [self._lane(start, layer) for layer in (passed if lanes else ())]
        chain.append(end)
        if lanes or not passed:
            for upper, lower in pairwise(chain):
                if lower not in self.below[upper]:
                    self.below[upper].append(lower)
                    self.above[lower].append(upper)
        return chain

    def _lane(self, start: int, layer: int) -> int:
        """The lane through ``layer`` of the edges from ``start``."""
        if (start, layer) not in self.lanes:
            self.lanes[start, layer] = len(self.layer)
            self.sizes.append((0.0, 0.0))
            self.layer.append(layer)
            self.weight.append(EDGE)
        return self.lanes[start, layer]

    def order(self) -> None:
        """Sort each layer by the mean place of its neighbours, downwards and upwards in turn."""
        place = {item: float(at) for row in self.rows for at, item in enumerate(row)}
        for turn in range(ORDER_ROUNDS):
            down = turn % 2 == 0
            for row in self.rows if down else reversed(self.rows):
                near = self.above if down else self.below
                row.sort(key=lambda item: _mean([place[other] for other in near[item]], place[item]))
                place.update((item, float(at)) for at, item in enumerate(row))

    def move(self) -> None:
        """Move items to where their neighbours are, downwards and upwards in turn."""
        for row in self.rows:
            self._set(row, [0.0] * len(row))
        for turn in range(MOVE_ROUNDS):
            down = turn % 2 == 0
            for row in self.rows if down else reversed(self.rows):
                near = self.above if down else self.below
                self._set(row, [self._wanted(item, near[item]) for item in row])

    def _wanted(self, item: int, near: Sequence[int]) -> float:
        """Where the heaviest neighbours are, on average."""
        most = max((self.weight[other] for other in near), default=0.0)
        return _mean([self.x[other] for other in near if self.weight[other] == most], self.x[item])

    def _set(self, row: Sequence[int], wanted: Sequence[float]) -> None:
        """Give ``row`` the positions nearest to ``wanted`` (least squares) that keep its order and gaps."""
        offsets = [0.0]
        for left, right in pairwise(row):
            gap = GAP if min(left, right) < self.nodes else LANE_GAP
            offsets.append(offsets[-1] + (self.sizes[left][0] + self.sizes[right][0]) / 2 + gap)
        weights = [self.weight[item] for item in row]
        fitted = _rising([want - offset for want, offset in zip(wanted, offsets, strict=True)], weights)
        for item, at, offset in zip(row, fitted, offsets, strict=True):
            self.x[item] = at + offset

    def drawing(self) -> Drawing:
        """The positions, from the left upper corner on."""
        left = min(x - size[0] / 2 for x, size in zip(self.x, self.sizes, strict=True))
        right = max(x + size[0] / 2 for x, size in zip(self.x, self.sizes, strict=True))
        heights = [max(self.sizes[item][1] for item in row) for row in self.rows]
        start = [sum(heights[:layer]) + ROW_GAP * layer for layer in range(len(heights))]
        tops = [
            (self.x[node] - self.sizes[node][0] / 2 - left, start[layer] + (heights[layer] - self.sizes[node][1]) / 2)
            for node, layer in enumerate(self.layer[: self.nodes])
        ]
        paths = [self._path(chain, tops, start, heights, left) for chain in self.chains]
        return Drawing(right - left, start[-1] + heights[-1], tuple(tops), tuple(paths))

    def _path(
        self, chain: list[int], tops: list[Point], start: list[float], heights: list[float], left: float
    ) -> tuple[Point, ...]:
        first, *lanes, last = chain
        points = [(self.x[first] - left, tops[first][1] + self.sizes[first][1])]
        for lane in lanes:
            x, top = self.x[lane] - left, start[self.layer[lane]]
            points += [(x, top), (x, top + heights[self.layer[lane]])]
        return (*points, (self.x[last] - left, tops[last][1]))


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """For each node the length of the longest path to it."""
    layer = [0] * count
    for start, end in sorted(edges, key=lambda edge: edge[0]):
        layer[end] = max(layer[end], layer[start] + 1)
    return layer


def _weights(layer: Sequence[int], edges: Sequence[tuple[int, int]]) -> list[float]:
    """The weight of each node, by whether a longest path of the whole graph goes through it."""
    left = [0] * len(layer)
    for start, end in sorted(edges, key=lambda edge: -edge[0]):
        left[start] = max(left[start], left[end] + 1)
    longest = max(above + below for above, below in zip(layer, left, strict=True))
    return [SPINE if above + below == longest else SIDE for above, below in zip(layer, left, strict=True)]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        count = 1
        while pools and pools[-1][0] > value:
            other, heavy, many = pools.pop()
            value = (value * weight + other * heavy) / (weight + heavy)
            weight, count = weight + heavy, count + many
        pools.append((value, weight, count))
    return [value for value, _, count in pools for _ in range(count)]

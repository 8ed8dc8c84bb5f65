"""The layers of a network in blocks, as one looks at it: a convolution with what leads to it and what follows it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitkiln.pipeline.inspect.result import Inspection, Row

#: Operations that make the input of the convolution behind them.
LEADING = frozenset({"sign", "binarize", "pad"})


@dataclass(frozen=True)
class Block:
    """Layers in a row, one convolution or dense layer at most; an input or output of the network has none.

    ``main`` is the layer that the block is named for, ``inputs`` are positions of the blocks it reads.
    """

    name: str
    rows: tuple[Row, ...]
    main: Row | None
    inputs: tuple[int, ...]


def blocks_of(found: Inspection) -> list[Block]:
    """The blocks of a network in execution order, its inputs first and its outputs last."""
    parts = _parts(found.rows, found.results)
    place = {spec.name: at for at, spec in enumerate(found.inputs)}
    blocks = [Block(spec.name, (), None, ()) for spec in found.inputs]
    # A block stands where its last layer does, behind all that it reads.
    position = {row.name: at for at, row in enumerate(found.rows)}
    for rows in sorted(parts, key=lambda part: position[part[-1].name]):
        inside = {row.name for row in rows}
        read = [name for row in rows for name in row.inputs if name not in inside]
        place.update(dict.fromkeys(inside, len(blocks)))
        main = _main(rows)
        blocks.append(Block(main.name, tuple(rows), main, _places(read, place)))
    for at, spec in enumerate(found.outputs):
        result = found.results[at : at + 1] if len(found.results) == len(found.outputs) else found.results
        blocks.append(Block(spec.name, (), None, _places(result, place)))
    return blocks


def _places(names: Sequence[str], place: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(place[name] for name in names if name in place))


def _main(rows: Sequence[Row]) -> Row:
    """The convolution, else the first that joins tensors, else the first that is not elementwise arithmetic."""
    for wanted in (
        lambda row: row.binary is not None,
        lambda row: len(row.inputs) > 1,
        lambda row: row.kind not in ("add", "multiply", "reshape", "flatten"),
    ):
        match = next(filter(wanted, rows), None)
        if match is not None:
            return match
    return rows[-1]


def _parts(rows: Sequence[Row], results: Sequence[str]) -> list[list[Row]]:
    """The rows of each block, in execution order."""
    units = _units(rows)
    inside = {row.name: at for at, unit in enumerate(units) for row in unit}
    before: list[set[int | str]] = [
        {inside.get(name, name) for row in unit for name in row.inputs} - {at} for at, unit in enumerate(units)
    ]
    users: dict[int | str, set[int | str]] = defaultdict(set)
    for at, sources in enumerate(before):
        for source in sources:
            users[source].add(at)
    for number, name in enumerate(results):
        users[inside.get(name, name)].add(f"result {number}")
    parts: list[list[Row]] = []
    follower = {min(sources): at for at, sources in enumerate(before) if _only(sources, users)}
    followers = set(follower.values())
    for start in range(len(units)):
        if start in followers:
            continue
        chain, behind = [units[start]], follower.get(start)
        while behind is not None:
            chain.append(units[behind])
            behind = follower.get(behind)
        parts += _cut(chain)
    return parts


def _only(sources: set[int | str], users: Mapping[int | str, set[int | str]]) -> bool:
    """Is there one source, a unit that nothing else reads?"""
    return len(sources) == 1 and all(isinstance(source, int) and len(users[source]) == 1 for source in sources)


def _units(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of their own, but for those that only tell a convolution what its signs are: they join it."""
    users: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for name in row.inputs:
            users[name].append(row.name)
    owner: dict[str, str] = {}
    for row in reversed(rows):
        owners = {owner[user] for user in users[row.name] if user in owner}
        if row.binary is not None:
            owner[row.name] = row.name
        elif row.absorbed and len(owners) == 1 and all(user in owner for user in users[row.name]):
            owner[row.name] = owners.pop()
    units: dict[str, list[Row]] = {}
    for row in rows:
        units.setdefault(owner.get(row.name, row.name), []).append(row)
    position = {row.name: at for at, row in enumerate(rows)}
    return sorted(units.values(), key=lambda unit: position[unit[-1].name])


def _cut(chain: Sequence[list[Row]]) -> list[list[Row]]:
    """A chain in parts with one convolution each, at the last place where nothing leads to the next one."""
    parts: list[list[Row]] = [[]]
    has_convolution = False
    for unit in chain:
        convolution = any(row.binary is not None for row in unit)
        if convolution and (has_convolution or not _prepares(parts[-1])):
            lead = _leading(parts[-1])
            kept, taken = parts[-1][: len(parts[-1]) - lead], parts[-1][len(parts[-1]) - lead :]
            parts[-1:] = [kept, taken] if kept else [taken]
        has_convolution = has_convolution or convolution
        parts[-1].extend(unit)
    return [part for part in parts if part]


def _leading(rows: Sequence[Row]) -> int:
    """How many of the last rows make the next convolution's input."""
    count = 0
    for row in reversed(rows):
        if row.kind not in LEADING:
            break
        count += 1
    return count


def _prepares(rows: Sequence[Row]) -> bool:
    """Do ``rows`` only prepare one tensor, as at the beginning of a network?"""
    return all(len(row.inputs) <= 1 and row.kind not in ("max_pool2d", "avg_pool2d", "concat") for row in rows)

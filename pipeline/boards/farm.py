"""Several boards at once: simulated ones behind a tracker, and the list of those that a tracker knows."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bitkiln.pipeline import schema
from bitkiln.pipeline.boards.access import INSECURE, Address, secret_file, user_secret
from bitkiln.pipeline.boards.roster import Standing, read_standings, standings_file
from bitkiln.pipeline.boards.session import ask
from bitkiln.pipeline.boards.simulated import Machine, SimulatedBoards
from bitkiln.pipeline.boards.tracker import TrackerClient
from bitkiln.pipeline.boards.tracker_server import TrackerProcess
from bitkiln.pipeline.device.board_wire import new_secret
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.support import interrupts
from bitkiln.targets import Target

DEFAULT_TRACKER_PORT = 9190
#: Boards that are asked at once how they are.
MOST_ASKED = 16


@contextmanager
def simulated_farm(
    target: Target,
    count: int | None = None,
    tracker: Address | None = None,
    key: str | None = None,
    port: int = 0,
    timing: bool = True,
    secret: bytes | None = None,
) -> Iterator[tuple[Address, str]]:
    """Simulated boards behind a tracker (our own on loopback where none is given): gives the tracker's address and the key.

    ``count`` None starts as many as there are processors, at most 4. Tracker and boards serve those alone who share their
    ``secret``, a new random one unless given; with a ``tracker``, the one it has.
    """
    key = key or target.name
    with ExitStack() as stack:
        if tracker is None:
            process = TrackerProcess(port=port, secret=secret or new_secret())
            stack.callback(process.stop)
            tracker = process.address
        count = count or max(1, min(4, os.cpu_count() or 1))
        stack.enter_context(SimulatedBoards(Machine(target, timing), tracker, key, count))
        yield tracker, key


def list_boards(tracker: str) -> list[schema.TrackedBoards]:
    """The tracker's boards by key, as plain rows; each board is asked for its identity and its health."""
    rows = TrackerClient(Address.parse(tracker)).boards()
    standings = read_standings(standings_file())
    addresses = [address for row in rows for address in row.addresses]
    with ThreadPoolExecutor(MOST_ASKED) as pool:
        members = dict(zip(addresses, pool.map(lambda each: _member(each, standings), addresses), strict=True))
    return [
        schema.TrackedBoards(
            key=row.key,
            count=row.count,
            free=row.free,
            waiting=row.waiting,
            addresses=list(row.addresses),
            members=[members[address] for address in row.addresses],
        )
        for row in rows
    ]


def _member(address: str, standings: Mapping[str, Standing]) -> schema.TrackedBoard:
    """A board as it answers now, and what this user's runs have learned of it."""
    known = standings.get(address, Standing())
    row: schema.TrackedBoard = {
        "address": address,
        "state": "gone",
        "board": "",
        "health": dict(known.health),
        "clock_mhz": known.clock_mhz,
        "sample_cycles": known.sample_cycles,
        "aside": known.aside,
        "failure": known.failure,
        "failed_at": known.failed_at or None,
    }
    try:
        about = ask(Address.bare(address))
    except BoardError as problem:
        return {**row, "failure": known.failure or str(problem)}
    state = "set aside" if known.aside else "busy" if about["busy"] else "free"
    return {**row, "state": state, "board": about["measured_by"], "health": about["health"] or row["health"]}


def print_boards(rows: Sequence[schema.TrackedBoards], console: Console) -> None:
    """The rows of ``list_boards`` as tables: keys with their queues, then boards."""
    if not rows:
        console.print("the tracker has no boards")
        return
    keys = Table("key", "boards", "free", "busy", "clients waiting", box=None)
    for row in rows:
        numbers = map(str, (row["count"], row["free"], row["count"] - row["free"], row["waiting"]))
        keys.add_row(Text(row["key"]), *numbers)
    console.print(keys)
    console.print()
    boards = Table("address", "key", "state", "board", "clock", "temperature", "last failure", box=None)
    for row in rows:
        for each in row["members"]:
            boards.add_row(*map(Text, (each["address"], row["key"], *_cells(each))))
    console.print(boards)


def _cells(row: schema.TrackedBoard) -> tuple[str, ...]:
    """State, name, clock, temperature and last failure of a board."""
    health = row["health"]
    clock = row["clock_mhz"] or health.get("mhz")
    heat = [f"{health['temperature']:.0f} °C"] if isinstance(health.get("temperature"), int | float) else []
    heat += ["throttled"] if health.get("throttled") else []
    at = row["failed_at"]
    when = time.strftime("%Y-%m-%d %H:%M ", time.localtime(at)) if at else ""
    failure = row["aside"] or (when + row["failure"] if row["failure"] else "")
    return row["state"], row["board"], f"{clock:g} MHz" if clock else "", ", ".join(heat), failure


def serve_simulated(target: Target, tracker: str | None, key: str | None, count: int, console: Console) -> None:
    """Run simulated boards, and a tracker where none is named, until interrupted."""
    address = Address.parse(tracker) if tracker else None
    secret = None if tracker else user_secret(create=True)
    with simulated_farm(target, count, address, key, DEFAULT_TRACKER_PORT, secret=secret) as (where, name):
        boards = "1 simulated board" if count == 1 else f"{count} simulated boards"
        if tracker is None:
            _warn_of_another(DEFAULT_TRACKER_PORT, where, console)
        _say(console, f"{boards} with the key {name!r} at the tracker {where}; Ctrl-C stops them")
        insecure = INSECURE if where.secret is None else ""
        _say(console, f"try: tune --target {target.name} --tracker {insecure}{where} --key {name}")
        _wait(console)


def serve_tracker(host: str, port: int, console: Console) -> None:
    """Run a tracker for those who share this user's secret, until interrupted."""
    secret = user_secret(create=True)
    process = TrackerProcess(host, port, secret)
    try:
        _warn_of_another(port, process.address, console)
        _say(console, f"tracker at {process.address}; who shares {secret_file()} may use it; Ctrl-C stops it")
        _say(console, f"try: bitkiln boards setup pi@raspberrypi --tracker {process.address}")
        _wait(console)
    finally:
        process.stop()


def _warn_of_another(port: int, taken: Address, console: Console) -> None:
    """Whoever listens at the usual port may be anybody."""
    if taken.port != port:
        _say(console, f"warning: another program listens at {Address(taken.host, port)}; do not use that as tracker")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _wait(console: Console) -> None:
    try:
        with interrupts.waiting():
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        _say(console, "stopping")
        if interrupts.number() == signal.SIGTERM:
            raise

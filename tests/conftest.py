"""Fixtures that every part of the suite uses."""

from __future__ import annotations

import platform
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bitkiln import targets
from bitkiln.pipeline.boards import access
from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.boards.farm import simulated_farm
from bitkiln.pipeline.errors import SetupError
from bitkiln.targets import Target
from tests.ssh_board import device, sshd  # noqa: F401  Fixtures for every test.

REPOSITORY = Path(__file__).resolve().parents[1]
#: A program that forks children which have its models.
FORK_CHILDREN = REPOSITORY / "tests/fork_children.py"

# A shell ignores Ctrl-C for what it runs in the background, and programs hand that on: without this, tests that interrupt a
# program would fail there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of other people's models beside the repository; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "models").is_dir():
        pytest.skip("needs ../shared/models: real networks and golden outputs that are not part of this repository")
    return folder


@pytest.fixture(scope="session")
def host() -> Target:
    """This machine as a target: what needs no ARM runs natively."""
    if platform.machine() != "x86_64" or shutil.which("gcc") is None:
        pytest.skip("needs an x86-64 machine with gcc")
    board = targets.load("rasp3b")
    return Target(
        name="host",
        description="this machine",
        llvm={"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"},
        cc={"compiler": "gcc", "flags": []},
        cpu=board.cpu,
        dram=board.dram,
        userland={},
        records=(),
    )


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Libraries for rasp3b as a board takes them: y = 2x ("good", and "slow" ten times over), and ones that misbehave."""
    compiler = "aarch64-linux-gnu-gcc"
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    runtime = REPOSITORY / "pipeline" / "device"
    folder = tmp_path_factory.mktemp("kernels")
    sources = [REPOSITORY / "tests" / "pipeline" / "one_step.c", runtime / "runtime.c"]
    flags = ["-O2", "-mcpu=cortex-a53", "-shared", "-fPIC", "-w", f"-I{runtime}", "-DFACTOR=0"]
    kinds = {"good": "-DROUNDS=1", "slow": "-DROUNDS=10", "crash": "-DROUNDS=1 -DCRASH", "hang": "-DROUNDS=1 -DHANG"}
    libraries = {}
    for name, options in kinds.items():
        libraries[name] = folder / f"{name}.so"
        wrapped = [f"-Wl,--wrap={function}" for function in ("expf", "exp2f", "logf", "log2f", "powf")]
        command = [compiler, *flags, *options.split(), *wrapped, *map(str, sources), "-o", str(libraries[name])]
        subprocess.run([*command, "-lm", "-lpthread"], check=True, timeout=120)
    return libraries


@pytest.fixture(scope="session", autouse=True)
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """The secret that this user's boards share: one of the tests' own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(access.VARIABLE, str(tmp_path_factory.mktemp("secret") / "file"))
        yield access.user_secret(create=True)


@pytest.fixture(scope="session")
def farm(secret: bytes) -> Iterator[tuple[Address, str]]:
    """A tracker on loopback with two simulated boards: its address and the boards' key."""
    with ExitStack() as stack:
        try:
            farm = stack.enter_context(simulated_farm(targets.load("rasp3b"), 2, key="farm", secret=secret))
        except SetupError as problem:
            pytest.skip(str(problem))
        yield farm

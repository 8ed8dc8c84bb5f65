"""Fresh Debian 13 systems: what the README and the Dockerfile say works there.

`scripts/test_roots` runs these tests, as root; they take minutes each.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitkiln.targets import debian, needs

pytestmark = pytest.mark.roots

REPOSITORY = Path(__file__).resolve().parents[2]
#: What makes this machine reach its mirrors, where it has them.
SETTINGS = ("etc/resolv.conf", "etc/pip.conf", "etc/xdg/pip", "etc/ssl/certs/ca-certificates.crt")
MOUNTED = 'mount --rbind /dev "$1/dev"; mount -t proc proc "$1/proc"; exec chroot "$1" su "$2" -s /bin/sh -c "$3"'


class Root:
    """A system in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in SETTINGS:
            source, copy = Path("/") / name, folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, copy, dirs_exist_ok=True)
            elif source.exists():
                shutil.copyfile(source, copy)
        for path in Path("/etc/apt/apt.conf.d").iterdir():
            shutil.copyfile(path, folder / "etc/apt/apt.conf.d" / path.name)

    def run(self, script: str, user: str = "root") -> str:
        """Run a shell script in it as ``user``; gives what it prints."""
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", MOUNTED, "sh"]
        done = subprocess.run([*command, self.folder, user, script], capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, f"{script}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def copy_checkout(self, place: str) -> None:
        """Put the files that git knows into the folder ``place``."""
        there = self.folder / place.lstrip("/")
        there.mkdir(parents=True, exist_ok=True)
        names = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
        tar = f"tar -C {REPOSITORY} --null -T - -cf - | tar -C {there} -xf - --no-same-owner"
        subprocess.run(["sh", "-c", tar], input=names, check=True, timeout=300)


@pytest.fixture
def trixie(tmp_path: Path) -> Iterator[Root]:
    """A fresh Debian 13 with apt."""
    folder = tmp_path / "root"
    command = [needs.find("mmdebstrap"), "--variant=apt", "--include=ca-certificates", "trixie", str(folder)]
    address = debian.archive_address()
    subprocess.run([*command, *([f"deb {address} trixie main"] if address else [])], check=True, timeout=1500)
    yield Root(folder)
    shutil.rmtree(folder, ignore_errors=True)


def run_dockerfile(root: Root) -> None:
    """Do in ``root`` what the Dockerfile's RUN and ENV lines say."""
    exports = ""
    for word, rest in re.findall(r"^(RUN|ENV|COPY) (.*)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE):
        if word == "ENV":
            exports = f"export {rest}; "
        elif word == "COPY":
            root.copy_checkout(rest.split()[1])
        else:
            root.run(exports + rest)


def test_the_dockerfile_makes_a_machine_that_lacks_nothing(trixie: Root) -> None:
    run_dockerfile(trixie)


def test_the_two_commands_as_an_ordinary_user(trixie: Root) -> None:
    trixie.copy_checkout("/opt/bitkiln")
    trixie.run("apt-get update && /opt/bitkiln/scripts/setup")
    trixie.run(
        "useradd -m maker && cp -r /opt/bitkiln /home/maker/ && rm -rf /home/maker/bitkiln/.venv && chown -R maker /home/maker"
    )
    cached = "export HOME=/home/maker; cd /home/maker/bitkiln && "
    assert "simulated Cortex-A53" in trixie.run(f"{cached}TRIALS=8 scripts/quickstart", "maker")
    assert trixie.run(f"{cached}scripts/setup", "maker") == ""


def test_pip_alone_compiles_for_both_widths(trixie: Root) -> None:
    trixie.copy_checkout("/opt/src")
    trixie.run("apt-get update && apt-get install -y --no-install-recommends python3-venv")
    trixie.run("python3 -m venv /opt/v && /opt/v/bin/pip install -q '/opt/src[toolchain]'")
    trixie.run(
        "cd /tmp; ! command -v gcc && "
        "for t in rasp3b rasp3b32; do /opt/v/bin/bitkiln compile card-binary --target $t -o /opt/$t; done"
    )
    assert "nvidia" not in trixie.run("ls /opt/v/lib/python3*/site-packages")

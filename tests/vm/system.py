"""A whole arm64 Debian as a board: its own kernel, systemd and sshd on four CPUs under qemu-system-aarch64.

The disk is made of packages, without running any program of theirs: what their scripts would have written is written here.
Other systems are on it, an older, a newer and a 32-bit one: whoever logs in under the name of one is in it alone.
It is kept in the cache under a name that says how it was made. Times that this board measures mean nothing.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bitkiln.pipeline.support.files import cache_directory
from bitkiln.targets import debian
from bitkiln.targets.cache import made_once

TOOLS = ("qemu-system-aarch64", "mmdebstrap", "mke2fs", "depmod", "modprobe", "cpio", "ssh-keygen")
PACKAGES = (
    *(
        "base-files",
        "base-passwd",
        "bash",
        "bsdutils",
        "coreutils",
        "dash",
        "debianutils",
        "diffutils",
        "findutils",
        "grep",
    ),
    *("gzip", "hostname", "init-system-helpers", "libc-bin", "login", "mount", "ncurses-base", "passwd", "sed", "tar"),
    *("util-linux", "mawk", "systemd-sysv", "openssh-server", "openssh-client", "python3", "dbus", "dbus-user-session"),
    *("libpam-systemd", "procps", "iproute2", "kmod", "busybox-static", "linux-image-arm64", "libstdc++6", "libgomp1"),
)
#: The other systems: release and architecture by the user who logs into them. Python 3.9, 3.13, and 3.11 of 32 bits.
SYSTEMS = {"bullseye": ("bullseye", "arm64"), "trixie": ("trixie", "arm64"), "armhf": ("bookworm", "armhf")}
SYSTEM_PACKAGES = (
    *("base-files", "bash", "coreutils", "dash", "findutils", "grep", "gzip", "hostname", "libc-bin", "libgomp1"),
    *("libstdc++6", "procps", "python3", "sed", "tar", "util-linux"),
)
#: What a virtio disk and network need.
MODULES = ("virtio_mmio", "virtio_blk", "ext4", "crc32c_generic", "virtio_net", "virtio_rng")
#: Units that a board without a screen and a network without a name server can do without.
MASKED = (
    *("systemd-udev-trigger.service", "systemd-udevd.service", "systemd-networkd.service", "systemd-resolved.service"),
    *(
        "systemd-udevd-kernel.socket",
        "systemd-udevd-control.socket",
        "systemd-timesyncd.service",
        "systemd-hwdb-update.service",
    ),
    *(
        "systemd-sysusers.service",
        "systemd-firstboot.service",
        "systemd-machine-id-commit.service",
        "getty@tty1.service",
    ),
    *(
        "serial-getty@ttyAMA0.service",
        "systemd-modules-load.service",
        "systemd-random-seed.service",
        "systemd-pstore.service",
    ),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer", "e2scrub_all.timer"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
)
#: The first program: loads modules, mounts the disk, brings the network up as qemu's own has it, and makes way for systemd.
INIT = """\
#!/bin/sh
b=/bin/busybox
$b mount -t devtmpfs d /dev; $b mount -t proc p /proc; $b mount -t sysfs s /sys
for m in /lib/*.ko; do $b insmod $m 2> /dev/null; done
n=0; while [ ! -b /dev/vda ] && [ $n -lt 300 ]; do $b sleep 0.2; n=$((n+1)); done
$b mount -t ext4 /dev/vda /mnt || exec $b sh
$b ip link set lo up; $b ip link set eth0 up; $b ip addr add 10.0.2.15/24 dev eth0; $b ip route add default via 10.0.2.2
$b umount /proc; $b umount /sys; $b mount -o move /dev /mnt/dev
exec $b switch_root /mnt /sbin/init
"""
USERS = ("messagebus", "sshd", "systemd-network", "systemd-resolve", "polkitd", "systemd-timesync")
#: Seconds to boot on a machine with much else to do.
BOOT_SECONDS = 900.0
#: Options of ssh for a board that takes its time to answer on a loaded machine. What is told first counts.
PATIENT = "-o ConnectTimeout=120 -o ServerAliveCountMax=9"


class NoMachine(Exception):
    """It cannot be had here; the message says why."""


@dataclass(frozen=True)
class Image:
    """The files to boot from, and the key that lets in: "pi", an ordinary user, and "root"."""

    folder: Path

    @property
    def key(self) -> Path:
        """The private ssh key."""
        return self.folder / "key"


def image() -> Image:
    """The image, made on first use: a minute on an idle machine. Raises NoMachine."""
    if os.geteuid() != 0:
        raise NoMachine("only root can make a disk with other users' files")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise NoMachine(
            f"there is no {', '.join(missing)}: sudo apt install qemu-system-arm mmdebstrap cpio kmod e2fsprogs"
        )
    made = cache_directory() / "vm" / _digest()
    if not made.exists():
        shutil.rmtree(made.parent, ignore_errors=True)
    return Image(made_once(made, _make))


def _digest() -> str:
    """Of all that decides what the image holds."""
    parts = [inspect.getsource(each) for each in (_make, _unpack, _write_initrd, _configure, _add_system)]
    said = (PACKAGES, SYSTEMS, SYSTEM_PACKAGES, MODULES, MASKED, INIT, USERS, parts)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:12]


def _make(place: Path) -> Path:
    folder = place / "image"
    folder.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = _unpack("arm64", PACKAGES, Path(scratch), debian.SUITE)
        (kernel,) = [path.name for path in (root / "lib/modules").iterdir()]
        subprocess.run(["depmod", "-b", root, kernel], check=True)
        shutil.copy(root / f"boot/vmlinuz-{kernel}", folder / "vmlinuz")
        _write_initrd(root, kernel, Path(scratch) / "initrd", folder / "initrd.img")
        shutil.rmtree(root / "lib/modules")
        shutil.rmtree(root / "boot")
        _configure(root, (folder / "key.pub").read_text())
        for number, (name, (suite, architecture)) in enumerate(SYSTEMS.items(), 1001):
            with tempfile.TemporaryDirectory(dir=folder) as other:
                _unpack(architecture, SYSTEM_PACKAGES, Path(other), suite).rename(root / "systems" / name)
            _add_system(root, name, number, (folder / "key.pub").read_text())
        disk = folder / "disk.img"
        with disk.open("wb") as file:
            file.truncate(2 << 30)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^metadata_csum_seed", "-d", root, disk], check=True)
    return folder


def _unpack(architecture: str, packages: Sequence[str], scratch: Path, suite: str) -> Path:
    """A system's files, without what only people read."""
    root = debian.unpack(architecture, packages, scratch, suite)
    for unneeded in (
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/lib/firmware",
        "var/lib/apt",
        "var/cache/apt",
    ):
        shutil.rmtree(root / unneeded, ignore_errors=True)
    return root


def _add_system(root: Path, name: str, number: int, key: str) -> None:
    """Make ``root``/systems/``name`` the system that the user ``name`` logs into."""
    system = root / "systems" / name
    user = f"{name}:x:{number}:{number}::/home/{name}:/bin/bash\n"
    shadow = f"{name}:*:19000:0:99999:7:::\n"
    for file, line in (("passwd", user), ("group", f"{name}:x:{number}:\n"), ("shadow", shadow)):
        with (root / "etc" / file).open("a") as listed:
            listed.write(line)
    (system / "etc/passwd").write_text(f"root:x:0:0::/root:/bin/bash\n{user}")
    (system / "etc/group").write_text(f"root:x:0:\n{name}:x:{number}:\n")
    (system / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    with (root / "etc/fstab").open("a") as mounts:
        for each in ("dev", "proc"):
            mounts.write(f"/{each} /systems/{name}/{each} none rbind 0 0\n")
            (system / each).mkdir(exist_ok=True)
    home = system / "home" / name
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".ssh/authorized_keys").write_text(key)
    for path in (home, *home.rglob("*")):
        os.chown(path, number, number)
    (system / "tmp").chmod(0o1777)
    shell = system / "bin/sh"
    if not shell.exists():
        shell.symlink_to("dash")


def _write_initrd(root: Path, kernel: str, scratch: Path, out: Path) -> None:
    for name in ("bin", "dev", "proc", "sys", "mnt", "lib"):
        (scratch / name).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", scratch / "bin/busybox")
    (scratch / "bin/sh").symlink_to("busybox")
    wanted: dict[str, None] = {}
    for module in MODULES:
        command = ["modprobe", "-d", root, "-S", kernel, "--show-depends", module]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        wanted |= {line.split()[1]: None for line in said.splitlines() if line.startswith("insmod")}
    for number, path in enumerate(wanted):
        shutil.copy(path, scratch / "lib" / f"{number:03d}-{Path(path).name}")
    (scratch / "init").write_text(INIT)
    (scratch / "init").chmod(0o755)
    names = subprocess.run(["find", "."], cwd=scratch, capture_output=True, check=True).stdout
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], cwd=scratch, input=names, capture_output=True, check=True
    )
    out.write_bytes(packed.stdout)


def _configure(root: Path, key: str) -> None:
    """What the packages' scripts would have done, and a user "pi" without rights."""
    share = root / "usr/share"
    users = (share / "base-passwd/passwd.master").read_text()
    groups = (share / "base-passwd/group.master").read_text()
    for number, name in enumerate(USERS, 100):
        users += f"{name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin\n"
        groups += f"{name}:x:{number}:\n"
    users += "pi:x:1000:1000::/home/pi:/bin/bash\n"
    groups += "pi:x:1000:\nkvm:x:120:\nrender:x:121:\nsgx:x:122:\ninput:x:123:\n"
    shadow = "".join(f"{line.split(':')[0]}:*:19000:0:99999:7:::\n" for line in users.splitlines())
    session = "session required pam_unix.so\n"
    files = {
        "etc/passwd": users,
        "etc/group": groups,
        "etc/shadow": shadow,
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
        "etc/profile": (share / "base-files/profile").read_text(),
        "etc/pam.d/common-auth": "auth sufficient pam_permit.so\n",
        "etc/pam.d/common-account": "account sufficient pam_permit.so\n",
        "etc/pam.d/common-password": "password required pam_deny.so\n",
        "etc/pam.d/common-session": session + "session optional pam_systemd.so\n",
        "etc/pam.d/common-session-noninteractive": session,
        "etc/ssh/sshd_config": "UsePAM yes\nPasswordAuthentication no\nSubsystem sftp /usr/lib/openssh/sftp-server\n"
        f"Match User {','.join(SYSTEMS)}\nChrootDirectory /systems/%u\n"
        "AuthorizedKeysFile /systems/%u/home/%u/.ssh/authorized_keys\n",
        "etc/hostname": "board\n",
        "etc/hosts": "127.0.0.1 localhost board\n",
        "etc/fstab": "",
        "etc/machine-id": "8d0a2c3e4f5b46718293a4b5c6d7e8f9\n",
        "home/pi/.ssh/authorized_keys": key,
        "home/pi/.bashrc": "",
        "root/.ssh/authorized_keys": key,
        "var/lib/systemd/linger/pi": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "etc/shadow").chmod(0o640)
    for folder in ("home/pi/.ssh", "root/.ssh"):
        (root / folder).chmod(0o700)
    for path in (root / "home/pi", *(root / "home/pi").rglob("*")):
        os.chown(path, 1000, 1000)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / "etc/ssh/ssh_host_ed25519_key"], check=True
    )
    (root / "systems").mkdir()
    units = root / "etc/systemd/system"
    (units / "multi-user.target.wants").mkdir(parents=True, exist_ok=True)
    links = {units / "multi-user.target.wants/ssh.service": "/lib/systemd/system/ssh.service"}
    links |= {units / "default.target": "/lib/systemd/system/multi-user.target"}
    links |= {units / unit: "/dev/null" for unit in MASKED}
    links |= {root / "usr/bin/awk": "mawk", root / "bin/sh": "dash"}
    for link, end in links.items():
        if not link.is_symlink():
            link.unlink(missing_ok=True)
            link.symlink_to(end)


@dataclass(frozen=True)
class Machine:
    """A running system; ``environment`` has what our commands need to reach it as "pi@board"."""

    folder: Path
    process: subprocess.Popen[bytes]
    port: int

    @property
    def environment(self) -> Mapping[str, str]:
        """With ssh told how to get there."""
        return {**os.environ, "BITKILN_SSH": f"ssh -F {self.folder / 'ssh_config'} {PATIENT}"}

    def ssh(self, command: str, user: str = "pi", timeout: float = 300.0) -> str:
        """What a shell command there prints. Raises CalledProcessError."""
        argv = ["ssh", "-F", str(self.folder / "ssh_config"), f"{user}@board", command]
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=True).stdout

    def monitor(self, command: str) -> None:
        """Tell qemu something: system_reset, set_link n off, ..."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.folder / "monitor"))
            time.sleep(0.2)
            monitor.sendall(f"{command}\n".encode())
            time.sleep(0.5)
            monitor.recv(65536)

    def wait(self) -> None:
        """Until it lets in. Raises NoMachine."""
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise NoMachine(f"qemu ended: {(self.folder / 'qemu.log').read_text()[-400:]}")
            try:
                self.ssh("true", timeout=150)
                return
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                time.sleep(2)
        raise NoMachine(f"it does not boot; the end of its console: {self.console()[-1000:]}")

    def console(self) -> str:
        """What it has printed."""
        return (self.folder / "console.log").read_text(errors="replace")


@contextmanager
def running(made: Image, folder: Path, cpu: str = "cortex-a53") -> Iterator[Machine]:
    """Boot a copy of the image; it ends with the context. Raises NoMachine."""
    disk = folder / "disk.img"
    subprocess.run(["cp", "--sparse=always", made.folder / "disk.img", disk], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "ssh_config").write_text(
        f"Host *\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {made.key}\n  IdentitiesOnly yes\n"
        f"  StrictHostKeyChecking no\n  UserKnownHostsFile {folder}/known_hosts\n  LogLevel ERROR\n  ConnectTimeout 120\n"
    )
    command = [
        "nice",
        "-n",
        "5",
        "qemu-system-aarch64",
        "-M",
        "virt",
        "-cpu",
        cpu,
        "-smp",
        "4",
        "-m",
        "1G",
        "-nodefaults",
    ]
    command += ["-display", "none", "-accel", "tcg,thread=multi", "-kernel", str(made.folder / "vmlinuz")]
    command += [
        "-initrd",
        str(made.folder / "initrd.img"),
        "-append",
        "root=/dev/vda rw console=ttyAMA0 net.ifnames=0 quiet",
    ]
    command += ["-drive", f"file={disk},format=raw,if=none,id=d,cache=unsafe", "-device", "virtio-blk-device,drive=d"]
    command += ["-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-device,netdev=n"]
    command += ["-device", "virtio-rng-device", "-serial", f"file:{folder}/console.log"]
    command += ["-monitor", f"unix:{folder}/monitor,server,nowait"]
    with (folder / "qemu.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    machine = Machine(folder, process, port)
    try:
        machine.wait()
        yield machine
    finally:
        process.kill()
        process.wait(30)

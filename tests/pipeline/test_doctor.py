"""What the doctor says of a machine that has all it needs, and of one that has nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitkiln.pipeline import doctor
from bitkiln.targets import zig


def test_a_bare_machine_is_told_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "apt-get").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(zig, "installed", lambda: False)
    checks = {check.name: check for check in doctor.doctor()}
    assert not any(check.ok for check in checks.values())
    assert "apt-get install gcc-aarch64-linux-gnu" in checks["compiler for 64-bit boards"].explanation
    assert "bitkiln[toolchain]" in checks["compiler for 32-bit boards"].explanation
    for name in ("mmdebstrap", "emulator", "arm64 userland", "armhf userland"):
        assert "apt-get install mmdebstrap" in checks[name].explanation
    assert "apt-get install openssh-client" in checks["ssh"].explanation
    assert not any("scripts/" in check.explanation for check in checks.values())


def test_this_machine_lacks_nothing() -> None:
    assert [check for check in doctor.doctor() if not check.ok] == []

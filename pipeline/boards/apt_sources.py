"""Where this machine gets its Debian packages from, read from apt's own configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bitkiln.pipeline.errors import SetupError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Source:
    """One package archive: its address, suites (e.g. "bookworm"), components and the keyring that signs it."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""

    def line(self, suite: str) -> str:
        """The archive's main component as one line of sources.list, for ``suite`` alone."""
        keyring = self.signed_by or (KEYRING if Path(KEYRING).exists() else "")
        option = f"[signed-by={keyring}] " if keyring else ""
        return f"deb {option}{self.uri} {suite} main"


def archive_for(suite: str, etc: Path = Path("/etc/apt")) -> Source:
    """The archive this machine uses that has ``suite``; otherwise its first Debian archive. Raises SetupError."""
    found = [source for source in sources(etc) if "main" in source.components]
    for source in found:
        if suite in source.suites:
            return source
    for source in found:
        if re.search(r"/debian/?$", source.uri):
            return source
    raise SetupError(f"{etc} names no Debian archive with the suite {suite}: add one to build the board's userland")


def sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """All enabled binary archives in apt's order: sources.list, then sources.list.d; both formats."""
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    found: list[Source] = []
    for path in files:
        if path.is_file() and path.suffix in (".list", ".sources"):
            text = path.read_text(errors="replace")
            found += _stanzas(text) if path.suffix == ".sources" else _lines(text)
    return found


def _lines(text: str) -> Iterator[Source]:
    pattern = re.compile(r"^\s*deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>[^#]*)")
    for match in filter(None, map(pattern.match, text.splitlines())):
        options = dict(word.split("=", 1) for word in (match["options"] or "").split() if "=" in word)
        yield Source(match["uri"], (match["suite"],), tuple(match["rest"].split()), options.get("signed-by", ""))


def _stanzas(text: str) -> Iterator[Source]:
    for block in re.split(r"\n\s*\n", text):
        fields = _fields(block)
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        signed_by = fields.get("signed-by", "")
        # A key may stand in the stanza itself; mmdebstrap takes a file, so the archive's own keyring serves then.
        signed_by = signed_by if signed_by.startswith("/") else ""
        for uri in fields.get("uris", "").split():
            yield Source(uri, tuple(fields.get("suites", "").split()), tuple(fields["components"].split()), signed_by)


def _fields(block: str) -> dict[str, str]:
    fields: dict[str, str] = {"components": ""}
    name = ""
    for line in block.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in (" ", "\t") and name:
            fields[name] += "\n" + line.strip()
        elif ":" in line:
            name, value = line.split(":", 1)
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields

"""Who may use boards: the secret that a user's trackers and boards share, and addresses that know whether to ask for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from bitkiln.pipeline.device import board_wire as wire
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.support.files import config_directory

#: Names another file than the usual one.
VARIABLE = "BITKILN_SECRET_FILE"
#: Before an address: use what is there although it proves nothing.
INSECURE = "insecure://"


@dataclass(frozen=True)
class Address:
    """A host and a port, and the secret that whoever listens there shares with us; None trusts anybody there."""

    host: str
    port: int
    secret: bytes | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Address:
        """``HOST:PORT``, where this user's secret is asked for, or ``insecure://HOST:PORT``. Raises BoardError."""
        address = cls.bare(text.removeprefix(INSECURE))
        return address if text.startswith(INSECURE) else cls(address.host, address.port, user_secret())

    @classmethod
    def bare(cls, text: str) -> Address:
        """``HOST:PORT`` without a secret. Raises BoardError."""
        host, _, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
        if not host or (":" in host and not bracketed) or not 0 < number < 65536:
            raise BoardError(f"{text!r} is not an address of the form HOST:PORT")
        return cls(host[1:-1] if bracketed else host, number)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def secret_file() -> Path:
    """Where this user's secret is."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else config_directory() / "secret"


def user_secret(create: bool = False) -> bytes:
    """This user's secret; ``create`` makes one where there is none. Raises BoardError."""
    path = secret_file()
    try:
        if create and not path.exists():
            return wire.write_secret(path)
        return wire.read_secret(path)
    except FileExistsError:
        return user_secret()
    except FileNotFoundError:
        raise BoardError(
            f"{path}: there is no secret yet that trackers and boards share with you: `bitkiln boards tracker` makes one; "
            f"if that ran elsewhere copy its file; {INSECURE}HOST:PORT does without, and trusts everybody"
        ) from None
    except ValueError as problem:
        raise BoardError(str(problem)) from None
    except OSError as problem:
        raise BoardError(f"{path}: the secret cannot be read or made ({problem.strerror})") from None

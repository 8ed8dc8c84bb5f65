"""JSON from outside, checked while it is read: types, ranges, sizes and depth. Raises Malformed for what does not fit."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

T = TypeVar("T")

# No control characters, no separators of lines and none that turn the direction of writing: what a terminal would obey.
_ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*\Z"

#: Text that may be shown: one line of at most so many characters.
Name = Annotated[str, Meta(max_length=200, pattern=_ONE_LINE)]
Line = Annotated[str, Meta(max_length=2000, pattern=_ONE_LINE)]
Count = Annotated[int, Meta(ge=0, le=1 << 62)]
Port = Annotated[int, Meta(gt=0, lt=65536)]
#: Finite, which JSON cannot say otherwise.
Real = Annotated[float, Meta(ge=-1e300, le=1e300)]
Positive = Annotated[float, Meta(gt=0, le=1e300)]


class Malformed(ValueError):
    """It is not what was expected; the message says where."""


def decode(data: bytes, schema: type[T], most: int) -> T:
    """``data``, JSON of at most ``most`` bytes, as a value of ``schema``. Raises Malformed."""
    if len(data) > most:
        raise Malformed(f"{len(data):,} bytes where at most {most:,} make sense")
    try:
        return msgspec.json.decode(data, type=schema)
    except RecursionError:
        raise Malformed("nested too deep") from None
    except msgspec.ValidationError as problem:
        raise Malformed(_shown(problem)) from None
    except ValueError:
        raise Malformed("torn or not JSON") from None


def table(data: bytes, most: int) -> dict[str, Any]:
    """``data``, JSON of at most ``most`` bytes, as an object of any content. Raises Malformed."""
    return decode(data, dict[str, Any], most)


def convert(value: object, schema: type[T]) -> T:
    """``value``, plain data, as a value of ``schema``. Raises Malformed."""
    try:
        return msgspec.convert(value, schema)
    except RecursionError:
        raise Malformed("nested too deep") from None
    except ValueError as problem:
        raise Malformed(_shown(problem)) from None


def _shown(problem: Exception) -> str:
    """What does not fit, without the pattern of what would."""
    text = str(problem)
    if "matching regex" in text:
        return f"text of a form that does not belong there{text[text.rfind(' - at ') :]}"
    return text[:200]

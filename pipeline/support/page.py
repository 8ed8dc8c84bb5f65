"""Text of files in HTML that is made in Python; ``templating`` makes whole pages."""

from __future__ import annotations

from html import escape

from bitkiln.pipeline.support.text import printable


def shown(text: str, limit: int = 0) -> str:
    """Text out of a file as HTML, at most ``limit`` characters of it."""
    return escape(printable(text, limit))

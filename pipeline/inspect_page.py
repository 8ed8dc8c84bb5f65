"""The inspection of a network as a self-contained HTML page."""

from __future__ import annotations

from bitkiln.pipeline.inspect import Inspection


def render(found: Inspection) -> str:
    """The page as text."""
    return found.name

"""Boards we compile for: one TOML file each, and their loader."""

from bitkiln.targets.loader import Target, UnknownTarget, known, load

__all__ = ["Target", "UnknownTarget", "known", "load"]

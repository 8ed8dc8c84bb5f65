"""Boards we compile for: one TOML file each, and their loader."""

from bitkiln.targets.loader import Target, UnknownTarget, aliases, known, load

__all__ = ["Target", "UnknownTarget", "aliases", "known", "load"]

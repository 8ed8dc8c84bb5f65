"""Compares two profiles that `bitkiln profile --json` printed; exit status 1 where a layer, or the whole, has become slower.

usage: slower.py BEFORE.json AFTER.json [PERCENT]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

#: A kernel's cycles on the simulated board move by less when nothing but addresses changes.
PERCENT = 2.0
#: Steps shorter than this are held to the whole's time alone.
LEAST_MS = 0.02


def slower(before: dict[str, Any], after: dict[str, Any], percent: float) -> list[str]:
    """A line for the whole and each step of ``after`` that takes ``percent`` more than in ``before``."""
    if before["measured_by"] != after["measured_by"]:
        return [f"measured by {before['measured_by']} and by {after['measured_by']}: make a new baseline"]
    known = {step["name"]: step["ms"] for step in before["steps"]}
    pairs = [("the network", before["ms"], after["ms"])]
    pairs += [(step["name"], known[step["name"]], step["ms"]) for step in after["steps"] if step["name"] in known]
    grown = [(name, old, new) for name, old, new in pairs if new > max(old, LEAST_MS) * (1 + percent / 100)]
    return [f"{name}: {new:.3f} ms, was {old:.3f} ms" for name, old, new in grown]


def main() -> int:
    """The command line."""
    before, after = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3])
    found = slower(before, after, float(sys.argv[3]) if len(sys.argv) > 3 else PERCENT)
    for line in found:
        print(f"slower: {line}")
    print(f"{after['ms']:.3f} ms, was {before['ms']:.3f} ms, {after['measured_by']}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

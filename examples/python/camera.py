#!/usr/bin/env python3
"""Says what a camera sees, frame after frame.

    python3 camera.py BUNDLE [SOURCE]

SOURCE is "pi" (a Raspberry Pi camera, the default), "v4l2", "v4l2:1", or a photo or a folder of photos.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from cameras import open_camera


def answers(model: Any, frame: Any, layout: dict[str, Any]) -> str:
    """What a network finds in a frame, by what it is for."""
    if model.task == "detect":
        return ", ".join(f"{box.label} {box.score:.2f}" for box in model.detect(frame, **layout)) or "nothing"
    return ", ".join(f"{label} {score:.2f}" for label, score in model.classify(frame, top=3, **layout))


def main(bundle: str, source: str = "pi") -> None:
    """Load the bundle once, then look at every frame."""
    sys.path.insert(0, bundle)
    from runner import Model, RunnerError

    camera = open_camera(source)
    try:
        with Model(bundle) as model:
            for frame, layout in camera:
                began = time.perf_counter()
                print(f"{answers(model, frame, layout)}  ({1e3 * (time.perf_counter() - began):.0f} ms)", flush=True)
    except RunnerError as error:
        sys.exit(f"camera: {error}")
    except KeyboardInterrupt:
        pass
    finally:
        camera.close()


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

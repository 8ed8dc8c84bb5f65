#!/usr/bin/env python3
"""Looks at image after image on a board, or on an emulated one: ``frames.py BUNDLE COUNT [THRESHOLD]``.

Standard input has, for each image, a line ``WIDTH HEIGHT`` and its RGB pixels; standard output gets a line of JSON for each:
``{"top": [class, ...]}`` with COUNT classes, best first, or of detectors ``{"boxes": [[class, score, left, top, right, bottom],
...]}`` with the best COUNT boxes of at least THRESHOLD, in pixels of the image. It ends with its input.
"""

from __future__ import annotations

import array
import json
import sys
from typing import TYPE_CHECKING, Any


def main(folder: str, count: int, threshold: float | None) -> None:
    sys.path.insert(0, folder)
    if TYPE_CHECKING:
        from bitkiln.pipeline.device.runner import DTYPES, Bundle, Frame, Model, RunnerError
    else:
        from runner import DTYPES, Bundle, Frame, RunnerError

    def answer(model: Model) -> dict[str, Any]:
        if model.task == "detect":
            boxes = model.boxes(threshold, most=count)
            return {"boxes": [[box.number, box.score, box.left, box.top, box.right, box.bottom] for box in boxes]}
        scores = array.array(DTYPES[model.outputs[0].dtype][0], model.output(0).tobytes())
        return {"top": sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:count]}

    try:
        model = Bundle(folder).model(1)
        while True:
            line = sys.stdin.buffer.readline()
            if not line:
                return
            width, height = map(int, line.split())
            data = sys.stdin.buffer.read(3 * width * height)
            model.prepare(Frame(data, width, height, "RGB"))
            model.run()
            print(json.dumps(answer(model)), flush=True)
    except RunnerError as error:
        sys.exit(f"frames: {error}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else None)

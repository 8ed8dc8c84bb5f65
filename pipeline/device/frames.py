#!/usr/bin/env python3
"""Classifies image after image on a board, or on an emulated one: ``frames.py BUNDLE COUNT``.

Standard input has, for each image, a line ``WIDTH HEIGHT`` and its RGB pixels; standard output gets a line of JSON for each:
``{"top": [[class, score], ...]}`` with COUNT classes, best first. It ends with its input.
"""

from __future__ import annotations

import array
import json
import sys
from typing import TYPE_CHECKING


def main(folder: str, count: int) -> None:
    sys.path.insert(0, folder)
    if TYPE_CHECKING:
        from bitkiln.pipeline.device.runner import DTYPES, Bundle, Frame, RunnerError
    else:
        from runner import DTYPES, Bundle, Frame, RunnerError

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
            scores = array.array(DTYPES[model.outputs[0].dtype][0], model.output(0).tobytes())
            best = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:count]
            print(json.dumps({"top": [[index, scores[index]] for index in best]}), flush=True)
    except RunnerError as error:
        sys.exit(f"frames: {error}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

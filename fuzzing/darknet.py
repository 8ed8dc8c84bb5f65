"""darknet networks: cfgs damaged as text and line by line, with weights that fit what is left of them, or damaged weights."""

from __future__ import annotations

import re
import struct
import tempfile
from pathlib import Path
from random import Random

from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.importers import load_model
from fuzzing.bytes_mutation import FLOATS, NUMBERS, TEXTS, damage
from fuzzing.case import Case

_HEADER = struct.pack("<3iq", 0, 2, 0, 0)

#: The most weights a case brings along; what needs more is refused for its length.
_MOST_BYTES = 1 << 20

_SEEDS = (
    "[net]\nbatch=1\nwidth=12\nheight=10\nchannels=3\n\n"
    "[convolutional]\nbatch_normalize=1\nfilters=8\nsize=3\nstride=1\npad=1\nactivation=leaky\n\n"
    "[maxpool]\nsize=2\nstride=2\n\n"
    "[convolutional]\nxnor=1\nbatch_normalize=1\nfilters=8\nsize=3\nstride=1\npad=1\ngroups=1\nactivation=leaky\n\n"
    "[shortcut]\nfrom=-2\nactivation=linear\n\n[route]\nlayers=-1, 1\n\n[dropout]\nprobability=.5\n\n"
    "[convolutional]\nxnor=1\nfilters=6\nsize=1\nactivation=relu\n\n[avgpool]\n\n"
    "[connected]\noutput=5\nactivation=linear\n\n[softmax]\ngroups=1\ntemperature=1\n\n[cost]\ntype=sse\n",
    "[net]\nwidth=8\nheight=8\nchannels=4\n\n[reorg]\nstride=2\n\n[upsample]\nstride=2\nscale=.5\n\n"
    "[crop]\ncrop_width=6\ncrop_height=6\nflip=0\n\n[normalization]\nsize=5\nalpha=.1\nbeta=.7\nkappa=1\n\n[batchnorm]\n\n"
    "[local]\nfilters=2\nsize=3\nstride=1\npad=1\nactivation=ramp\n\n"
    "[convolutional]\nbinary=1\nfilters=14\nsize=1\nstride=1\nactivation=linear\n\n"
    "[yolo]\nmask=0,1\nanchors=1,2, 3,4\nclasses=2\nnum=2\nscale_x_y=1.1\n\n"
    "[region]\nclasses=2\ncoords=4\nnum=2\nsoftmax=1\n",
)


def case(random: Random, index: int) -> Case:
    """Damaged text, damaged lines, or damaged weights."""
    seed = random.choice(_SEEDS)
    if index % 4 == 0:
        weights, how = damage(random, _fitting(random, seed.encode()))
        return Case({"m.cfg": seed.encode(), "m.weights": weights}, f"weights {how}")
    cfg, how = damaged_file(random, seed.encode())
    return Case({"m.cfg": cfg, "m.weights": _fitting(random, cfg)}, how)


def damaged_file(random: Random, content: bytes) -> tuple[bytes, str]:
    """A cfg damaged as bytes, or in one to three of its lines."""
    if random.random() < 0.25:
        return damage(random, content)
    lines, done = content.split(b"\n"), []
    for _ in range(random.choice((1, 1, 2, 3))):
        done.append(_mutate(random, lines))
    return b"\n".join(lines), "; ".join(done)


def _mutate(random: Random, lines: list[bytes]) -> str:
    place = random.randrange(len(lines))
    what = random.choice(("value", "value", "value", "remove", "repeat", "move", "swap"))
    if what == "value":
        places = [index for index, line in enumerate(lines) if b"=" in line] or [place]
        place = random.choice(places)
        value = str(random.choice((random.choice(NUMBERS), random.choice(FLOATS), random.choice(TEXTS), "0,-1,0")))
        lines[place] = lines[place].partition(b"=")[0] + b"=" + value.encode()
    elif what == "remove":
        del lines[place]
        lines.append(b"")
    elif what == "repeat":
        lines[place:place] = [lines[place]] * random.choice((1, 3, 200))
    else:
        other = random.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
    return f"{what} at line {place + 1}"


def _fitting(random: Random, cfg: bytes) -> bytes:
    """Weights of the length that the importer asks for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.cfg"
        path.write_bytes(cfg)
        path.with_suffix(".weights").write_bytes(_HEADER + bytes(1))
        try:
            load_model(path)
        except BitkilnError as refusal:
            wanted = re.search(r" need ([0-9]+); ", str(refusal))
            count = (int(wanted[1]) - len(_HEADER)) // 4 if wanted else 0
            if 0 < 4 * count <= _MOST_BYTES:
                return _HEADER + struct.pack(f"<{count}f", *(random.uniform(0.01, 1) for _ in range(count)))
    return _HEADER

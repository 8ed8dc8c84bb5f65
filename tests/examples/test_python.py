"""The Python examples, with networks compiled for this machine that hand their prepared image through."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitkiln.pipeline.compile.link import DEVICE, link_library
from bitkiln.pipeline.compile.plan import make_plan, new_view
from bitkiln.pipeline.model import Preprocessing
from bitkiln.targets import Target
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "examples" / "python"


@pytest.fixture(scope="module")
def bundles(host: Target, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two networks of 2 x 2 pixels: the best class is the brightest value's place, for the second the darkest's."""
    folders = {}
    for name, scale in (("bright", 1.0), ("dark", -1.0)):
        folder = tmp_path_factory.mktemp(name)
        image = new_view("image", (1, 2, 2, 3), "float32", boundary=True)
        how = Preprocessing(2, 2, scale=(scale,) * 3)
        plan = replace(make_plan([], [image], [image]), preprocessing=how, image=(2, 2))
        link_library({}, (), plan, host, folder / "model.so")
        shutil.copy(DEVICE / "runner.py", folder)
        folders[name] = folder
    return folders


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos of 2 x 2 pixels: the green of the second pixel is brightest, then the blue of the last."""
    folder = tmp_path_factory.mktemp("photos")
    for at, name in ((4, "a.png"), (11, "b.png")):
        pixels = np.full(12, 100, "uint8")
        pixels[at], pixels[0] = 200, 50
        Image.fromarray(pixels.reshape(2, 2, 3)).save(folder / name)
    return folder


def test_the_camera_loop_looks_at_every_frame(bundles: dict[str, Path], photos: Path) -> None:
    command = [sys.executable, FOLDER / "camera.py", bundles["bright"], photos]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("class 4 200.00, ") and first.endswith(" ms)")
    assert second.startswith("class 11 200.00, ")


def test_the_camera_loop_says_what_is_wrong_in_a_line(bundles: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("meow")
    command = [sys.executable, FOLDER / "camera.py", bundles["bright"], tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("camera: ") and len(done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def address(bundles: dict[str, Path]) -> Iterator[str]:
    names = [f"{name}={folder}" for name, folder in bundles.items()]
    process = subprocess.Popen(
        [sys.executable, FOLDER / "service.py", *names, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process.stdout.readline().rpartition(": ")[0]
    process.kill()
    process.communicate()


def asked(address: str, data: bytes) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_service_has_two_networks(address: str, photos: Path) -> None:
    photo = (photos / "a.png").read_bytes()
    status, answer = asked(f"{address}/bright", photo)
    assert status == 200 and answer["top"][0] == {"label": "class 4", "score": 200.0}
    status, answer = asked(f"{address}/dark", photo)
    assert status == 200 and answer["top"][0] == {"label": "class 0", "score": -50.0}


def test_the_service_refuses_what_is_no_photo(address: str) -> None:
    assert asked(f"{address}/bright", b"meow")[0] == 400
    assert asked(f"{address}/absent", b"meow")[0] == 404
    assert asked(f"{address}/bright", b"")[0] == 413
    large = io.BytesIO()
    Image.new("1", (20000, 9000)).save(large, "PNG")
    assert asked(f"{address}/bright", large.getvalue())[0] == 400

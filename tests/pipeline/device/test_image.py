"""image.c against Pillow and numpy, and what runner.py takes for a frame."""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitkiln.pipeline.compile.link import DEVICE, RUNTIME_SOURCES, link_library, plan_source
from bitkiln.pipeline.compile.plan import make_plan, new_view
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.model import Candidates, Head, Preprocessing
from bitkiln.pipeline.reference.photos import place, prepare
from bitkiln.targets import Target

HOW = Preprocessing(height=24, width=32, mean=(127.5, 100.0, 90.0), scale=(0.017, 0.02, 0.015), resize_to=40)
GREY = replace(HOW, channel_order="GREY", mean=(33.0,), scale=(0.25,))
RNG = np.random.default_rng(5)


def identity(host: Target, folder: Path, how: Preprocessing, dtype: str = "float32") -> runner.Model:
    """A network that hands its image through."""
    channels = len(how.mean)
    shape = (1, how.height, how.width, channels) if how.layout == "NHWC" else (1, channels, how.height, how.width)
    x = new_view("x", shape, dtype, boundary=True)
    plan = replace(make_plan([], [x], [x]), preprocessing=how, image=(how.height, how.width))
    link_library({}, (), plan, host, folder / "model.so")
    return runner.Model(folder / "model.so", 1)


def prepared(model: runner.Model, frame: object, **layout: object) -> np.ndarray:
    model.prepare(frame, **layout)
    model.run()
    return model.output(0)


def pixels(width: int, height: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), "uint8")


@pytest.mark.parametrize(
    "how",
    [
        HOW,
        replace(HOW, channel_order="BGR", layout="NCHW"),
        replace(HOW, resize="short-side"),
        replace(HOW, resize="short-side", channel_order="BGR"),
        replace(HOW, resize="letterbox"),
        replace(HOW, resize="letterbox", layout="NCHW", fill=114.0),
        GREY,
        replace(GREY, resize="letterbox"),
    ],
    ids=lambda how: f"{how.resize}-{how.channel_order}-{how.layout}",
)
def test_images_are_prepared_as_pillow_and_numpy_do(host: Target, tmp_path: Path, how: Preprocessing) -> None:
    with identity(host, tmp_path, how) as model:
        for size in ((200, 150), (31, 57), (32, 24), (640, 9), (5, 7), (1, 1), (333, 334)):
            image = Image.fromarray(pixels(*size))
            expected = prepare(image, asdict(how), "float32")
            for frame in (image, np.asarray(image)):
                np.testing.assert_array_equal(prepared(model, frame), expected, err_msg=str(size))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_integers_are_rounded_and_clipped(host: Target, tmp_path: Path, dtype: str) -> None:
    how = replace(HOW, mean=(127.5, 0.0, 255.0), scale=(1.0, 1.5, 1.0))
    image = Image.fromarray(pixels(64, 48))
    with identity(host, tmp_path, how, dtype) as model:
        np.testing.assert_array_equal(prepared(model, image), prepare(image, asdict(how), dtype))


def test_a_letterbox_keeps_the_ratio_and_fills_with_grey() -> None:
    how = asdict(
        replace(HOW, resize="letterbox", mean=(0.0,) * 3, scale=(1 / 255,) * 3, height=416, width=416, fill=127.5)
    )
    image = Image.new("RGB", (768, 576), (255, 0, 0))
    values = prepare(image, how, "float32")[0]
    assert place(image.size, how).size == (416, 312) and place(image.size, how).start == (0, -52)
    np.testing.assert_allclose(values[:52], 0.5)
    np.testing.assert_allclose(values[364:], 0.5)
    np.testing.assert_allclose(values[52:364], np.broadcast_to([1, 0, 0], (312, 416, 3)), rtol=1e-6)


# --- Layouts of pixels -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(host: Target, tmp_path_factory: pytest.TempPathFactory) -> runner.Model:
    """Pixels as they are, 32 x 24."""
    how = replace(HOW, mean=(0.0,) * 3, scale=(1.0,) * 3)
    return identity(host, tmp_path_factory.mktemp("plain"), how, "uint8")


def test_packed_layouts_are_one_image(plain: runner.Model) -> None:
    rgb = pixels(32, 24)
    padded = np.zeros((24, 100), "uint8")
    padded[:, :96] = rgb.reshape(24, 96)
    frames = [
        (rgb, {}),
        (rgb[..., ::-1], {"pixels": "BGR"}),
        (np.dstack([rgb, np.full((24, 32), 255, "uint8")]), {}),
        (np.dstack([rgb[..., ::-1], np.zeros((24, 32), "uint8")]), {"pixels": "BGRX"}),
        (rgb.tobytes(), {"pixels": "RGB", "size": (32, 24)}),
        (padded.tobytes(), {"pixels": "RGB", "size": (32, 24), "stride": 100}),
        (rgb.astype("uint16") * 257, {}),
    ]
    for frame, layout in frames:
        np.testing.assert_array_equal(prepared(plain, frame, **layout)[0], rgb)
    grey = pixels(32, 24, 1)[..., 0]
    np.testing.assert_array_equal(prepared(plain, grey)[0], np.dstack([grey] * 3))


def test_transparent_pixels_are_white(plain: runner.Model) -> None:
    rgba = np.zeros((24, 32, 4), "uint8")
    rgba[:, 16:, 3] = 255
    for frame in (rgba, Image.fromarray(rgba), rgba[..., [2, 1, 0, 3]]):
        values = prepared(plain, frame)[0]
        assert (values[:, :16] == 255).all() and (values[:, 16:] == 0).all()


def yuv420(rgb: np.ndarray, stride: int, rows: int) -> np.ndarray:
    """BT.601 of photos by definition, in planes that are padded."""
    r, g, b = rgb.astype(float).transpose(2, 0, 1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    u, v = 128 + (b - y) / 1.772, 128 + (r - y) / 1.402
    height, width = y.shape
    planes = np.full((rows * 3 // 2, stride), 77, "uint8")
    planes[:height, :width] = np.rint(y)
    for number, plane in enumerate((u, v)):
        halves = plane[::2, ::2].round().clip(0, 255)
        flat = planes[rows:].reshape(2, rows // 2, stride // 2)
        flat[number, : halves.shape[0], : halves.shape[1]] = halves
    return planes


@pytest.mark.parametrize("as_bytes", [False, True])
def test_camera_buffers_become_the_colours_they_are_of(plain: runner.Model, as_bytes: bool) -> None:
    rgb = np.zeros((24, 32, 3), "uint8")
    rgb[:12, :16], rgb[:12, 16:], rgb[12:, :16], rgb[12:, 16:] = (
        (255, 0, 0),
        (0, 255, 0),
        (30, 60, 250),
        (128, 128, 128),
    )
    planes = yuv420(rgb, 64, 32)
    layout = {"pixels": "YUV420", "size": (32, 24)}
    frame = planes.tobytes() if as_bytes else planes
    values = prepared(plain, frame, **layout, **({"stride": 64, "rows": 32} if as_bytes else {}))
    assert np.abs(values[0].astype(int) - rgb).max() <= 2
    u, v = planes[32:].reshape(2, 16, 32)
    planes[32:] = np.dstack([u, v]).reshape(16, 64)
    assert np.abs(prepared(plain, planes, pixels="NV12", size=(32, 24))[0].astype(int) - rgb).max() <= 2


def test_video_range_is_widened(plain: runner.Model) -> None:
    frame = np.full((36, 32), 128, "uint8")
    frame[:12], frame[12:24] = 16, 235
    values = prepared(plain, frame, pixels="YUV420", video_range=True)[0]
    assert (values[:12] == 0).all() and (values[12:] == 255).all()


@pytest.mark.parametrize(
    ("frame", "layout", "message"),
    [
        (None, {}, "a frame is an array, a PIL image, a path or bytes"),
        (np.zeros((24, 32, 3)), {}, "frames are uint8"),
        (np.zeros((24, 32, 2), "uint8"), {}, "a frame is"),
        (np.zeros((24, 32, 3), "uint8"), {"pixels": "rgb"}, "pixels 'rgb' are none of RGB"),
        (np.zeros((24, 32), "uint8"), {"pixels": "RGB"}, "a frame is"),
        (np.zeros((25, 32), "uint8"), {"pixels": "YUV420"}, "YUV420 is an array of"),
        (np.zeros((36, 32), "uint16"), {"pixels": "YUV420"}, "frames are uint8"),
        (np.zeros((24, 32, 3), "uint8"), {"size": (24, 32)}, "size 24x32 is not that of the array, 32x24"),
        (np.zeros((24, 32, 3), "uint8"), {"stride": 200}, "an array's shape says them"),
        (np.zeros((24, 32, 3), "uint8"), {"video_range": True}, "of YUV420 and NV12 alone"),
        (np.zeros((24, 32, 3), "uint8"), {"pixels": ["RGB"]}, "are none of RGB"),
        (Image.new("RGB", (32, 24)), {"pixels": "BGR"}, "say themselves how their pixels lie"),
        ("photo.jpg", {"size": (32, 24)}, "say themselves how their pixels lie"),
        (Image.new("I", (32, 24)), {}, "whole numbers of nobody knows what range"),
        (bytes(24), {"pixels": "GREY", "size": 24}, "2 whole numbers wanted"),
        (bytes(24), {"pixels": "GREY", "size": (4.0, 6.0)}, "2 whole numbers wanted"),
        (bytes(24), {}, "need pixels"),
        (bytes(24), {"pixels": "RGB", "size": (32, 24)}, "the image takes 2304 bytes, 24 were given"),
        (bytes(24), {"pixels": "RGB", "size": (0, 24)}, "make no sense"),
        (bytes(24), {"pixels": "RGB", "size": (-1, 24)}, "an image of -1"),
        (bytes(24), {"pixels": "RGB", "size": (1 << 40, 24)}, "an image of 1099511627776"),
        (bytes(24), {"pixels": "GREY", "size": (4, 6), "stride": 3}, "make no sense"),
        (bytes(24), {"pixels": "NV12", "size": (4, 4), "rows": 2}, "make no sense"),
    ],
)
def test_what_is_no_frame_is_refused(plain: runner.Model, frame: object, layout: dict, message: str) -> None:
    with pytest.raises(runner.RunnerError, match=message):
        plain.prepare(frame, **layout)


# --- Files ------------------------------------------------------------------------------------------------------------


def saved(folder: Path, image: Image.Image, name: str = "photo.png", **options: object) -> str:
    image.save(folder / name, **options)
    return str(folder / name)


def test_files_of_16_bits_are_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 255, 257, 32768, 65535]], "uint16")
    image = runner.read_photo(saved(tmp_path, Image.fromarray(values)))
    assert np.asarray(image).tolist() == [[0, 1, 1, 128, 255]]


def png_with_a_clear_colour(folder: Path, mode: str, shade: int | tuple[int, ...]) -> str:
    """A PNG of one pixel of 16 bits, whose colour is the transparent one."""
    shades = struct.pack(">H" if mode == "I;16" else ">HHH", *np.atleast_1d(shade))
    head = struct.pack(">IIBBBBB", 1, 1, 16, 0 if mode == "I;16" else 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"tRNS", shades), (b"IDAT", zlib.compress(b"\0" + shades)), (b"IEND", b""))
    written = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    (folder / "clear.png").write_bytes(b"\x89PNG\r\n\x1a\n" + written)
    return str(folder / "clear.png")


def test_files_of_print_colours_palettes_and_transparency(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = np.asarray(runner.read_photo(saved(tmp_path, cmyk, "print.jpg", quality=100)))
    assert (np.abs(red.astype(int) - (254, 0, 0)) < 6).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    read = runner.read_photo(saved(tmp_path, palette, transparency=1))
    assert np.asarray(read).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    for mode, shade in (("I;16", 1000), ("RGB", (1000, 2000, 3000))):  # Pillow compares 16 bits with 8.
        clear = png_with_a_clear_colour(tmp_path, mode, shade)
        with pytest.raises(runner.RunnerError, match=r"of 16 bits .*; save it with 8 bits"):
            runner.read_photo(clear)
    half = Image.new("LA", (1, 1), (0, 128))
    assert np.asarray(runner.read_photo(saved(tmp_path, half))).tolist() == [[[127] * 3]]


#: EXIF's orientations (CIPA DC-008, tag 274): how the stored picture is made of the upright one.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
    9: lambda upright: upright,  # no orientation
}


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_photos_are_turned_upright(tmp_path: Path, kind: str) -> None:
    upright = pixels(5, 4)
    for number, stored in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = number
        image = Image.fromarray(np.ascontiguousarray(stored(upright)))
        path = saved(tmp_path, image, f"photo.{kind}", exif=exif, **({"lossless": True} if kind == "webp" else {}))
        frame = runner.to_frame(path)
        np.testing.assert_array_equal(np.frombuffer(frame.data, "uint8").reshape(4, 5, 3), upright, err_msg=str(number))


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    """Pillow's decoders raise a dozen types; orientations are read once, of the file."""
    random, refused = np.random.default_rng(0), 0
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("jpg", "png", "gif", "webp", "tiff", "bmp"):
        content = np.frombuffer(
            Path(saved(tmp_path, Image.fromarray(pixels(16, 12)), f"p.{kind}", exif=exif)).read_bytes(), "uint8"
        )
        for _ in range(60):
            damaged = content[: random.integers(1, len(content) + 1)].copy()
            damaged[random.integers(0, min(len(damaged), 200), 3)] = random.integers(0, 256, 3)
            (tmp_path / "damaged").write_bytes(damaged.tobytes())
            try:
                runner.to_frame(str(tmp_path / "damaged"))
            except runner.RunnerError as error:
                refused += 1
                assert "damaged" in str(error) and "\n" not in str(error)
    assert refused > 100


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_text("meow")
    with pytest.raises(runner.RunnerError, match=r"cat\.jpg: not an image"):
        runner.read_photo(str(tmp_path / "cat.jpg"))
    with pytest.raises(runner.RunnerError, match=r"dog\.jpg: no such file"):
        runner.read_photo(str(tmp_path / "dog.jpg"))
    floats = saved(tmp_path, Image.fromarray(np.zeros((4, 4), "float32")), "depth.tiff")
    with pytest.raises(runner.RunnerError, match=r"depth\.tiff: its pixels are fractions"):
        runner.read_photo(floats)


@pytest.mark.parametrize("read", [runner.read_photo, runner.read_tensors])
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path, read: Callable[[str], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(runner.RunnerError, match="is not a file"):
            read(str(path))


def test_absurd_images_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    wide = saved(tmp_path, Image.new("1", (1, 40000)))
    with pytest.raises(runner.RunnerError, match="1 x 40000 pixels; at most"):
        runner.read_photo(wide)
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(Path(wide).read_bytes().replace(struct.pack(">II", 1, 40000), struct.pack(">II", 60000, 60000)))
    with pytest.raises(runner.RunnerError, match=r"too many pixels|damaged"):
        runner.read_photo(str(bomb))
    with pytest.raises(runner.RunnerError, match="20000 x 4000 pixels"):
        runner.to_frame(Image.new("1", (20000, 4000)))


def test_a_long_thin_image_takes_little_memory(host: Target, tmp_path: Path) -> None:
    with identity(host, tmp_path, replace(HOW, resize="short-side", resize_to=256)) as model:
        before = runner.peak_memory_mib()
        assert np.isfinite(prepared(model, pixels(1, 30000))).all()
        assert runner.peak_memory_mib() - before < 50


# --- Sanitizers -------------------------------------------------------------------------------------------------------

RANDOM = r"""
#include "bitkiln.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static unsigned state = 1;
static unsigned draw(unsigned below) { return (state = state * 1664525u + 1013904223u) / 65536u % below; }
int main(void)
{
    bk_model *model = bk_create(1);
    bk_tensor_info info;
    bk_output_info(model, 0, &info);
    int good = 0;
    for (int i = 0; i < 1500; i++) {
        int wild = i % 7 == 0;
        bk_image image = {.width = (int)draw(60) + 1, .height = (int)draw(60) + 1, .pixels = (int)draw(9 + wild)};
        if (draw(2)) image.stride = image.width * 4 + (int)draw(9) - 9 * wild;
        if (draw(2)) image.rows = image.height + (int)draw(9) - 9 * wild;
        image.video_range = (int)draw(2);
        image.nbytes = draw(40000);
        unsigned char *data = malloc(image.nbytes);
        memset(data, i, image.nbytes);
        image.data = data;
        good += bk_prepare(model, &image) == 0;
        free(data);
        unsigned *wild_floats = bk_input_data(model, 1);
        for (size_t k = 0; k < info.nbytes / 4; k++) wild_floats[k] = draw(65536) << 16 | draw(65536);
        if (bk_run(model)) return 1;
        bk_box boxes[7];
        int found = bk_detect(model, (float)draw(3) / 2, 0.5f, boxes, (int)draw(8));
        uint16_t mask[35];
        int masked = bk_segment(model, mask, 7, 5);
        if (found < 0 && masked < 0) return 2;
        for (int k = 0; k < found; k++) if (!(boxes[k].score >= 0) || boxes[k].label < 0) return 3;
    }
    bk_destroy(model);
    puts(good > 100 ? "done" : "hardly an image was right");
    return 0;
}
"""


@pytest.mark.parametrize("resize", ["stretch", "short-side", "letterbox"])
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_sanitizers_find_nothing(host: Target, tmp_path: Path, resize: str, task: str) -> None:
    """Any image, any bytes as outputs: nothing is read or written beyond its end, and no number is out of range."""
    image = new_view("image", (1, 24, 32, 3), "uint8", boundary=True)
    y = new_view("y", (1, 24, 7, 9), "float32", boundary=True)
    part = Candidates("y", "y", "planes", "cell-exp", activation="sigmoid", anchors=((3.0, 4.0),) * 3)
    head = Head("detect", "test", 3, (part,), objectness=True)
    if task == "segment":
        head = Head("segment", "test", 24, output="y", layout="NCHW")
    plan = replace(make_plan([], [image, y], [y]), preprocessing=replace(HOW, resize=resize), head=head, image=(24, 32))
    (tmp_path / "plan.c").write_text(plan_source(plan) + "const unsigned char bk_constants[1];\n")
    (tmp_path / "main.c").write_text(RANDOM)
    flags = ["-std=gnu11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{DEVICE}"]
    sources = [*(DEVICE / name for name in RUNTIME_SOURCES), "plan.c", "main.c"]
    command = ["gcc", *flags, *map(str, sources), "-o", "main", "-lm", "-lpthread"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    done = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]

"""Cameras behind one small interface: iterating one gives ``(frame, layout)`` after another, for ``classify`` and its kin.

``Model.classify(frame, **layout)`` prepares the frame as the bundle says: nothing of mean, scale, size or order of channels is
to be copied here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

Frame = tuple[Any, dict[str, Any]]


class PiCamera:
    """A Raspberry Pi camera (apt install python3-picamera2)."""

    def __init__(self, size: tuple[int, int] = (640, 480)) -> None:
        from picamera2 import Picamera2

        self.camera = Picamera2()
        # What libcamera calls BGR888 has red first in memory.
        self.camera.configure(self.camera.create_video_configuration({"size": size, "format": "BGR888"}))
        self.camera.start()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            yield self.camera.capture_array("main"), {"pixels": "RGB"}

    def close(self) -> None:
        """Give the camera back."""
        self.camera.close()


class V4L2Camera:
    """A USB camera, or anything else that is a /dev/video (apt install python3-opencv)."""

    def __init__(self, device: int = 0, size: tuple[int, int] = (640, 480)) -> None:
        import cv2

        self.camera = cv2.VideoCapture(device, cv2.CAP_V4L2)
        if not self.camera.isOpened():
            raise OSError(f"/dev/video{device}: cannot be opened as a camera")
        self.camera.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
        self.camera.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        # One frame waiting is enough: older ones are of what was there a while ago.
        self.camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def __iter__(self) -> Iterator[Frame]:
        while True:
            well, frame = self.camera.read()
            if not well:
                return
            yield frame, {"pixels": "BGR"}

    def close(self) -> None:
        """Give the camera back."""
        self.camera.release()


class Files:
    """The photos of a folder in the order of their names, or one photo: for trying things out without a camera."""

    def __init__(self, path: str) -> None:
        found = Path(path)
        self.paths = sorted(each for each in found.iterdir() if each.is_file()) if found.is_dir() else [found]

    def __iter__(self) -> Iterator[Frame]:
        for path in self.paths:
            yield str(path), {}

    def close(self) -> None:
        """Nothing is open."""


def open_camera(source: str) -> PiCamera | V4L2Camera | Files:
    """ "pi", "v4l2" or "v4l2:1" (/dev/video1), or the path of a photo or of a folder of photos."""
    name, _, number = source.partition(":")
    if name == "pi":
        return PiCamera()
    if name == "v4l2":
        return V4L2Camera(int(number or 0))
    return Files(source)

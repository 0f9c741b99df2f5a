"""Where the frames of a clip come from: images, an animation, a video file or a camera.

PyAV and OpenCV are imported where they are used.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unified.dependencies import require
from unified.errors import InputError
from unified.files import foreign_content
from unified.inference.image_io import (
    IMAGE_SUFFIXES,
    count_frames,
    find_images,
    read_frames,
    read_image,
)

DEFAULT_FPS = 24.0


class Frame(NamedTuple):
    """One frame of a clip.

    Attributes:
        number: in the source, counted from 0.
        image: (H, W, 3) uint8 RGB.
        name: of its files: that of the image, or the number with five digits.
    """

    number: int
    image: np.ndarray
    name: str


def numbered(index: int) -> str:
    """The name of a frame that has none of its own."""
    return f"{index:05d}"


class Images:
    """Images as a clip; the frame number is the position in natural order.

    Frames keep the names of the images; where two images share one, all are numbered.

    Raises:
        InputError: two images of a folder share one: masks often lie beside their pictures.
    """

    fps = DEFAULT_FPS
    exact = True

    def __init__(self, sources: Sequence[str]) -> None:
        self._paths = find_images(sources)
        _check_beside(self._paths)
        self.total: int | None = len(self._paths)
        names = [path.stem for path in self._paths]
        unique = len(set(names)) == len(names)
        self._names = names if unique else [numbered(index) for index in range(len(names))]

    def read(self, wanted: range) -> Generator[Frame, None, None]:
        for index in wanted:
            if index >= len(self._paths):
                return
            yield Frame(index, read_image(self._paths[index]), self._names[index])


def _check_beside(paths: Sequence[Path]) -> None:
    known: dict[Path, Path] = {}
    for path in paths:
        other = known.setdefault(path.with_suffix(""), path)
        if other != path:
            raise InputError(
                f"{other} and {path} have one name but for the suffix: give the frames of the clip "
                f"alone, such as '{path.parent}/*{other.suffix}', if the others are their masks"
            )


class Animation:
    """The frames of an animated PNG or WebP, the pages of a TIFF."""

    exact = True

    def __init__(self, path: str, total: int, fps: float | None) -> None:
        self._path = path
        self.total: int | None = total
        self.fps = fps or DEFAULT_FPS

    def read(self, wanted: range) -> Generator[Frame, None, None]:
        for index, image in enumerate(read_frames(self._path)):
            if index >= wanted.stop:
                return
            if index in wanted:
                yield Frame(index, image, numbered(index))


class VideoFile:
    """Anything that FFmpeg reads; variable frame rates are read frame by frame."""

    def __init__(self, path: str) -> None:
        self._path = path
        with self._container() as container:
            stream = container.streams.video[0]
            self.fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
            self.exact = stream.frames > 0
            self.total: int | None = stream.frames or None
            if not self.exact and container.duration:
                self.total = max(1, round(container.duration / 1e6 * self.fps))

    def _container(self) -> Any:
        av = require("av")
        try:
            container = av.open(self._path, metadata_errors="replace")  # text is not used
        except (av.FFmpegError, OSError) as error:
            raise InputError(
                foreign_content(self._path, "a video")
                or f"clip {self._path} cannot be read as a video: {_reason(error)}"
            ) from error
        if not container.streams.video:
            container.close()
            raise InputError(f"clip {self._path} holds no video: it is damaged or of another kind")
        return container

    def read(self, wanted: range) -> Generator[Frame, None, None]:
        av = require("av")
        index = 0
        with self._container() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            try:
                # Decoding from the beginning keeps frame numbers exact, which seeking does not.
                for index, picture in enumerate(container.decode(video=0)):
                    if index >= wanted.stop:
                        return
                    if index in wanted:
                        yield Frame(index, _upright(picture), numbered(index))
            except av.FFmpegError as error:
                raise InputError(
                    f"clip {self._path} cannot be decoded after frame {index}: {_reason(error)}"
                ) from error
            size = os.path.getsize(self._path)
            if any(entry.pos + entry.size > size for entry in stream.index_entries):
                # FFmpeg takes the end of the file for the end of the clip.
                raise InputError(
                    f"clip {self._path} is cut off after frame {index}: the file is shorter than "
                    "its index says. Copy it again, or end the part that is read there"
                )


class Camera:
    """A camera that the operating system knows by number; endless."""

    total: int | None = None
    exact = False

    def __init__(self, number: int) -> None:
        self._cv2 = cv2 = require("cv2")
        # The error below says what OpenCV would say less clearly.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise InputError(f"camera {number} cannot be opened: check that it is there and free")
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS)

    def read(self, wanted: range) -> Generator[Frame, None, None]:
        try:
            for index in range(wanted.stop):
                ok, picture = self._capture.read()
                if not ok:
                    return
                if index in wanted:
                    image = self._cv2.cvtColor(picture, self._cv2.COLOR_BGR2RGB)
                    yield Frame(index, image, numbered(index))
        finally:
            self._capture.release()


def open_source(sources: Sequence[str]) -> Images | Animation | VideoFile | Camera:
    """What reads the frames of a clip, see ``FrameReader``."""
    source, path = sources[0], Path(sources[0])
    if len(sources) == 1 and not path.exists() and not glob.has_magic(source):
        if source.isdecimal():
            return Camera(int(source))
        raise InputError(
            f"input {source} does not exist: give a video, a folder or pattern of images, or a "
            "camera number"
        )
    if len(sources) == 1 and _is_video(path):
        return VideoFile(source)
    if len(sources) == 1 and path.is_file():
        total, fps = count_frames(source)
        if total > 1:
            return Animation(source, total, fps)
    if videos := [name for name in sources if _is_video(Path(name))]:
        raise InputError(
            f"{len(sources)} inputs are given and {videos[0]} is no image: one video, or the "
            "images of one, per run"
        )
    return Images(sources)


def _is_video(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES


def _upright(picture: Any) -> np.ndarray:
    """A decoded frame as (H, W, 3) uint8 RGB, turned and mirrored as its display matrix says.

    Source: ISO/IEC 14496-12, 8.3.2: a point is shown at (a x + c y, b x + d y), here the nearest
    multiple of a quarter turn.
    """
    image = picture.to_ndarray(format="rgb24")
    side_data = picture.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return image
    (a, b), (c, d) = np.frombuffer(side_data, np.int32).reshape(3, 3)[:2, :2].tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.transpose(1, 0, 2), c, b
    image = image[:, ::-1] if a < 0 else image
    image = image[::-1] if d < 0 else image
    return np.ascontiguousarray(image)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

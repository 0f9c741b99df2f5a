"""Frames in one at a time from any clip; an H.264 clip out that plays even when cut off.

PyAV and OpenCV are imported where they are used.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from unified.dependencies import require
from unified.errors import InputError
from unified.files import atomic_path
from unified.inference.image_io import IMAGE_SUFFIXES, find_images, read_image
from unified.structures import Size

DEFAULT_FPS = 24.0
KEYFRAME_SECONDS = 2
BT709 = 1  # the number of this standard in ITU-T H.273, for matrix, primaries and transfer


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


class FrameReader:
    """The frames ``start, start + stride, ...`` before ``end`` of a clip, decoded one at a time.

    The first frame is decoded on construction, so that a clip without any is refused at once. All
    frames have the size of the first. Iterate once; close, or use as a context manager.

    Args:
        sources: a video file or a camera number; or images, as files, folders and glob patterns.
        start: number of the first frame in the source.
        end: number of the frame after the last one; None for all.
        stride: every how many frames.

    Raises:
        InputError: nothing to read, or the first frame is damaged. While iterating: a later frame
            is damaged or of another size.

    Attributes:
        fps: frames per second of the frames that are read; 24 / stride for images.
        size: (H, W) of every frame.
        num_frames: how many frames to expect, None when the source does not say. For files that
            give no exact number it is an estimate.
    """

    def __init__(
        self,
        *sources: str | os.PathLike[str],
        start: int = 0,
        end: int | None = None,
        stride: int = 1,
    ) -> None:
        if start < 0 or stride < 1 or (end is not None and end <= start):
            raise InputError(
                f"start {start}, end {end} and stride {stride} select no frame: expected "
                "0 <= start < end and a stride of at least 1"
            )
        self._source = sources[0]
        opened = _open([os.fspath(source) for source in sources])
        self._exact_total = opened.total if opened.exact else None
        last = end if opened.total is None else min(opened.total, end or opened.total)
        self._wanted = range(start, np.iinfo(np.int64).max if end is None else end, stride)
        self.num_frames = None if last is None else len(range(start, last, stride))
        self.fps = opened.fps / stride
        self._frames = opened.read(self._wanted)
        try:
            self._first = next(self._frames, None)
            if self._first is None:
                known = "" if opened.total is None else f", it has {opened.total}"
                raise InputError(f"clip {sources[0]} has no frame from number {start} on{known}")
        except BaseException:
            self.close()
            raise
        self.size: Size = self._first.image.shape[:2]

    def __contains__(self, index: int) -> bool:
        """Whether frame ``index`` of the source can come; the end of some sources is unknown."""
        return index in self._wanted and (self._exact_total is None or index < self._exact_total)

    def __iter__(self) -> Iterator[Frame]:
        frame, self._first = self._first, None
        while frame is not None:
            if frame.image.shape[:2] != self.size:
                found = frame.image.shape[:2]
                raise InputError(
                    f"frame {frame.number} of {self._source} is {found[1]}x{found[0]} pixels, the "
                    f"first is {self.size[1]}x{self.size[0]}: a clip needs frames of one size"
                )
            yield frame
            frame = next(self._frames, None)

    def close(self) -> None:
        self._frames.close()

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Images:
    """Images as a clip; the frame number is the position in natural order.

    Frames keep the names of the images; where two images share one, all are numbered.
    """

    fps = DEFAULT_FPS
    exact = True

    def __init__(self, sources: Sequence[str]) -> None:
        self._paths = find_images(sources)
        self.total: int | None = len(self._paths)
        names = [path.stem for path in self._paths]
        unique = len(set(names)) == len(names)
        self._names = names if unique else [numbered(index) for index in range(len(names))]

    def read(self, wanted: range) -> Generator[Frame, None, None]:
        for index in wanted:
            if index >= len(self._paths):
                return
            yield Frame(index, read_image(self._paths[index]), self._names[index])


class _VideoFile:
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
            container = av.open(self._path)
        except (av.FFmpegError, OSError) as error:
            raise InputError(
                f"clip {self._path} cannot be read as a video: {_reason(error)}"
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


class _Camera:
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


def _open(sources: Sequence[str]) -> _Images | _VideoFile | _Camera:
    source, path = sources[0], Path(sources[0])
    if len(sources) == 1 and not path.exists() and not glob.has_magic(source):
        if source.isdecimal():
            return _Camera(int(source))
        raise InputError(
            f"input {source} does not exist: give a video, a folder or pattern of images, or a "
            "camera number"
        )
    if len(sources) == 1 and _is_video(path):
        return _VideoFile(source)
    if videos := [name for name in sources if _is_video(Path(name))]:
        raise InputError(
            f"{len(sources)} inputs are given and {videos[0]} is no image: one video, or the "
            "images of one, per run"
        )
    return _Images(sources)


def _is_video(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES


def _upright(picture: Any) -> np.ndarray:
    """A decoded frame as (H, W, 3) uint8 RGB, turned as a phone's rotation tag says."""
    image = picture.to_ndarray(format="rgb24")
    quarter_turns = round(picture.rotation / 90) % 4  # counterclockwise
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


class VideoWriter:
    """An H.264 clip in an .mp4 file that browsers play.

    While it is written the file is fragmented, one fragment per frame: whatever ends the process,
    the frames written so far play (but for the last one, which leaves with its successor). Closing
    rewrites it as an ordinary file whose index comes first. Odd sizes are padded by repeating the
    last row or column, because 4:2:0 needs even ones.

    Args:
        path: the final name; an existing file is replaced at once.
        fps: frames per second.
        size: (H, W) of every frame.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, fps: float, size: Size) -> None:
        av = require("av")
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._padding = ((0, size[0] % 2), (0, size[1] % 2), (0, 0))
        self._container = av.open(
            os.fspath(path),
            "w",
            format="mp4",
            options={
                "movflags": "frag_every_frame+empty_moov+default_base_moof",
                "flush_packets": "1",
            },
        )
        rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
        # Without look-ahead, so that every frame is in the file as soon as it was given.
        stream = self._container.add_stream(
            "libx264", rate=rate, options={"crf": "20", "preset": "veryfast", "tune": "zerolatency"}
        )
        stream.height, stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
        stream.pix_fmt = "yuv420p"
        stream.gop_size = max(1, round(KEYFRAME_SECONDS * fps))
        # Untagged colours are guessed by players from the size of the picture.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        self._stream = stream
        self._num_frames = 0
        self._intact = 0  # bytes up to the end of the last whole fragment

    def write(self, image: np.ndarray) -> None:
        """Appends (H, W, 3) uint8 RGB."""
        av = require("av")
        picture = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(np.pad(image, self._padding, mode="edge")), format="rgb24"
        ).reformat(format="yuv420p", dst_colorspace="ITU709")
        picture.pts = self._num_frames
        self._num_frames += 1
        self._container.mux(self._stream.encode(picture))
        self._intact = self._path.stat().st_size

    def close(self) -> None:
        """Ends the clip and puts its index first."""
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        except OSError:
            self._abandon()
            raise
        if self._num_frames:
            _put_index_first(self._path)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            self._abandon()
        else:
            self.close()

    def _abandon(self) -> None:
        """Keeps what plays when the disk is full or gone."""
        with suppress(OSError):
            self._container.close()
        with suppress(OSError):
            os.truncate(self._path, self._intact)


def _put_index_first(path: Path) -> None:
    """Rewrites an .mp4 without encoding it again, so that players can seek and start at once."""
    av = require("av")
    with atomic_path(path) as temporary, av.open(os.fspath(path)) as source:
        options = {"movflags": "faststart"}
        with av.open(os.fspath(temporary), "w", format="mp4", options=options) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

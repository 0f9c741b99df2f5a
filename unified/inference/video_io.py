"""Frames in one at a time from any clip; an H.264 clip out that plays even when cut off.

PyAV is imported where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np

from unified.dependencies import require
from unified.errors import InputError
from unified.files import atomic_path
from unified.inference.clip_sources import Frame, open_source
from unified.structures import Size

__all__ = ["Frame", "FrameReader", "VideoWriter"]

KEYFRAME_SECONDS = 2
BT709 = 1  # the number of this standard in ITU-T H.273, for matrix, primaries and transfer


class FrameReader:
    """The frames ``start, start + stride, ...`` before ``end`` of a clip, decoded one at a time.

    The first frame is decoded on construction, so that a clip without any is refused at once. All
    frames have the size of the first. Iterate once; close, or use as a context manager.

    Args:
        sources: a video file, an animated or many-paged image, or a camera number; or images, as
            files, folders and glob patterns.
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
        opened = open_source([os.fspath(source) for source in sources])
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

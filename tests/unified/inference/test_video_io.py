"""Frames in from every kind of clip; clips out that play, also when the writer is killed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from unified.errors import InputError
from unified.inference.image_io import write_image
from unified.inference.video_io import FrameReader, VideoWriter

NUM_FRAMES = 10


def picture(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A flat grey that tells its number, with a white left upper quarter."""
    image = np.full((*size, 3), 20 * number, np.uint8)
    image[: size[0] // 2, : size[1] // 2] = 255
    return image


def numbers(images: list[np.ndarray]) -> list[int]:
    return [round(float(image[-12:, -12:].mean()) / 20) for image in images]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, fps=12.5, size=(48, 64)) as writer:
        for number in range(NUM_FRAMES):
            writer.write(picture(number))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "frames"
    for number in range(NUM_FRAMES):
        write_image(path / f"{number}.png", picture(number))
    write_image(path / "10.png", picture(10))
    return path


def test_clip_round_trip(clip: Path) -> None:
    with FrameReader(clip) as reader:
        assert (reader.fps, reader.size, reader.num_frames) == (12.5, (48, 64), NUM_FRAMES)
        frames = list(reader)
    assert [frame.number for frame in frames] == list(range(NUM_FRAMES))
    assert numbers([frame.image for frame in frames]) == list(range(NUM_FRAMES))
    error = frames[3].image.astype(int) - picture(3)
    assert np.abs(error).mean() < 3
    assert frames[0].image.dtype == np.uint8


@pytest.mark.parametrize("kind", ["clip", "folder"])
def test_start_end_and_stride(kind: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(kind)
    with FrameReader(source, start=2, end=9, stride=3) as reader:
        assert reader.num_frames == 3
        expected = {2: True, 3: False, 5: True, 8: True, 11: False, -1: False}
        assert {number: number in reader for number in expected} == expected
        frames = list(reader)
    assert [frame.number for frame in frames] == [2, 5, 8]
    assert numbers([frame.image for frame in frames]) == [2, 5, 8]
    with FrameReader(source, end=99) as whole:
        assert reader.fps == pytest.approx(whole.fps / 3)
        last = whole.num_frames - 1
        assert last in whole and last + 1 not in whole and len(list(whole)) == last + 1


def test_a_folder_is_read_lazily_and_names_a_damaged_image(folder: Path) -> None:
    (folder / "4.png").write_bytes(b"damaged")
    with FrameReader(folder) as reader:
        seen = []
        with pytest.raises(InputError, match=r"4\.png"):
            for frame in reader:
                seen.append(frame.number)
    assert seen == [0, 1, 2, 3]


def test_frames_of_another_size_are_refused(folder: Path) -> None:
    write_image(folder / "3.png", picture(3, (48, 32)))
    with FrameReader(folder) as reader, pytest.raises(InputError, match=r"frame 3 .* is 32x48"):
        list(reader)


def test_one_image_is_a_clip_of_one_frame(folder: Path) -> None:
    with FrameReader(folder / "5.png") as reader:
        assert reader.num_frames == 1
        assert numbers([frame.image for frame in reader]) == [5]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_of_phone_clips_is_respected(tmp_path: Path, degrees: int) -> None:
    """FFmpeg's rotation turns counterclockwise."""
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(degrees)
        frame = av.VideoFrame.from_ndarray(picture(2), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with FrameReader(path) as reader:
        image = next(iter(reader)).image
    expected = np.rot90(picture(2), degrees // 90)
    assert image.shape == expected.shape and reader.size == expected.shape[:2]
    assert np.abs(image.astype(int) - expected).mean() < 5


ONE = 1 << 16
# (a, b, c, d) of a display matrix -> how the stored picture is shown
MATRICES: dict[str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]] = {
    "as it is": ((ONE, 0, 0, ONE), lambda image: image),
    "mirrored": ((-ONE, 0, 0, ONE), lambda image: image[:, ::-1]),
    "upside down": ((ONE, 0, 0, -ONE), lambda image: image[::-1]),
    "half a turn": ((-ONE, 0, 0, -ONE), lambda image: image[::-1, ::-1]),
    "clockwise": ((0, ONE, -ONE, 0), lambda image: np.rot90(image, -1)),
    "counterclockwise": ((0, -ONE, ONE, 0), np.rot90),
    "transposed": ((0, ONE, ONE, 0), lambda image: image.transpose(1, 0, 2)),
    "clockwise, then mirrored": (
        (0, -ONE, -ONE, 0),
        lambda image: image.transpose(1, 0, 2)[::-1, ::-1],
    ),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_the_whole_display_matrix_is_applied(clip: Path, kind: str) -> None:
    """Selfies are stored mirrored, and turned: a rotation alone would show them wrong."""
    (a, b, c, d), shown = MATRICES[kind]
    content = bytearray(clip.read_bytes())
    # The matrix of a track header of version 0 lies 40 bytes behind its name, with 3 more columns.
    place = content.index(b"tkhd") + 4 + 40
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    clip.write_bytes(content)
    with FrameReader(clip) as reader:
        image = next(iter(reader)).image
    expected = shown(picture(0))
    assert image.shape == expected.shape and image.flags.c_contiguous
    assert np.abs(image.astype(int) - expected).mean() < 3


def test_metadata_in_another_encoding_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "caffee"
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(2), format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert b"caffee" in content
    path.write_bytes(content.replace(b"caffee", b"caf\xe9\xe9e"))
    with FrameReader(path) as reader:
        assert numbers([frame.image for frame in reader]) == [2]


@pytest.mark.parametrize(
    ("suffix", "options", "fps"),
    [
        ("png", {"duration": 100}, 10),
        ("png", {"duration": 100, "default_image": True}, 10),
        ("webp", {"duration": 50, "lossless": True}, 20),
        ("tif", {}, 24),
        ("gif", {"duration": 100}, 10),
    ],
)
def test_animations_and_pages_are_clips_of_all_frames(
    tmp_path: Path, suffix: str, options: dict[str, Any], fps: float
) -> None:
    path = tmp_path / f"clip.{suffix}"
    first, *others = (Image.fromarray(picture(number)) for number in range(NUM_FRAMES))
    if "default_image" in options:  # shown by what does not know animations
        first, others = Image.fromarray(picture(0)[::-1].copy()), [first, *others]
    first.save(path, save_all=True, append_images=others, **options)
    with FrameReader(path, start=1, stride=2) as reader:
        assert reader.fps == fps / 2 and reader.num_frames == 5 and 9 in reader and 11 not in reader
        frames = list(reader)
    assert numbers([frame.image for frame in frames]) == [1, 3, 5, 7, 9]
    assert [(frame.number, frame.name) for frame in frames][:2] == [(1, "00001"), (3, "00003")]


def test_an_animation_that_is_cut_off_is_an_error_after_its_frames(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)) for _ in range(4)]
    pages[0].save(tmp_path / "whole.webp", save_all=True, append_images=pages[1:], lossless=True)
    pages[0].save(tmp_path / "whole.png", save_all=True, append_images=pages[1:])
    for suffix in ("webp", "png"):
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"half.{suffix}").write_bytes(content[: len(content) * 5 // 8])
        with pytest.raises(InputError, match=rf"half\.{suffix} cannot be read"):
            list(FrameReader(tmp_path / f"half.{suffix}"))


def test_variable_frame_rate_gives_every_frame(tmp_path: Path) -> None:
    path = tmp_path / "vfr.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number, pts in enumerate((0, 1, 7, 8, 30)):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with FrameReader(path) as reader:
        # Matroska states no number of frames: any frame may come.
        assert 1000 in reader
        assert numbers([frame.image for frame in reader]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [(47, 63), (48, 63), (1, 1)])
def test_odd_sizes_are_padded_by_one_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    with VideoWriter(tmp_path / "odd.mp4", fps=10, size=size) as writer:
        writer.write(picture(3, size))
    with FrameReader(tmp_path / "odd.mp4") as reader:
        image = next(iter(reader)).image
    assert image.shape[:2] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    error = image[: size[0], : size[1]].astype(int) - picture(3, size)
    assert np.abs(error).mean() < 6


def test_browsers_can_play_it(clip: Path) -> None:
    with av.open(str(clip)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert container.duration == NUM_FRAMES / 12.5 * 1e6
    data = clip.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat") and b"moof" not in data
    assert list(clip.parent.iterdir()) == [clip]


def test_an_error_while_writing_ends_the_clip_properly(tmp_path: Path) -> None:
    path = tmp_path / "stopped.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, fps=10, size=(48, 64)) as writer:
        for number in range(3):
            writer.write(picture(number))
        raise KeyboardInterrupt
    with FrameReader(path) as reader:
        assert numbers([frame.image for frame in reader]) == [0, 1, 2]
    assert b"moof" not in path.read_bytes()


def test_a_clip_that_was_cut_off_is_read_up_to_there(clip: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:-100])
    with FrameReader(cut) as reader, pytest.raises(InputError, match=r"cut\.mp4 is cut off after"):
        list(reader)
    with FrameReader(cut, end=4) as reader:
        assert len(list(reader)) == 4


def test_unusable_sources_are_named_with_the_reason(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a clip")
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:200])
    (tmp_path / "bare").mkdir()
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 80), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    reasons = {
        "text.mp4": "cannot be read as a video",
        "zero.mp4": "is empty: copy or download it again",
        "cut.mp4": "holds no video",
        "bare": "holds no image",
        "sound.wav": "holds no video",
        "nowhere.mp4": "does not exist",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=reason) as caught:
            FrameReader(tmp_path / name)
        assert name in str(caught.value)


def test_masks_beside_frames_are_no_frames(folder: Path) -> None:
    """Labelling tools put a.png beside a.jpg; a clip of both would finish with a wrong result."""
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[0]).with_suffix(".bmp").write_bytes((folder / names[0]).read_bytes())
    for sources in ((folder,), (folder / "*",), sorted(folder.iterdir())):
        with pytest.raises(InputError, match=r"have one name but for the suffix: give the frames"):
            FrameReader(*sources)
    with FrameReader(folder / f"*{Path(names[0]).suffix}") as reader:
        assert reader.num_frames == len(names)


def test_several_videos_are_refused(clip: Path, folder: Path) -> None:
    for sources in ((clip, clip), (folder, clip)):
        with pytest.raises(InputError, match=r"2 inputs .* one video, or the images of one, per"):
            FrameReader(*sources)


def test_a_part_without_frames_is_refused(clip: Path) -> None:
    with pytest.raises(InputError, match="no frame from number 10 on, it has 10"):
        FrameReader(clip, start=10)
    for wrong in ({"start": 4, "end": 4}, {"stride": 0}, {"start": -1}):
        with pytest.raises(InputError, match="select no frame: expected 0 <= start"):
            FrameReader(clip, **wrong)


def test_an_absent_camera_is_refused() -> None:
    with pytest.raises(InputError, match="camera 97 cannot be opened"):
        FrameReader("97")

"""Images of every kind become upright RGB of 8 bits, or an error that names the file."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from unified.errors import ConfigError, InputError
from unified.inference.image_io import (
    count_frames,
    find_images,
    image_size,
    read_image,
    write_image,
)
from unified.mask_files import read_ids, read_label_map

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
RGB = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", RGB)
    image = read_image(tmp_path / "a.png")
    assert np.array_equal(image, RGB) and image.dtype == np.uint8 and image.flags.writeable


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.repeat(RAMP[..., None], 3, axis=2))


def test_16_bit_grey_keeps_its_upper_bits(tmp_path: Path) -> None:
    deep = RAMP.astype(np.uint16) * 256 + 77
    for name in ("a.png", "a.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), np.repeat(RAMP[..., None], 3, axis=2))


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    alpha = np.full((3, 4, 1), 255, np.uint8)
    alpha[0, 0] = 0
    Image.fromarray(np.concatenate([RGB, alpha], axis=2)).save(tmp_path / "a.png")
    expected = RGB.copy()
    expected[0, 0] = 255
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)


def test_16_bit_colours_keep_their_upper_bits(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), RGB[..., ::-1].astype(np.uint16) * 256 + 77)
    assert np.array_equal(read_image(tmp_path / "a.png"), RGB)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    pixels = np.array([[(200, 100, 0, 255), (200, 100, 0, 51), (200, 100, 0, 0)]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = [[(200, 100, 0), (244, 224, 204), (255, 255, 255)]]
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("transparent", [None, 2])
def test_a_palette_gives_its_colours(tmp_path: Path, transparent: int | None) -> None:
    image = Image.fromarray(np.array([[0, 1, 2, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 8, 9])
    more = {} if transparent is None else {"transparency": transparent}
    image.save(tmp_path / "a.png", **more)
    last = (7, 8, 9) if transparent is None else (255, 255, 255)
    expected = [[(10, 20, 30), (200, 100, 0), last, (200, 100, 0)]]
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)


QUALITY = {"tif": {}, "jpg": {"quality": 100, "subsampling": 0}}
# Inks (C, M, Y, K) on white paper, 255 = full: what is left of red, green and blue.
INKS = {
    (0, 0, 0, 0): (255, 255, 255),
    (0, 255, 255, 0): (255, 0, 0),
    (0, 0, 0, 255): (0, 0, 0),
    (51, 0, 0, 0): (204, 255, 255),
    (0, 0, 0, 51): (204, 204, 204),
}


@pytest.mark.parametrize(("suffix", "off"), [("tif", 0), ("jpg", 2)])
def test_a_photo_for_print_is_not_a_negative(tmp_path: Path, suffix: str, off: int) -> None:
    """JPEGs in CMYK hold their inks inverted, as Adobe writes them."""
    pixels = np.repeat(np.array([list(INKS)], np.uint8), 8, axis=1).repeat(8, axis=0)
    Image.fromarray(pixels, "CMYK").save(tmp_path / f"a.{suffix}", **QUALITY[suffix])
    found = read_image(tmp_path / f"a.{suffix}")
    expected = np.repeat(np.array([list(INKS.values())]), 8, axis=1).repeat(8, axis=0)
    assert np.abs(found.astype(int) - expected).max() <= off


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(RGB, -1))


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    write_image(tmp_path / "whole.jpg", np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-40])
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    for name in ("empty.jpg", "half.jpg", "float.tif", "missing.jpg"):
        with pytest.raises(InputError, match=name):
            read_image(tmp_path / name)


def test_a_folder_is_read_in_natural_order_without_other_files(tmp_path: Path) -> None:
    for name in ("10.jpg", "9.png", "1.JPG", ".hidden.jpg", "notes.txt", "b2.jpg", "b11.jpg"):
        (tmp_path / name).touch()
    names = [path.name for path in find_images([str(tmp_path)])]
    assert names == ["1.JPG", "9.png", "10.jpg", "b2.jpg", "b11.jpg"]
    assert [path.name for path in find_images([f"{tmp_path}/b*.jpg"])] == ["b2.jpg", "b11.jpg"]
    expanded = [f"{tmp_path}/{name}" for name in ("10.jpg", "9.png", "9.png")]  # as by a shell
    assert [path.name for path in find_images(expanded)] == ["9.png", "10.jpg"]


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for source in (str(tmp_path), f"{tmp_path}/*.jpg"):
        with pytest.raises(InputError, match="holds no image"):
            find_images([source])
    with pytest.raises(InputError, match="does not exist"):
        find_images([f"{tmp_path}/notes.txt", f"{tmp_path}/nowhere"])
    (tmp_path / "b").mkdir()
    (tmp_path / "b/1.png").touch()
    with pytest.raises(InputError, match=r"its folders do: give one of them, such as .*/b$"):
        find_images([str(tmp_path)])


def test_writing_leaves_the_older_file_when_it_fails(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", RGB)
    with pytest.raises(TypeError):
        write_image(tmp_path / "a.png", np.zeros((3, 4, 7), np.uint8))
    assert np.array_equal(read_image(tmp_path / "a.png"), RGB)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "gif"])
def test_of_several_frames_the_first_is_the_photo_and_a_line_says_so(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"a.{suffix}"
    pages = [Image.new("RGB", (6, 4), (80 * number, 0, 0)) for number in range(3)]
    options = {"lossless": True} if suffix == "webp" else {}
    pages[2].save(path, save_all=True, append_images=pages, **options)
    with caplog.at_level(logging.WARNING):
        assert (read_image(path) == (160, 0, 0)).all()
        read_image(path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} has 4 frames: the first is read (as the clip it has all)"
    ]


def test_a_phone_photo_with_a_second_view_is_one_photo(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    views = [Image.new("RGB", (16, 16), (80 * number, 0, 0)) for number in range(2)]
    views[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=views[1:])
    with caplog.at_level(logging.WARNING):
        assert read_image(tmp_path / "a.jpg").max() < 5
        assert count_frames(tmp_path / "a.jpg")[0] == 1
    assert not caplog.records


def test_numbers_of_32_bits_that_are_small_are_8_bits(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif")[..., 0], RAMP)


def test_numbers_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    """Labelling tools and microscopes write them; the upper 8 of which bits is not known."""
    for scale in (70_000, -1):
        Image.fromarray(RAMP.astype(np.int32) * scale).save(tmp_path / "a.tif")
        with pytest.raises(InputError, match=r"a\.tif holds values from .* save it with 8 or 16"):
            read_image(tmp_path / "a.tif")


def test_dark_pictures_of_16_bits_are_said_to_be_dark_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cameras with 10 or 12 bits leave the upper ones of 16 empty."""
    deep = np.full((8, 8), 4095, np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.fromarray(deep // 2).save(tmp_path / "b.png")
    Image.fromarray(deep * 16).save(tmp_path / "c.png")
    assert [read_image(tmp_path / f"{x}.png").max() for x in "abc"] == [15, 7, 255]
    (line,) = caplog.messages  # of all frames of a clip
    assert f"{tmp_path} has pictures of 16 bits that use the lower 12 or fewer" in line


def test_the_limit_of_pixels_is_stated_and_can_be_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above Pillow's own limit, which warns from 89 megapixels on, and below ours."""
    Image.new("1", (10_000, 10_000)).save(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png") == (10_000, 10_000)
    monkeypatch.setenv("UNIFIED_MAX_PIXELS", "99999999")
    message = r"a\.png is 10000x10000, 100000000 pixels, and the limit is 99999999: .*--max-pixels"
    for read in (read_image, image_size, read_label_map, read_ids, count_frames):
        with pytest.raises(InputError, match=message):
            read(tmp_path / "a.png")
    monkeypatch.setenv("UNIFIED_MAX_PIXELS", "many")
    with pytest.raises(ConfigError, match="UNIFIED_MAX_PIXELS is 'many': expected a number"):
        read_image(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1", b"<html>", b""])
def test_files_that_are_no_images_are_called_by_what_they_are(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.jpg is (a Git LFS|a web page|empty)"):
        read_image(tmp_path / "a.jpg")

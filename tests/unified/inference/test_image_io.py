"""Images of every kind become upright RGB of 8 bits, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unified.errors import InputError
from unified.inference.image_io import find_images, read_image, write_image

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
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png")[..., 1], RAMP)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    alpha = np.full((3, 4, 1), 255, np.uint8)
    alpha[0, 0] = 0
    Image.fromarray(np.concatenate([RGB, alpha], axis=2)).save(tmp_path / "a.png")
    expected = RGB.copy()
    expected[0, 0] = 255
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)


def test_palette_and_cmyk_become_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (4, 3), (255, 0, 0))
    red.quantize(4).save(tmp_path / "palette.png")
    red.convert("CMYK").save(tmp_path / "cmyk.tif")
    for name in ("palette.png", "cmyk.tif"):
        assert (read_image(tmp_path / name) == [255, 0, 0]).all()


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


def test_writing_leaves_the_older_file_when_it_fails(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", RGB)
    with pytest.raises(TypeError):
        write_image(tmp_path / "a.png", np.zeros((3, 4, 7), np.uint8))
    assert np.array_equal(read_image(tmp_path / "a.png"), RGB)
    assert len(list(tmp_path.iterdir())) == 1

"""Masks from files: pixel values that mean object ids, and all others, which are one error."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from unified.errors import InputError
from unified.label_maps import davis_palette, write_label_map, write_mask
from unified.mask_files import check_edges, read_ids, read_label_map, read_object_mask

RED = np.zeros((4, 4, 3), np.uint8)
RED[1:, 1:, 0] = 200
SIZE = (112, 200)


@pytest.mark.parametrize("only", [1, 5, 255])
def test_indexed_files_keep_a_lonely_id(tmp_path: Path, only: int) -> None:
    path = tmp_path / "m.png"
    write_label_map(path, np.array([[0, only]], np.uint8))
    assert read_label_map(path).tolist() == [[0, only]]


def test_black_and_white_masks_are_object_1(tmp_path: Path) -> None:
    mask = np.array([[True, False]])
    write_mask(tmp_path / "grey.png", mask)
    with Image.open(tmp_path / "grey.png") as image:
        assert image.mode == "L" and np.asarray(image).tolist() == [[255, 0]]
    Image.fromarray(mask).save(tmp_path / "bits.png")
    assert read_label_map(tmp_path / "grey.png").tolist() == [[1, 0]]
    assert read_label_map(tmp_path / "bits.png").tolist() == [[1, 0]]


def test_grey_and_16_bit_files_hold_ids_as_they_are(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 3]])
    Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "8.png")
    Image.fromarray(ids.astype(np.uint16)).save(tmp_path / "16.png")
    for name in ("8.png", "16.png"):
        assert read_label_map(tmp_path / name).tolist() == ids.tolist()


BAD_MASKS = {
    "colour": (RED, "png", "has colours (mode RGB)"),
    "alpha": (np.full((4, 4, 4), 9, np.uint8), "png", "transparent pixels that are not black"),
    "empty": (np.zeros((4, 4), np.uint8), "png", "is empty"),
    "size": (np.ones((4, 5), np.uint8), "png", "is 5x4 pixels, its image is 4x4"),
    "ids": (np.full((4, 4), 256, np.uint16), "png", "holds the object id 256"),
    "soft": (np.arange(240, 256, dtype=np.uint8).reshape(4, 4), "png", "mixes 255"),
    "lossy": (np.ones((4, 4), np.uint8), "jpg", "is a JPEG"),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_unusable_masks_are_named_with_the_reason(tmp_path: Path, name: str) -> None:
    values, suffix, reason = BAD_MASKS[name]
    path = tmp_path / f"{name}.{suffix}"
    Image.fromarray(values).save(path)
    with pytest.raises(InputError) as caught:
        read_label_map(path, size=(4, 4))
    assert str(path) in str(caught.value) and reason in str(caught.value)


def test_missing_and_damaged_mask_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.png does not exist"):
        read_label_map(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(InputError, match=r"text\.png cannot be read"):
        read_label_map(tmp_path / "text.png")
    write_label_map(tmp_path / "whole.png", np.random.default_rng(0).integers(
        1, 9, (64, 64), dtype=np.uint8))  # fmt: skip
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:600])
    with pytest.raises(InputError, match=r"half\.png cannot be read"):
        read_label_map(tmp_path / "half.png")


def ellipse(scale: int = 8) -> Image.Image:
    """A white ellipse; its edges are soft unless the scale is 1."""
    large = Image.new("L", (SIZE[1] * scale, SIZE[0] * scale))
    ImageDraw.Draw(large).ellipse([60 * scale, 20 * scale, 140 * scale, 90 * scale], fill=255)
    return large.resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR)


def as_jpeg(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return Image.open(stream)


def indexed(values: np.ndarray, palette: np.ndarray | None = None) -> Image.Image:
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette((davis_palette() if palette is None else palette).astype(np.uint8).tobytes())
    return image


HARD = np.array(ellipse(1)) > 0
SHADES = np.array(ellipse())
SOFT: dict[str, Callable[[], Image.Image]] = {
    "grey": lambda: ellipse(),
    "as ids": lambda: indexed(SHADES),
    "of a darker grey": lambda: Image.fromarray((SHADES * (200 / 255)).astype(np.uint8)),
    "in five colours": lambda: indexed(SHADES // 60),
    "in four shades": lambda: Image.fromarray(SHADES // 85 * 80),
    "of 16 bits": lambda: Image.fromarray((SHADES // 4).astype(np.uint16)),
    "in equal colours": lambda: ellipse().convert("RGB"),
    "blurred": lambda: indexed(
        np.array(Image.fromarray(HARD.astype(np.uint8) * 100).filter(ImageFilter.GaussianBlur(2)))
    ),
    "by JPEG": lambda: indexed(np.array(as_jpeg(Image.fromarray(HARD.astype(np.uint8) * 120)))),
    "by JPEG, grey": lambda: as_jpeg(Image.fromarray(HARD.astype(np.uint8) * 200)),
    "enlarged": lambda: indexed(
        np.array(Image.fromarray(HARD.astype(np.uint8) * 5).resize((400, 224), 2))
    ),
    "enlarged, one ring": lambda: indexed(
        np.array(Image.fromarray(HARD.astype(np.uint8) * 2).resize((400, 224), 2))
    ),
}


@pytest.mark.parametrize("kind", SOFT)
def test_soft_edges_are_no_ids(tmp_path: Path, kind: str) -> None:
    SOFT[kind]().save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"m\.png (has soft edges|mixes 255 \(white\))"):
        read_label_map(tmp_path / "m.png")


def test_small_and_thin_objects_that_touch_are_ids() -> None:
    """A crowd, thin objects on others, rings of one id, and objects one after the other."""
    labels = np.zeros((60, 90), np.uint8)
    for number in range(12):
        labels[20:26, 5 + 4 * number : 9 + 4 * number] = number + 1  # 4 x 6 pixels each
    check_edges("crowd.png", labels)
    labels = np.zeros((60, 90), np.uint8)
    labels[10:50, 20:70] = 3
    labels[12:48, 40] = 1  # a pole before a house
    labels[30, 5:85] = 2  # a wire across it
    check_edges("thin.png", labels)
    labels = np.zeros((60, 90), np.uint8)
    labels[10:50, 10:80], labels[15:45, 15:75], labels[20:40, 20:70] = 1, 2, 3
    check_edges("nested.png", labels)
    labels = np.zeros((60, 90), np.uint8)
    labels[10:50, 10:80], labels[15:45, 15:75] = 255, 1
    check_edges("void.png", labels)


COLOURS = {
    "red, then black": ([(255, 0, 0), (0, 0, 0)], None),
    "white, then nearly black": ([(255, 255, 255), (9, 9, 9)], None),
    "green, then transparent": ([(0, 255, 0), (90, 90, 90)], 1),
    "two objects": ([(0, 255, 0), (0, 0, 0), (9, 9, 200)], None),
}


@pytest.mark.parametrize("kind", COLOURS)
@pytest.mark.parametrize("read", [read_label_map, read_ids, read_object_mask])
def test_a_background_elsewhere_than_at_0_is_an_error(
    tmp_path: Path, kind: str, read: Callable[[Path], np.ndarray]
) -> None:
    colours, transparent = COLOURS[kind]
    values = np.ones((8, 9), np.uint8)
    values[2:5, 2:5], values[6, 6] = 0, len(colours) - 1
    options = {} if transparent is None else {"transparency": transparent}
    indexed(values, np.array(colours)).save(tmp_path / "m.png", **options)
    with pytest.raises(InputError, match=r"m\.png has its background at 1: .*0 is the colour"):
        read(tmp_path / "m.png")


def test_palettes_with_the_background_at_0_are_ids(tmp_path: Path) -> None:
    values = np.zeros((8, 9), np.uint8)
    values[2:5, 2:5], values[6:, 6:] = 1, 2
    for number, (colours, options) in enumerate(
        [
            ([(0, 0, 0), (255, 0, 0), (0, 0, 255)], {}),
            ([(0, 0, 0), (255, 0, 0), (0, 0, 0)], {}),
            ([(255, 0, 255), (255, 0, 0), (0, 0, 255)], {"transparency": 0}),
            ([(255, 255, 255), (255, 0, 0), (0, 0, 255)], {}),
        ]
    ):
        path = tmp_path / f"{number}.png"
        indexed(values, np.array(colours)).save(path, **options)
        assert np.array_equal(read_label_map(path), values)
        assert np.array_equal(read_ids(path), values)
        assert np.array_equal(read_object_mask(path), values > 0)


def test_in_semantic_maps_0_is_a_class_as_any_other(tmp_path: Path) -> None:
    indexed(np.eye(4, dtype=np.uint8), np.array([(255, 0, 0), (0, 0, 0)])).save(tmp_path / "m.png")
    assert np.array_equal(read_ids(tmp_path / "m.png", classes=True), np.eye(4))


def test_255_beside_other_ids_is_void_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.zeros((8, 9), np.uint8)
    labels[1:7, 1:8], labels[2:6, 2:7] = 255, 3
    write_label_map(tmp_path / "m.png", labels)
    with caplog.at_level(logging.WARNING):
        found = read_label_map(tmp_path / "m.png")
        read_label_map(tmp_path / "m.png")
    assert np.array_equal(found, np.where(labels == 3, 3, 0))
    assert [r.getMessage() for r in caplog.records] == [
        f"mask {tmp_path}/m.png: 255 beside other ids is void, not an object"
    ]
    assert np.array_equal(read_object_mask(tmp_path / "m.png"), labels == 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16", "P"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_black_and_white_in_every_mode_is_object_1(tmp_path: Path, mode: str, suffix: str) -> None:
    picture = Image.fromarray(HARD.astype(np.uint8) * 255)
    if mode == "I;16":
        picture = Image.fromarray(HARD.astype(np.uint16) * 65535)
    elif mode != "P":
        picture = picture.convert(mode)
    else:
        picture = indexed(HARD, np.array([(0, 0, 0), (255, 255, 255)]))
    picture.save(tmp_path / f"m.{suffix}")
    assert np.array_equal(read_label_map(tmp_path / f"m.{suffix}"), HARD)


def test_transparent_black_is_background(tmp_path: Path) -> None:
    white = Image.fromarray(HARD.astype(np.uint8) * 255)
    Image.merge("LA", [white, white]).save(tmp_path / "m.png")
    assert np.array_equal(read_label_map(tmp_path / "m.png"), HARD)
    assert np.array_equal(read_object_mask(tmp_path / "m.png"), HARD)
    Image.merge("LA", [white.point(lambda _: 255), white]).save(tmp_path / "m.png")
    for read in (read_label_map, read_object_mask):
        with pytest.raises(InputError, match="transparent pixels that are not black"):
            read(tmp_path / "m.png")


def test_an_object_in_the_transparency_alone_is_an_error(tmp_path: Path) -> None:
    """Image editors save a cut-out so when its colour was black."""
    black = Image.new("L", (8, 8))
    alpha = black.copy()
    alpha.paste(255, (2, 2, 5, 5))
    for mode, bands in (("LA", [black, alpha]), ("RGBA", [black] * 3 + [alpha])):
        Image.merge(mode, bands).save(tmp_path / "m.png")
        with pytest.raises(InputError, match="black all over, only its transparency tells"):
            read_label_map(tmp_path / "m.png")


def test_masks_are_turned_as_their_pictures_are(tmp_path: Path) -> None:
    labels = np.zeros((4, 6), np.uint8)
    labels[0, 0] = 2
    exif = Image.Exif()
    exif[0x0112] = 6  # row 0 is shown at the right
    indexed(labels).save(tmp_path / "m.png", exif=exif.tobytes())
    for read in (read_label_map, read_ids):
        found = read(tmp_path / "m.png")
        assert found.shape == (6, 4) and found[0, 3] == 2 and found.sum() == 2


def test_a_picture_of_a_mask_may_be_soft_but_not_dark(tmp_path: Path) -> None:
    ellipse().save(tmp_path / "m.png")
    assert np.array_equal(read_object_mask(tmp_path / "m.png"), SHADES >= 128)
    write_label_map(tmp_path / "m.png", HARD.astype(np.uint8))  # dark red
    assert np.array_equal(read_object_mask(tmp_path / "m.png"), HARD)
    Image.fromarray(HARD.astype(np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match="its brightest pixel is 1, and an object is 128 or"):
        read_object_mask(tmp_path / "m.png")

"""Pictures, masks and boxes move together, and the object of a sample is never lost."""

from __future__ import annotations

import numpy as np
import pytest

from unified.data.augmentation import (
    Augmentation,
    Draw,
    View,
    crop,
    mirror,
    random_crop,
    resize,
)
from unified.structures import resized_size


def _view(height: int = 60, width: int = 90) -> View:
    """A picture whose red channel is 255 exactly on the object."""
    mask = np.zeros((height, width), dtype=bool)
    mask[20:40, 50:80] = True
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[mask, 0] = 255
    return View(image, mask[None])


def _agree(view: View) -> float:
    """Share of pixels whose colour and mask say the same."""
    return float(((view.image[..., 0] > 127) == view.masks[0]).mean())


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((480, 1280), 800, 1333, (500, 1333)),
        ((375, 500), 480, 768, (480, 640)),
        ((100, 100), 64, None, (64, 64)),
    ],
)
def test_resized_size(
    size: tuple[int, int], short: int, longest: int | None, expected: tuple[int, int]
) -> None:
    assert resized_size(size, short, longest) == expected


def test_mask_follows_the_picture() -> None:
    augmentation = Augmentation(
        short_sides=(40, 64, 96), max_size=140, crop_range=(30, 50), pre_crop_sides=(50, 70)
    )
    for seed in range(60):
        rng = np.random.default_rng(seed)
        view = _view()
        result = augmentation.apply(view, augmentation.draw(rng), rng, keep=view.masks)
        assert result.masks.shape[1:] == result.image.shape[:2]
        assert _agree(result) > 0.95
        assert min(result.size) <= 96 and max(result.size) <= 140


def test_crop_keeps_half_of_the_object() -> None:
    augmentation = Augmentation(
        short_sides=(60,), max_size=200, flip=0.0, crop=1.0, crop_range=(20, 40)
    )
    cropped = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        view = _view()
        draw = Draw(short_side=60, flip=False)
        result = augmentation.apply(view, draw, rng, keep=view.masks)
        # Back at the scale of the window, at least half of the 600 pixels are there.
        scale = min(result.size) / 60
        cropped += result.size != (60, 90)
        assert result.masks.any() and scale == 1
    assert cropped > 50


def test_crop_keeps_half_of_every_object() -> None:
    """Also of the small one of two objects that one sentence refers to."""
    large = _view().masks[0]
    small = np.zeros_like(large)
    small[10:14, 40:44] = True
    view = View(np.zeros((*large.shape, 3), dtype=np.uint8), np.stack([large, small]))
    cropped = 0
    for seed in range(200):
        window = random_crop(view, (20, 50), view.masks, np.random.default_rng(seed))
        before, after = view.masks.sum(axis=(1, 2)), window.masks.sum(axis=(1, 2))
        assert (2 * after >= before).all()
        cropped += window.size != view.size
    assert cropped > 50


def test_impossible_crop_is_not_made() -> None:
    """The object fills the picture: no small window keeps half of it."""
    view = View(np.zeros((60, 90, 3), dtype=np.uint8), np.ones((1, 60, 90), dtype=bool))
    augmentation = Augmentation(short_sides=(60,), max_size=200, crop=1.0, crop_range=(10, 20))
    rng = np.random.default_rng(0)
    draw = Draw(short_side=60, flip=False)
    assert augmentation.apply(view, draw, rng, keep=view.masks).size == (60, 90)


def test_tiny_object_survives_the_resize() -> None:
    mask = np.zeros((1, 200, 300), dtype=bool)
    mask[0, 101, 203] = True
    view = View(np.zeros((200, 300, 3), dtype=np.uint8), mask)
    for size in ((20, 30), (33, 50), (64, 96)):
        small = resize(view, size).masks[0]
        assert small.sum() == 1
        row, column = np.argwhere(small)[0]
        assert abs(row / size[0] - 101 / 200) < 0.06 and abs(column / size[1] - 203 / 300) < 0.06


def test_boxes_move_with_the_picture() -> None:
    box = np.array([[50.0, 20.0, 80.0, 40.0]], dtype=np.float32)
    view = View(_view().image, _view().masks, box)
    np.testing.assert_allclose(mirror(view).boxes, [[10, 20, 40, 40]])
    np.testing.assert_allclose(resize(view, (120, 180)).boxes, box * 2)
    np.testing.assert_allclose(crop(view, 10, 60, 20, 25).boxes, [[0, 10, 20, 20]])
    np.testing.assert_array_equal(mirror(mirror(view)).image, view.image)


def test_same_seed_same_view() -> None:
    augmentation = Augmentation(short_sides=(40, 64), max_size=140, crop_range=(30, 50), colour=0.3)
    views = []
    for _ in range(2):
        rng = np.random.default_rng(5)
        views.append(augmentation.apply(_view(), augmentation.draw(rng), rng))
    np.testing.assert_array_equal(views[0].image, views[1].image)


def test_colour_changes_pixels_within_bounds() -> None:
    augmentation = Augmentation(short_sides=(60,), max_size=90, flip=0, crop=0, colour=0.3)
    image = np.full((60, 90, 3), (200, 100, 50), dtype=np.uint8)
    means = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        view = View(image, np.ones((1, 60, 90), dtype=bool))
        result = augmentation.apply(view, augmentation.draw(rng), rng).image
        red, green, blue = result.reshape(-1, 3).mean(axis=0)
        assert red > green > blue  # the hue stays
        means.append(red)
    assert np.std(means) > 5

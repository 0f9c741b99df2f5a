"""What is drawn over and beside a picture."""

from __future__ import annotations

import numpy as np

from unified.inference.overlay import (
    _lab,
    contour,
    draw_ids,
    draw_overlapping,
    draw_overlay,
    id_places,
    id_places_apart,
    inner_pixel,
    overlay_colours,
)


def test_contour_stays_inside_the_object() -> None:
    label_map = np.zeros((9, 9), np.uint8)
    label_map[1:8, 1:8] = 3
    edge = contour(label_map, width=1)
    assert edge.sum() == 24 and not edge[2:7, 2:7].any() and not edge[label_map == 0].any()


def test_overlay_colours_only_the_object_and_leaves_its_arguments() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    label_map = np.zeros((40, 60), np.uint8)
    label_map[20:35, 10:30] = 1
    before = image.copy()
    overlay = draw_overlay(image, label_map)
    assert np.array_equal(image, before) and overlay.dtype == np.uint8
    assert np.array_equal(overlay[label_map == 0], image[label_map == 0])
    red, green, blue = overlay[27, 20].tolist()
    assert red > 130 and green == blue < 100
    assert overlay[20, 10, 0] > red


def test_no_two_ids_have_one_colour() -> None:
    """Differences are those of CIE 1976: 2.3 is just noticed."""
    colours = overlay_colours()
    assert colours.shape == (256, 3) and not colours[0].any()
    lab = _lab(colours[1:])
    apart = np.linalg.norm(lab[:, None] - lab, axis=-1) + 1000 * np.eye(255)
    assert apart.min() > 5
    assert apart[:20, :20].min() > 35  # "beyond 8 objects"
    assert lab[:, 0].min() > 38 and lab[:, 0].max() < 92


def test_lightness_and_hue_are_those_of_the_standard() -> None:
    """Values of Lindbloom's calculator for sRGB, D65."""
    known = {(255, 255, 255): (100, 0, 0), (255, 0, 0): (53.24, 80.09, 67.20)}
    for colour, expected in known.items():
        np.testing.assert_allclose(_lab(np.array([colour]))[0], expected, atol=0.05)


def test_ids_are_written_on_their_objects_in_their_colours() -> None:
    label_map = np.zeros((100, 200), np.uint8)
    label_map[10:50, 10:60] = 7
    label_map[30:90, 120:180] = 12
    drawn = draw_ids(np.full((100, 200, 3), 128, np.uint8), id_places(label_map))
    for object_id in (7, 12):
        mask = label_map == object_id
        own = (drawn == overlay_colours()[object_id]).all(axis=-1)
        assert own[mask].sum() > 15 and not own[~mask].any()


def test_the_inner_pixel_lies_in_a_ring() -> None:
    ring = np.zeros((30, 30), bool)
    ring[5:25, 5:25] = True
    ring[10:20, 8:22] = False
    assert ring[inner_pixel(ring)]
    assert inner_pixel(np.ones((1, 1), bool)) == (0, 0)


def test_of_masks_that_overlap_every_colour_and_every_outline_is_seen() -> None:
    rows, columns = np.mgrid[:60, :90]
    left, right = columns < 60, columns >= 30
    image = np.full((60, 90, 3), 100, np.uint8)
    drawn = draw_overlapping(image, {1: left, 2: right, 3: right}).astype(int)
    colours = overlay_colours().astype(int)
    for place, ids in ((10, [1]), (45, [1, 2, 3]), (75, [2, 3])):
        expected = 0.55 * 100 + 0.45 * colours[ids].mean(axis=0)
        assert np.abs(drawn[30, place] - expected).max() <= 1
    line = drawn[:, 30]  # the outline of 2 and of 3
    shares = [(line == colours[i]).all(axis=-1).mean() for i in (2, 3)]
    assert min(shares) > 0.3 and sum(shares) == 1
    disjoint = {1: columns < 30, 2: (columns > 40) & (rows > 9)}
    label_map = (disjoint[1] + 2 * disjoint[2]).astype(np.uint8)
    assert np.array_equal(draw_overlapping(image, disjoint), draw_overlay(image, label_map))
    assert np.array_equal(draw_overlapping(image, {}), image)


def test_ids_of_masks_that_overlap_are_apart() -> None:
    columns = np.mgrid[:60, :90][1]
    masks = {1: columns < 60, 2: columns >= 30, 3: columns >= 30, 4: columns < 0}
    places = id_places_apart(masks)
    assert list(places) == [1, 2, 3]
    assert places[1][1] < 30, "where it is alone"
    (y, x), (other_y, other_x) = places[2], places[3]
    assert masks[2][y, x] and max(abs(x - other_x), abs(y - other_y)) > 15
    assert id_places_apart({}) == {}

"""What is written beside a picture."""

from __future__ import annotations

import numpy as np
import pytest

from unified.inference.legend import add_legend, enlarged, enlargement, legend_width
from unified.inference.overlay import overlay_colours


@pytest.mark.parametrize("size", [(120, 160), (240, 320), (480, 854), (90, 40), (1080, 100)])
def test_small_pictures_are_enlarged_until_their_legend_is_small_beside_them(
    size: tuple[int, int],
) -> None:
    """But not where they are high: a strip of text would become a very large picture."""
    factor = enlargement(size)
    width = legend_width(["1  0.92  the dog in the middle of the street"], size)
    assert (width <= 0.31 * factor * size[1]) == (size != (1080, 100))
    assert factor == 1 or factor * size[0] <= 1080
    assert enlargement((480, 854)) == enlargement((2000, 100)) == 1


def test_long_lines_of_a_legend_are_broken_while_there_is_room() -> None:
    image = np.zeros((120, 360, 3), np.uint8)
    lines = {1: "1  0.92  " + "the red bowl " * 3, 2: "2  0.50  box"}
    width = legend_width(lines.values(), (120, 360))
    assert width <= 100
    panel = add_legend(image, lines, {1, 2}, width)[:, 360:]
    written = panel[:, 30:].max(axis=(1, 2)) > 200
    assert np.diff(written.astype(int)).clip(min=0).sum() > 3, "rows of text"
    swatches = [
        (panel == overlay_colours()[i]).all(axis=-1).any(axis=1).nonzero()[0] for i in (1, 2)
    ]
    assert swatches[0].max() < 20 and swatches[1].min() > 40


def test_a_legend_is_as_wide_as_all_its_lines_need() -> None:
    lines = [f"{i}  0.91  the man in the red shirt on the left" for i in range(5)]
    few, many = (legend_width(lines[:num], (240, 432)) for num in (3, 5))
    assert few <= 0.31 * 432 < many <= 0.5 * 432
    assert legend_width(lines * 3, (240, 432)) == few, "not where all of them do not fit anyway"


@pytest.mark.parametrize("size", [(40, 8), (48, 640), (480, 854)])
def test_the_legend_is_beside_the_picture(size: tuple[int, int]) -> None:
    image = enlarged(np.full((*size, 3), 255, np.uint8), enlargement(size))
    height, side = image.shape[:2]
    lines = {i: f"{i}  a rather long sentence about object {i} " * 20 for i in range(1, 256)}
    width = legend_width(lines.values(), size)
    assert width % 2 == 0 and 0 < width <= max(0.26 * side, 140)
    drawn = add_legend(image, lines, {1}, width)
    assert drawn.shape == (height, side + width, 3)
    assert np.array_equal(drawn[:, :side], image)
    panel = drawn[:, side:]
    assert (panel == overlay_colours()[1]).all(axis=-1).any() and panel.max() > 200
    assert legend_width([], size) == 0

"""What a run draws can be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from unified.engine.hooks import plot_curves
from unified.engine.sample_pictures import draw_panel


def colours(image: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()}


def test_a_curve_of_one_point_is_drawn(tmp_path: Path) -> None:
    blue = (31, 119, 180)  # the first colour of matplotlib
    plot_curves([{"iteration": 0, "lr": 0.1}], tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as plot:
        assert blue in colours(np.array(plot.convert("RGB")))


def test_outlines_stand_out_from_things_of_the_colour_of_the_mask() -> None:
    mask = np.zeros((1, 40, 320), bool)
    mask[0, 10:30, 100:200] = True
    for value, outline in (((230, 0, 0), (255, 255, 255)), ((255, 230, 230), (0, 0, 0))):
        image = np.full((40, 320, 3), value, np.uint8)
        below = draw_panel("", image, mask)[-40:]
        assert tuple(below[10, 150]) == outline
        assert colours(below[12:28, 102:198]) & {outline} == set()
        assert colours(below[:10]) == {value}

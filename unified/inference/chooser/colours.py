"""Which of the eleven basic colours a pixel has."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# A few shades of each, RGB. The names are Berlin and Kay's basic colour terms of English.
SHADES: dict[str, list[tuple[int, int, int]]] = {
    "black": [(15, 15, 15), (40, 40, 42)],
    "white": [(245, 245, 245), (215, 215, 210)],
    "grey": [(128, 128, 128), (95, 95, 98), (170, 170, 170)],
    "red": [(200, 30, 35), (140, 20, 25), (225, 70, 60)],
    "orange": [(240, 130, 30), (225, 110, 50)],
    "yellow": [(240, 215, 50), (220, 200, 90)],
    "green": [(50, 130, 50), (100, 150, 60), (40, 80, 40), (130, 180, 110)],
    "blue": [(40, 70, 170), (90, 140, 210), (30, 40, 90), (100, 120, 160)],
    "purple": [(110, 50, 140), (150, 110, 180)],
    "pink": [(240, 160, 180), (225, 80, 140)],
    "brown": [(110, 70, 40), (150, 105, 70), (80, 55, 40), (185, 150, 115)],
}
NUM_CHANNELS = len(SHADES) + 3
SOFTNESS = 6.0  # distance in Lab over which one name gives way to another
LIGHTNESS = 0.6  # weight of lightness in that distance: shadows change it first
_LAB_SCALE = np.array([100, 60, 60], np.float32)
_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32
)
_D65 = np.array([0.9505, 1.0, 1.089], np.float32)


def colour_maps(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 RGB -> (14, H, W): shares of the eleven names, then Lab divided to about 1.

    The names of each pixel add up to 1: softmax over its distance to the nearest shade of each.
    """
    lab = _lab(pixels)  # (H, W, 3)
    weights = np.array([LIGHTNESS, 1, 1], np.float32)
    nearest = []
    for shades in SHADES.values():
        offsets = (lab[:, :, None] - _lab(np.array(shades, np.uint8))) * weights
        nearest.append(np.sqrt((offsets**2).sum(axis=-1)).min(axis=-1))
    shares = torch.from_numpy(np.stack(nearest)).neg().div(SOFTNESS).softmax(dim=0)
    scaled = torch.from_numpy((lab / _LAB_SCALE).astype(np.float32)).movedim(-1, 0)
    return torch.cat((shares, scaled))


def _lab(pixels: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 sRGB -> CIE L*a*b* under D65, float32."""
    share = pixels.astype(np.float32) / 255
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    xyz = linear @ _TO_XYZ.T / _D65
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1)

"""Scenes of three frames made from single pictures on the device that trains, and kept encoded.

The image encoder of the SAM is frozen, so that what a picture looks like to it is computed once and
used many times. Fresh scenes take the place of old ones, so that no step waits for a disk or for
another process.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from projects.sam.mobile.pictures import GRID, SIDE, Picture
from projects.sam.mobile.plans import CHANNELS, FRAMES, Plan, PlanMaker
from unified.structures import MASK_STRIDE

NO_CLASS = 255
CLASS_STRIDE = 32  # of the map of classes, in pixels
VISIBLE = 4e-4  # share of the square that an object has at least


class SceneMaker(PlanMaker):
    """Draws scenes from pictures that lie on the device.

    Args:
        pictures: all that may be drawn from.
        device: where pictures lie and frames are made.
        seed: of what is drawn.
        side: of the SAM's input.
    """

    def __init__(
        self, pictures: Sequence[Picture], device: torch.device, *, seed: int, side: int
    ) -> None:
        super().__init__(pictures, seed=seed, side=side)
        self.device, self.grid = device, side // MASK_STRIDE
        self.noise = np.random.default_rng(seed)
        with ThreadPoolExecutor(6) as pool:
            canvases = list(pool.map(_canvas, pictures))
        self.images = torch.from_numpy(np.stack(canvases)).to(device)  # (P, 3, SIDE, SIDE) uint8
        masks = np.stack([mask for picture in pictures for mask in picture.masks])
        self.masks = torch.from_numpy(masks.astype(np.uint8)).to(device)  # (K, GRID, GRID)
        self.starts = np.concatenate([[0], np.cumsum([len(p.masks) for p in pictures])])
        self.names = sorted({n for p in pictures for n in p.names if n and n[0] != "#"})
        self.classes = torch.from_numpy(
            np.stack([_class_map(picture, self.names) for picture in pictures])
        ).to(device)

    @torch.no_grad()
    def render(self, plans: Sequence[Plan]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frames of S scenes.

        Returns:
            pixels (S * FRAMES, 3, side, side) in 0..255, zero outside the pictures;
            masks (S * FRAMES, CHANNELS, grid, grid) bool;
            classes (S * FRAMES, side / 32, side / 32) uint8;
            inside (S * FRAMES, grid, grid) bool, where there is a picture.
        """
        device = self.device
        index = torch.tensor([i for p in plans for i in p.pictures], device=device)
        sizes = torch.tensor([self.pictures[i].size for p in plans for i in p.pictures])
        windows = torch.from_numpy(np.stack([w for p in plans for w in p.windows])).float()
        sizes, windows = sizes.to(device), windows.to(device)
        pixels = self._sample(self.images[index], windows, sizes, self.side)
        classes = F.grid_sample(
            self.classes[index][:, None].float(),
            self._grid(windows, sizes, self.side // CLASS_STRIDE),
            mode="nearest",
            align_corners=False,
        )[:, 0].to(torch.uint8)
        masks = self._objects(plans, self._grid(windows, sizes, self.grid))
        inside = self._inside(sizes, self.grid)
        self._add_pastes(plans, sizes, pixels, masks, classes)
        masks &= inside[:, None]
        pixels = self._colour(pixels)
        pixels *= self._inside(sizes, self.side)[:, None]
        return pixels, masks, classes, inside

    def _objects(self, plans: Sequence[Plan], grid: Tensor) -> Tensor:
        """Masks (S * FRAMES, CHANNELS, grid, grid) bool of what is not pasted."""
        masks = torch.zeros(
            len(grid), CHANNELS, self.grid, self.grid, dtype=torch.bool, device=self.device
        )
        for s, plan in enumerate(plans):
            for c, channel in enumerate(plan.channels):
                if channel.pasted:
                    continue
                for f in range(FRAMES):
                    row = FRAMES * s + f
                    start = self.starts[plan.pictures[f]]
                    have = [start + k for k in channel.objects]
                    if max(have) >= self.starts[plan.pictures[f] + 1]:
                        continue  # the clip's object is not in this frame
                    union = self.masks[have].amax(dim=0)[None, None].float()
                    masks[row, c] = _nearest(union, grid[row : row + 1])[0, 0]
        return masks

    def _add_pastes(
        self, plans: Sequence[Plan], sizes: Tensor, pixels: Tensor, masks: Tensor, classes: Tensor
    ) -> None:
        for s, plan in enumerate(plans):
            own = len(plan.channels) - len(plan.pastes)
            for n, (other, obj, frames) in enumerate(plan.pastes):
                for f, placed in enumerate(frames):
                    if placed is None:
                        continue
                    row = FRAMES * s + f
                    # Output pixels to canvas pixels of the scene is a half, as for a whole picture.
                    matrix = torch.from_numpy(placed).float()[None].to(self.device)
                    size = torch.full((1, 2), SIDE, device=self.device)
                    image = self._sample(self.images[other : other + 1], matrix, size, self.side)[0]
                    mask = self.masks[self.starts[other] + obj][None, None].float()
                    alpha = F.grid_sample(
                        mask, self._grid(matrix, None, self.side), align_corners=False
                    )
                    alpha = ((alpha[0] - 0.5) * 3 + 0.5).clamp(0, 1)  # (1, side, side)
                    pixels[row] = torch.lerp(pixels[row], image, alpha)
                    cells = F.avg_pool2d(alpha[None], MASK_STRIDE)[0, 0] > 0.5
                    masks[row] &= ~cells
                    masks[row, own + n] = cells
                    small = F.avg_pool2d(cells[None, None].float(), CLASS_STRIDE // MASK_STRIDE)[
                        0, 0
                    ]
                    name = self.pictures[other].names[obj]
                    label = self.names.index(name) if name else NO_CLASS
                    classes[row][small > 0.5] = label
                    classes[row][(small > 0) & (small <= 0.5)] = NO_CLASS

    def _sample(self, images: Tensor, windows: Tensor, sizes: Tensor, side: int) -> Tensor:
        grid = self._grid(windows, sizes, side)
        return F.grid_sample(images.float(), grid, align_corners=False, padding_mode="border")

    def _grid(self, windows: Tensor, sizes: Tensor | None, cells: int) -> Tensor:
        """Where each of cells x cells of the output looks on the canvas, in -1..1.

        With sizes it looks at the border of the picture instead of beyond. (F, cells, cells, 2).
        """
        line = (torch.arange(cells, device=windows.device) + 0.5) * (self.side / cells)
        y, x = torch.meshgrid(line, line, indexing="ij")
        points = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # (cells, cells, 3)
        seen = torch.einsum("hwk,fck->fhwc", points, windows)
        if sizes is not None:
            last = sizes.flip(1)[:, None, None].to(seen.dtype) - 0.5
            seen = torch.minimum(seen.clamp(min=0.5), last)
        return seen * (2 / SIDE) - 1

    def _inside(self, sizes: Tensor, side: int) -> Tensor:
        """(F, side, side) bool: where the picture is, at the upper left."""
        ends = sizes * (side / SIDE)
        line = torch.arange(side, device=self.device)
        return (line[None, :, None] < ends[:, :1, None]) & (line[None, None] < ends[:, 1:, None])

    def _colour(self, pixels: Tensor) -> Tensor:
        """Brightness, contrast and channels of each frame; some are blurred."""
        count = len(pixels)
        drawn = torch.from_numpy(self.noise.normal(size=(count, 5)).astype(np.float32))
        drawn = drawn.to(self.device)
        gain = torch.exp(0.12 * drawn[:, :1] + 0.04 * drawn[:, 1:4])[:, :, None, None]
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
        contrast = torch.exp(0.12 * drawn[:, 4])[:, None, None, None]
        pixels = ((pixels - mean) * contrast + mean) * gain
        blurred = np.flatnonzero(self.noise.random(count) < 0.15)
        if len(blurred):
            soft = F.avg_pool2d(pixels[blurred], 5, stride=1, padding=2, count_include_pad=False)
            pixels[blurred] = soft
        return pixels.clamp(0, 255)


def _canvas(picture: Picture) -> np.ndarray:
    """(3, SIDE, SIDE) uint8 RGB, the picture at the upper left, its border repeated."""
    pixels = cv2.imdecode(picture.jpeg, cv2.IMREAD_COLOR)
    assert pixels is not None, "encoded by us"
    image = pixels[..., ::-1]
    height, width = picture.size
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    image = np.pad(image, ((0, SIDE - height), (0, SIDE - width), (0, 0)), mode="edge")
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _class_map(picture: Picture, names: Sequence[str]) -> np.ndarray:
    """(GRID, GRID) uint8: class of each cell, of the smallest object where they overlap."""
    found = np.full((GRID, GRID), NO_CLASS, np.uint8)
    order = sorted(range(len(picture.masks)), key=lambda k: -int(picture.masks[k].sum()))
    for k in order:
        name = picture.names[k]
        label = names.index(name) if name and name[0] != "#" else NO_CLASS
        found[picture.masks[k]] = label
    return found


def _nearest(masks: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(masks, grid, align_corners=False) > 0.5

"""Scenes of three frames made from single pictures on the device that trains, and kept encoded.

The image encoder of the SAM is frozen, so that what a picture looks like to it is computed once and
used many times. Fresh scenes take the place of old ones, so that no step waits for a disk or for
another process.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from projects.sam.mobile.pictures import GRID, SIDE, Picture
from unified.expressions import has_ordinal, swap_left_right
from unified.structures import MASK_STRIDE

FRAMES, CHANNELS = 3, 6  # of a scene
PASTED = 2  # of the channels, at most
NO_CLASS = 255
CLASS_STRIDE = 32  # of the map of classes, in pixels
VISIBLE = 4e-4  # share of the square that an object has at least
_PLACE = re.compile(
    r"\b(left|right|top|bottom|upper|lower|middle|mid|cent(er|re)|corner|front|back|behind|far|near"
    r"|nearest|closest|furthest|farthest|next|last|above|below|under|between|beside|side|edge"
    r"|background|foreground|leftmost|rightmost|half)"
)


def about_place(text: str) -> bool:
    """Whether the sentence may become false when the picture is cropped."""
    return has_ordinal(text) or _PLACE.search(text.lower()) is not None


@dataclass
class Channel:
    """One target of a scene.

    Attributes:
        objects: indices among the objects of the picture, or the one that is pasted.
        sentences: that mean exactly these.
        name: of the class, "" if unknown.
    """

    objects: tuple[int, ...]
    sentences: list[str] = field(default_factory=list)
    name: str = ""
    pasted: bool = False


@dataclass
class Plan:
    """How the frames of a scene are drawn, and what there is to ask about.

    Attributes:
        pictures: of each frame.
        windows: per frame (2, 3), output pixels to canvas pixels.
        channels: at most ``CHANNELS``.
        absent: sentences about nothing in the picture.
        whole: frame 0 shows the whole picture.
        flipped: left and right are swapped.
        pastes: per pasted object its picture, its object and a (2, 3) per frame, None where absent.
    """

    pictures: list[int]
    windows: list[np.ndarray]
    channels: list[Channel]
    absent: list[str]
    whole: bool
    flipped: bool
    pastes: list[tuple[int, int, list[np.ndarray | None]]]

    def sentence(self, text: str) -> str:
        """As it is said of the scene."""
        return swap_left_right(text) if self.flipped else text


class SceneMaker:
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
        self.pictures, self.device = pictures, device
        self.side, self.grid = side, side // MASK_STRIDE
        self.random = random.Random(seed)
        self.noise = np.random.default_rng(seed)
        with ThreadPoolExecutor(6) as pool:
            canvases = list(pool.map(_canvas, pictures))
        self.images = torch.from_numpy(np.stack(canvases)).to(device)  # (P, 3, SIDE, SIDE) uint8
        masks = np.stack([mask for picture in pictures for mask in picture.masks])
        self.masks = torch.from_numpy(masks.astype(np.uint8)).to(device)  # (K, GRID, GRID)
        counts = [len(picture.masks) for picture in pictures]
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.names = sorted({n for p in pictures for n in p.names if n and n[0] != "#"})
        self.classes = torch.from_numpy(
            np.stack([_class_map(picture, self.names) for picture in pictures])
        ).to(device)
        self.singles = [i for i, p in enumerate(pictures) if not p.clip[0] and p.masks]
        clips: dict[str, list[int]] = {}
        for index, picture in enumerate(pictures):
            if picture.clip[0]:
                clips.setdefault(picture.clip[0], []).append(index)
        self.clips = [sorted(c, key=lambda i: pictures[i].clip[1]) for c in clips.values()]
        areas = masks.sum(axis=(1, 2)) / GRID**2
        self.pasteable = [
            (p, k)
            for p in self.singles
            for k in range(counts[p])
            if 0.02 < areas[self.starts[p] + k] < 0.5
        ]

    def draw(self, clip_chance: float, paste_chance: float) -> Plan:
        """A scene of one picture, or of three frames of a clip."""
        r = self.random
        is_clip = bool(self.clips) and r.random() < clip_chance
        chosen = self._frames_of_clip() if is_clip else [r.choice(self.singles)] * FRAMES
        picture = self.pictures[chosen[0]]
        whole, flipped = r.random() < 0.5, r.random() < 0.5
        motion = 0.02 if is_clip else 1.0
        windows = self._windows(picture.size, whole, flipped, motion)
        pastes = []
        if not is_clip and r.random() < paste_chance:
            pastes = [self._paste(picture.size) for _ in range(r.choice((1, 1, 2)))]
        channels = self._channels(picture, is_clip, CHANNELS - len(pastes))
        for other, obj, _ in pastes:
            name = self.pictures[other].names[obj]
            channels.append(Channel((obj,), name=name, pasted=True))
        absent = [text for text, meant in picture.sentences.items() if not meant]
        return Plan(chosen, windows, channels, absent, whole, flipped, pastes)

    def _frames_of_clip(self) -> list[int]:
        clip = self.random.choice(self.clips)
        first = self.random.randrange(len(clip) - 2)
        now = min(len(clip) - 1, first + self.random.randint(2, 40))
        latest = max(first, now - self.random.choice((1, 1, 2, 4)))
        return [clip[first], clip[latest], clip[now]]

    def _channels(self, picture: Picture, is_clip: bool, limit: int) -> list[Channel]:
        sets: dict[tuple[int, ...], list[str]] = {}
        for text, meant in picture.sentences.items():
            if meant:
                sets.setdefault(meant, []).append(text)
        for index in range(len(picture.masks)):
            sets.setdefault((index,), [])
        items = list(sets.items())
        self.random.shuffle(items)
        items.sort(key=lambda item: not item[1])  # what is spoken of comes first
        return [
            Channel(meant, texts, "" if is_clip or len(meant) > 1 else picture.names[meant[0]])
            for meant, texts in items[:limit]
        ]

    def _windows(
        self, size: tuple[int, int], whole: bool, flipped: bool, motion: float
    ) -> list[np.ndarray]:
        r = self.random
        zoom = 1.0 if whole else math.exp(r.uniform(0.0, 0.65))
        height, width = size
        slack = 0.5 - 0.5 / zoom
        x = width * (0.5 + r.uniform(-slack, slack))
        y = height * (0.5 + r.uniform(-slack, slack))
        angle = 0.0
        windows = []
        for wander in (0.0, 1.0, 0.4):
            move = wander * motion
            x += r.gauss(0, 0.07) * move * width / zoom
            y += r.gauss(0, 0.07) * move * height / zoom
            zoom = max(0.95, zoom * math.exp(r.gauss(0, 0.12) * move))
            angle += r.gauss(0, 4.0) * move
            windows.append(_affine(self.side, size, (x, y), 1 / zoom, angle, flipped))
        return windows

    def _paste(self, size: tuple[int, int]) -> tuple[int, int, list[np.ndarray | None]]:
        r = self.random
        other, obj = r.choice(self.pasteable)
        rows, columns = np.nonzero(self.pictures[other].masks[obj])
        centre = (float(columns.mean()) * 2, float(rows.mean()) * 2)  # on the canvas
        extent = 2 * max(np.ptp(rows) + 1, np.ptp(columns) + 1)
        side = SIDE * r.uniform(0.12, 0.5)  # of the object, in canvas pixels of the scene
        x, y = (r.uniform(0.1, 0.9) * s for s in (size[1], size[0]))
        flipped, angle = r.random() < 0.5, r.gauss(0, 8)
        frames: list[np.ndarray | None] = []
        for wander in (0.0, 1.0, 0.35):
            x += r.gauss(0, 0.25) * wander * side
            y += r.gauss(0, 0.18) * wander * side
            side *= math.exp(r.gauss(0, 0.15) * wander)
            angle += r.gauss(0, 7) * wander
            placed = _placed(self.side, (x, y), centre, extent / side, angle, flipped)
            frames.append(placed)
        if r.random() < 0.1:
            frames[2] = None
        return other, obj, frames

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
        fine = self._grid(windows, sizes, self.grid)
        masks = torch.zeros(
            len(index), CHANNELS, self.grid, self.grid, dtype=torch.bool, device=device
        )
        classes = F.grid_sample(
            self.classes[index][:, None].float(),
            self._grid(windows, sizes, self.side // CLASS_STRIDE),
            mode="nearest",
            align_corners=False,
        )[:, 0].to(torch.uint8)
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
                    masks[row, c] = _nearest(union, fine[row : row + 1])[0, 0]
        inside = self._inside(sizes, self.grid)
        self._add_pastes(plans, sizes, pixels, masks, classes)
        masks &= inside[:, None]
        pixels = self._colour(pixels)
        pixels *= self._inside(sizes, self.side)[:, None]
        return pixels, masks, classes, inside

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
    image = cv2.imdecode(picture.jpeg, cv2.IMREAD_COLOR)[..., ::-1]
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


def _affine(
    side: int,
    size: tuple[int, int],
    centre: tuple[float, float],
    scale: float,
    angle: float,
    flipped: bool,
) -> np.ndarray:
    """Output pixels (x, y, 1) to canvas pixels; the middle of the output sees ``centre``."""
    height, width = size
    return _placed(side, (width / 2, height / 2), centre, scale, angle, flipped)


def _placed(
    side: int,
    at: tuple[float, float],
    centre: tuple[float, float],
    scale: float,
    angle: float,
    flipped: bool,
) -> np.ndarray:
    """Output pixels to canvas pixels of the pasted picture; canvas point ``at`` sees ``centre``."""
    turn = math.radians(angle)
    k = scale * SIDE / side
    matrix = k * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    if flipped:
        matrix[:, 0] *= -1
    middle = np.array(at) * (side / SIDE)
    return np.concatenate([matrix, (np.array(centre) - matrix @ middle)[:, None]], axis=1)


def _nearest(masks: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(masks, grid, align_corners=False) > 0.5

"""A world of moving, textured, occluding things, drawn as frames with exact object masks.

Coordinates are pixels, x to the right and y down. A thing's id is its place in the scene plus one;
later things lie in front of earlier ones. Everything follows from the random generator passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 36, 36),
    "green": (40, 160, 60),
    "blue": (40, 78, 214),
    "yellow": (232, 212, 42),
    "purple": (140, 52, 168),
    "orange": (240, 130, 24),
    "white": (240, 240, 240),
    "black": (28, 28, 32),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = {"small": (0.13, 0.16), "medium": (0.18, 0.21), "large": (0.24, 0.29)}
SIZE_SHARES = (0.25, 0.35, 0.4)
FRAME_SIZES = ((96, 128), (128, 96), (112, 112), (96, 144))


Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _polygon(points: Sequence[tuple[float, float]]) -> Inside:
    """Even-odd test for a polygon in the unit square."""

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        result = np.zeros(u.shape, dtype=bool)
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            if y0 == y1:
                continue
            crosses = (y0 > v) != (y1 > v)
            result ^= crosses & (u < x0 + (v - y0) * (x1 - x0) / (y1 - y0))
        return result

    return inside


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = 1.2 * u, 0.15 - 1.2 * v
    excess = x * x + y * y - 1
    return excess * excess * excess < x * x * y * y * y


def _star(tips: int, inner: float) -> list[tuple[float, float]]:
    turns = np.arange(2 * tips) * np.pi / tips - np.pi / 2
    radii = np.where(np.arange(2 * tips) % 2 == 0, 1.0, inner)
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, turns, strict=True)]


KINDS: dict[str, Inside] = {
    "circle": lambda u, v: u**2 + v**2 < 0.85,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.8,
    "triangle": _polygon([(0.0, -0.95), (0.95, 0.75), (-0.95, 0.75)]),
    "star": _polygon(_star(5, 0.45)),
    "ring": lambda u, v: (u**2 + v**2 < 1) & (u**2 + v**2 > 0.3),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.32) & (np.maximum(abs(u), abs(v)) < 0.95),
    "heart": _heart,
    "moon": lambda u, v: (u**2 + v**2 < 1) & ((u - 0.5) ** 2 + v**2 > 0.5),
    "arrow": _polygon(
        [(-0.95, -0.3), (0.05, -0.3), (0.05, -0.8), (1, 0), (0.05, 0.8), (0.05, 0.3), (-0.95, 0.3)]
    ),
    "bar": lambda u, v: (abs(u) < 1) & (abs(v) < 0.38),
}


@dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
        size: word for its radius, a key of ``SIZES``.
        radius: half of its extent, in pixels.
        centre: (x, y) in frame 0.
        velocity: (x, y) in pixels per frame.
        angle, spin: rotation in frame 0 and per frame, in radians.
        frames: (first, stop) of the frames in which it exists.
        rgb: its own shade of ``colour``.
    """

    kind: str
    colour: str
    texture: str
    size: str
    radius: float
    centre: tuple[float, float]
    angle: float
    rgb: tuple[int, int, int]
    velocity: tuple[float, float] = (0.0, 0.0)
    spin: float = 0.0
    frames: tuple[int, int] = (0, 1)

    @property
    def motion(self) -> str:
        """ "still", "left", "right", "up" or "down"."""
        x, y = self.velocity
        if abs(x) + abs(y) == 0:
            return "still"
        return ("right" if x > 0 else "left") if abs(x) > abs(y) else ("down" if y > 0 else "up")


@dataclass(frozen=True)
class Scene:
    """Things, back to front, before a background (H, W, 3) uint8."""

    things: tuple[Thing, ...]
    background: np.ndarray
    num_frames: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of every frame."""
        return self.background.shape[0], self.background.shape[1]

    def draw(self, frame: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """One frame: image (H, W, 3) uint8 RGB and label map (H, W) uint8 of visible ids."""
        image = self.background.astype(np.float32)
        labels = np.zeros(self.size, dtype=np.uint8)
        for label, thing in enumerate(self.things, start=1):
            if thing.frames[0] <= frame < thing.frames[1]:
                _paint(image, labels, thing, frame, label)
        return image.clip(0, 255).astype(np.uint8), labels


def make_scene(
    rng: np.random.Generator,
    *,
    num_things: int | None = None,
    num_frames: int = 1,
    first: tuple[str, str, str | None] | None = None,
    avoid: Sequence[tuple[str, str]] = (),
) -> Scene:
    """A random scene in which every thing is at least half visible in its first frame.

    Args:
        num_things: 3 to 5 if not given.
        num_frames: 1 for a still image; with more, most things move.
        first: (kind, colour, texture or None for any) of the first thing placed, a few-shot class.
        avoid: (kind, colour) pairs that no other thing may have.
    """
    size = FRAME_SIZES[rng.integers(len(FRAME_SIZES))]
    wanted = num_things or int(rng.integers(3, 6))
    things: list[Thing] = []
    masks: list[np.ndarray] = []
    for _ in range(60):
        if len(things) == wanted:
            break
        thing = _random_thing(rng, size, things, num_frames)
        if not things and first is not None:
            kind, colour, texture = first
            thing = replace(thing, kind=kind, texture=texture or thing.texture)
            thing = replace(thing, colour=colour, rgb=_shade(rng, colour))
        elif (thing.kind, thing.colour) in avoid:
            continue
        mask = _mask(thing, size)
        if _all_visible([*masks, mask]):
            things.append(thing)
            masks.append(mask)
    order = rng.permutation(len(things))
    return Scene(tuple(things[i] for i in order), _background(rng, size), num_frames)


def _random_thing(
    rng: np.random.Generator, size: tuple[int, int], others: Sequence[Thing], num_frames: int
) -> Thing:
    """A thing that often shares its kind or its colour with another one, so that words matter."""
    kind = str(rng.choice(list(KINDS)))
    colour = str(rng.choice(list(COLOURS)))
    if others and rng.random() < 0.5:
        other = others[int(rng.integers(len(others)))]
        kind, colour = (other.kind, colour) if rng.random() < 0.5 else (kind, other.colour)
    word = str(rng.choice(list(SIZES), p=SIZE_SHARES))
    radius = float(rng.uniform(*SIZES[word]) * min(size))
    centre = [float(rng.uniform(0.8 * radius, side - 0.8 * radius)) for side in reversed(size)]
    thing = Thing(
        kind=kind,
        colour=colour,
        rgb=_shade(rng, colour),
        texture=str(rng.choice(TEXTURES)),
        size=word,
        radius=radius,
        centre=(centre[0], centre[1]),
        angle=float(rng.uniform(-0.4, 0.4)),
        frames=(0, num_frames),
    )
    return _set_moving(rng, thing, size, num_frames) if num_frames > 1 else thing


def _shade(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.array(COLOURS[colour]) + rng.integers(-16, 17, size=3), 0, 255)
    return int(red), int(green), int(blue)


def _set_moving(
    rng: np.random.Generator, thing: Thing, size: tuple[int, int], num_frames: int
) -> Thing:
    """Gives a thing a path that ends inside the frame, and sometimes a late start or early end."""
    if rng.random() < 0.3:
        return thing
    axis = int(rng.integers(2))  # 0: x, 1: y
    extent = size[1 - axis]
    toward = 1.0 if thing.centre[axis] < extent / 2 else -1.0
    room = (
        extent - thing.radius - (thing.centre[axis] if toward > 0 else extent - thing.centre[axis])
    )
    speed = min(float(rng.uniform(1.5, 5.0)), max(room, 4.0) / num_frames) * toward
    drift = float(rng.uniform(-0.3, 0.3)) * speed
    first = int(rng.integers(1, num_frames // 2)) if num_frames > 4 and rng.random() < 0.2 else 0
    late = num_frames > 4 and rng.random() < 0.15
    stop = int(rng.integers(num_frames // 2 + 1, num_frames)) if late else num_frames
    return replace(
        thing,
        velocity=(speed, drift) if axis == 0 else (drift, speed),
        spin=float(rng.uniform(-0.08, 0.08)),
        frames=(first, stop),
    )


def _background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 of soft muted patches with grain; no thing has such a colour."""
    height, width = size
    base = rng.uniform(95, 160, size=(6, 8, 1)) + rng.uniform(-22, 22, size=(6, 8, 3))
    patches = Image.fromarray(base.clip(0, 255).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 7, size=(height, width, 1))
    return (np.asarray(patches) + grain).clip(0, 255).astype(np.uint8)


def _mask(thing: Thing, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool pixels of a thing alone where it starts."""
    labels = np.zeros(size, dtype=np.uint8)
    _paint(np.zeros((*size, 3), dtype=np.float32), labels, thing, 0, 1)
    return labels > 0


def _all_visible(masks: Sequence[np.ndarray]) -> bool:
    """Whether every mask keeps half of its pixels in whatever order the things are stacked."""
    covered = np.sum(masks, axis=0) > 1
    return all((mask & ~covered).sum() >= max(0.5 * mask.sum(), 30) for mask in masks)


def _paint(image: np.ndarray, labels: np.ndarray, thing: Thing, frame: int, label: int) -> None:
    """Draws one thing over ``image`` (H, W, 3) float32 and ``labels`` (H, W) in place."""
    height, width = labels.shape
    x, y = (c + frame * v for c, v in zip(thing.centre, thing.velocity, strict=True))
    reach = 1.45 * thing.radius  # a rotated square reaches beyond its radius
    left, right = max(int(x - reach), 0), min(int(x + reach) + 2, width)
    top, bottom = max(int(y - reach), 0), min(int(y + reach) + 2, height)
    if left >= right or top >= bottom:
        return
    # Four samples per pixel: edges are smooth, and a pixel belongs to the thing from two on.
    columns = (np.arange(left, right, 0.5, dtype=np.float32) + np.float32(0.25 - x)) / thing.radius
    rows = (np.arange(top, bottom, 0.5, dtype=np.float32) + np.float32(0.25 - y)) / thing.radius
    angle = thing.angle + frame * thing.spin
    cos, sin = math.cos(angle), math.sin(angle)
    u = cos * columns[None, :] + sin * rows[:, None]
    v = -sin * columns[None, :] + cos * rows[:, None]
    inside = KINDS[thing.kind](u, v)
    shade = _texture(thing.texture, u, v) * (1.0 - 0.12 * v)
    rgb = np.array(thing.rgb, dtype=np.float32)
    contrast = rgb * 0.45 if rgb.mean() > 60 else rgb + 85.0
    colour = contrast + (rgb - contrast) * np.clip(shade, 0, 1.15)[..., None]
    cover = _pool(inside.astype(np.float32)[..., None])  # (h, w, 1)
    painted = _pool(colour * inside[..., None]) / np.maximum(cover, 1e-6)
    window = (slice(top, bottom), slice(left, right))
    image[window] = image[window] * (1 - cover) + painted * cover
    labels[window][cover[..., 0] >= 0.5] = label


def _texture(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """1 where the thing has its own colour, 0 where it has the contrasting tone; moves with it."""
    if texture == "striped":
        return (np.sin(9.0 * u) > -0.35).astype(np.float32)
    if texture == "dotted":
        return (np.cos(8.0 * u) * np.cos(8.0 * v) < 0.45).astype(np.float32)
    if texture == "checked":
        return ((np.floor(2.2 * u) + np.floor(2.2 * v)) % 2 == 0).astype(np.float32)
    return np.ones(u.shape, dtype=np.float32)


def _pool(values: np.ndarray) -> np.ndarray:
    """(2h, 2w, C) -> (h, w, C) means."""
    rows = values[0::2] + values[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) * 0.25

"""Pseudo-clips: a picture under a moving camera, and moving, bending cutouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from projects.uniref.lite.data.pictures import Scene, Thing
from projects.uniref.lite.data.scenes import Cutout, fit, is_seen, paste

MIN_PIXELS = 24  # smaller remains of an object are background
MAX_BEND = 0.08  # largest shift of a bent cutout, in its own size


@dataclass(frozen=True)
class PseudoClip:
    """A made clip.

    Attributes:
        images: T x (H, W, 3) uint8.
        label_maps: T x (H, W) uint8; pixel = id of an object from 1, 0 background.
        scenes: what is seen in each frame; every object is in all of them in the order of ids,
            followed by things of the background that are not tracked.
        num_objects: objects with an id.
    """

    images: tuple[np.ndarray, ...]
    label_maps: tuple[np.ndarray, ...]
    scenes: tuple[Scene, ...]
    num_objects: int


@dataclass(frozen=True)
class Motion:
    """A smooth motion: T values per parameter.

    Attributes:
        x, y: of the centre, in units of the frame.
        scale: relative to the start.
        angle: degrees.
        bend: strength of the elastic deformation, -1 to 1.
    """

    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    angle: np.ndarray
    bend: np.ndarray


def smooth(rng: np.random.Generator, num_frames: int, spread: float) -> np.ndarray:
    """(T,) values that begin at 0 and end within ``spread``, with a slight acceleration."""
    time = np.linspace(0, 1, num_frames)
    end, curve = rng.uniform(-spread, spread), rng.uniform(-0.5, 0.5) * spread
    return end * time + curve * time * (1 - time)


def object_motion(rng: np.random.Generator, num_frames: int) -> Motion:
    """Motion of a pasted object; one in six leaves the frame in part and comes back."""
    x = rng.uniform(0.2, 0.8) + smooth(rng, num_frames, 0.35)
    y = rng.uniform(0.25, 0.8) + smooth(rng, num_frames, 0.2)
    if rng.random() < 1 / 6:
        away = np.sin(np.linspace(0, np.pi, num_frames)) ** 2
        side = float(rng.choice([-0.05, 1.05]))
        x = x + away * (side - x)
    return Motion(
        x=x,
        y=y,
        scale=np.exp(smooth(rng, num_frames, 0.35)),
        angle=smooth(rng, num_frames, 22.0),
        bend=np.sin(smooth(rng, num_frames, 2.0) + rng.uniform(0, 3)),
    )


def camera_motion(rng: np.random.Generator, num_frames: int) -> Motion:
    """Motion of the window through which the picture is seen; ``scale`` is its share."""
    zoom = rng.uniform(0.6, 0.9) * np.exp(smooth(rng, num_frames, 0.25))
    zoom = np.clip(zoom, 0.5, 0.96)
    room = (1 - zoom) / 2
    x = 0.5 + np.clip(rng.uniform(-1, 1) * room[0] + smooth(rng, num_frames, 0.3), -room, room)
    y = 0.5 + np.clip(rng.uniform(-1, 1) * room[0] + smooth(rng, num_frames, 0.2), -room, room)
    return Motion(
        x=x,
        y=y,
        scale=zoom,
        angle=smooth(rng, num_frames, 7.0),
        bend=np.sin(smooth(rng, num_frames, 2.5)),
    )


def bending(rng: np.random.Generator, size: tuple[int, int], grid: int = 3) -> np.ndarray:
    """(H, W, 2) smooth random shifts in pixels, zero at the rim: a coarse grid made fine."""
    height, width = size
    knots = np.zeros((grid + 2, grid + 2, 2), dtype=np.float32)
    knots[1:-1, 1:-1] = rng.uniform(-1, 1, (grid, grid, 2))
    fine = cv2.resize(knots, (width, height), interpolation=cv2.INTER_CUBIC)
    return fine * MAX_BEND * np.array([width, height], dtype=np.float32)


def bend(cutout: Cutout, shifts: np.ndarray, strength: float) -> Cutout:
    """The cutout under an elastic deformation."""
    height, width = cutout.alpha.shape
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    map_x = (columns + strength * shifts[..., 0]).astype(np.float32)
    map_y = (rows + strength * shifts[..., 1]).astype(np.float32)
    image = cv2.remap(cutout.image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.remap(cutout.alpha, map_x, map_y, cv2.INTER_LINEAR)
    return replace(cutout, image=image, alpha=alpha)


class Backdrop:
    """A picture whose things are seen through a moving, slightly bending window."""

    def __init__(self, scene: Scene, rng: np.random.Generator, num_frames: int) -> None:
        self.scene = scene
        self.motion = camera_motion(rng, num_frames)
        self.shifts = bending(rng, scene.size) * 0.5

    def frame(self, index: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """(H, W, 3) float32 and the masks (H, W) bool of all things, in one frame."""
        map_x, map_y = self.maps(index)
        image = cv2.remap(self.scene.image, map_x, map_y, cv2.INTER_LINEAR)
        soft = (thing.mask.astype(np.float32) for thing in self.scene.things)
        seen = (cv2.remap(m, map_x, map_y, cv2.INTER_LINEAR) for m in soft)
        return image.astype(np.float32), [mask > 0.5 for mask in seen]

    def maps(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each pixel of the frame comes from: x and y, each (H, W) float32, in the picture.

        A window that would reach beyond the picture is made smaller and moved: a mirrored rim would
        show a second copy of things that sentences take for single ones.
        """
        height, width = self.scene.size
        motion = self.motion
        columns, rows = np.meshgrid(np.arange(width) - width / 2, np.arange(height) - height / 2)
        angle, scale = np.radians(motion.angle[index]), motion.scale[index]
        x = motion.x[index] * width + scale * (np.cos(angle) * columns - np.sin(angle) * rows)
        y = motion.y[index] * height + scale * (np.sin(angle) * columns + np.cos(angle) * rows)
        shifts = self.shifts * motion.bend[index]
        x, y = x + shifts[..., 0], y + shifts[..., 1]
        shrink = min(1.0, (width - 1) / np.ptp(x), (height - 1) / np.ptp(y))
        return _moved_inside(shrink * x, width), _moved_inside(shrink * y, height)


def _moved_inside(coordinates: np.ndarray, length: int) -> np.ndarray:
    """Float32 coordinates moved by the least that brings all of them to 0 ... length - 1."""
    low, high = coordinates.min(), coordinates.max()
    moved = coordinates - min(low, 0.0) - max(high - (length - 1), 0.0)
    return moved.clip(0, length - 1).astype(np.float32)


class Actor:
    """A cutout that moves over the backdrop."""

    def __init__(
        self, cutout: Cutout, size: tuple[int, int], rng: np.random.Generator, num_frames: int
    ) -> None:
        self.cutout = fit(cutout, size, rng, (0.02, 0.16))
        self.motion = object_motion(rng, num_frames)
        self.shifts = bending(rng, (self.cutout.alpha.shape[0], self.cutout.alpha.shape[1]))

    def draw(self, canvas: np.ndarray, index: int) -> np.ndarray:
        """Draws one frame on (H, W, 3) float32 in place; the mask (H, W) bool."""
        motion = self.motion
        bent = bend(self.cutout, self.shifts, float(motion.bend[index]))
        height, width = bent.alpha.shape
        matrix = cv2.getRotationMatrix2D(
            (width / 2, height / 2), float(motion.angle[index]), float(motion.scale[index])
        )
        matrix[0, 2] += motion.x[index] * canvas.shape[1] - width / 2
        matrix[1, 2] += motion.y[index] * canvas.shape[0] - height / 2
        return paste(canvas, bent, matrix)

    def thing(self, mask: np.ndarray) -> Thing:
        """What is seen of it, described by its class if that is known."""
        name = self.cutout.name
        return Thing(name, mask, referable=bool(name), breeds=self.cutout.breeds)


def make_clip(
    background: Scene,
    tracked: Sequence[int],
    cutouts: Sequence[Cutout],
    rng: np.random.Generator,
    num_frames: int,
) -> PseudoClip:
    """A clip of a moving picture and of cutouts that move over it, the later ones in front.

    Args:
        tracked: things of the background that get an id, before the cutouts.
    """
    backdrop = Backdrop(background, rng, num_frames)
    actors = [Actor(cutout, background.size, rng, num_frames) for cutout in cutouts]
    light = np.exp(smooth(rng, num_frames, 0.22))
    contrast = np.exp(smooth(rng, num_frames, 0.15))
    tint = np.stack([np.exp(smooth(rng, num_frames, 0.05)) for _ in range(3)], axis=1)
    others = [index for index in range(len(background.things)) if index not in tracked]
    images, label_maps, scenes = [], [], []
    for frame in range(num_frames):
        canvas, masks = backdrop.frame(frame)
        things = [
            replace(background.things[index], mask=masks[index]) for index in (*tracked, *others)
        ]
        whole = [int(thing.mask.sum()) for thing in things]
        position = len(tracked)
        for actor in actors:
            mask = actor.draw(canvas, frame)
            things = [replace(thing, mask=thing.mask & ~mask) for thing in things]
            things.insert(position, actor.thing(mask))
            whole.insert(position, int(mask.sum()))
            position += 1
        mean = canvas.mean()
        canvas = ((canvas - mean) * contrast[frame] + mean) * light[frame] * tint[frame]
        image = canvas.clip(0, 255).round().astype(np.uint8)
        labels = label_things(things[:position], background.size)
        for number in range(1, position + 1):  # what a sentence says is true of these pixels
            things[number - 1] = replace(things[number - 1], mask=labels == number)
        seen = tuple(
            replace(thing, referable=thing.referable and is_seen(thing.mask, pixels))
            for thing, pixels in zip(things, whole, strict=True)
        )
        images.append(image)
        scenes.append(Scene(image, seen, background.complete))
        label_maps.append(labels)
    return PseudoClip(tuple(images), tuple(label_maps), tuple(scenes), len(tracked) + len(cutouts))


def label_things(things: Sequence[Thing], size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 label map, ids from 1; where masks overlap the smaller thing is in front.

    COCO masks overlap where a thing is worn, held, or lies on another one.
    """
    labels = np.zeros(size, dtype=np.uint8)
    areas = [int(thing.mask.sum()) for thing in things]
    for index in sorted(range(len(things)), key=lambda index: -areas[index]):
        if areas[index] >= MIN_PIXELS:
            labels[things[index].mask] = index + 1
    return labels

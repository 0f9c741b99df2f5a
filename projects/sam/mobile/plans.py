"""How scenes of three frames are drawn from single pictures, and what is asked about them."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from projects.sam.mobile.pictures import GRID, SIDE, Picture
from unified.expressions import has_ordinal, swap_left_right

FRAMES, CHANNELS = 3, 6  # of a scene
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


class PlanMaker:
    """Draws plans.

    Args:
        pictures: all that may be drawn from.
        seed: of what is drawn.
        side: of the SAM's input.
    """

    def __init__(self, pictures: Sequence[Picture], *, seed: int, side: int) -> None:
        self.pictures, self.side = pictures, side
        self.random = random.Random(seed)
        self.singles = [i for i, p in enumerate(pictures) if not p.clip[0] and p.masks]
        clips: dict[str, list[int]] = {}
        for index, picture in enumerate(pictures):
            if picture.clip[0]:
                clips.setdefault(picture.clip[0], []).append(index)
        self.clips = [sorted(c, key=lambda i: pictures[i].clip[1]) for c in clips.values()]
        self.pasteable = [
            (p, k)
            for p in self.singles
            for k, mask in enumerate(pictures[p].masks)
            if 0.02 < mask.sum() / GRID**2 < 0.5
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

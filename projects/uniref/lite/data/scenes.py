"""Copy-paste composites: instances cut out with soft rims and pasted over other pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from projects.uniref.lite.data.pictures import COCO, MIN_SHARE, Picture, Scene, Thing
from unified.errors import InputError

MIN_CUT_SHARE = 0.015  # of its picture
SMALLEST_CUT = 28  # pixels of the shorter side
LOST_SHARE = 0.6  # of a thing's pixels behind others, from which on it is not referred to
MAX_CONTACT = 0.12  # of the rim of a cutout, with other things of its picture
PAD = 4  # pixels around a cutout, so that its soft rim is whole
FEATHER = 0.8  # standard deviation of the rim in pixels
# what stands on or in them is part of their masks, or they are seen through
UNCUT = frozenset({"dining table", "wine glass", "bed", "sink", "book", "hair", "", "tie"})
UPSCALE = 1.4
AREA_RANGE = (0.02, 0.22)  # of the new picture


@dataclass(frozen=True)
class Cutout:
    """An instance ready to be pasted.

    Attributes:
        image: (h, w, 3) uint8, the box around it with its own background.
        alpha: (h, w) float32 in [0, 1].
    """

    image: np.ndarray
    alpha: np.ndarray
    name: str
    breeds: tuple[str, ...] = ()

    @property
    def area(self) -> float:
        """Pixels."""
        return float((self.alpha > 0.5).sum())


def cuttable(picture: Picture, *, regions: bool = False) -> list[int]:
    """Indices of the things that can be cut out: whole, in one piece, large enough.

    Args:
        regions: regions of no known class, and nothing else.
    """
    if len(picture.names) > 1 and picture.origin != COCO and not regions:
        return []  # garments are no things of their own
    masks = [picture.mask(index) for index in range(len(picture.names))]
    return [
        index
        for index, (name, crowd) in enumerate(zip(picture.names, picture.crowds, strict=True))
        if not crowd and (name == "" if regions else name not in UNCUT)
        if _is_whole(masks[index], 0.45 if regions else 0.6)
        if regions or not _is_hidden(masks, index)
    ]


def _is_whole(mask: np.ndarray, largest: float) -> bool:
    if not MIN_CUT_SHARE < mask.mean() < largest:
        return False
    if mask[:2].any() or mask[-2:].any() or mask[:, :2].any() or mask[:, -2:].any():
        return False
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if min(rows[-1] - rows[0], columns[-1] - columns[0]) < SMALLEST_CUT:
        return False
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return bool(stats[1:, cv2.CC_STAT_AREA].max() > 0.93 * mask.sum())


def _is_hidden(masks: Sequence[np.ndarray], index: int) -> bool:
    """Whether much of the rim of a mask lies against others, which may be in front."""
    mask = masks[index].astype(np.uint8)
    ring = cv2.dilate(mask, np.ones((7, 7), np.uint8)).astype(bool) & (mask == 0)
    contact = sum((other & ring for i, other in enumerate(masks) if i != index), ring & False)
    return bool(contact.sum() > MAX_CONTACT * ring.sum())


def cut_out(scene: Scene, index: int) -> Cutout:
    """A thing of a scene with its rim eroded by a pixel and feathered."""
    thing = scene.things[index]
    rows, columns = np.flatnonzero(thing.mask.any(axis=1)), np.flatnonzero(thing.mask.any(axis=0))
    window = (
        slice(max(rows[0] - PAD, 0), rows[-1] + PAD + 1),
        slice(max(columns[0] - PAD, 0), columns[-1] + PAD + 1),
    )
    inner = cv2.erode(thing.mask[window].astype(np.uint8), np.ones((3, 3), np.uint8))
    alpha = cv2.GaussianBlur(inner.astype(np.float32), (0, 0), FEATHER)
    return Cutout(scene.image[window].copy(), alpha, thing.name, thing.breeds)


def fit(
    cutout: Cutout,
    size: tuple[int, int],
    rng: np.random.Generator,
    area_range: tuple[float, float] = AREA_RANGE,
) -> Cutout:
    """The cutout at a random size for a picture of (h, w); half of them are mirrored."""
    share = np.exp(rng.uniform(*np.log(area_range)))
    scale = np.sqrt(share * size[0] * size[1] / max(cutout.area, 1))
    height, width = cutout.alpha.shape
    scale = float(min(scale, UPSCALE, 0.9 * size[0] / height, 0.9 * size[1] / width))
    shape = max(4, round(width * scale)), max(4, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image, alpha = cv2.resize(cutout.image, shape, None, 0, 0, how), cutout.alpha
    alpha = cv2.resize(alpha, shape, None, 0, 0, how)
    if rng.random() < 0.5:
        image, alpha = image[:, ::-1], alpha[:, ::-1]
    gain = rng.uniform(0.88, 1.12)
    image = np.clip(image.astype(np.float32) * gain, 0, 255).astype(np.uint8)
    return replace(cutout, image=image, alpha=np.ascontiguousarray(alpha))


def paste(canvas: np.ndarray, cutout: Cutout, matrix: np.ndarray) -> np.ndarray:
    """Draws the cutout on (H, W, 3) float32 in place and returns its mask (H, W) bool.

    Args:
        matrix: (2, 3) affine map from pixels of the cutout to those of the canvas.
    """
    size = canvas.shape[1], canvas.shape[0]
    alpha = cv2.warpAffine(cutout.alpha, matrix, size, flags=cv2.INTER_LINEAR)
    image = cv2.warpAffine(
        cutout.image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    canvas += alpha[..., None] * (image.astype(np.float32) - canvas)
    return alpha > 0.5


def compose(background: Scene, cutouts: Sequence[Cutout], rng: np.random.Generator) -> Scene:
    """The background with cutouts pasted at random places, the later ones in front.

    A thing of which more than ``LOST_SHARE`` is hidden is no longer referred to, but still keeps
    sentences from being unique as long as a pixel is seen.
    """
    height, width = background.size
    canvas = background.image.astype(np.float32)
    things = list(background.things)
    whole = [int(thing.mask.sum()) for thing in things]
    for cutout in cutouts:
        fitted = fit(cutout, background.size, rng)
        h, w = fitted.alpha.shape
        outside = 0.25 if rng.random() < 0.3 else 0.0  # of its size, beyond the frame
        x = rng.uniform(-outside * w, width - (1 - outside) * w)
        y = rng.uniform(-outside * h, height - (1 - outside) * h)
        mask = paste(canvas, fitted, np.array([[1, 0, round(x)], [0, 1, round(y)]], dtype=float))
        things = [replace(thing, mask=thing.mask & ~mask) for thing in things]
        things.append(Thing(cutout.name, mask, True, False, cutout.breeds))
        whole.append(int(fitted.area))
    kept = [
        replace(thing, referable=thing.referable and is_seen(thing.mask, pixels))
        for thing, pixels in zip(things, whole, strict=True)
        if thing.mask.any()
    ]
    return Scene(canvas.round().astype(np.uint8), tuple(kept), background.complete)


def is_seen(mask: np.ndarray, whole: int) -> bool:
    """Whether enough of a thing of so many pixels is seen to refer to it."""
    return bool(mask.mean() >= MIN_SHARE and mask.sum() >= (1 - LOST_SHARE) * whole)


class CutPool:
    """Everything that can be cut out, by class: rare classes are drawn more often than they are."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.by_name: dict[str, list[tuple[Picture, int]]] = {}
        self.regions: list[tuple[Picture, int]] = []
        for picture in pictures:
            for index in cuttable(picture):
                self.by_name.setdefault(picture.names[index], []).append((picture, index))
            if picture.origin != COCO and not any(picture.names):
                self.regions += [(picture, index) for index in cuttable(picture, regions=True)]
        if not self.by_name:
            raise InputError("no instance can be cut out: all are small or touch the border")
        self.names = sorted(self.by_name)
        weights = np.sqrt([len(self.by_name[name]) for name in self.names])
        self.weights = weights / weights.sum()

    def pick(
        self, rng: np.random.Generator, *, regions: bool = False, single: bool = False
    ) -> tuple[Picture, int]:
        """A picture and the index of a thing in it.

        Args:
            single: the only one of its class in its picture, if a few draws find one.
        """
        if regions and self.regions:
            return self.regions[int(rng.integers(len(self.regions)))]
        for _ in range(10):
            name = self.names[int(rng.choice(len(self.names), p=self.weights))]
            picture, index = self.by_name[name][int(rng.integers(len(self.by_name[name])))]
            if not single or picture.names.count(name) == 1:
                break
        return picture, index

    def draw(
        self, rng: np.random.Generator, *, like: Sequence[str] = (), regions: bool = False
    ) -> Cutout:
        """A cutout; one in three is of a class of ``like``, so that a class can be there twice."""
        known = sorted(set(like) & set(self.by_name))
        if known and rng.random() < 1 / 3:
            members = self.by_name[known[int(rng.integers(len(known)))]]
            picture, index = members[int(rng.integers(len(members)))]
        else:
            picture, index = self.pick(rng, regions=regions)
        return cut_out(picture.scene(), index)

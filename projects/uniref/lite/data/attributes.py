"""What is measured of a scene: colours, places, sizes, and how its things lie to one another.

Each attribute has positives, the things that have it beyond doubt, and candidates, those that
someone might say have it. A thing between the two is described neither by the attribute nor by its
opposite.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise, product

import cv2
import numpy as np

from projects.uniref.lite.data.pictures import Scene, Thing
from projects.uniref.lite.data.vocabulary import (
    COLOURLESS,
    COLOURS,
    candidate_nouns,
    near_colours,
    synonyms,
)

POSITIVE_COLOUR, POSITIVE_CLOTHES, CANDIDATE_COLOUR, ABSENT_COLOUR = 0.6, 0.5, 0.12, 0.03
COLOUR_STEP = 8  # of the table of named colours
GREY_PICTURE = 5.0  # mean chroma below which a picture has no colours
CLEAR_RATIO = 1.6  # of two areas of which one is clearly larger
ORDINALS = ("second", "third", "fourth")
UNANCHORED = frozenset(("", "hair", "dining table", "bed"))


@dataclass(frozen=True)
class Modifier:
    """Part of a sentence, and the things (by index) that it describes.

    Attributes:
        kind: of sentence that it makes, a key of ``KIND_WEIGHTS``.
        value: a colour, place, size, or the words after the noun.
        positives: things that it is true of beyond doubt.
        candidates: things that someone might say it of, the positives among them.
    """

    kind: str
    value: str
    positives: frozenset[int]
    candidates: frozenset[int]


@dataclass(frozen=True)
class SceneAttributes:
    """What is measured of a scene; indices are those of its things.

    Attributes:
        shares: per thing, colour -> share of its pixels.
        boxes: (N, 4) xyxy in units of the picture's width and height.
        centres: (N, 2) x, y of the mean pixel in the same units.
        areas: (N,) share of the picture.
    """

    things: tuple[Thing, ...]
    shares: tuple[dict[str, float], ...]
    boxes: np.ndarray
    centres: np.ndarray
    areas: np.ndarray

    def candidates(self, noun: str) -> frozenset[int]:
        """Things that someone might call so; a breed might be that of any thing of its class."""
        owners = {thing.name for thing in self.things if noun in thing.breeds}
        return frozenset(
            index
            for index, thing in enumerate(self.things)
            if noun in candidate_nouns(thing.name) or thing.name in owners
        )

    def positives(self, noun: str) -> frozenset[int]:
        """Things that may be described and are called so."""
        return frozenset(
            index
            for index, thing in enumerate(self.things)
            if thing.referable and (noun in synonyms(thing.name) or noun in thing.breeds)
        )


@lru_cache(maxsize=8)
def measure(scene: Scene) -> SceneAttributes:
    """Colours, places and sizes of all things."""
    height, width = scene.size
    names, is_grey = name_colours(scene.image)
    shares, boxes, centres, areas = [], [], [], []
    for thing in scene.things:
        rows, columns = np.nonzero(thing.mask)
        if not len(rows):
            rows, columns = np.array([0]), np.array([0])
        shares.append({} if is_grey or not thing.referable else colour_shares(names, thing.mask))
        boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        centres.append((columns.mean(), rows.mean()))
        areas.append(thing.mask.mean())
    scale = np.array([width, height], dtype=float)
    return SceneAttributes(
        scene.things,
        tuple(shares),
        np.array(boxes, dtype=float).reshape(-1, 4) / np.tile(scale, 2),
        np.array(centres, dtype=float).reshape(-1, 2) / scale,
        np.array(areas, dtype=float),
    )


def name_colours(image: np.ndarray) -> tuple[np.ndarray, bool]:
    """(H, W) index into ``COLOURS`` or -1 where no name is clear, and whether all is grey."""
    names, chroma = _colour_table()
    r, g, b = (image[..., channel] // COLOUR_STEP for channel in range(3))
    return names[r, g, b], float(chroma[r, g, b].mean()) < GREY_PICTURE


@cache
def _colour_table() -> tuple[np.ndarray, np.ndarray]:
    """Name, as in ``name_colours``, and CIE Lab chroma per step of red, green and blue."""
    steps = (np.arange(256 // COLOUR_STEP, dtype=np.float32) + 0.5) * COLOUR_STEP / 256
    red, green, blue = np.meshgrid(steps, steps, steps, indexing="ij")
    flat = np.stack([red, green, blue], axis=-1).reshape(len(steps), -1, 3)
    lab = cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(*red.shape, 3)
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    return _named(lab[..., 0], chroma, hue), chroma


def _named(light: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """Index into ``COLOURS`` or -1, from lightness (0 to 100), chroma and hue in degrees.

    Between two colours lies a range without a name.
    """
    grey = chroma < np.where((light < 20) | (light > 85), 9, 7)
    vivid = chroma > 16
    rules = {
        "black": (light < 22) & (chroma < 14),
        "white": grey & (light > 80),
        "gray": grey & (light > 32) & (light < 72),
        "red": vivid & ((hue < 42) | (hue > 352)) & (light < 60) & (chroma > 38),
        "orange": vivid & (hue > 45) & (hue < 72) & (light > 52) & (chroma > 45),
        "yellow": vivid & (hue > 80) & (hue < 104) & (light > 62) & (chroma > 35),
        "green": vivid & (hue > 112) & (hue < 185),
        "blue": vivid & (hue > 230) & (hue < 298),
        "purple": vivid & (hue > 304) & (hue < 335),
        "pink": vivid & ((hue > 335) | (hue < 25)) & (light > 63),
        "brown": vivid & (hue > 35) & (hue < 85) & (light > 12) & (light < 52) & (chroma < 42),
    }
    names = np.full(light.shape, -1, dtype=np.int8)
    for number, colour in enumerate(COLOURS):
        names[rules[colour]] = number
    return names


def colour_shares(names: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """colour -> share of the pixels inside a mask (H, W), its rim left out where it is thick."""
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    pixels = names[inner if inner.sum() > 30 else mask]
    counts = np.bincount(pixels[pixels >= 0], minlength=len(COLOURS))
    return {c: float(n) / max(len(pixels), 1) for c, n in zip(COLOURS, counts, strict=True)}


def has_colour(attributes: SceneAttributes, index: int) -> bool:
    """Whether a thing can be described by a colour; for a person, that of the clothes."""
    name = attributes.things[index].name
    return bool(attributes.shares[index]) and (name == "person" or name not in COLOURLESS)


def lacks_colour(shares: dict[str, float], colour: str) -> bool:
    near = sum(shares[other] for other in near_colours(colour))
    return shares[colour] < ABSENT_COLOUR and near < 0.2 and sum(shares.values()) > 0.5


def colours(attributes: SceneAttributes) -> list[Modifier]:
    result = []
    for colour in COLOURS:
        positives, candidates = set(), set()
        for index, thing in enumerate(attributes.things):
            if not has_colour(attributes, index):
                candidates.add(index)
                continue
            shares = attributes.shares[index]
            is_person = thing.name == "person"
            others = max(share for other, share in shares.items() if other != colour)
            if is_person and colour in ("orange", "brown", "pink"):  # the colours of skin
                candidates.add(index)
                continue
            wanted = POSITIVE_CLOTHES if is_person else POSITIVE_COLOUR
            if shares[colour] >= wanted and others < 0.2:
                positives.add(index)
            near = max(shares[other] for other in near_colours(colour))
            if shares[colour] >= CANDIDATE_COLOUR or near >= 0.35 or sum(shares.values()) < 0.4:
                candidates.add(index)
        if positives:
            result.append(Modifier("colour", colour, frozenset(positives), frozenset(candidates)))
    return result


def places(attributes: SceneAttributes) -> list[Modifier]:
    """Places in the picture; in a margin between two opposites a thing has neither."""
    x, y = attributes.centres[:, 0], attributes.centres[:, 1]
    left, top, right, bottom = attributes.boxes.T
    sides = {
        "left": ((x < 0.36) & (right < 0.58), x < 0.52),
        "right": ((x > 0.64) & (left > 0.42), x > 0.48),
        "top": ((y < 0.34) & (bottom < 0.58), y < 0.52),
        "bottom": ((y > 0.68) & (top > 0.42), y > 0.48),
        "middle": (
            (abs(x - 0.5) < 0.1) & (abs(y - 0.5) < 0.2) & (left > 0.15) & (right < 0.85),
            abs(x - 0.5) < 0.25,
        ),
    }
    for vertical, horizontal in product(("top", "bottom"), ("left", "right")):
        positives, candidates = zip(sides[vertical], sides[horizontal], strict=True)
        sides[f"{vertical} {horizontal}"] = (
            positives[0] & positives[1],
            candidates[0] & candidates[1],
        )
    return [Modifier("place", value, _where(s), _where(p)) for value, (s, p) in sides.items()]


def _where(holds: np.ndarray) -> frozenset[int]:
    return frozenset(np.flatnonzero(holds).tolist())


def sizes(attributes: SceneAttributes, group: frozenset[int]) -> list[Modifier]:
    """Largest and smallest of a noun's things, where the next one differs clearly."""
    order = sorted(group, key=lambda index: attributes.areas[index])
    result = []
    if len(order) > 1:
        for word, first, second in (
            ("small", order[0], order[1]),
            ("large", order[-1], order[-2]),
        ):
            areas = sorted((attributes.areas[first], attributes.areas[second]))
            if areas[1] > CLEAR_RATIO * areas[0]:
                result.append(_only("size", word + (" of two" if len(order) == 2 else ""), first))
    return result


def orders(attributes: SceneAttributes, group: frozenset[int]) -> list[Modifier]:
    """Ranks from left to right, where all things of the noun are clearly apart."""
    order = sorted(group, key=lambda index: attributes.centres[index, 0])
    x = [attributes.centres[index, 0] for index in order]
    gaps = [second - first for first, second in pairwise(x)]
    result: list[Modifier] = []
    if len(order) < 2:
        return result
    if gaps[0] > 0.08:
        result.append(_only("order", "leftmost", order[0]))
    if gaps[-1] > 0.08:
        result.append(_only("order", "rightmost", order[-1]))
    if len(order) in (3, 4, 5, 6) and min(gaps) > 0.06:
        count = min(len(order) - 1, 1 + len(ORDINALS))
        for rank in range(1, count):
            result.append(_only("order", f"{ORDINALS[rank - 1]} from left", order[rank]))
            result.append(_only("order", f"{ORDINALS[rank - 1]} from right", order[-1 - rank]))
        if len(order) == 3:
            result.append(_only("order", "middle", order[1]))
    return result


def _only(kind: str, value: str, index: int) -> Modifier:
    return Modifier(kind, value, frozenset((index,)), frozenset((index,)))


def relations(attributes: SceneAttributes, noun: str) -> list[Modifier]:
    """Where things are relative to a thing of another class that its name alone tells apart."""
    result = []
    group = attributes.candidates(noun)
    for anchor, thing in enumerate(attributes.things):
        if not thing.referable or thing.name in UNANCHORED or anchor in group:
            continue
        if attributes.candidates(thing.name) != {anchor} or attributes.areas[anchor] < 0.008:
            continue
        result += _relations_to(attributes, anchor, group)
    return result


def _relations_to(
    attributes: SceneAttributes, anchor: int, group: frozenset[int]
) -> list[Modifier]:
    name = attributes.things[anchor].name
    box, centre = attributes.boxes[anchor], attributes.centres[anchor]
    found: dict[str, tuple[set[int], set[int]]] = {}
    for index in sorted(group):
        other, middle = attributes.boxes[index], attributes.centres[index]
        beside = min(box[3], other[3]) - max(box[1], other[1]) > 0.4 * (other[3] - other[1])
        stacked = min(box[2], other[2]) - max(box[0], other[0]) > 0.5 * (other[2] - other[0])
        gap_x = max(box[0] - other[2], other[0] - box[2], 0.0)
        gap_y = max(box[1] - other[3], other[1] - box[3], 0.0)
        gap = float(np.hypot(gap_x, gap_y))
        near = gap_x < 0.3 and gap_y < 0.3
        level = abs(box[3] - other[3]) < 0.35 * max(box[3] - box[1], other[3] - other[1])
        apart = gap_x > 0 or abs(middle[0] - centre[0]) > 0.5 * (box[2] - box[0])
        tests = {
            "left of": (
                middle[0] < box[0] and other[2] < centre[0] and beside and near,
                middle[0] < centre[0],
            ),
            "right of": (
                middle[0] > box[2] and other[0] > centre[0] and beside and near,
                middle[0] > centre[0],
            ),
            "above": (
                other[3] <= box[1] + 0.02 and stacked and gap_y < 0.3,
                middle[1] < centre[1],
            ),
            "below": (
                other[1] >= box[3] - 0.02 and stacked and gap_y < 0.3,
                middle[1] > centre[1],
            ),
            "next to": (gap < 0.04 and level and apart and beside, gap < 0.15),
        }
        for relation, (holds, may_hold) in tests.items():
            positives, candidates = found.setdefault(f"{relation} the {name}", (set(), set()))
            positives.update((index,) if holds else ())
            candidates.update((index,) if may_hold else ())
    return [
        Modifier("relation", value, frozenset(positives), frozenset(candidates | positives))
        for value, (positives, candidates) in found.items()
        if positives
    ]

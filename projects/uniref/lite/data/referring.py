"""Referring sets: the growing COCO-style file of a RIS set, and the sentences of a clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from projects.uniref.lite.data.motion import PseudoClip
from projects.uniref.lite.data.pictures import Scene, Thing
from projects.uniref.lite.data.sentences import (
    Expression,
    absent_expressions,
    choose,
    expressions,
    group_expressions,
    wording,
)
from projects.uniref.lite.data.vocabulary import COLOURLESS, COLOURS, MASS
from unified.data.synthetic.writing import CocoFile
from unified.label_maps import encode_mask

MAX_OBJECTS = 5  # referred to per picture
SENTENCES = (2, 5)  # per object, the second not included
NEGATIVE_SHARE = 0.15  # of the records
GROUP_CHANCE = 0.35  # of a picture with a group to have it as a record
PLAIN_PLACES = ("left", "right", "top", "bottom", "middle")


class Cooccurrence:
    """How often two classes are in one picture, so that absent things are named plausibly."""

    def __init__(self, pictures: Iterable[Iterable[str]]) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.names: set[str] = set()
        for names in pictures:
            present = sorted({name for name in names if name})
            self.names.update(present)
            self.pairs.update(combinations(present, 2))

    def weight(self, name: str, present: Iterable[str]) -> float:
        """Above 1 for classes that are often seen with one of those present."""
        others = set(present)
        return 1.0 + sum(self.pairs[min(name, o), max(name, o)] for o in others)


class ReferringSet:
    """A RIS set of own data while it grows."""

    def __init__(self, categories: Mapping[str, int], cooccurrence: Cooccurrence) -> None:
        self.categories = categories
        self.cooccurrence = cooccurrence
        self.coco = CocoFile({number: name for name, number in categories.items()})
        self.kinds: Counter[str] = Counter()  # kind of sentence -> count
        self.records: Counter[str] = Counter()  # object, group, absent -> count

    def add_objects(
        self, file_name: str, scene: Scene, rng: np.random.Generator, *, limit: int = MAX_OBJECTS
    ) -> None:
        """Adds up to ``limit`` objects of a picture with sentences true of them alone."""
        found: dict[int, list[Expression]] = {}
        for expression, index in expressions(scene).items():
            found.setdefault(index, []).append(expression)
        indices = sorted(found)
        rng.shuffle(indices)
        image_id = self._image(file_name, scene)
        for index in indices[:limit]:
            chosen = choose(found[index], int(rng.integers(*SENTENCES)), rng)
            texts = self._word(chosen, rng)
            self._object(image_id, scene.things[index], expressions=texts)
            self.records["object"] += 1

    def add_class_names(self, file_name: str, scene: Scene) -> None:
        """Adds every object that is the only one of its class, with the name of the class."""
        image_id: int | None = None
        for expression, index in sorted(expressions(scene).items()):
            if expression.kind == "class":
                image_id = image_id or self._image(file_name, scene)
                self._object(image_id, scene.things[index], expressions=[f"the {expression.noun}"])
                self.kinds["class"] += 1
                self.records["object"] += 1

    def add_group(self, file_name: str, scene: Scene, rng: np.random.Generator) -> None:
        """Adds one group of several things, if there is one."""
        groups = group_expressions(scene)
        if not groups:
            return
        expression = sorted(groups)[int(rng.integers(len(groups)))]
        texts = self._word([expression], rng)
        image_id = self._image(file_name, scene, expressions=texts)
        for index in groups[expression]:
            self._object(image_id, scene.things[index])
        self.records["group"] += 1

    def add_absent(
        self, file_name: str, scene: Scene, rng: np.random.Generator, *, count: int
    ) -> None:
        """Adds up to ``count`` records of two sentences that are true of nothing there."""
        found = absent_expressions(scene, self.cooccurrence.names)
        present = {thing.name for thing in scene.things}
        by_kind = {kind: [c for c in found if c.kind == kind] for kind in {c.kind for c in found}}
        for _ in range(count if found else 0):
            chosen = []
            for _ in range(2):
                kind = "absent colour" if rng.random() < 0.35 else "absent class"
                options = by_kind.get(kind, found)
                weights = np.array([self.cooccurrence.weight(c.noun, present) for c in options])
                chosen.append(options[int(rng.choice(len(options), p=weights / weights.sum()))])
            texts = self._word([_dressed(expression, rng) for expression in chosen], rng)
            self._image(file_name, scene, expressions=texts)
            self.records["absent"] += 1

    def missing_absent(self) -> int:
        """Records of absent things that are due for their share of the set."""
        others = self.records["object"] + self.records["group"]
        due = others * NEGATIVE_SHARE / (1 - NEGATIVE_SHARE)
        return max(0, round(due) - self.records["absent"])

    def _word(self, chosen: Sequence[Expression], rng: np.random.Generator) -> list[str]:
        texts = dict.fromkeys(wording(expression, rng) for expression in chosen)
        self.kinds.update(expression.kind for expression in chosen)
        return list(texts)

    def _image(self, file_name: str, scene: Scene, **more: Any) -> int:
        return self.coco.add_image(file_name, scene.size, **more)

    def _object(self, image_id: int, thing: Thing, **more: Any) -> None:
        add_thing(self.coco, self.categories, image_id, thing, **more)


def describe_clip(
    clip: PseudoClip, rng: np.random.Generator, kinds: Counter[str]
) -> dict[str, Any]:
    """Entries of ``meta_expressions.json`` for the objects that sentences tell apart.

    A sentence is true in every frame in which its object is well visible, and never of another
    thing.
    """
    per_frame = [expressions(scene) for scene in clip.scenes]
    result: dict[str, Any] = {}
    for index in range(clip.num_objects):
        seen = [n for n, scene in enumerate(clip.scenes) if scene.things[index].referable]
        if len(seen) < len(clip.scenes) // 2:
            continue
        common: set[Expression] = set.intersection(
            *({expression for expression, i in per_frame[n].items() if i == index} for n in seen)
        )
        common = {c for c in common if all(frame.get(c, index) == index for frame in per_frame)}
        for expression in choose(common, 3, rng):
            kinds[expression.kind] += 1
            entry = {"exp": wording(expression, rng), "obj_id": str(index + 1)}
            result[str(len(result))] = entry
    return result


def add_thing(
    coco: CocoFile, categories: Mapping[str, int], image_id: int, thing: Thing, **more: Any
) -> None:
    """Adds a thing with its mask as a run-length code."""
    code = encode_mask(thing.mask)
    more = {**more, "iscrowd": int(thing.crowd), "segmentation": code}
    coco.add_object(image_id, thing.mask, categories[thing.name], **more)


def _dressed(expression: Expression, rng: np.random.Generator) -> Expression:
    """An absent thing with a colour and a place at times, as those that are there have."""
    if expression.kind != "absent class":
        return expression
    coloured = expression.noun not in COLOURLESS | MASS and rng.random() < 0.35
    placed = rng.random() < 0.25
    colour = str(rng.choice(COLOURS)) if coloured else ""
    place = str(rng.choice(PLAIN_PLACES)) if placed else ""
    return Expression(expression.kind, expression.noun, colour, "place" if placed else "", place)

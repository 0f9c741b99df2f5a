"""Templated sentences about a scene: colour, texture, kind, size, position and motion.

A sentence is a set of attributes that a thing must have. It is used for one thing when only that
thing has them, for a group when several do, and as a no-target sentence when nothing does. A
caption names most things of a scene.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unified.data.synthetic.world import COLOURS, KINDS, TEXTURES, Scene

PLACES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
MOTIONS = {
    "left": "moving to the left",
    "right": "moving to the right",
    "up": "moving up",
    "down": "moving down",
    "still": "that stays still",
}
ATTRIBUTES = ("size", "colour", "texture", "kind", "place", "motion")
# People name the kind and the colour first.
WEIGHTS = {"size": 1.0, "colour": 3.0, "texture": 1.0, "kind": 3.0, "place": 1.5, "motion": 1.5}
# How often a caption names a thing, and what it says of it beside its kind.
NAMED = 0.85
SAID = {"size": 0.2, "colour": 0.8, "texture": 0.35}
CAPTIONS = ("{}", "{} on a grey ground", "a picture of {}", "there is {}")
NUMBERS = ("a", "two", "three", "four", "five")

Attributes = dict[str, str]


@dataclass(frozen=True)
class Sentence:
    """A sentence and the labels of all things it is true of, in rising order."""

    text: str
    labels: tuple[int, ...]


def describe(scene: Scene, frame: int = 0) -> dict[int, dict[str, set[str]]]:
    """label -> attribute -> the words that hold for it in ``frame``; only visible things."""
    _, labels = scene.draw(frame)
    height, width = scene.size
    result = {}
    for label, thing in enumerate(scene.things, start=1):
        rows, columns = np.nonzero(labels == label)
        if len(rows) == 0:
            continue
        x, y = columns.mean() / width, rows.mean() / height
        places = {"left": x < 0.38, "right": x > 0.62, "top": y < 0.38, "bottom": y > 0.62}
        result[label] = {
            "kind": {thing.kind},
            "colour": {thing.colour},
            "texture": {thing.texture},
            "size": {thing.size} - {"medium"},
            "place": {word for word, holds in places.items() if holds},
            "motion": {thing.motion},
        }
    return result


def sentences(
    scene: Scene,
    rng: np.random.Generator,
    *,
    attributes: Sequence[str] = ATTRIBUTES,
    per_thing: int = 3,
) -> dict[int, list[Sentence]]:
    """label -> up to ``per_thing`` different sentences that are true of that thing alone.

    Things that no allowed attribute tells apart from the others are left out.
    """
    described = describe_clip(scene)
    found: dict[int, list[Sentence]] = {}
    for label, words in described.items():
        texts: dict[str, Sentence] = {}
        for wanted in _attribute_sets(words, attributes, rng, attempts=12 * per_thing):
            if _matches(described, wanted) == (label,):
                text = _phrase(wanted, rng)
                texts.setdefault(text, Sentence(text, (label,)))
            if len(texts) == per_thing:
                break
        if texts:
            found[label] = list(texts.values())
    return found


def group_sentences(
    scene: Scene, rng: np.random.Generator, *, attributes: Sequence[str], count: int
) -> list[Sentence]:
    """Up to ``count`` sentences that are true of two or more things."""
    described = describe_clip(scene)
    texts: dict[str, Sentence] = {}
    for words in described.values():
        for wanted in _attribute_sets(words, attributes, rng, attempts=8):
            labels = _matches(described, wanted)
            if len(labels) > 1:
                text = _phrase(wanted, rng, plural=True)
                texts.setdefault(text, Sentence(text, labels))
    return list(texts.values())[:count]


def absent_sentences(
    scene: Scene, rng: np.random.Generator, *, attributes: Sequence[str], count: int
) -> list[Sentence]:
    """``count`` sentences near to a thing of the scene that are true of nothing in it."""
    described = describe_clip(scene)
    choices = {
        "colour": list(COLOURS),
        "kind": list(KINDS),
        "texture": list(TEXTURES),
        "motion": list(MOTIONS),
    }
    swappable = [name for name in choices if name in attributes]
    texts: dict[str, Sentence] = {}
    for _ in range(50 * count):
        words = list(described.values())[rng.integers(len(described))]
        wanted = {name: str(rng.choice(sorted(words[name]))) for name in ("colour", "kind")}
        changed = str(rng.choice(swappable))
        wanted[changed] = str(rng.choice(choices[changed]))
        if not _matches(described, wanted):
            text = _phrase(wanted, rng)
            texts.setdefault(text, Sentence(text, ()))
        if len(texts) == count:
            break
    return list(texts.values())


def captions(scene: Scene, rng: np.random.Generator, count: int) -> list[str]:
    """``count`` captions of a still picture: its things in any order, some left out, alike ones
    counted, as "a large red circle, two blue stars and a striped moon on a grey ground"."""
    described = describe(scene).values()
    return [_caption(described, rng) for _ in range(count)]


def _caption(described: Collection[dict[str, set[str]]], rng: np.random.Generator) -> str:
    things = [words for words in described if rng.random() < NAMED] or list(described)
    nouns: Counter[str] = Counter()
    for index in rng.permutation(len(things)):
        words = things[index]
        said = [word for name, p in SAID.items() if rng.random() < p for word in words[name]]
        nouns[" ".join([*said, *words["kind"]])] += 1
    named = [_counted(noun, number) for noun, number in nouns.items()]
    listed = " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))
    return str(rng.choice(CAPTIONS)).format(listed)


def _counted(noun: str, number: int) -> str:
    if number == 1:
        return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
    return f"{NUMBERS[number - 1]} {_plural(noun)}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def describe_clip(scene: Scene) -> dict[int, dict[str, set[str]]]:
    """As ``describe``, with what holds in the first, middle and last frame of the clip alike.

    A thing that is hidden in one of them is described by the others.
    """
    merged: dict[int, dict[str, set[str]]] = {}
    for frame in sorted({0, scene.num_frames // 2, scene.num_frames - 1}):
        for label, words in describe(scene, frame).items():
            if label in merged:
                merged[label]["place"] &= words["place"]
            else:
                merged[label] = words
    return dict(sorted(merged.items()))


def _attribute_sets(
    words: dict[str, set[str]], allowed: Sequence[str], rng: np.random.Generator, attempts: int
) -> Iterator[Attributes]:
    """Random subsets of a thing's attributes, mostly two, always with a kind or a colour."""
    names = [name for name in allowed if words[name]]
    weights = np.array([WEIGHTS[name] for name in names])
    for _ in range(attempts):
        number = min(int(rng.choice([1, 2, 3, 4], p=[0.2, 0.4, 0.3, 0.1])), len(names))
        chosen = [str(name) for name in rng.choice(names, number, False, weights / weights.sum())]
        if not {"kind", "colour"} & set(chosen):
            chosen.append("kind")
        yield {name: str(rng.choice(sorted(words[name]))) for name in chosen}


def _matches(described: dict[int, dict[str, set[str]]], wanted: Attributes) -> tuple[int, ...]:
    return tuple(
        label
        for label, words in described.items()
        if all(word in words[name] for name, word in wanted.items())
    )


def _phrase(wanted: Attributes, rng: np.random.Generator, *, plural: bool = False) -> str:
    """One of several wordings of a set of attributes."""
    noun = wanted.get("kind", "object" if rng.random() < 0.7 else "thing")
    if plural:
        noun = _plural(noun)
    adjectives = [wanted[name] for name in ("size", "colour", "texture") if name in wanted]
    place = wanted.get("place")
    if place in ("left", "right") and "motion" not in wanted and rng.random() < 0.4:
        adjectives.insert(0, place)
        place = None
    tail = [PLACES[place]] if place else []
    if "motion" in wanted:
        motion = MOTIONS[wanted["motion"]]
        tail.append(motion.replace("that stays", "that stay") if plural else motion)
    starts = ("all", "all the", "the") if plural else ("the", "the", "a", "")
    start = str(rng.choice(starts))
    if start == "a" and (adjectives[0] if adjectives else noun)[0] in "aeiou":
        start = "an"
    return " ".join(word for word in (start, *adjectives, noun, *tail) if word)

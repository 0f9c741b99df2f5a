"""Sentences about real instances: class, colour, size, place and relation, true of one thing only.

Every modifier of a noun has positives, the things that it is true of beyond doubt, and candidates,
those that someone might say it of. A sentence refers to a thing when that thing is the only
positive of all its parts and no other thing is a candidate of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from projects.uniref.lite.data.attributes import (
    Modifier,
    SceneAttributes,
    colours,
    has_colour,
    lacks_colour,
    measure,
    orders,
    places,
    relations,
    sizes,
)
from projects.uniref.lite.data.pictures import Scene
from projects.uniref.lite.data.vocabulary import (
    ALWAYS_PLURAL,
    COLOURS,
    MASS,
    candidate_nouns,
    plural,
    synonyms,
)

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
KIND_WEIGHTS = {
    **{"class": 3.0, "synonym": 1.5, "colour": 3.0, "size": 1.0, "place": 2.5, "order": 2.0},
    **{"relation": 2.5, "colour and place": 1.0, "colour and relation": 1.0, "breed": 2.0},
}
PLACE_TAILS = {
    "left": ("on the left", "on the left side", "to the left", "at left"),
    "right": ("on the right", "on the right side", "to the right", "at right"),
    "top": ("at the top", "on top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower part"),
    "middle": ("in the middle", "in the center"),
    "top left": ("in the top left", "in the top left corner", "in the upper left"),
    "top right": ("in the top right", "in the top right corner", "in the upper right"),
    "bottom left": ("in the bottom left", "in the bottom left corner", "in the lower left"),
    "bottom right": ("in the bottom right", "in the bottom right corner", "in the lower right"),
}


@dataclass(frozen=True, order=True)
class Expression:
    """A sentence before it is worded: kind, noun, and values of its modifiers."""

    kind: str
    noun: str
    colour: str = ""
    rest_kind: str = ""
    rest: str = ""


@lru_cache(maxsize=8)
def expressions(scene: Scene) -> Mapping[Expression, int]:
    """Every sentence that is true of exactly one thing -> the index of that thing."""
    attributes = measure(scene)
    found: dict[Expression, int] = {}
    for noun in _nouns(attributes, scene):
        positives, candidates = attributes.positives(noun), attributes.candidates(noun)
        plain = _plain_kind(noun, attributes)
        coloured = colours(attributes)
        rest = [*places(attributes), *relations(attributes, noun)]
        if candidates == positives and not noun.endswith("s"):
            rest += [*sizes(attributes, positives), *orders(attributes, positives)]
        singles: list[tuple[Modifier, ...]] = [(), *((m,) for m in [*coloured, *rest])]
        pairs = [p for p in product(coloured, rest) if p[1].kind in ("place", "relation")]
        for modifiers in [*singles, *pairs]:
            referents = positives.intersection(*(m.positives for m in modifiers))
            possible = candidates.intersection(*(m.candidates for m in modifiers))
            if len(referents) == 1 and possible == referents and _covered(scene, referents):
                found[_expression(plain, noun, modifiers)] = next(iter(referents))
    return found


def group_expressions(scene: Scene) -> dict[Expression, tuple[int, ...]]:
    """Every plural that is true of exactly two to five things -> their indices."""
    attributes = measure(scene)
    found = {}
    for noun in _nouns(attributes, scene):
        positives, candidates = attributes.positives(noun), attributes.candidates(noun)
        for modifiers in [(), *((m,) for m in colours(attributes))] if plural(noun) else []:
            referents = positives.intersection(*(m.positives for m in modifiers))
            possible = candidates.intersection(*(m.candidates for m in modifiers))
            if len(referents) in NUMBERS and possible == referents and _covered(scene, referents):
                colour = modifiers[0].value if modifiers else ""
                found[Expression("group", noun, colour)] = tuple(sorted(referents))
    return found


def absent_expressions(scene: Scene, names: Iterable[str]) -> list[Expression]:
    """Sentences that are true of nothing: of an absent class, or of a clearly absent colour.

    Args:
        names: all classes; a noun is named if the scene is complete in all that it might mean.
    """
    attributes = measure(scene)
    unknown = {noun for name in set(names) - scene.complete for noun in candidate_nouns(name)}
    present = {noun for thing in scene.things for noun in candidate_nouns(thing.name)}
    absent = {noun for name in set(names) & scene.complete for noun in synonyms(name)}
    found = [Expression("absent class", noun) for noun in sorted(absent - present - unknown)]
    for noun in _nouns(attributes, scene):
        positives, candidates = attributes.positives(noun), attributes.candidates(noun)
        if positives != candidates or not all(has_colour(attributes, i) for i in positives):
            continue
        for colour in COLOURS:
            if all(lacks_colour(attributes.shares[index], colour) for index in positives):
                found.append(Expression("absent colour", noun, colour))
    return found


def _nouns(attributes: SceneAttributes, scene: Scene) -> list[str]:
    """Nouns of things that may be described, sorted."""
    described = [t for t in attributes.things if t.referable and t.name in scene.complete]
    return sorted({noun for t in described for noun in (*synonyms(t.name), *t.breeds)})


def _covered(scene: Scene, referents: Iterable[int]) -> bool:
    """Whether no other thing of the class can be in the picture without being known."""
    return all(scene.things[index].name in scene.complete for index in referents)


def _plain_kind(noun: str, attributes: SceneAttributes) -> str:
    if any(noun in thing.breeds for thing in attributes.things):
        return "breed"
    return "class" if any(noun == thing.name for thing in attributes.things) else "synonym"


def _expression(plain: str, noun: str, modifiers: Sequence[Modifier]) -> Expression:
    colour = next((m.value for m in modifiers if m.kind == "colour"), "")
    rest = next((m for m in modifiers if m.kind != "colour"), None)
    kind = " and ".join(m.kind for m in modifiers) or plain
    return Expression(kind, noun, colour, rest.kind if rest else "", rest.value if rest else "")


def choose(found: Iterable[Expression], count: int, rng: np.random.Generator) -> list[Expression]:
    """Up to ``count`` expressions, of as many kinds as there are."""
    by_kind: dict[str, list[Expression]] = {}
    for expression in sorted(found):
        by_kind.setdefault(expression.kind, []).append(expression)
    chosen: list[Expression] = []
    while by_kind and len(chosen) < count:
        kinds = list(by_kind)
        weights = np.array([KIND_WEIGHTS.get(kind, 1.0) for kind in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        options = by_kind.pop(kind)
        chosen.append(options[int(rng.integers(len(options)))])
    return chosen


def wording(expression: Expression, rng: np.random.Generator) -> str:
    """One of several wordings of a expression, in lower case."""
    if expression.kind == "group":
        return _group_wording(expression, rng)
    before, after, definite = _rest_words(expression, rng)
    noun = expression.noun
    if expression.colour:
        colour = "grey" if expression.colour == "gray" and rng.random() < 0.3 else expression.colour
        if noun == "person":
            worn = str(rng.choice(["in", "wearing", "dressed in"]))
            after = f"{worn} {colour} {after}"
        elif not after and rng.random() < 0.1:
            verb = "are" if noun in ALWAYS_PLURAL else "is"
            after = f"that {verb} {colour}"
        else:
            before = f"{before} {colour}"
    words = " ".join(f"{before} {noun} {after}".split())
    return f"{_start(words, noun, rng, definite=definite)} {words}".strip()


def _start(words: str, noun: str, rng: np.random.Generator, *, definite: bool) -> str:
    start = str(rng.choice(["the", "a", ""], p=[0.55, 0.2, 0.25]))
    if start != "a":
        return start
    if definite or noun in ALWAYS_PLURAL or noun in MASS:
        return "the"
    return "an" if words[0] in "aeiou" else "a"


def _rest_words(expression: Expression, rng: np.random.Generator) -> tuple[str, str, bool]:
    """Words before and after the noun, and whether "a" would be wrong."""
    value = expression.rest
    if expression.rest_kind == "place":
        if value in ("left", "right", "top", "bottom", "middle") and rng.random() < 0.3:
            return value, "", True
        return "", str(rng.choice(PLACE_TAILS[value])), False
    if expression.rest_kind == "size":
        return _size_word(value, rng), "", True
    if expression.rest_kind == "order":
        return (*_order_words(value, rng), True)
    if expression.rest_kind == "relation":
        side, _, anchor = value.partition(" of ")
        if anchor:
            options = [f"to the {side} of", f"on the {side} of", f"{side} of"]
            return "", f"{rng.choice(options)} {anchor}", False
        swapped = {"above": ["above"], "below": ["below", "under"]}
        first, _, anchor = value.partition(" the ")
        options = swapped.get(first, ["next to", "beside", "near", "by"])
        return "", f"{rng.choice(options)} the {anchor}", False
    return "", "", False


def _size_word(value: str, rng: np.random.Generator) -> str:
    size, _, two = value.partition(" of ")
    words = {"small": ["smallest", "small"], "large": ["largest", "biggest", "big", "large"]}
    compared = {"small": ["smaller"], "large": ["larger", "bigger"]}
    return str(rng.choice(words[size] + (compared[size] * 2 if two else [])))


def _order_words(value: str, rng: np.random.Generator) -> tuple[str, str]:
    if value in ("leftmost", "rightmost"):
        side = value.removesuffix("most")
        options = [(value, ""), (f"far {side}", ""), ("", f"on the far {side}")]
        return options[int(rng.integers(len(options)))]
    if value == "middle":
        return ("middle", "") if rng.random() < 0.5 else ("", "in the middle")
    rank, _, side = value.partition(" from ")
    return rank, str(rng.choice([f"from the {side}", f"from {side}"]))


def _group_wording(expression: Expression, rng: np.random.Generator) -> str:
    starts = ["all the", "all", "the", ""]
    words = f"{expression.colour} {plural(expression.noun)}"
    if expression.colour and expression.noun == "person":
        words = f"people in {expression.colour}"
    return " ".join(f"{rng.choice(starts)} {words}".split())

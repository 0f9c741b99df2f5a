"""Sentences about real instances: class, colour, size, place and relation, true of one thing only.

Every modifier of a noun has the things for which it surely holds and those for which it might. A
sentence is used for a thing when everything in it surely holds there, and for every other thing
that the noun might name some modifier surely does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from unified.data.composing.facts import (
    Facts,
    Modifier,
    colours,
    has_colour,
    lacks_colour,
    measure,
    orders,
    places,
    relations,
    sizes,
)
from unified.data.composing.sources import Scene
from unified.data.composing.vocabulary import (
    ALWAYS_PLURAL,
    COLOURS,
    MASS,
    plural,
    possible_nouns,
    sure_nouns,
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
class Claim:
    """A sentence before it is worded: kind, noun, and values of its modifiers."""

    kind: str
    noun: str
    colour: str = ""
    rest_kind: str = ""
    rest: str = ""


@lru_cache(maxsize=8)
def claims(scene: Scene) -> Mapping[Claim, int]:
    """Every sentence that is true of exactly one thing -> the index of that thing."""
    facts = measure(scene)
    found: dict[Claim, int] = {}
    for noun in _nouns(facts, scene):
        sure, possible = facts.sure(noun), facts.possible(noun)
        plain = _plain_kind(noun, facts)
        coloured = colours(facts)
        rest = [*places(facts), *relations(facts, noun)]
        if possible == sure and not noun.endswith("s"):
            rest += [*sizes(facts, sure), *orders(facts, sure)]
        singles: list[tuple[Modifier, ...]] = [(), *((m,) for m in [*coloured, *rest])]
        pairs = [p for p in product(coloured, rest) if p[1].kind in ("place", "relation")]
        for modifiers in [*singles, *pairs]:
            held = sure.intersection(*(m.sure for m in modifiers))
            maybe = possible.intersection(*(m.possible for m in modifiers))
            if len(held) == 1 and maybe == held and _covered(scene, held):
                found[_claim(plain, noun, modifiers)] = next(iter(held))
    return found


def group_claims(scene: Scene) -> dict[Claim, tuple[int, ...]]:
    """Every plural that is true of exactly two to five things -> their indices."""
    facts = measure(scene)
    found = {}
    for noun in _nouns(facts, scene):
        sure, possible = facts.sure(noun), facts.possible(noun)
        for modifiers in [(), *((m,) for m in colours(facts))] if plural(noun) else []:
            held = sure.intersection(*(m.sure for m in modifiers))
            maybe = possible.intersection(*(m.possible for m in modifiers))
            if len(held) in NUMBERS and maybe == held and _covered(scene, held):
                colour = modifiers[0].value if modifiers else ""
                found[Claim("group", noun, colour)] = tuple(sorted(held))
    return found


def absent_claims(scene: Scene, names: Iterable[str]) -> list[Claim]:
    """Sentences that are true of nothing: of an absent class, or of a clearly absent colour.

    Args:
        names: all classes; a noun is named if the scene is complete in all that it might mean.
    """
    facts = measure(scene)
    unknown = {noun for name in set(names) - scene.complete for noun in possible_nouns(name)}
    present = {noun for thing in scene.things for noun in possible_nouns(thing.name)}
    absent = {noun for name in set(names) & scene.complete for noun in sure_nouns(name)}
    found = [Claim("absent class", noun) for noun in sorted(absent - present - unknown)]
    for noun in _nouns(facts, scene):
        sure, possible = facts.sure(noun), facts.possible(noun)
        if sure != possible or not all(has_colour(facts, index) for index in sure):
            continue
        for colour in COLOURS:
            if all(lacks_colour(facts.shares[index], colour) for index in sure):
                found.append(Claim("absent colour", noun, colour))
    return found


def _nouns(facts: Facts, scene: Scene) -> list[str]:
    """Nouns of things that may be described, sorted."""
    told = [t for t in facts.things if t.told and t.name in scene.complete]
    return sorted({noun for t in told for noun in (*sure_nouns(t.name), *t.breeds)})


def _covered(scene: Scene, held: Iterable[int]) -> bool:
    """Whether no other thing of the class can be in the picture without being known."""
    return all(scene.things[index].name in scene.complete for index in held)


def _plain_kind(noun: str, facts: Facts) -> str:
    if any(noun in thing.breeds for thing in facts.things):
        return "breed"
    return "class" if any(noun == thing.name for thing in facts.things) else "synonym"


def _claim(plain: str, noun: str, modifiers: Sequence[Modifier]) -> Claim:
    colour = next((m.value for m in modifiers if m.kind == "colour"), "")
    rest = next((m for m in modifiers if m.kind != "colour"), None)
    kind = " and ".join(m.kind for m in modifiers) or plain
    return Claim(kind, noun, colour, rest.kind if rest else "", rest.value if rest else "")


def choose(found: Iterable[Claim], count: int, rng: np.random.Generator) -> list[Claim]:
    """Up to ``count`` claims, of as many kinds as there are."""
    by_kind: dict[str, list[Claim]] = {}
    for claim in sorted(found):
        by_kind.setdefault(claim.kind, []).append(claim)
    chosen: list[Claim] = []
    while by_kind and len(chosen) < count:
        kinds = list(by_kind)
        weights = np.array([KIND_WEIGHTS.get(kind, 1.0) for kind in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        options = by_kind.pop(kind)
        chosen.append(options[int(rng.integers(len(options)))])
    return chosen


def phrase(claim: Claim, rng: np.random.Generator) -> str:
    """One of several wordings of a claim, in lower case."""
    if claim.kind == "group":
        return _group_phrase(claim, rng)
    before, after, definite = _rest_words(claim, rng)
    noun = claim.noun
    if claim.colour:
        colour = "grey" if claim.colour == "gray" and rng.random() < 0.3 else claim.colour
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


def _rest_words(claim: Claim, rng: np.random.Generator) -> tuple[str, str, bool]:
    """Words before and after the noun, and whether "a" would be wrong."""
    value = claim.rest
    if claim.rest_kind == "place":
        if value in ("left", "right", "top", "bottom", "middle") and rng.random() < 0.3:
            return value, "", True
        return "", str(rng.choice(PLACE_TAILS[value])), False
    if claim.rest_kind == "size":
        return _size_word(value, rng), "", True
    if claim.rest_kind == "order":
        return (*_order_words(value, rng), True)
    if claim.rest_kind == "relation":
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


def _group_phrase(claim: Claim, rng: np.random.Generator) -> str:
    starts = ["all the", "all", "the", ""]
    words = f"{claim.colour} {plural(claim.noun)}"
    if claim.colour and claim.noun == "person":
        words = f"people in {claim.colour}"
    return " ".join(f"{rng.choice(starts)} {words}".split())

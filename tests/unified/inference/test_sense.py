from __future__ import annotations

import json
from pathlib import Path

import pytest

from unified.inference.sense import nonsense

VOCABULARY = frozenset("accordion undefined import het met de la".split())
EXPRESSIONS = Path(__file__).parents[3] / "datasets/expressions"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("桌子上的杯子", "Latin"),
        ("кошка на кровати", "Latin"),
        ("98765 $$$", "no letters"),
        ('{"a": 1}', "code"),
        ("kjhgkjhg", "kjhgkjhg"),
        ("three gurbles", "gurbles"),
        ("het meisje met de hoed", "meisje"),
        ("la de", "none of its words"),
    ],
)
def test_what_is_not_understood(text: str, reason: str) -> None:
    assert reason in (nonsense(text, VOCABULARY) or "")


@pytest.mark.parametrize(
    "text",
    [
        *("the cat", "guy in blue", "womna on teh left", "man's hat", "accordion", "café table"),
        *("2nd bus from the left", "snowboarder", "the thing behind the quokka", "T-shirt"),
    ],
)
def test_what_people_write_is_asked(text: str) -> None:
    assert nonsense(text, VOCABULARY) is None


def test_few_true_sentences_are_refused() -> None:
    """Words of a language model would make it fewer; these are known from pictures alone."""
    entries = json.loads((EXPRESSIONS / "choose.json").read_text(encoding="utf-8"))["expressions"]
    true = [e["sentence"] for e in entries if e["annotation_ids"]]
    none = [e["sentence"] for e in entries if e.get("kind") == "nonsense"]
    assert sum(nonsense(text, frozenset()) is not None for text in true) <= 0.05 * len(true)
    assert sum(nonsense(text, frozenset()) is not None for text in none) >= 0.95 * len(none)

from __future__ import annotations

import pytest

from projects.uniref.lite.phrases import opening_phrase, without_article


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("the woman with the umbrella", "the woman"),
        ("the cup to the left of the laptop", "the cup"),
        ("man in red shirt", "man"),
        ("a person riding a bike", "a person"),
        ("the large giraffe", "the large giraffe"),
        ("in the corner", "in the corner"),
        ("in the corner of the room", "in the corner"),
        ("that woman with the umbrella", "that woman"),
        ("orange and white cat", "orange and white cat"),
        ("the dog that is  asleep", "the dog"),
        (" the bike by the wall ", "the bike"),
        ("outside", "outside"),
        ("onlooker by the door", "onlooker"),
        ("The dog, on the left!", "the dog"),
        ("", ""),
    ],
)
def test_opening_phrase_ends_where_other_things_begin(text: str, phrase: str) -> None:
    assert opening_phrase(text) == phrase


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("The dog!", "dog"),
        ("an  apple", "apple"),
        ("a", "a"),
        ("anteater", "anteater"),
        ("dog the great", "dog the great"),
    ],
)
def test_only_an_article_at_the_start_is_left_out(text: str, bare: str) -> None:
    assert without_article(text) == bare

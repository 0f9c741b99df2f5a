from __future__ import annotations

import pytest

from unified.expressions import (
    clean_expression,
    has_ordinal,
    swap_left_right,
)

# Every character that the cleaning rule names, in sentences people write.
CLEANED = {
    "The man's RED hat, on the left!": "the mans red hat on the left",
    "left-most cup/mug (the blue one)": "left most cup mug the blue one",
    'a "stop" sign; near: #3 * what?': "a stop sign near 3  what",
    "  two   spaces - kept  ": "  two   spaces   kept  ",
    "左边的狗。": "左边的狗。",
    "СОБАКА слева": "собака слева",
    "ΟΔΟΣ": "οδος",
    "🐕 on the “left” side_walk": "🐕 on the “left” side_walk",
    "...!?": "",
    " \t\n": " \t\n",
    "": "",
}


@pytest.mark.parametrize("text", CLEANED)
def test_cleaning_follows_the_reference_rule(text: str) -> None:
    assert clean_expression(text) == CLEANED[text]


@pytest.mark.parametrize("text", [*CLEANED, "İSTANBUL / Straße", "a-" * 5000])
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = clean_expression(text)
    assert clean_expression(once) == once


SWAPPED = {
    "the bright red car on the left": "the bright red car on the right",
    "upright piano, frightened copyrighted leftover": (
        "upright piano, frightened copyrighted leftover"
    ),
    "Left of the right-hand man": "Right of the left-hand man",
    "LEFT, then Right; left.": "RIGHT, then Left; right.",
    "leftmost rightmost left-most": "rightmost leftmost right-most",
    "lefthand right-handed leftside rightward leftwards": (
        "righthand left-handed rightside leftward rightwards"
    ),
    "topleft bottomright farleft": "topright bottomleft farright",
    "left2 right_hand left's": "right2 left_hand right's",
    "bleft leften alright": "bleft leften alright",
    "the dog": "the dog",
    "左 left 右": "左 right 右",
    "": "",
}


@pytest.mark.parametrize("text", SWAPPED)
def test_left_and_right_swap_as_whole_words(text: str) -> None:
    assert swap_left_right(text) == SWAPPED[text]
    assert swap_left_right(SWAPPED[text]) == text


@pytest.mark.parametrize("text", SWAPPED)
def test_mirroring_and_cleaning_can_come_in_any_order(text: str) -> None:
    assert clean_expression(swap_left_right(text)) == swap_left_right(clean_expression(text))


def test_very_long_text_is_swapped_everywhere() -> None:
    swapped = swap_left_right("bright left " * 20000)
    assert swapped == "bright right " * 20000


@pytest.mark.parametrize(
    "text",
    [
        "second from left",
        "the Tenth one",
        "left-first",
        "2nd zebra",
        "10th",
        "row_third",
        "(fifth)",
    ],
)
def test_ordinals_are_found(text: str) -> None:
    assert has_ordinal(text)


@pytest.mark.parametrize(
    "text",
    [
        "secondary road",
        "firsthand",
        "thirds",
        "a 21st birthday",
        "11th",
        "two dogs",
        "14th 110th",
        "",
    ],
)
def test_other_words_are_no_ordinals(text: str) -> None:
    assert not has_ordinal(text)

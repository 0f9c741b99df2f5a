"""Referring expressions as text: cleaning, mirroring and spotting ordinals.

Plain string functions; a data mapper and a text encoder use the same ones, so that a sentence
means the same tokens in training and at inference.
"""

from __future__ import annotations

import re

_CLEANING = str.maketrans("-/", "  ", ".,'!?\"()*#:;")

# A word ends where letters end: digits and underscores are separators too. The compounds are what
# people type in referring expressions; "bright", "upright" and "leftover" are none of them.
_SIDE = re.compile(
    r"(?<![^\W\d_])"
    r"(?P<before>top|bottom|upper|lower|far|mid)?"
    r"(?P<side>left|right)"
    r"(?P<after>most|hand|handed|side|ward|wards|s)?"
    r"(?![^\W\d_])",
    re.IGNORECASE,
)
_ORDINAL = re.compile(
    r"(?<![^\W_])"
    r"(first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|1st|2nd|3rd|(?:[4-9]|10)th)"
    r"(?![^\W_])",
    re.IGNORECASE,
)


def clean_expression(text: str) -> str:
    """The sentence as the text encoder is trained on it.

    Lower-case; the characters ``. , ' ! ? " ( ) * # : ;`` are deleted ("man's" -> "mans"); ``-``
    and ``/`` become spaces. Nothing else: runs of white space and white space at the ends stay,
    as do other marks (curly quotes, underscores) and every script. Cleaning twice changes nothing.

    Source: UniRef repository, dataset mapper of the image and video stages.
    """
    return text.lower().translate(_CLEANING)


def swap_left_right(text: str) -> str:
    """The sentence that describes the mirrored image: left <-> right, letter case kept.

    Only whole words change, including compounds such as "leftmost", "left-hand" and "topright".

    Source: the horizontal flip of the UniRef repository's dataset mapper. Difference: that one
    replaces any occurrence of the letters, so "bright" becomes "bleft" there.
    """
    return _SIDE.sub(_mirrored, text)


def has_ordinal(text: str) -> bool:
    """Whether the sentence counts objects: a whole word of first..tenth or 1st..10th.

    Such a sentence may become false when the image is cropped.

    Source: UniRef repository, dataset mapper of the image stage; spelled with digits is our
    addition.
    """
    return _ORDINAL.search(text) is not None


def _mirrored(match: re.Match[str]) -> str:
    side = match["side"]
    other = "right" if side.lower() == "left" else "left"
    if side.isupper():
        other = other.upper()
    elif side[0].isupper():
        other = other.capitalize()
    return f"{match['before'] or ''}{other}{match['after'] or ''}"

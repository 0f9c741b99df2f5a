"""What a sentence is about: its words before the first preposition."""

from __future__ import annotations

import re

from unified.expressions import clean_expression

# After one of these a sentence describes other things, or the state of this one.
TURN = re.compile(
    r"\s(?:with|without|in|on|at|of|to|by|near|next|beside|behind|before|under|below|above|over|"
    r"between|against|around|from|inside|outside|for|that|which|who|whose|is|are|"
    r"wearing|holding|carrying|riding|standing|sitting|lying|playing|eating|dressed)\s"
)

ARTICLE = re.compile(r"^(?:the|an?)\s+")


def without_article(text: str) -> str:
    """The cleaned sentence without an article at its start."""
    return ARTICLE.sub("", clean_expression(text).strip())


def opening_phrase(text: str) -> str:
    """The cleaned words before the first preposition, relative pronoun, "is", "are" or participle.

    "the woman with the umbrella" is about a woman, but as a whole it lies near "umbrella". Such a
    word at the very start ends nothing.
    """
    return TURN.split(f"{clean_expression(text).strip()} ", maxsplit=1)[0].strip()

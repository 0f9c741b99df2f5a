"""Whether a sentence says anything in English: other scripts, languages and noise are not asked."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from functools import cache
from pathlib import Path

WORDS = Path(__file__).with_name("words.txt")
MOST_STRANGE = 0.45  # share of letters in words that are neither known nor near a known one
_ENDINGS = ("s", "es", "ed", "d", "ing", "er", "ers", "ly", "ish", "y", "less", "like")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MARKUP = re.compile(r"[{}<>=\\|~^$@\[\]]|\w\(|://|::|;\s*$")
_SMALL = frozenset(
    "the a an of in on at to by and or with from is are that this it its for as".split()
)
LEAST_PART, LEAST_MENDED, LEAST_FOREIGN = 3, 4, 4


@cache
def expected_words() -> frozenset[str]:
    """The words of sentences about pictures, from datasets/expressions."""
    return frozenset(WORDS.read_text(encoding="utf-8").split())


def nonsense(text: str, vocabulary: Collection[str]) -> str | None:
    """Why a sentence is not understood, or None if it may be.

    Args:
        vocabulary: words that the language model has whole.
    """
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return "it has no letters"
    if any(not unicodedata.name(letter, "").startswith("LATIN") for letter in letters):
        return "it is not written in Latin letters"
    if _MARKUP.search(text):
        return "it looks like code"
    words = re.findall(r"[^\W\d_]+", text.lower().replace("'", "").replace("’", ""))  # noqa: RUF001
    content = [word for word in words if word not in _SMALL] or words
    # Short words of other languages are in the vocabulary too: "het", "met", "de".
    least = LEAST_FOREIGN if len(content) > 2 else 1
    strange = [word for word in content if not _known(word, vocabulary, least)]
    share = sum(map(len, strange)) / sum(map(len, content))
    if share > MOST_STRANGE:
        return f"its words are unknown: {', '.join(strange)}"
    expected = expected_words()
    short = any(len(word) < LEAST_FOREIGN for word in words)
    if len(words) > 1 and short and not any(_near(word, expected) for word in words):
        return "none of its words is known from sentences about pictures"
    return None


def _known(word: str, vocabulary: Collection[str], least: int) -> bool:
    """Whether a word, its stem, both its halves, or a word that differs by a slip are known.

    Args:
        least: letters of a word that counts as known if the language model alone knows it.
    """
    expected = expected_words()
    if len(word) == 1 or _near(word, expected):
        return True
    if len(word) >= least and _stem(word, vocabulary):
        return True
    cuts = range(LEAST_PART, len(word) - LEAST_PART + 1)
    halves = [(word[:cut], word[cut:]) for cut in cuts]
    return any(_stem(first, vocabulary) and _stem(second, vocabulary) for first, second in halves)


def _near(word: str, known: Collection[str]) -> bool:
    if _stem(word, known):
        return True
    return len(word) >= LEAST_MENDED and any(slip in known for slip in _slips(word))


def _stem(word: str, known: Collection[str]) -> bool:
    if word in known:
        return True
    stems = (word.removesuffix(ending) for ending in _ENDINGS if word.endswith(ending))
    return any(len(stem) >= LEAST_PART and (stem in known or stem + "e" in known) for stem in stems)


def _slips(word: str) -> set[str]:
    """Words of one letter less, more, other, or two that change places."""
    halves = [(word[:cut], word[cut:]) for cut in range(len(word) + 1)]
    return {
        *(a + b[1:] for a, b in halves if b),
        *(a + b[1] + b[0] + b[2:] for a, b in halves if len(b) > 1),
        *(a + letter + b[1:] for a, b in halves if b for letter in _LETTERS),
        *(a + letter + b for a, b in halves for letter in _LETTERS),
    }

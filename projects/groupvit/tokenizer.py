"""Sentences as token ids: by CLIP's vocabulary, or by a list of words that travels with weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from unified.errors import InputError
from unified.modeling.text_encoder import load_tokenizer
from unified.modeling.vocabulary import UNKNOWN, WordTable

CLIP_ENTRIES = 49408
END_OF_WORDS = 2  # "<eos>" in every list of words

Tokenize = Callable[[Sequence[str]], Tensor]


def clip_ids(source: Path, context_length: int) -> Tokenize:
    """Tokenizer of CLIP from a folder in transformers' layout.

    Raises:
        ConfigError: there is no such vocabulary in it.
    """
    tokenizer = load_tokenizer(source, vocab_size=CLIP_ENTRIES)

    def tokenize(texts: Sequence[str]) -> Tensor:
        return _padded([tokenizer.encode(text).ids for text in texts], context_length)

    return tokenize


def word_ids(table: WordTable) -> Tokenize:
    """Tokenizer of the words of a table, each sentence closed by the end token."""
    return partial(_word_ids, table)


def _word_ids(table: WordTable, texts: Sequence[str]) -> Tensor:
    if isinstance(texts, str) or not texts:
        raise InputError(f"expected a list of one or more sentences, got {texts!r}")
    rows = [[*table.vocabulary.numbers(text), END_OF_WORDS] for text in texts]
    return _padded(rows, table.context_length)


def unknown_words(table: WordTable, names: Sequence[str]) -> list[str]:
    """Names of which the table knows no word."""
    return [name for name in names if set(table.vocabulary.numbers(name)) == {UNKNOWN}]


def _padded(rows: Sequence[list[int]], context_length: int) -> Tensor:
    """Rows (B, N) filled up with 0; a longer one loses words before its last token."""
    kept = [r if len(r) <= context_length else [*r[: context_length - 1], r[-1]] for r in rows]
    longest = max(map(len, kept))
    return torch.tensor([row + [0] * (longest - len(row)) for row in kept])

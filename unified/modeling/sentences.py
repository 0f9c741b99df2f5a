"""Sentences as token ids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unified.errors import InputError
from unified.expressions import clean_expression

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SentenceReader:
    """Turns cleaned sentences into ids, special tokens included.

    Attributes:
        context_length: longest sentence in tokens.
        padding: id that fills up shorter sentences.
    """

    tokenizer: Tokenizer
    context_length: int
    padding: int

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, N) int64, and (B, N) int64 with 1 on tokens and 0 on padding.

        A sentence longer than the context loses its last words and keeps its end token; one
        warning tells.

        Raises:
            InputError: no sentence, or one without any word.
        """
        if isinstance(texts, str) or not texts:
            raise InputError(f"expected a list of one or more sentences, got {texts!r}")
        rows = self._shortened(texts, [self._ids(text) for text in texts])
        longest = max(len(row) for row in rows)
        ids = [row + [self.padding] * (longest - len(row)) for row in rows]
        valid = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        return torch.tensor(ids), torch.tensor(valid)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(clean_expression(text)).ids
        if len(ids) <= self.tokenizer.num_special_tokens_to_add(is_pair=False):
            raise InputError(
                f"the sentence {_excerpt(text)} has no word in it: describe the object in a few "
                "words"
            )
        return ids

    def _shortened(self, texts: Sequence[str], rows: list[list[int]]) -> list[list[int]]:
        limit = self.context_length
        lengths = [len(row) for row in rows]
        if max(lengths) <= limit:
            return rows
        logger.warning(
            "%d of %d sentences are longer than the context of %d tokens and were truncated; the "
            "longest has %d tokens: %s",
            sum(length > limit for length in lengths),
            len(rows),
            limit,
            max(lengths),
            _excerpt(texts[lengths.index(max(lengths))]),
        )
        # All vocabularies here end a sentence with one special token.
        return [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in rows]


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")

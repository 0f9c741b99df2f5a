"""Sentences as numbers of a list of words, and the learned vector of every word.

What systems used before pretrained language models: a vocabulary file with one word a line. The
words travel with the weights, so that a weights file of ours needs no vocabulary beside it.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unified.errors import CheckpointError, ConfigError, InputError, first_line
from unified.files import read_text
from unified.structures import upload
from unified.unpickle import why_unread

logger = logging.getLogger(__name__)

SPECIAL = ("<pad>", "<go>", "<eos>", "<unk>")
PADDING, UNKNOWN = 0, 3

_TOKEN = re.compile(r"\w+|[^\w\s]+")


def split_words(sentence: str) -> list[str]:
    """Lower-case words and runs of punctuation marks; a full stop at the end is left out.

    Source: the data code released with the systems that read so, which splits at what is no word.
    """
    words = _TOKEN.findall(sentence.lower())
    return words[:-1] if words[-1:] == ["."] else words


class Vocabulary:
    """A list of words; the first four are ``SPECIAL``, the place in the list is a word's number."""

    def __init__(self, words: Sequence[str] = SPECIAL) -> None:
        """
        Raises:
            ConfigError: the list does not start with ``SPECIAL``, or a word stands there twice.
        """
        if tuple(words[: len(SPECIAL)]) != SPECIAL:
            raise ConfigError(
                f"a vocabulary starts with the lines {' '.join(SPECIAL)}, got "
                f"{' '.join(words[: len(SPECIAL)]) or 'nothing'}"
            )
        self.words = tuple(words)
        self._numbers = {word: number for number, word in enumerate(words)}
        if len(self._numbers) < len(words):
            double = next(word for word, count in Counter(words).items() if count > 1)
            raise ConfigError(f"a vocabulary holds every word once, got {double!r} twice")

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)

    @classmethod
    def read(cls, path: str | Path) -> Vocabulary:
        """From a file with one word a line.

        Raises:
            ConfigError: it is missing, no text, or no vocabulary.
        """
        try:
            text = read_text(path)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the vocabulary {path} cannot be read ({first_line(error)}): give the file that "
                "the weights were trained with (or '', if they were trained here: then they hold "
                "it), or make one of a training set with `python tools/data.py vocabulary NAME "
                "--output FILE`"
            ) from error
        try:
            return cls([line.strip() for line in text.splitlines() if line.strip()])
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def of(cls, sentences: Iterable[str]) -> Vocabulary:
        """Of all words of the sentences, frequent ones first, then by the alphabet."""
        counts = Counter(word for sentence in sentences for word in split_words(sentence))
        for word in SPECIAL:
            counts.pop(word, None)
        return cls([*SPECIAL, *sorted(counts, key=lambda word: (-counts[word], word))])

    def text(self) -> str:
        """The content of the vocabulary's file."""
        return "".join(f"{word}\n" for word in self.words)

    def numbers(self, sentence: str) -> list[int]:
        """Numbers of the words of a sentence.

        Raises:
            InputError: there is no word in it.
        """
        words = split_words(sentence)
        if not words:
            raise InputError(
                f"the sentence {sentence[:60]!r} has no word in it: describe the object in a few "
                "words"
            )
        return [self._numbers.get(word, UNKNOWN) for word in words]


class WordTable(nn.Module):
    """A learned vector for every word of a vocabulary.

    Without words (``SPECIAL`` alone) every word is the unknown one; such a table has a size, so
    that a model of published size can be built, but it does not learn.
    """

    words: Tensor

    def __init__(
        self, vocabulary: Vocabulary, *, dim: int, context_length: int, size: int = 0
    ) -> None:
        """
        Args:
            dim: C, width of the vectors.
            context_length: T, longest sentence; the words after it are left out.
            size: number of vectors; 0 takes that of the vocabulary.

        Raises:
            ConfigError: the vocabulary has words, but not ``size``.
        """
        super().__init__()
        named = len(vocabulary) > len(SPECIAL)
        if named and size not in (0, len(vocabulary)):
            raise ConfigError(
                f"the vocabulary has {len(vocabulary)} words, expected {size}: give the file that "
                "belongs to the model, or set VOCABULARY_SIZE 0 to take the size of the file"
            )
        self.context_length = context_length
        self.table = nn.Embedding(size or len(vocabulary), dim, padding_idx=PADDING)
        self.register_buffer("words", _encoded(vocabulary))
        self.vocabulary = vocabulary
        self.register_load_state_dict_post_hook(_read_words)

    def forward(self, ids: Tensor) -> Tensor:
        """Numbers (B, T) -> vectors (B, T, C)."""
        vectors: Tensor = self.table(ids)
        return vectors

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Numbers (B, T) of B sentences, padded at the left, on the table's device.

        A sentence longer than T loses its last words; one warning tells.

        Raises:
            InputError: no sentence, or one without any word.
            ConfigError: a table without words is asked to learn.
        """
        if isinstance(texts, str) or not texts:
            raise InputError(f"expected a list of one or more sentences, got {texts!r}")
        if self.training and len(self.vocabulary) == len(SPECIAL):
            raise ConfigError(
                "this model has no vocabulary, so all words are the same to it: make one with "
                "`python tools/data.py vocabulary NAME --output FILE` and set "
                "MODEL.<SYSTEM>.VOCABULARY FILE"
            )
        rows = [self.vocabulary.numbers(text) for text in texts]
        length = self.context_length
        cut = [text for text, row in zip(texts, rows, strict=True) if len(row) > length]
        if cut:
            logger.warning(
                "%d of %d sentences are longer than %d words and were truncated: %r",
                *(len(cut), len(rows), length, cut[0][:60]),
            )
        padded = [[PADDING] * (length - len(row)) + row[:length] for row in rows]
        return upload(torch.tensor(padded), self.table.weight.device)

    def adopt(self, weights: Mapping[str, Tensor], prefix: str) -> None:
        """Takes over words and size of a weights file that is loaded next.

        Args:
            weights: of our layout, those of this table below ``prefix``.

        Raises:
            CheckpointError: the model has other words, or none, and the file does not bring any.
        """
        given = weights.get(f"{prefix}words")
        size = weights[f"{prefix}table.weight"].shape[0]
        named = len(self.vocabulary) > len(SPECIAL)
        if given is not None and len(given) > len(_encoded(Vocabulary())):
            theirs = _decoded(given)
            if named and theirs != self.vocabulary:
                raise CheckpointError(
                    f"the weights know other words ({len(theirs)}) than the model's vocabulary "
                    f"({len(self.vocabulary)}): leave VOCABULARY empty to take those of the weights"
                )
            self.vocabulary, self.words = theirs, given.to(self.words.device)
        elif not named or size != len(self.vocabulary):
            have = f"the model's has {len(self.vocabulary)}" if named else "the model has none"
            raise CheckpointError(
                f"the weights are for a vocabulary of {size} words and do not hold it, {have}: set "
                "MODEL.<SYSTEM>.VOCABULARY to the file they were trained with"
            )
        if self.table.num_embeddings != size:
            old = self.table.weight
            self.table = nn.Embedding(size, old.shape[1], padding_idx=PADDING).to(old.device)

    @torch.no_grad()
    def load_vectors(self, path: str | Path) -> None:
        """Fills the table with published word vectors, such as GloVe's: a .npy file (V, C).

        Raises:
            ConfigError: it cannot be read or is of another vocabulary or width.
        """
        try:
            vectors = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the word vectors {path} cannot be read as .npy: {why_unread(error)}"
            ) from error
        expected = tuple(self.table.weight.shape)
        if not isinstance(vectors, np.ndarray) or vectors.shape != expected:
            raise ConfigError(
                f"the word vectors {path} have the shape {getattr(vectors, 'shape', None)}, the "
                f"vocabulary needs {expected}: give the file made for this vocabulary"
            )
        self.table.weight.copy_(torch.from_numpy(vectors))
        self.table.weight[PADDING] = 0


def _encoded(vocabulary: Vocabulary) -> Tensor:
    """The vocabulary's text as bytes, (N,) uint8."""
    return torch.tensor(list(vocabulary.text().encode()), dtype=torch.uint8)


def _decoded(words: Tensor) -> Vocabulary:
    return Vocabulary(bytes(words.tolist()).decode().splitlines())


def _read_words(module: nn.Module, _: Any) -> None:
    """After loading weights: the words are those of the buffer."""
    assert isinstance(module, WordTable)
    if not torch.equal(_encoded(module.vocabulary), module.words.cpu()):
        module.vocabulary = _decoded(module.words)

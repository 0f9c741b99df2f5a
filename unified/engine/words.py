"""What systems that read with a vocabulary share: their keys, their table, and its words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from torch import Tensor

from unified.data.catalog import data_root
from unified.modeling.vocabulary import Vocabulary, WordTable


def add_words(node: CfgNode, *, dim: int) -> None:
    """Adds the keys of a table of word vectors with ``dim`` channels to a system's node."""
    node.VOCABULARY = ""  # file, also below the folder of datasets; weights of ours hold the words
    node.VOCABULARY_SIZE = 0  # 0 takes that of the file
    node.WORD_VECTORS = ""  # .npy file (words, channels) that the table starts from
    node.WORD_DIM = dim
    node.CONTEXT_LENGTH = 20  # words


def build_words(node: CfgNode) -> WordTable:
    """The table that a system's node describes.

    Raises:
        ConfigError: a file cannot be used, or its size is another.
    """
    table = WordTable(
        Vocabulary.read(_find(node.VOCABULARY)) if node.VOCABULARY else Vocabulary(),
        dim=node.WORD_DIM,
        context_length=node.CONTEXT_LENGTH,
        size=node.VOCABULARY_SIZE,
    )
    if node.WORD_VECTORS:
        table.load_vectors(_find(node.WORD_VECTORS))
    return table


def load_words(table: WordTable, weights: Mapping[str, Tensor], prefix: str) -> tuple[str, ...]:
    """Takes over the words of a weights file that is loaded next.

    Args:
        weights: of our layout; empty if there is no file.
        prefix: of the table's keys.

    Returns:
        Prefixes of our keys that need not be in the file.

    Raises:
        CheckpointError: nothing says which words the weights are for, or they are for others.
    """
    if f"{prefix}table.weight" in weights:
        table.adopt(weights, prefix)
    return (f"{prefix}words",)


def _find(file: str) -> Path:
    path = Path(file)
    return path if path.exists() else data_root() / file

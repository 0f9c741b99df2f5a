"""The vocabulary of the sentences of datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unified.data.catalog import load_records
from unified.errors import InputError, first_line
from unified.expressions import swap_left_right
from unified.files import atomic_path
from unified.modeling.vocabulary import Vocabulary


def make_vocabulary(names: Sequence[str]) -> Vocabulary:
    """All words of the sentences of datasets, and of those that describe the mirror images.

    Raises:
        InputError: a dataset is missing, wrong, or has no sentences.
    """
    sentences: list[str] = []
    for name in names:
        own = [text for record in load_records(name) for text in record.get("expressions", ())]
        if not own:
            raise InputError(f"dataset {name} has no sentences to make a vocabulary of")
        sentences += own
    return Vocabulary.of([*sentences, *map(swap_left_right, sentences)])


def write_vocabulary(names: Sequence[str], path: Path) -> Vocabulary:
    """Writes the vocabulary of datasets, one word a line.

    Raises:
        InputError: it cannot be made or written.
    """
    vocabulary = make_vocabulary(names)
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(vocabulary.text(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {first_line(error)}") from error
    return vocabulary

"""The keys of a table of words, where its files are looked for, and what weights bring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from unified.engine.words import add_words, build_words, load_words
from unified.errors import CheckpointError, ConfigError
from unified.modeling.vocabulary import SPECIAL, Vocabulary

WORDS = Vocabulary([*SPECIAL, "red", "dog"])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of datasets, with a vocabulary and vectors in it."""
    (tmp_path / "words.txt").write_text(WORDS.text(), encoding="utf-8")
    np.save(tmp_path / "vectors.npy", np.full((6, 8), 0.5, np.float32))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def node(**values: object) -> CfgNode:
    made = CfgNode()
    add_words(made, dim=8)
    made.update(values)
    return made


@pytest.mark.parametrize("absolute", [False, True])
def test_files_lie_below_the_folder_of_datasets_or_where_they_are(
    root: Path, absolute: bool
) -> None:
    files = {"VOCABULARY": "words.txt", "WORD_VECTORS": "vectors.npy"}
    if absolute:
        files = {key: str(root / name) for key, name in files.items()}
    table = build_words(node(**files))
    assert table.vocabulary == WORDS and table.context_length == 20
    assert (table.table.weight[1:] == 0.5).all()


def test_without_a_file_there_is_a_size(root: Path) -> None:
    assert build_words(node(VOCABULARY_SIZE=12)).table.weight.shape == (12, 8)
    with pytest.raises(ConfigError, match=r"none\.txt cannot be read"):
        build_words(node(VOCABULARY="none.txt"))


def test_weights_bring_words_or_need_them(root: Path) -> None:
    source = build_words(node(VOCABULARY="words.txt"))
    weights = {f"text.{key}": value for key, value in source.state_dict().items()}
    empty = build_words(node(VOCABULARY_SIZE=12))
    assert load_words(empty, {}, "text.") == ("text.words",)
    assert len(empty.vocabulary) == len(SPECIAL)
    load_words(empty, weights, "text.")
    assert empty.vocabulary == WORDS and empty.table.weight.shape == (6, 8)
    with pytest.raises(CheckpointError, match="do not hold it"):
        load_words(build_words(node()), {"text.table.weight": torch.zeros(6, 8)}, "text.")

"""Vocabularies: their files, what sentences become, and how words travel with the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unified.errors import CheckpointError, ConfigError, InputError
from unified.modeling.vocabulary import SPECIAL, Vocabulary, WordTable, split_words

WORDS = Vocabulary([*SPECIAL, "the", "red", "dog", "'", "s", "ball"])


def table(vocabulary: Vocabulary = WORDS, **options: int) -> WordTable:
    torch.manual_seed(0)
    return WordTable(vocabulary, **{"dim": 8, "context_length": 6, **options})


def test_sentences_are_split_where_the_released_code_splits_them() -> None:
    assert split_words("The Red dog's ball.") == ["the", "red", "dog", "'", "s", "ball"]
    assert split_words(" left, top.  ") == ["left", ",", "top"]
    assert split_words(".") == split_words("  ") == []


def test_a_vocabulary_of_sentences_has_frequent_words_first() -> None:
    made = Vocabulary.of(["a red dog", "the red cat", "red <pad>"])
    assert made.words[:5] == (*SPECIAL, "red")
    assert sorted(made.words[5:]) == sorted(["a", "cat", "dog", "the", "<", "pad", ">"])
    assert made == Vocabulary.of(["red <pad>", "the red cat", "a red dog"])


def test_a_file_gives_the_same_vocabulary_back(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text(WORDS.text(), encoding="utf-8")
    assert Vocabulary.read(tmp_path / "words.txt") == WORDS


def test_what_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    with pytest.raises(ConfigError, match=r"cannot be read .* tools/data.py vocabulary"):
        Vocabulary.read(file)
    file.write_text("the\nred\n")
    with pytest.raises(ConfigError, match=r"words\.txt: a vocabulary starts with the lines <pad>"):
        Vocabulary.read(file)
    file.write_text(WORDS.text() + "red\n")
    with pytest.raises(ConfigError, match="got 'red' twice"):
        Vocabulary.read(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        Vocabulary.read(file)


def test_sentences_are_padded_at_the_left_and_cut_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = table().tokenize(["the red fox", "the red dog's ball ball the"])
    assert ids.tolist() == [[0, 0, 0, 4, 5, 3], [4, 5, 6, 7, 8, 9]]
    assert "1 of 2 sentences are longer than 6 words" in caplog.text


def test_padding_is_a_zero_vector() -> None:
    vectors = table()(torch.tensor([[0, 4]]))
    assert not vectors[0, 0].any() and vectors[0, 1].any()


def test_sentences_without_a_word_are_refused() -> None:
    with pytest.raises(InputError, match="has no word in it"):
        table().tokenize(["the dog", " "])
    with pytest.raises(InputError, match="expected a list"):
        table().tokenize([])


def test_a_vocabulary_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the vocabulary has 10 words, expected 12112"):
        table(size=12112)
    assert table(size=10).table.num_embeddings == 10


def test_without_words_all_are_unknown_and_nothing_is_learned() -> None:
    empty = table(Vocabulary(), size=12)
    assert empty.eval().tokenize(["the dog"]).tolist() == [[0, 0, 0, 0, 3, 3]]
    with pytest.raises(ConfigError, match="has no vocabulary"):
        empty.train().tokenize(["the dog"])


def test_words_travel_with_the_weights() -> None:
    source, target = table(), table(Vocabulary())
    weights = {f"text.{key}": value for key, value in source.state_dict().items()}
    target.adopt(weights, "text.")
    target.load_state_dict(source.state_dict())
    assert target.vocabulary == WORDS
    assert torch.equal(target(target.tokenize(["red dog"])), source(source.tokenize(["red dog"])))


def test_loaded_words_are_the_words_of_the_model() -> None:
    other = Vocabulary([*SPECIAL, "the", "der", "god", "'", "s", "ball"])
    target = table(other)
    target.load_state_dict(table().state_dict())
    assert target.vocabulary == WORDS


def test_weights_with_other_words_are_refused() -> None:
    other = table(Vocabulary([*SPECIAL, "cat"]))
    with pytest.raises(CheckpointError, match="know other words"):
        other.adopt(table().state_dict(), "")


def test_weights_without_words_need_the_vocabulary_they_were_trained_with() -> None:
    official = {"table.weight": table().table.weight}
    table().adopt(official, "")
    with pytest.raises(CheckpointError, match=r"vocabulary of 10 words .* the model has none"):
        table(Vocabulary()).adopt(official, "")
    with pytest.raises(CheckpointError, match=r"vocabulary of 10 words .* the model's has 5"):
        table(Vocabulary([*SPECIAL, "cat"])).adopt(official, "")


def test_word_vectors_fill_the_table(tmp_path: Path) -> None:
    words = table()
    vectors = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
    np.save(tmp_path / "glove.npy", vectors)
    words.load_vectors(tmp_path / "glove.npy")
    assert np.array_equal(words.table.weight.detach().numpy()[1:], vectors[1:])
    assert not words.table.weight[0].any()
    np.save(tmp_path / "other.npy", vectors[:5])
    with pytest.raises(ConfigError, match=r"shape \(5, 8\), the vocabulary needs \(10, 8\)"):
        words.load_vectors(tmp_path / "other.npy")
    with pytest.raises(ConfigError, match=r"cannot be read as \.npy"):
        words.load_vectors(tmp_path / "none.npy")

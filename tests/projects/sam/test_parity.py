"""Recordings of UniRef's SAM variant: a small one is made here, in the layout of the real one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from projects.sam.building import build_vit
from projects.sam.checkpoint import UNIREF_SAM_KEYS
from projects.sam.mask_encoder import SamMaskEncoder
from projects.sam.model import SamUniFusion
from projects.sam.parity import load_model, replay
from unified.engine.system import Recording, system
from unified.errors import InputError
from unified.inference.image_io import write_image
from unified.masks import MAX_LOGIT
from unified.modeling.fusion import build_fusion
from unified.modeling.text_encoder import TextEncoder

REPLAY = system("SamUniFusion").replays["sam"]
TEXT = BertConfig(
    vocab_size=40, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32
)
OUTPUTS = 16


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recording]:
    """A recording of a SAM of 64 pixels, with its manifest and pictures."""
    folder = tmp_path_factory.mktemp("recorded")
    rng = np.random.default_rng(0)
    for name, size in (("image", (30, 64)), ("support", (64, 50))):
        write_image(folder / f"sam_{name}.png", rng.integers(0, 255, (*size, 3), dtype=np.uint8))
    mask = np.zeros((64, 50), np.uint8)
    mask[10:30, 5:40] = 1
    ids, valid = np.zeros(77, np.int64), np.zeros(77, np.int64)
    ids[:5], valid[:5] = (1, 7, 12, 30, 2), 1
    arrays = {
        "in/support_mask": np.packbits(mask),
        "in/support_mask_shape": np.array(mask.shape),
        "in/input_ids": ids,
        "in/attention_mask": valid,
        "out/final_mask": np.zeros((1, 30, 64), np.uint8),
    }
    torch.manual_seed(0)
    vit = build_vit(width=32, depth=2, num_heads=2, global_layers=[1], window_size=2, image_size=64)
    model = SamUniFusion(
        vit,
        fusion=build_fusion("UniFusion", dim=256, num_heads=8, head_dim=4),
        text_encoder=TextEncoder(model=BertModel(TEXT), tokenizer=None, hidden_dim=256),
        mask_encoder=SamMaskEncoder(dim=256, width=8),
    )
    official = UNIREF_SAM_KEYS.to_foreign(model.state_dict())
    manifest = {key: [list(value.shape), "float32"] for key, value in official.items()}
    inputs = Recording(folder / "golden_sam_small.npz", arrays, manifest)
    outputs = replay(load_model(inputs), arrays, folder)
    arrays |= {f"out/{name}": value for name, value in outputs.items()}

    def make(**changes: np.ndarray) -> Recording:
        return Recording(inputs.path, {**arrays, **changes}, manifest)

    return make


def test_a_manifest_says_the_sizes_of_the_model(recorded: Callable[..., Recording]) -> None:
    recording = recorded()
    assert REPLAY.fits(recording)
    results = REPLAY.run(recording)
    assert len(results) == OUTPUTS and [str(r) for r in results if not r.passed] == []
    layers = load_model(recording).sam.vision_encoder.layers
    assert [layer.window_size for layer in layers] == [2, 0]


def test_masks_are_compared_on_padding_too(recorded: Callable[..., Recording]) -> None:
    """Answers leave it out; the reference records it."""
    for name in ("grounding", "fss"):
        assert recorded().arrays[f"out/{name}_pred_masks_sub"].min() > -MAX_LOGIT


@pytest.mark.parametrize("name", ["fss_pred_masks_sub", "grounding_fused_sub", "final_score"])
def test_a_wrong_number_is_found(recorded: Callable[..., Recording], name: str) -> None:
    value = recorded().arrays[f"out/{name}"].copy()
    value.flat[0] += 0.01 * np.abs(value).max()
    results = REPLAY.run(recorded(**{f"out/{name}": value}))
    assert [result.name for result in results if not result.passed] == [name]


def test_what_cannot_be_replayed_is_told(recorded: Callable[..., Recording]) -> None:
    with pytest.raises(InputError, match="no replay for the arrays other"):
        REPLAY.run(recorded(**{"out/other": np.zeros(1)}))
    recording = recorded()
    odd = {key: entry for key, entry in recording.manifest.items() if "pos_embed" not in key}
    with pytest.raises(InputError, match="holds no SAM"):
        REPLAY.run(Recording(recording.path, recording.arrays, odd))

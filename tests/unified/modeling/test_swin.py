"""Swin against an independent implementation and against the formula of window attention."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unified.modeling.backbones import KEY_TABLES
from unified.modeling.backbones.base import Backbone
from unified.modeling.backbones.swin import SwinBlock, build_swin

DEPTHS, HEADS, DIM = (2, 2, 4, 2), (1, 2, 3, 6), 24


def _swin(window: int, seed: int = 0) -> Backbone:
    """Small and with weights at which positions, biases and norms matter."""
    backbone = build_swin(embed_dim=DIM, depths=DEPTHS, num_heads=HEADS, window=window).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in backbone.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "table" in key:
                parameter.copy_(noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
            else:
                parameter.copy_(float(key.endswith("weight")) + 0.3 * noise)
    return backbone


def _to_transformers(official: dict[str, Tensor]) -> dict[str, Tensor]:
    names = (
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        ("patch_embed.norm.", "embeddings.norm."),
        ("layers.", "encoder.layers."),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
        (".attn.proj.", ".attention.o_proj."),
        (".attn.relative", ".attention.relative_position_bias.relative"),
    )
    weights = {}
    for key, tensor in official.items():
        if key.startswith("norm"):
            weights[f"hidden_states_norms.stage{int(key[4]) + 1}{key[5:]}"] = tensor
        elif not key.endswith("relative_position_index"):
            for ours, theirs in names:
                key = key.replace(ours, theirs)
            parts = tensor.chunk(3) if ".attn.qkv." in key else [tensor]
            for part, letter in zip(parts, "qkv", strict=False):
                weights[f"swin.{key.replace('attn.qkv', f'attention.{letter}_proj')}"] = part
    return weights


@pytest.mark.parametrize("window", [4, 7])
@pytest.mark.parametrize("size", [(128, 160), (192, 256), (64, 416), (90, 75)])
def test_equals_transformers(window: int, size: tuple[int, int]) -> None:
    """Maps that are, are not, and are smaller than a multiple of the window; 2e-5 of the range."""
    from transformers import SwinBackbone, SwinConfig

    backbone = _swin(window)
    config = SwinConfig(
        embed_dim=DIM,
        depths=list(DEPTHS),
        num_heads=list(HEADS),
        window_size=window,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    other = SwinBackbone(config).eval()
    official = KEY_TABLES["swin_large"].to_foreign(backbone.state_dict())
    outcome = other.load_state_dict(_to_transformers(official), strict=False)
    assert not outcome.unexpected_keys
    assert set(outcome.missing_keys) <= {"swin.layernorm.weight", "swin.layernorm.bias"}
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = backbone(images), other(images).feature_maps
    for feature, expected in zip(ours.values(), theirs, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(feature, expected, rtol=0, atol=2e-5 * scale)


def _attend_by_formula(block: SwinBlock, x: Tensor) -> Tensor:
    """Shifted window attention, one query pixel after another, in coordinates of the padded map.

    Pixel (i, j) sits, after the roll, at ((i - s) mod H, (j - s) mod W). It attends to the pixels
    of its window there that the roll brought from the same side.
    """
    height, width, dim = x.shape
    window, shift, attn = block.window, block.shift, block.attn
    rows, cols = (math.ceil(n / window) * window for n in (height, width))
    padded = torch.zeros(rows, cols, dim)
    padded[:height, :width] = block.norm1(x)
    query, key, value = attn.qkv(padded).view(rows, cols, 3, attn.num_heads, -1).unbind(dim=2)
    out = torch.zeros(height, width, attn.num_heads, dim // attn.num_heads)
    for i in range(height):
        for j in range(width):
            row, col = (i - shift) % rows, (j - shift) % cols
            logits, values = [], []
            for r in range(row // window * window, row // window * window + window):
                for c in range(col // window * window, col // window * window + window):
                    wrapped = (r >= rows - shift) != (row >= rows - shift)
                    if shift and (wrapped or (c >= cols - shift) != (col >= cols - shift)):
                        continue
                    u, v = (r + shift) % rows, (c + shift) % cols
                    step = (row - r + window - 1) * (2 * window - 1) + col - c + window - 1
                    logit = (query[i, j] * key[u, v]).sum(-1) / math.sqrt(query.shape[-1])
                    logits.append(logit + attn.relative_position_bias_table[step])
                    values.append(value[u, v])
            weights = torch.stack(logits).softmax(dim=0)  # (pixels, heads)
            out[i, j] = (weights[..., None] * torch.stack(values)).sum(dim=0)
    x = x + attn.proj(out.flatten(2))
    hidden = F.gelu(F.linear(block.norm2(x), block.mlp.fc1.weight, block.mlp.fc1.bias))
    return x + F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)


@pytest.mark.parametrize("size", [(6, 6), (7, 4), (2, 5), (3, 3)])
@pytest.mark.parametrize("index", [0, 1], ids=["plain", "shifted"])
def test_block_follows_the_formula(size: tuple[int, int], index: int) -> None:
    block = _swin(window=3).res3.blocks[index]
    assert isinstance(block, SwinBlock) and bool(block.shift) == bool(index)
    x = torch.randn(2, *size, 2 * DIM, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = torch.stack([_attend_by_formula(block, image) for image in x])
        torch.testing.assert_close(block(x), expected, rtol=0, atol=2e-5)


def test_half_precision_autocast_stays_close() -> None:
    backbone = _swin(window=4)
    images = torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        exact = backbone(images)["res5"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = backbone(images)["res5"]
    assert (rounded.float() - exact).abs().mean() < 0.03 * exact.abs().mean() + 0.02

"""Tiny SAMs without disk or network: transformers' own, and one that a user might write."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from projects.sam.adapters import Sam
from projects.sam.mask_encoder import SamMaskEncoder
from projects.sam.model import SamUniFusion
from tests.toy.parts import make_text_encoder
from unified.modeling.fusion import FusionLayer, build_fusion

DIM, SIDE = 64, 64


def randomise(model: nn.Module, seed: int = 0) -> Any:
    """Every weight random, in eval mode: zero position codes would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            scale = 1.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(scale * drawn + (1 if norm else 0))
        for name, buffer in model.named_buffers():
            if name.endswith("positional_embedding"):  # drawn by the library, from no seed
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return model.eval()


def transformers_sam() -> Any:
    """A ``SamModel`` of width 64 on pictures of 64 pixels."""
    from transformers import SamConfig, SamModel

    vision = {
        "hidden_size": 32,
        "output_channels": DIM,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 16,
        "mlp_dim": 32,
        "num_pos_feats": DIM // 2,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    prompts = {
        "hidden_size": DIM,
        "image_size": SIDE,
        "patch_size": 16,
        "image_embedding_size": SIDE // 16,
    }
    decoder = {
        "hidden_size": DIM,
        "mlp_dim": 64,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 32,
    }
    return randomise(
        SamModel(
            SamConfig(
                vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
            )
        )
    )


class ToySam(nn.Module):
    """A SAM of somebody's own: a convolution, prompts as offsets, a product as decoder."""

    image_size = SIDE

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(3, DIM, 16, stride=16)
        self.place = nn.Linear(2, DIM)
        self.score = nn.Linear(DIM, 1)

    def encode_image(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, 64, 64) -> (B, C, 4, 4)."""
        return (self.pixels(images),)

    def encode_prompts(
        self,
        num: int,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Points and corners as tokens; the dense map is zero."""
        given = [] if points is None else [points]
        given += [] if boxes is None else [boxes.unflatten(1, (2, 2))]
        corners = torch.cat(given, dim=1) if given else torch.zeros(num, 0, 2)
        return self.place(corners / self.image_size), torch.zeros(num, DIM, 4, 4)

    def decode_masks(
        self, embedding: tuple[Tensor, ...], sparse: Tensor, dense: Tensor, *, several: bool
    ) -> tuple[Tensor, Tensor]:
        """The product of each pixel with the mean token, (B, 1, 16, 16)."""
        token = sparse.mean(dim=1)  # (B, C)
        logits = torch.einsum("bchw,bc->bhw", embedding[0] + dense, token)[:, None]
        logits = nn.functional.interpolate(logits, scale_factor=4, mode="bilinear")
        return logits, self.score(token).sigmoid()


def make_model(sam: Any = None, *, fusion: FusionLayer | None = None) -> SamUniFusion:
    """UniFusion in a tiny SAM, in eval mode; its fusion is still the identity."""
    torch.manual_seed(0)
    return SamUniFusion(
        Sam.of(transformers_sam()) if sam is None else sam,
        fusion=fusion or build_fusion("UniFusion", dim=DIM, num_heads=2, head_dim=16),
        text_encoder=make_text_encoder(DIM),
        mask_encoder=SamMaskEncoder(dim=DIM, width=8),
    ).eval()


def opened(model: SamUniFusion) -> SamUniFusion:
    """The model after its gate opened: references matter."""
    with torch.no_grad():
        model.fusion.modulation[1].weight.normal_(std=0.3)
    return model

"""Deformable-DETR encoder and decoder with two-stage query selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from unified.modeling.deform_attn import MultiScaleDeformableAttention, TokenSampling
from unified.modeling.layers import box_position, sine_position
from unified.modeling.precision import widen
from unified.modeling.products import project
from unified.structures import once


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of all levels lie.

    Attributes:
        shapes: L x (h, w).
        padding_mask: (B, N) True on padding.
        valid_ratios: (B, L, 2) unpadded share of (width, height) per level.
    """

    shapes: tuple[tuple[int, int], ...]
    padding_mask: Tensor
    valid_ratios: Tensor

    @classmethod
    def from_masks(cls, padding_masks: Sequence[Tensor]) -> TokenLayout:
        """From L x (B, h, w) True on padding (right and bottom)."""
        ratios = [
            torch.stack(((~mask[:, 0]).float().mean(dim=1), (~mask[:, :, 0]).float().mean(dim=1)))
            for mask in padding_masks
        ]
        return cls(
            shapes=tuple((mask.shape[1], mask.shape[2]) for mask in padding_masks),
            padding_mask=torch.cat([mask.flatten(1) for mask in padding_masks], dim=1),
            valid_ratios=torch.stack(ratios).permute(2, 0, 1),  # (B, L, 2)
        )

    def __getitem__(self, images: slice) -> TokenLayout:
        """That of some images of the batch."""
        return replace(
            self, padding_mask=self.padding_mask[images], valid_ratios=self.valid_ratios[images]
        )

    def split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(B, N, C) -> L x (B, C, h, w)."""
        parts = tokens.split([h * w for h, w in self.shapes], dim=1)
        return tuple(
            rearrange(part, "b (h w) c -> b c h w", h=height)
            for part, (height, _) in zip(parts, self.shapes, strict=True)
        )

    def pixel_centres(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """L x (B, h * w, 2) pixel centres (x, y), 0..1 over the unpadded part of each level."""
        centres = []
        for level, (height, width) in enumerate(self.shapes):
            y, x = torch.meshgrid(
                torch.arange(height, device=self.padding_mask.device, dtype=dtype) + 0.5,
                torch.arange(width, device=self.padding_mask.device, dtype=dtype) + 0.5,
                indexing="ij",
            )
            extent = self.valid_ratios[:, level]  # (B, 2)
            extent = torch.stack((extent[:, 0] * width, extent[:, 1] * height), dim=-1)
            grid = rearrange([x, y], "xy h w -> 1 (h w) xy")
            centres.append(grid / extent[:, None])
        return tuple(centres)


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels, then a feed-forward network; post-norm."""

    def __init__(
        self,
        *,
        dim: int,
        feedforward_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.self_attn = MultiScaleDeformableAttention(
            dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.cpu_part = 1024

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        reference: Tensor,
        layout: TokenLayout,
        sampling: TokenSampling | None = None,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C).

        Args:
            position: (B or 1, N, C).
            reference: (B, N, L, 2).
            sampling: what ``self_attn`` makes of both, if that is known already.
        """
        shapes, padding_mask = layout.shapes, layout.padding_mask
        if sampling is None:
            attended = self.self_attn(tokens + position, reference, tokens, shapes, padding_mask)
        else:
            attended = self.self_attn.of_tokens(tokens, sampling, shapes, padding_mask)
        tokens = self.norm1(tokens + self.dropout(attended))
        # On CPUs by parts of the tokens: the wide hidden states then stay in the cache.
        by_parts = tokens.device.type == "cpu" and not torch.compiler.is_compiling()
        length = self.cpu_part if by_parts else tokens.shape[1]
        hidden = [self._feed_forward(part) for part in tokens.split(length, dim=1)]
        return self.norm2(tokens + self.dropout(torch.cat(hidden, dim=1)))

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        hidden = project(self.linear1, tokens, relu=True)
        return project(self.linear2, self.dropout(hidden))


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward network; post-norm."""

    def __init__(
        self,
        *,
        dim: int,
        feedforward_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = MultiScaleDeformableAttention(
            dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        layout: TokenLayout,
    ) -> Tensor:
        """(B, Q, C) -> (B, Q, C); ``reference`` (B, Q, L, 4), ``memory`` (B, N, C)."""
        placed = queries + position
        attended = self.self_attn(placed, placed, queries, need_weights=False)[0]
        queries = self.norm2(queries + self.dropout(attended))
        attended = self.cross_attn(
            queries + position, reference, memory, layout.shapes, layout.padding_mask
        )
        queries = self.norm1(queries + self.dropout(attended))
        hidden = project(self.linear2, self.dropout(project(self.linear1, queries, relu=True)))
        return self.norm3(queries + self.dropout(hidden))


class Encoder(nn.Module):
    """A stack of encoder layers."""

    def __init__(self, num_layers: int, **layer: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(**layer) for _ in range(num_layers))

    def forward(self, tokens: Tensor, position: Tensor, layout: TokenLayout) -> Tensor:
        """(B, N, C) -> encoder memory (B, N, C)."""
        centres = torch.cat(layout.pixel_centres(), dim=1)  # (B, N, 2)
        reference = centres[:, :, None] * layout.valid_ratios[:, None]  # (B, N, L, 2)
        if tokens.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._layers(tokens, position, reference, layout)
        # On CPUs image by image: what is computed of one stays in the cache.
        shared = len(position) < len(tokens)
        samplings = [
            layer.self_attn.token_sampling(position, reference[:1], layout.shapes)
            if shared and isinstance(layer, EncoderLayer)
            else None
            for layer in self.layers
        ]
        position = position.expand_as(tokens)
        images = []
        for row in range(len(tokens)):
            i = slice(row, row + 1)
            image = tokens[i]
            for layer, sampling in zip(self.layers, samplings, strict=True):
                image = layer(image, position[i], reference[i], layout[i], sampling)
            images.append(image)
        return torch.cat(images)

    def _layers(
        self, tokens: Tensor, position: Tensor, reference: Tensor, layout: TokenLayout
    ) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, position, reference, layout)
        return tokens


class Decoder(nn.Module):
    """A stack of decoder layers; the head refines boxes between them."""

    def __init__(self, num_layers: int, **layer: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(**layer) for _ in range(num_layers))


class DeformableTransformer(nn.Module):
    """Encoder, proposal projections and decoder; predictors live in ``DetrHead``.

    Source: Deformable DETR (arXiv:2010.04159), section 4.2 and appendix A.4 (two-stage).
    """

    def __init__(
        self,
        *,
        dim: int = 256,
        num_heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feedforward_dim: int = 2048,
        num_levels: int = 4,
        num_points: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        layer = {
            "dim": dim,
            "feedforward_dim": feedforward_dim,
            "num_heads": num_heads,
            "num_levels": num_levels,
            "num_points": num_points,
            "dropout": dropout,
        }
        self.level_embed = nn.Parameter(torch.randn(num_levels, dim))
        self.encoder = Encoder(encoder_layers, **layer)
        self.decoder = Decoder(decoder_layers, **layer)
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.pos_trans = nn.Linear(2 * dim, 2 * dim)
        self.pos_trans_norm = nn.LayerNorm(2 * dim)

    def encode(
        self, levels: Sequence[Tensor], padding_masks: Sequence[Tensor]
    ) -> tuple[Tensor, TokenLayout]:
        """L x (B, C, h, w) -> memory (B, N, C), float32 also under autocast, and its layout."""
        layout = TokenLayout.from_masks(padding_masks)
        tokens = torch.cat([rearrange(widen(x), "b c h w -> b (h w) c") for x in levels], dim=1)
        position = torch.cat(
            [
                rearrange(sine_position(once(mask), self.dim), "b c h w -> b (h w) c") + embed
                for mask, embed in zip(padding_masks, self.level_embed, strict=True)
            ],
            dim=1,
        )  # (B or 1, N, C)
        return self.encoder(tokens, position, layout), layout

    def propose(self, memory: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """One box per token: features (B, N, C) and unactivated cxcywh boxes (B, N, 4).

        Tokens on padding or too near the border get zero features before the projection and
        infinite boxes.
        """
        boxes = []
        for level, centres in enumerate(layout.pixel_centres()):
            boxes.append(torch.cat((centres, torch.full_like(centres, 0.05 * 2**level)), dim=-1))
        box = torch.cat(boxes, dim=1)
        inside = ((box > 0.01) & (box < 0.99)).all(dim=-1) & ~layout.padding_mask
        logit = torch.log(box / (1 - box)).masked_fill(~inside[..., None], torch.inf)
        allowed = memory.masked_fill(~inside[..., None], 0.0)
        return self.enc_output_norm(project(self.enc_output, allowed)), logit

    def query_position(self, unactivated_boxes: Tensor) -> Tensor:
        """Position of decoder queries: (B, Q, 4) -> (B, Q, C)."""
        code = box_position(unactivated_boxes.sigmoid(), self.dim // 2)
        return self.pos_trans_norm(self.pos_trans(code))[..., : self.dim]

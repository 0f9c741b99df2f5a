"""Multi-scale deformable attention in plain torch, without a compiled extension."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unified.modeling.deform_sum import Shapes, sample_and_sum
from unified.structures import upload


class MultiScaleDeformableAttention(nn.Module):
    """Every query reads ``num_points`` sampled tokens per head and level.

    Source: Deformable DETR (arXiv:2010.04159), equation 3.
    """

    def __init__(
        self, *, dim: int, num_heads: int = 8, num_levels: int = 4, num_points: int = 4
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        num_samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, num_samples * 2)
        self.attention_weights = nn.Linear(dim, num_samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.sample = sample_and_sum
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        radius = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = direction[:, None, None] * radius[:, None]  # (heads, 1, points, 2)
        offsets = offsets.expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        tokens: Tensor,
        shapes: Shapes,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attention output before the residual.

        Args:
            query: (B, Q, C), position code included.
            reference: (B, Q, L, 2) points or (B, Q, L, 4) cxcywh boxes, in [0, 1] of the padded
                level; offsets are relative to one pixel, or to half the box side over the points.
            tokens: (B, N, C) all levels, finest first.
            shapes: L x (h, w) with sum(h * w) = N.
            padding_mask: (B, N) True = padding; the values of padded tokens are zero.

        Returns:
            (B, Q, C).
        """
        batch, num_queries, dim = query.shape
        value = self.value_proj(tokens)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        value = value.view(batch, -1, self.num_heads, dim // self.num_heads)
        layout = (batch, num_queries, self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).view(*layout, 2)
        weights = self.attention_weights(query).view(*layout[:3], -1).softmax(-1).view(layout)
        if reference.shape[-1] == 2:
            size = upload(torch.tensor([(w, h) for h, w in shapes]), query.device)[:, None]
            offsets = offsets / size.expand(*layout[2:], 2).contiguous()
        else:
            offsets = offsets / self.num_points * reference[:, :, None, :, None, 2:] * 0.5
        # Written out per point: sums of short rows are slow on CPUs.
        centres = reference[:, :, None, :, None, :2].expand(-1, -1, -1, -1, self.num_points, -1)
        locations = centres.contiguous() + offsets
        return self.output_proj(self.sample(value, shapes, locations, weights))

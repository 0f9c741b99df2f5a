"""Encodes a mask on a frame into reference values at SAM's one feature level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from projects.sam.fusion import grid_position, pooled_map
from projects.sam.pyramid import largest
from unified.modeling.mask_encoder import BasicBlock, FeatureFusion
from unified.structures import Reference, Size, once


class SamMaskEncoder(nn.Module):
    """The first three stages of a ResNet-18 on image and mask, fused with SAM's embedding.

    Source: UniRef++ (arXiv:2312.15715), section 3.2, as its SAM variant has it: to stride 16.
    """

    def __init__(self, *, dim: int = 256, width: int = 64) -> None:
        """``width`` is the channel count of the first stage; the others double it."""
        super().__init__()
        self.conv1 = nn.Conv2d(4, width, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.fuser = FeatureFusion(dim + 4 * width, dim)

    def refer(self, images: Tensor, masks: Tensor, tokens: Tensor) -> Reference:
        """Keys from the embedding as tokens (B, N, C), values from masks (B, H, W) on images.

        Padding counts as image, as in the reference.
        """
        side = round(tokens.shape[1] ** 0.5)
        embedding = rearrange(tokens, "b (h w) c -> b c h w", h=side)
        values = rearrange(self(images, masks, embedding), "b c h w -> b (h w) c")
        nothing = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Reference(tokens, values, nothing, tokens.mean(dim=1))

    def forward(self, images: Tensor, masks: Tensor, embedding: Tensor) -> Tensor:
        """Reference values (B, dim, H / 16, W / 16).

        Args:
            images: (B, 3, H, W) normalised and padded.
            masks: (B, H, W) bool or 0/1, zero on padding.
            embedding: (B, dim, H / 16, W / 16) of the same images.
        """
        x = torch.cat([images, masks[:, None].to(images.dtype)], dim=1)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fuser(x, embedding)


def _stage(in_dim: int, dim: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(in_dim, dim, stride=stride), BasicBlock(dim, dim, stride=1))


class PatchMaskEncoder(nn.Module):
    """Masks in patches beside the embedding at half its resolution; no part of UniRef++.

    An MLP instead of a ResNet: a frame with five objects costs little more than one with one, and
    2 x 1024 tokens of memory are a quarter of what the full embedding has.

    Args:
        dim: of the embedding.
        patch: side in cells of the grid that a mask is read on, of each token.
    """

    def __init__(self, *, dim: int, patch: int = 8) -> None:
        super().__init__()
        self.patch = patch
        self.mlp = nn.Sequential(
            nn.Linear(dim + patch * patch, dim), nn.GELU(), nn.Linear(dim, dim)
        )

    def refer(
        self,
        images: Tensor,
        masks: Tensor,
        tokens: Tensor,
        covered: Sequence[Size] | None = None,
    ) -> Reference:
        """As of ``SamMaskEncoder``; the summary is the mean of the tokens on the object.

        Args:
            covered: as of ``DeepFusion.found``; where no image reaches there are no tokens, where
                one does not its tokens are padding.
        """
        whole = pooled_map(once(tokens))
        num, side = len(tokens), whole.shape[-1]
        sizes = covered or [(side, side)] * num
        rows, columns = largest(sizes)
        grid = (side * self.patch, side * self.patch)
        cells = F.interpolate(masks[:, None].to(whole.dtype), size=grid, mode="area")[:, 0]
        cells = rearrange(
            cells[:, : rows * self.patch, : columns * self.patch],
            "b (h y) (w x) -> b (h w) (y x)",
            y=self.patch,
            x=self.patch,
        )  # (B, n, patch * patch) in [0, 1]
        keys, position = (
            rearrange(maps[..., :rows, :columns], "b c h w -> b (h w) c")
            for maps in (whole, grid_position(whole))
        )
        placed = (keys + position).expand(num, -1, -1)  # of one frame for all objects
        values = self.mlp(torch.cat([keys.expand(num, -1, -1), 2 * cells - 1], dim=-1))
        weights = cells.mean(dim=-1, keepdim=True)  # (B, n, 1)
        summary = (keys * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-3)
        return Reference(placed, values, _beyond(sizes, keys.device), summary)


def _beyond(sizes: Sequence[Size], device: torch.device) -> Tensor:
    """Padding (B, n) of the grid that holds B sizes; of one row, expanded, where they are alike."""
    rows, columns = largest(sizes)
    kinds = sizes[:1] if len(set(sizes)) == 1 else sizes
    padding = torch.ones(len(kinds), rows, columns, dtype=torch.bool, device=device)
    for row, (height, width) in zip(padding, kinds, strict=True):
        row[:height, :width] = False
    return padding.flatten(1).expand(len(sizes), -1)

"""GroupViT's image encoder: patches become groups of arbitrary shape, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.groupvit.grouping import Assignment, Block, GroupingBlock, TokenMLP
from unified.errors import ConfigError, InputError
from unified.modeling.layers import drop_path_rates
from unified.structures import Size


@dataclass(frozen=True)
class Grouped:
    """An image as groups.

    Attributes:
        groups: (B, G, C) normalised tokens of the last stage.
        assignments: one per grouping block, first (B, G_1, h * w) of patches, then (B, G_2, G_1).
        grid: (h, w) patches.
    """

    groups: Tensor
    assignments: tuple[Assignment, ...]
    grid: Size

    def soft_map(self) -> Tensor:
        """How much each patch belongs to each final group, (B, G, h, w): soft, over all stages."""
        total = self.assignments[0].soft
        for assignment in self.assignments[1:]:
            total = assignment.soft @ total
        return total.unflatten(2, self.grid)


class PatchEmbed(nn.Module):
    """Images cut into square patches, one normalised token each."""

    def __init__(self, *, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / p, W / p, C)."""
        return self.norm(self.proj(images).movedim(1, -1))


class Stage(nn.Module):
    """Layers over tokens and learned group tokens, then the grouping; or only layers."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        drop_paths: Sequence[float],
        num_groups: int = 0,
        num_output_groups: int = 0,
        num_previous_groups: int = 0,
    ) -> None:
        """``num_groups`` 0: no grouping. ``num_previous_groups``: group tokens of the stage before,
        from which this one's are made, beside the learned ones."""
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim=dim, num_heads=num_heads, drop_path=rate) for rate in drop_paths
        )
        self.group_token: nn.Parameter | None = None
        self.group_projector: nn.Sequential | None = None
        self.downsample: GroupingBlock | None = None
        if num_groups:
            self.group_token = nn.Parameter(torch.zeros(1, num_groups, dim))
            self.downsample = GroupingBlock(
                dim=dim,
                num_heads=num_heads,
                num_groups=num_groups,
                num_output_groups=num_output_groups,
            )
            if num_previous_groups:
                self.group_projector = nn.Sequential(
                    nn.LayerNorm(dim), TokenMLP(num_previous_groups, dim // 2, num_groups)
                )
            else:
                nn.init.trunc_normal_(self.group_token, std=0.02)

    def forward(
        self, tokens: Tensor, previous: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Assignment | None]:
        """Tokens (B, N, C) and group tokens of the stage before -> the same of this stage."""
        if self.group_token is None or self.downsample is None:
            for block in self.blocks:
                tokens = block(tokens)
            return tokens, None, None
        groups = self.group_token.expand(len(tokens), -1, -1)
        if self.group_projector is not None:
            groups = groups + self.group_projector(previous)
        number = tokens.shape[1]
        joined = torch.cat((tokens, groups), dim=1)
        for block in self.blocks:
            joined = block(joined)
        tokens, groups = joined[:, :number], joined[:, number:]
        tokens, assignment = self.downsample(tokens, groups)
        return tokens, groups, assignment


class ImageEncoder(nn.Module):
    """A vision transformer whose tokens are merged into groups between its stages.

    Source: GroupViT (arXiv:2202.11094), section 3.1, and its code.

    Args:
        image_size: side of the training images, for the table of positions.
        depths: layers of each stage.
        num_group_tokens: learned group tokens of each stage; 0 only for the last, which does not
            group.
        num_output_groups: groups that each grouping block leaves.
        drop_path: of the last layer; grows linearly from 0.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        dim: int = 384,
        depths: Sequence[int] = (6, 3, 3),
        num_heads: int = 6,
        num_group_tokens: Sequence[int] = (64, 8, 0),
        num_output_groups: Sequence[int] = (64, 8),
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        groups = [count for count in num_group_tokens if count]
        if [*groups, 0] != list(num_group_tokens) or len(depths) != len(num_group_tokens):
            raise ConfigError(
                f"expected as many group token counts as depths {tuple(depths)}, only the last 0, "
                f"got {tuple(num_group_tokens)}"
            )
        if len(num_output_groups) != len(groups):
            raise ConfigError(
                f"{len(groups)} stages group their tokens, but num_output_groups is "
                f"{tuple(num_output_groups)}: give one number for each"
            )
        side = image_size // patch_size
        self.patch_size = patch_size
        self.patch_embed = PatchEmbed(patch_size=patch_size, dim=dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.layers = nn.ModuleList(
            Stage(
                dim=dim,
                num_heads=num_heads,
                drop_paths=[next(rates) for _ in range(depth)],
                num_groups=tokens,
                num_output_groups=num_output_groups[index] if tokens else 0,
                num_previous_groups=num_group_tokens[index - 1] if index else 0,
            )
            for index, (depth, tokens) in enumerate(zip(depths, num_group_tokens, strict=True))
        )
        self.norm = nn.LayerNorm(dim)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Grouped:
        """Groups of normalised images (B, 3, H, W).

        Raises:
            InputError: the sides are no multiples of the patch size.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise InputError(
                f"an image of {height} x {width} pixels has no whole number of patches: its sides "
                f"must be multiples of {self.patch_size}"
            )
        tokens = self.patch_embed(images)
        grid = (tokens.shape[1], tokens.shape[2])
        tokens = tokens.flatten(1, 2) + self._positions(grid)
        previous: Tensor | None = None
        assignments = []
        for layer in self.layers:
            tokens, previous, assignment = layer(tokens, previous)
            if assignment is not None:
                assignments.append(assignment)
        return Grouped(self.norm(tokens), tuple(assignments), grid)

    def _positions(self, grid: Size) -> Tensor:
        """The table of positions, resized to another grid: (1, h * w, C)."""
        side = math.isqrt(self.pos_embed.shape[1])
        if grid == (side, side):
            return self.pos_embed
        table = self.pos_embed.transpose(1, 2).unflatten(2, (side, side))
        resized = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)

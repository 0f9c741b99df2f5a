"""Projects backbone stages to the channel count of the transformer and adds one coarser level."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from unified.modeling.layers import resize_padding_mask, xavier_init, zero_init
from unified.modeling.precision import full_precision, widen

STAGES = ("res3", "res4", "res5")


class Neck(nn.Module):
    """1x1 convolutions on strides 8, 16, 32 and a 3x3 stride-2 one on the raw last stage.

    Source: Deformable DETR (arXiv:2010.04159), figure 4.
    """

    def __init__(self, *, in_dims: Mapping[str, int], dim: int) -> None:
        super().__init__()
        last = in_dims[STAGES[-1]]
        convs = [nn.Conv2d(in_dims[name], dim, 1) for name in STAGES]
        convs.append(nn.Conv2d(last, dim, 3, stride=2, padding=1))
        xavier_init(*convs)
        self.input_proj = nn.ModuleList(
            nn.Sequential(conv, nn.GroupNorm(32, dim)) for conv in convs
        )

    def forward(
        self, stages: Mapping[str, Tensor], padding_mask: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Levels, float32 also under autocast, and their padding masks.

        Args:
            stages: backbone outputs with keys res3, res4, res5, (B, C_i, h, w).
            padding_mask: (B, H, W) of the input, True on padding.

        Returns:
            4 x (B, dim, H_l, W_l) and 4 x (B, H_l, W_l); the last mask is resized from the first.
        """
        inputs = [widen(stages[name]) for name in (*STAGES, STAGES[-1])]
        with full_precision(padding_mask.device):
            levels = tuple(project(x) for project, x in zip(self.input_proj, inputs, strict=True))
        masks = [resize_padding_mask(padding_mask, level.shape[-2:]) for level in levels[:-1]]
        masks.append(resize_padding_mask(masks[0], levels[-1].shape[-2:]))
        return levels, tuple(masks)


class TopDownNeck(Neck):
    """A neck whose finer levels also know what the coarser ones know.

    Fusion compares a reference with the tokens of one level. A small backbone knows what things are
    only in its coarse stages, so each level gets the next coarser one added, from the top down,
    before a sentence or a mask meets it. Starts as ``Neck`` (zero-initialised).

    Source of the pathway: feature pyramid networks (arXiv:1612.03144), section 3. Not part of
    UniRef++.
    """

    def __init__(self, *, in_dims: Mapping[str, int], dim: int) -> None:
        super().__init__(in_dims=in_dims, dim=dim)
        self.top_down = nn.ModuleList(nn.Conv2d(dim, dim, 1) for _ in STAGES)
        for conv in self.top_down:
            zero_init(conv)

    def forward(
        self, stages: Mapping[str, Tensor], padding_mask: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        levels, masks = super().forward(stages, padding_mask)
        coarser = levels[-1]
        found = [coarser]
        for level, conv in zip(levels[-2::-1], self.top_down, strict=True):
            with full_precision(level.device):
                coarser = conv(coarser)
            grown = F.interpolate(coarser, size=level.shape[-2:], mode="bilinear")
            coarser = level + grown
            found.append(coarser)
        return tuple(found[::-1]), masks


NECKS = {"plain": Neck, "top_down": TopDownNeck}

"""A head for training only that calls every cell of a picture by the name of what is there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.structures import Target, upload

LEVELS = 3  # strides 8, 16 and 32
WEIGHT = 4.0
NOTHING_SHARE = 0.3  # what a cell without a named object counts, relative to one that is full of it


class WordHead(nn.Module):
    """Cross-entropy of cells over the names in the batch, which the text encoder turns to vectors.

    A sentence tells of one object, and what its words mean shows only in contrast to many others.
    Here all objects of a picture are told apart at once by products of features with words, which
    is what a fusion layer starts from. Inference does not need it. Not part of UniRef++.

    Source of the products: LSeg (arXiv:2201.03546), word-pixel correlation.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cells = nn.Linear(dim, dim)
        self.nothing = nn.Linear(dim, 1)

    def losses(
        self,
        levels: Sequence[Tensor],
        targets: Sequence[Target],
        names: Sequence[str],
        words: Tensor,
    ) -> dict[str, Tensor]:
        """Weighted mean over cells and levels; partly covered cells count partly.

        Args:
            levels: L x (B, C, h, w) before fusion.
            targets: B, with masks of the padded size and a name for each object.
            names: N different ones, all that occur.
            words: (N, C) of the names.
        """
        rows, masks = _placed(targets, names)
        terms = []
        for level in levels[:LEVELS]:
            cells = level.movedim(1, -1).flatten(1, 2)  # (B, h * w, C)
            named = self.cells(cells) @ words.t() / math.sqrt(words.shape[-1])
            logits = torch.cat((named, self.nothing(cells)), dim=-1).float()
            shares = logits.new_zeros(len(targets) * len(names), cells.shape[1])
            size = level.shape[-2], level.shape[-1]
            covered = F.adaptive_avg_pool2d(masks[:, None], size).flatten(1)
            shares = shares.index_add(0, rows, covered).clamp(max=1)
            shares = shares.view(len(targets), len(names), -1).transpose(1, 2)
            rest = (1 - shares.sum(dim=-1, keepdim=True)).clamp(min=0) * NOTHING_SHARE
            wanted = torch.cat((shares, rest), dim=-1)
            surprise = -(wanted * logits.log_softmax(dim=-1)).sum()
            terms.append(surprise / wanted.sum())
        return {"loss_word": WEIGHT * torch.stack(terms).mean()}


def _placed(targets: Sequence[Target], names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """For each of the M objects of a batch: image * N + name, and its mask (M, H, W) float32."""
    places = {name: index for index, name in enumerate(names)}
    rows, masks = [], []
    for image, target in enumerate(targets):
        assert target.names is not None and target.masks is not None
        rows += [image * len(names) + places[name] for name in target.names]
        masks.append(target.masks)
    joined = torch.cat(masks).float()
    return upload(torch.tensor(rows, dtype=torch.int64), joined.device), joined

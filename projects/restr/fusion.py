"""Patches and words in one transformer, a classifier made for the sentence, and the decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.restr.blocks import Block
from unified.structures import Size

STD = 0.02  # of initial weights, as released


@dataclass(frozen=True)
class Answer:
    """What the fusion says about B images of h x w patches.

    Attributes:
        patch_logits: (B, 1, h, w).
        pixel_logits: (B, 1, H, W), 2 ** the number of steps times as large.
        joint: (B, h * w + T, C) patches and words after the joint encoder.
        classifier: (B, T + 1, C) words and seed after the encoder of the classifier.
        decoder_input: (B, 2 C, h, w).
    """

    patch_logits: Tensor
    pixel_logits: Tensor
    joint: Tensor
    classifier: Tensor
    decoder_input: Tensor


class Fusion(nn.Module):
    """Joint encoder, classifier of patches, and coarse-to-fine decoder.

    Source: ReSTR (arXiv:2203.16768), sections 3.2 and 3.3; released code SouthFlame/restr,
    ``MM_fusion``: two square matrices lead to the scores of patches, which gate as they are, and
    the decoder sees the patches from before the fusion beside the gated ones.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 12,
        num_blocks: int = 2,
        shared: bool = False,
        num_steps: int = 4,
        drop_path: float = 0.1,
        initial_std: Sequence[float] = (STD, STD),
    ) -> None:
        """
        Args:
            num_blocks: of each of the two encoders.
            shared: they are the same block every time.
            num_steps: of the decoder; each doubles the resolution.
            drop_path: of the last block; less in the ones before.
            initial_std: of the weights that lead patches and words into the fusion.
        """
        super().__init__()
        self.project_visual, self.project_words = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.seed = nn.Parameter(torch.zeros(1, 1, dim))
        self.repeats = num_blocks if shared else 1
        last = max(num_blocks - 1, 1)
        rates = [drop_path * block / last for block in range(1 if shared else num_blocks)]

        def encoder() -> nn.Sequential:
            options = {"num_heads": num_heads, "feedforward_dim": 4 * dim}
            return nn.Sequential(*(Block(dim, **options, drop_path=rate) for rate in rates))

        self.joint, self.classifier = encoder(), encoder()
        self.norm = nn.LayerNorm(dim)
        self.decoder = CoarseToFine(2 * dim, num_steps)
        nn.init.trunc_normal_(self.seed, std=STD)
        for layer, std in zip((self.project_visual, self.project_words), initial_std, strict=True):
            nn.init.trunc_normal_(layer.weight, std=std, a=-100 * std, b=100 * std)
            nn.init.zeros_(layer.bias)
        self.make_gate(dim)

    def make_gate(self, dim: int) -> None:
        """Adds the parameters that ``gate`` needs."""
        self.patch_matrix = nn.Parameter(torch.randn(dim, dim) * dim**-0.5)
        self.seed_matrix = nn.Parameter(torch.randn(dim, dim) * dim**-0.5)

    def prepare_visual(self, tokens: Tensor) -> Tensor:
        """Patch tokens (B, P, C) of any length, as the fusion takes them."""
        return self.project_visual(F.normalize(tokens, dim=2))

    def prepare_words(self, tokens: Tensor, padding_mask: Tensor) -> Tensor:
        """Word tokens (B, T, C), as the fusion takes them: zero on padding."""
        words = self.project_words(F.normalize(tokens, dim=2))
        return words.masked_fill(padding_mask[..., None], 0)

    def forward(self, patches: Tensor, words: Tensor, size: Size) -> Answer:
        """
        Args:
            patches: (B, h * w, C) from ``prepare_visual``.
            words: (B, T, C) from ``prepare_words``; the zeros of padding take part.
            size: (h, w).
        """
        joint = self._repeat(self.joint, torch.cat((patches, words), dim=1))
        fused, seen = joint.split((patches.shape[1], words.shape[1]), dim=1)
        seed = self.seed.expand(len(seen), -1, -1)
        classifier = self.norm(self._repeat(self.classifier, torch.cat((seen, seed), dim=1)))
        logits, gated = self.gate(fused, classifier[:, -1:])
        both = torch.cat((patches, gated), dim=2).transpose(1, 2).unflatten(2, size)
        return Answer(
            patch_logits=logits.transpose(1, 2).unflatten(2, size),
            pixel_logits=self.decoder(both),
            joint=joint,
            classifier=classifier,
            decoder_input=both,
        )

    def gate(self, patches: Tensor, classifier: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, P, C) and classifier (B, 1, C) -> logits (B, P, 1) and gated patches."""
        patches = patches @ self.patch_matrix
        logits = patches @ (classifier @ self.seed_matrix).transpose(1, 2)
        return logits, logits * patches

    def _repeat(self, blocks: nn.Sequential, tokens: Tensor) -> Tensor:
        for _ in range(self.repeats):
            tokens = blocks(tokens)
        return tokens


class PaperFusion(Fusion):
    """As printed: the scaled product of patch and classifier gates through a sigmoid.

    Source: ReSTR (arXiv:2203.16768), section 3.3.
    """

    def make_gate(self, dim: int) -> None:
        """Needs none."""

    def gate(self, patches: Tensor, classifier: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Fusion.gate``."""
        logits = patches @ classifier.transpose(1, 2) / math.sqrt(patches.shape[2])
        return logits, logits.sigmoid() * patches


GATES: dict[str, type[Fusion]] = {"logit": Fusion, "sigmoid_scaled": PaperFusion}


class CoarseToFine(nn.Module):
    """Steps that halve the channels and double the resolution, then one logit per pixel.

    Source: SouthFlame/restr. Difference: a step projects before it interpolates, which gives the
    same numbers for a quarter of the work.
    """

    def __init__(self, dim: int, num_steps: int) -> None:
        super().__init__()
        dims = [dim // 2**step for step in range(num_steps + 1)]
        self.steps = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(dims))
        self.score = nn.Conv2d(dims[-1], 1, 1, bias=False)
        for conv in (*self.steps, self.score):
            nn.init.xavier_uniform_(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 1, H, W)."""
        for features in self.features(x):
            x = features
        return self.score(x)

    def features(self, x: Tensor) -> Sequence[Tensor]:
        """What each step gives."""
        found = []
        for conv in self.steps:
            x = F.interpolate(conv(x), scale_factor=2, mode="bilinear", align_corners=True)
            x = F.leaky_relu(x, 0.01)
            found.append(x)
        return found

"""How well a mask shows what a sentence is about, by features that were never fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.modeling.backbones import Backbone
from unified.modeling.layers import resize_padding_mask

STAGES = ("res3", "res4", "res5")
SAME_NAME = 0.98  # cosine; "fridge" and "refrigerator" have 0.95, "giraffes" and "giraffe" 0.94


class NameHead(nn.Module):
    """Compares the opening phrase of a sentence with what is within a mask.

    A small backbone that is fine-tuned on few images forgets what it knew of others. This head
    keeps a frozen copy, averages its features within each candidate mask and maps them to the space
    of the language model, where the names of the training set compete in a softmax. A sentence that
    is near none of these names changes nothing; neither does a head without any names, which is
    how it starts. ``projects.uniref.lite.train_names`` trains it. Not part of UniRef++.

    Source of scoring regions by a frozen model's mean features: F-VLM (arXiv:2209.15639), section
    3.3. Difference: there both scores are multiplied with exponents; here a weighted
    log-probability is added to a logit, so that shifting the logits shifts the score alike.

    Args:
        backbone: with its pretrained weights; expects images normalised as the model's are.
        text_dim: D, width of the language model.
        num_names: N.
        hidden_dim: width between features and D.
        weight: of the log-probability.
        neutral: log-probability that raises no logit and lowers none.
        known: cosine to the nearest name at which a sentence starts to count, and counts fully.
    """

    centre: Tensor
    names: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        text_dim: int,
        num_names: int,
        hidden_dim: int,
        weight: float,
        neutral: float,
        known: tuple[float, float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.weight, self.neutral, self.known = weight, neutral, known
        dim = sum(backbone.channels[stage] for stage in STAGES)
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.embed = nn.Sequential(
            nn.Dropout(0.3),
            nn.Linear(dim, hidden_dim),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden_dim, text_dim),
        )
        self.register_buffer("centre", torch.zeros(text_dim))
        self.register_buffer("names", torch.zeros(num_names, text_dim))
        self.requires_grad_(False)

    @property
    def trained(self) -> bool:
        """Whether there is any name."""
        return bool(self.names.any())

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images (B, 3, H, W) -> maps of strides 8, 16 and 32."""
        stages = self.backbone(images)
        return tuple(stages[stage] for stage in STAGES)

    def describe(self, stages: Sequence[Tensor], masks: Tensor, padding_mask: Tensor) -> Tensor:
        """Mean features within masks; zeros where a mask is empty, or only on padding.

        Args:
            stages: from ``features``.
            masks: (B, K, h, w) in [0, 1] at any stride of the padded input.
            padding_mask: (B, H, W) at stride 8 or finer, True on padding.

        Returns:
            (B, K, F).
        """
        parts = []
        for stage in stages:
            size = stage.shape[-2], stage.shape[-1]
            inside = ~resize_padding_mask(padding_mask, size)
            shares = F.adaptive_avg_pool2d(masks, size) * inside[:, None]
            shares = shares / shares.sum(dim=(-2, -1), keepdim=True).clamp(min=1e-6)
            parts.append(torch.einsum("bkhw,bchw->bkc", shares, stage))
        return torch.cat(parts, dim=-1)

    def vectors(self, described: Tensor) -> Tensor:
        """(M, F) from ``describe`` -> (M, D)."""
        return self.embed(self.norm(described))

    def directions(self, phrases: Tensor) -> Tensor:
        """Vectors (N, D) of the language model as unit vectors from the centre of all names."""
        return F.normalize(F.normalize(phrases, dim=-1) - self.centre, dim=-1)

    def holds(self, phrases: Tensor) -> Tensor:
        """Which vectors (N, D) of the language model are learnt names, (N,) bool."""
        cosines = self.directions(phrases.float()) @ self.names.float().t()
        return (cosines > SAME_NAME).any(dim=-1)

    def forward(self, described: Tensor, phrases: Tensor) -> Tensor:
        """What to add to the class logits of candidates.

        Args:
            described: (B, K, F) from ``describe``.
            phrases: (B, D), one per image.

        Returns:
            (B, K) float32 also under autocast; 0 where nothing is seen.
        """
        with torch.autocast(described.device.type, enabled=False):
            return self._evidence(described.float(), phrases.float())

    def _evidence(self, described: Tensor, phrases: Tensor) -> Tensor:
        vectors = self.vectors(described.flatten(0, 1)).unflatten(0, described.shape[:2])
        directions = self.directions(phrases)
        logits = (vectors @ directions[:, :, None])[..., 0]
        log_probability = logits - (vectors @ self.names.t()).logsumexp(dim=-1)
        nearest = (directions @ self.names.t()).amax(dim=-1)
        start, full = self.known
        known = ((nearest - start) / (full - start)).clamp(0, 1)
        evidence = self.weight * known[:, None] * (log_probability - self.neutral)
        return evidence.masked_fill(~described.any(dim=-1), 0.0)

"""Pixels to named classes without a mask in training: GroupViT's protocol, in pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unified.structures import Size

TOP_CLASSES = 5  # classes that the image as a whole lets through


def group_affinity(groups: Tensor, image: Tensor, classes: Tensor, scale: Tensor) -> Tensor:
    """How much each group is of each class, (B, G, N), rows summing to at most 1.

    The product of two softmaxes over classes: over all, and over those that are among the best five
    of the whole image.

    Args:
        groups: (B, G, D) normalised.
        image: (B, D) normalised.
        classes: (N, D) normalised.
        scale: factor of the similarities.
    """
    logits = scale * groups @ classes.t()  # (B, G, N)
    overall = scale * image @ classes.t()  # (B, N)
    best = overall.topk(min(TOP_CLASSES, overall.shape[1]), dim=1).indices
    gate = torch.ones_like(overall, dtype=torch.bool).scatter(1, best, False)
    gated = logits.masked_fill(gate[:, None], -torch.inf).softmax(dim=-1)
    return gated * logits.softmax(dim=-1)


def winning_groups(soft_map: Tensor, size: Size) -> Tensor:
    """The group of each pixel, (B, H, W) int64, of soft maps (B, G, h, w) resized to ``size``."""
    resized = F.interpolate(soft_map, size=size, mode="bilinear", align_corners=False)
    return resized.argmax(dim=1)


def class_scores(winners: Tensor, affinity: Tensor, *, background: float | None = None) -> Tensor:
    """Scores of classes at every pixel, (B, N, H, W), or (B, 1 + N, H, W) with a background.

    Args:
        winners: (B, H, W) group of each pixel.
        affinity: (B, G, N) from ``group_affinity``.
        background: probability below which a pixel is of no class; class 0 of the result then is
            the background, 1 at such pixels. An image in which nothing reaches it has its own
            largest probability as the limit.
    """
    batch = torch.arange(len(winners), device=winners.device)[:, None, None]
    scores = affinity[batch, winners].movedim(-1, 1)
    if background is None:
        return scores
    limit = affinity.amax(dim=(1, 2)).clamp(max=background)
    nothing = scores.amax(dim=1, keepdim=True) < limit[:, None, None, None]
    return torch.cat((nothing.to(scores.dtype), scores), dim=1)


def windows(size: Size, window: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Squares of side ``window`` that cover (H, W), the last of a row moved back inside."""

    def starts(length: int) -> list[int]:
        count = max(0, -(-(length - window) // stride)) + 1
        return [max(0, min(index * stride, length - window)) for index in range(count)]

    height, width = size
    for top in starts(height):
        for left in starts(width):
            yield slice(top, min(top + window, height)), slice(left, min(left + window, width))


def slide(images: Tensor, score: Callable[[Tensor], Tensor], *, window: int, stride: int) -> Tensor:
    """Mean of ``score`` (B, N, h, w) over all windows of (B, 3, H, W) that see a pixel."""
    size = (images.shape[-2], images.shape[-1])
    total: Tensor | None = None
    count = images.new_zeros(size)
    for rows, columns in windows(size, window, stride):
        found = score(images[..., rows, columns])
        if total is None:
            total = found.new_zeros(len(images), found.shape[1], *size)
        total[..., rows, columns] += found
        count[rows, columns] += 1
    assert total is not None
    return total / count


def mean_of_prompts(embeddings: Tensor) -> Tensor:
    """Directions (N, D) of classes from the vectors (N, P, D) of P prompts each, not normalised."""
    return F.normalize(embeddings.mean(dim=1), dim=-1)


def filled(templates: Sequence[str], names: Sequence[str]) -> list[str]:
    """Every template with every name, all of one name together."""
    return [template.format(name) for name in names for template in templates]

"""Contrastive losses between images and texts, over the batches of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.nn import functional as F


def gather(x: Tensor) -> Tensor:
    """The rows of all processes in order, (W * B, ...), with gradients for each; alone just ``x``.

    Every process must have equally many rows.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return x
    if distributed.get_world_size() == 1:
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x.contiguous()))


def _first_row(rows: int) -> int:
    """Where the rows of this process begin among those of all."""
    if distributed.is_available() and distributed.is_initialized():
        return rows * distributed.get_rank()
    return 0


def image_text_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Mean cross-entropy of finding one's text among all texts, and one's image among all.

    Source: GroupViT (arXiv:2202.11094), equation 9.

    Args:
        images, texts: (B, D) normalised, of the same pairs.
        scale: factor of the similarities.
    """
    first = _first_row(len(images))
    own = torch.arange(first, first + len(images), device=images.device)
    by_image = scale * images @ gather(texts).t()
    by_text = scale * texts @ gather(images).t()
    return (F.cross_entropy(by_image, own) + F.cross_entropy(by_text, own)) / 2


def multi_label_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """``image_text_loss`` where each image has K texts of its own, all equally right.

    Source: GroupViT (arXiv:2202.11094), equation 11.

    Args:
        images: (B, D) normalised.
        texts: (B, K, D) normalised.
        scale: factor of the similarities.
    """
    batch, num_texts = texts.shape[:2]
    first = _first_row(batch)
    own = torch.arange(first, first + batch, device=images.device)
    by_image = scale * images @ gather(texts).flatten(0, 1).t()  # (B, W * B * K)
    right = F.one_hot(own, by_image.shape[1] // num_texts).repeat_interleave(num_texts, dim=1)
    by_text = scale * texts.flatten(0, 1) @ gather(images).t()  # (B * K, W * B)
    return (
        F.cross_entropy(by_image, right.to(by_image.dtype) / num_texts)
        + F.cross_entropy(by_text, own.repeat_interleave(num_texts))
    ) / 2

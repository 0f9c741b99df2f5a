from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unified.modeling.word_head import LEVELS, NOTHING_SHARE, WEIGHT, WordHead
from unified.structures import Target

SIZES = ((4, 6), (2, 3), (1, 2), (1, 1))
NAMES = ["cat", "dog", "hat"]


def rectangle(top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(32, 48, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def target(**objects: list[Tensor]) -> Target:
    masks = [mask for group in objects.values() for mask in group]
    names = tuple(name for name, group in objects.items() for _ in group)
    stacked = torch.stack(masks) if masks else torch.zeros(0, 32, 48, dtype=torch.bool)
    labels, boxes = torch.zeros(len(masks), dtype=torch.int64), torch.full((len(masks), 4), 0.5)
    return Target(labels, boxes, stacked, names=names)


TARGETS = [
    target(dog=[rectangle(0, 0, 8, 8), rectangle(0, 0, 16, 16)], hat=[rectangle(10, 20, 32, 40)]),
    target(),
]


def by_hand(head: WordHead, level: Tensor, words: Tensor) -> float:
    """Sum over cells of share * surprise, over the sum of shares."""
    total, weight = 0.0, 0.0
    rows, columns = level.shape[-2:]
    for image, wanted in enumerate(TARGETS):
        for y in range(rows):
            for x in range(columns):
                top, bottom = y * 32 // rows, -(-(y + 1) * 32 // rows)
                left, right = x * 48 // columns, -(-(x + 1) * 48 // columns)
                shares = dict.fromkeys(NAMES, 0.0)
                for name, mask in zip(wanted.names or (), wanted.masks, strict=True):
                    shares[name] += mask[top:bottom, left:right].float().mean().item()
                shares = {name: min(share, 1.0) for name, share in shares.items()}
                rest = max(1 - sum(shares.values()), 0) * NOTHING_SHARE
                cell = level[image, :, y, x]
                logits = [(head.cells(cell) @ word).item() / math.sqrt(5) for word in words]
                logits.append(head.nothing(cell).item())
                norm = math.log(sum(math.exp(logit) for logit in logits))
                for share, logit in zip((*shares.values(), rest), logits, strict=True):
                    total -= share * (logit - norm)
                    weight += share
    return total / weight


def test_loss_equals_its_definition() -> None:
    torch.manual_seed(0)
    head, words = WordHead(5), torch.randn(3, 5)
    levels = [torch.randn(2, 5, *size) for size in SIZES]
    loss = head.losses(levels, TARGETS, NAMES, words)["loss_word"].item()
    expected = sum(by_hand(head, level, words) for level in levels[:LEVELS]) / LEVELS
    assert loss == pytest.approx(WEIGHT * expected, rel=1e-5)


def test_features_learn_the_words() -> None:
    """Two cells, two names: gradients reach features, words and head, and the loss can vanish."""
    torch.manual_seed(0)
    head = WordHead(8)
    words = torch.randn(2, 8, requires_grad=True)
    level = torch.randn(1, 8, 1, 2, requires_grad=True)
    both = [target(cat=[rectangle(0, 0, 32, 24)], dog=[rectangle(0, 24, 32, 48)])]
    optimizer = torch.optim.Adam([level, words, *head.parameters()], lr=0.05)
    first = None
    for _ in range(60):
        loss = head.losses([level], both, ["cat", "dog"], words)["loss_word"]
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first

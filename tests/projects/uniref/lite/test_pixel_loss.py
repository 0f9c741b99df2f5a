from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from projects.uniref.auxiliary import FeatureStages
from projects.uniref.lite.pixel_loss import PixelLoss
from tests.projects.uniref.tiny import make_uniref
from unified.structures import Reference, References, Target

LEVELS, CROSS_ENTROPY, DICE = 3, 4.0, 3.0
SIZES = ((4, 6), (2, 3), (1, 2), (1, 1))


def make_loss(dim: int) -> PixelLoss:
    return PixelLoss(dim=dim, num_levels=LEVELS, cross_entropy=CROSS_ENTROPY, dice=DICE)


def losses_of(
    loss: PixelLoss, fused: list[Tensor], memory: list[Tensor], targets: list[Target]
) -> dict[str, Tensor]:
    words = torch.zeros(len(targets), 1, 5)
    text: References = [Reference(words, words, words[..., 0] > 0, words[:, 0])]
    return loss(make_uniref(kinds=()), FeatureStages(fused, fused, memory), [text], targets)


def target(*masks: Tensor) -> Target:
    stacked = torch.stack(masks) if masks else torch.zeros(0, 32, 48, dtype=torch.bool)
    num = len(stacked)
    return Target(torch.zeros(num, dtype=torch.int64), torch.full((num, 4), 0.5), stacked)


def rectangle(top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(32, 48, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def features(seed: int, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 5, *size, generator=generator) for size in SIZES]


def by_hand(layer: nn.Linear, levels: list[Tensor], union: list[Tensor]) -> tuple[float, float]:
    """Sums over levels of the mean cross-entropy and the mean of 1 - Dice, cell by cell."""
    entropy, dice = 0.0, 0.0
    for level in levels[:LEVELS]:
        batch, _, rows, columns = level.shape
        for image in range(batch):
            cells, overlap, area = 0.0, 0.0, 0.0
            for y in range(rows):
                for x in range(columns):
                    top, bottom = y * 32 // rows, -(-(y + 1) * 32 // rows)
                    left, right = x * 48 // columns, -(-(x + 1) * 48 // columns)
                    share = union[image][top:bottom, left:right].float().mean().item()
                    logit = layer(level[image, :, y, x]).item()
                    score = 1 / (1 + math.exp(-logit))
                    cells -= share * math.log(score) + (1 - share) * math.log(1 - score)
                    overlap += share * score
                    area += share + score
            entropy += cells / (rows * columns) / batch
            dice += (1 - (2 * overlap + 1) / (area + 1)) / batch
    return entropy, dice


def test_losses_equal_their_definition() -> None:
    torch.manual_seed(0)
    head = make_loss(5)
    left, right = rectangle(0, 0, 20, 13), rectangle(8, 30, 32, 48)
    targets = [target(left, right), target()]
    fused, memory = features(0, 2), features(1, 2)
    losses = losses_of(head, fused, memory, targets)
    union = [left | right, torch.zeros(32, 48, dtype=torch.bool)]
    sums = [by_hand(head.fused, fused, union), by_hand(head.memory, memory, union)]
    count = 2 * LEVELS
    entropy, dice = (CROSS_ENTROPY, DICE)
    assert losses["loss_pixel"].item() == pytest.approx(
        entropy * sum(pair[0] for pair in sums) / count, rel=1e-5
    )
    assert losses["loss_pixel_dice"].item() == pytest.approx(
        dice * sum(pair[1] for pair in sums) / count, rel=1e-5
    )


def test_features_that_say_so_cost_little_and_get_gradients() -> None:
    head = make_loss(1)
    with torch.no_grad():
        for layer in (head.fused, head.memory):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
    mask = rectangle(0, 0, 32, 24)
    right = [torch.full((1, 1, 2, 2), -20.0)]
    right[0][..., 0] = 20.0
    wrong = [(-right[0]).requires_grad_()]
    good = sum(x.item() for x in losses_of(head, right, right, [target(mask)]).values())
    bad = sum(losses_of(head, wrong, wrong, [target(mask)]).values())
    assert good < 0.1 < bad.item()
    bad.backward()
    assert wrong[0].grad is not None and bool((wrong[0].grad != 0).any())


def test_without_a_reference_nothing_is_referred_to() -> None:
    levels = features(0, 1)
    stages = FeatureStages(levels, levels, levels)
    assert make_loss(5)(make_uniref(kinds=()), stages, [], [target()]) == {}

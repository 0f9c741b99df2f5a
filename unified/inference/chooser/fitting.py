"""Training of the chooser on candidates that are described once."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from unified.inference.chooser.describing import Described
from unified.inference.chooser.network import Candidates, Choices, ChooserNetwork

logger = logging.getLogger(__name__)

RIGHT = 0.5  # IoU with what is meant from which a candidate is right
NAME_SHARPNESS = 16.0


@dataclass(frozen=True)
class Sentence:
    """What is said of an image.

    Attributes:
        words: (N, D) of the language model; mirrored: those of the sentence for the mirror image.
        fits: (K,) the best IoU of each candidate with what is meant: with all of it, or with one
            of several things; zeros if it is absent.
        absent, many: nothing is meant; several things are.
    """

    words: Tensor
    mirrored: Tensor
    fits: Tensor
    absent: bool = False
    many: bool = False


@dataclass(frozen=True)
class Lesson:
    """An image with what is said of it."""

    described: Described
    sentences: Sequence[Sentence]


@dataclass(frozen=True)
class Naming:
    """M objects with their true masks: features (M, F), which name (M,), names (N, D)."""

    seen: Tensor
    labels: Tensor
    names: Tensor


@dataclass(frozen=True)
class Recipe:
    """How to train."""

    epochs: int = 40
    images: int = 24  # of a batch
    sentences: int = 8  # of each of them
    rate: float = 1e-3
    decay: float = 0.05
    naming: float = 0.3
    accepting: float = 0.3
    several: float = 0.1
    without_scores: float = 0.5  # chance that a batch does not see those of the segmenter
    lost: float = 0.15  # share of candidates that are left out
    average: float = 0.995


def fit(
    network: ChooserNetwork,
    lessons: Sequence[Lesson],
    naming: Naming | None,
    recipe: Recipe,
    seed: int,
) -> list[float]:
    """Trains in place; returns the mean loss of every epoch.

    Args:
        network: on the device of the lessons.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    everything = torch.cat([lesson.described.seen.float() for lesson in lessons])
    network.mean.copy_(everything.mean(dim=0))
    network.std.copy_(everything.std(dim=0) + 1e-3)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.rate, weight_decay=recipe.decay)
    averages = {name: value.detach().clone() for name, value in network.state_dict().items()}
    per_epoch = math.ceil(len(lessons) / recipe.images)
    step, curve = 0, []
    for epoch in range(recipe.epochs):
        network.train()
        total = 0.0
        order = rng.permutation(len(lessons))
        for start in range(0, len(order), recipe.images):
            where = step / (recipe.epochs * per_epoch)
            for group in optimizer.param_groups:
                warm = min(1.0, (step + 1) / 50)
                group["lr"] = recipe.rate * warm * 0.5 * (1 + math.cos(math.pi * where))
            batch = [lessons[i] for i in order[start : start + recipe.images]]
            loss = _loss(network, batch, naming, recipe, rng)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            step += 1
            keep = min(recipe.average, step / (10 + step))
            for name, value in network.state_dict().items():
                averages[name].lerp_(value, 1 - keep)
            total += float(loss.detach())
        curve.append(total / per_epoch)
        logger.info("epoch %d of %d: loss %.3f", epoch + 1, recipe.epochs, curve[-1])
    network.load_state_dict(averages)
    network.eval()
    return curve


def _loss(
    network: ChooserNetwork,
    batch: Sequence[Lesson],
    naming: Naming | None,
    recipe: Recipe,
    rng: np.random.Generator,
) -> Tensor:
    flipped = rng.random(len(batch)) < 0.5
    images, words, fits, rows, absent, many = [], [], [], [], [], []
    for row, (lesson, flip) in enumerate(zip(batch, flipped, strict=True)):
        images.append(_mirrored(lesson.described) if flip else lesson.described)
        wanted = min(recipe.sentences, len(lesson.sentences))
        for index in rng.choice(len(lesson.sentences), wanted, replace=False):
            said = lesson.sentences[index]
            words.append((said.mirrored if flip else said.words).float())
            fits.append(said.fits)
            rows.append(row)
            absent.append(said.absent)
            many.append(said.many)
    candidates = Candidates.stack(images)
    device = candidates.there.device
    image = torch.tensor(rows, device=device)
    lost = torch.rand(candidates.there.shape, device=device) < recipe.lost
    there = candidates.there & ~lost
    there[:, 0] |= ~there.any(dim=1)
    scores = candidates.scores * float(rng.random() >= recipe.without_scores)
    candidates = replace(candidates, there=there, scores=scores)
    longest = candidates.there.shape[1]
    fit = torch.stack([F.pad(f.float(), (0, longest - len(f))) for f in fits]) * there[image]
    choices = network(candidates, image, *padded(words))
    terms = choice_losses(
        choices,
        fit,
        there[image],
        torch.tensor(absent, device=device),
        torch.tensor(many, device=device),
    )
    loss = terms[0] + recipe.accepting * terms[1] + recipe.several * terms[2]
    if naming is not None:
        drawn = torch.from_numpy(rng.integers(0, len(naming.labels), 256)).to(device)
        named = network.names(naming.seen[drawn].float()) @ naming.names.t() * NAME_SHARPNESS
        loss = loss + recipe.naming * F.cross_entropy(
            named, naming.labels[drawn], label_smoothing=0.1
        )
    return loss


def choice_losses(
    choices: Choices, fits: Tensor, there: Tensor, absent: Tensor, many: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Choosing, accepting each candidate, and whether several are meant.

    A sentence whose thing is among no candidate teaches nothing about the choice.

    Args:
        fits: (S, K), as of ``Sentence``.
        there: (S, K).
        absent, many: (S,) bool.
    """
    right = fits > RIGHT
    weights = (fits - RIGHT + 0.05) * right
    wanted = torch.cat((weights, absent[:, None].to(weights)), dim=1)
    known = wanted.sum(dim=1) > 0
    share = wanted / wanted.sum(dim=1, keepdim=True).clamp(min=1e-6)
    every = torch.cat((choices.logits, choices.none[:, None]), dim=1).log_softmax(dim=1)
    choosing = -(share * every).sum(dim=1)[known].mean() if known.any() else every.sum() * 0
    accepted = choices.logits - choices.none[:, None]
    entropy = F.binary_cross_entropy_with_logits(
        accepted, right.to(accepted), reduction="none", pos_weight=accepted.new_tensor(4.0)
    )
    unsure = (fits > 0.3) & ~right
    counted = (there & ~unsure).to(entropy)
    accepting = (entropy.clamp(max=20) * counted).sum() / counted.sum().clamp(min=1)
    present = ~absent
    several = F.binary_cross_entropy_with_logits(choices.many[present], many[present].float())
    return choosing, accepting, several if present.any() else accepting * 0


def padded(words: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """S x (N, D) as (S, N, D) and its padding mask (S, N)."""
    lengths = torch.tensor([len(part) for part in words], device=words[0].device)
    stacked = pad_sequence(list(words), batch_first=True)
    places = torch.arange(stacked.shape[1], device=stacked.device)
    return stacked, places >= lengths[:, None]


def _mirrored(described: Described) -> Described:
    """The same candidates in the mirror image; what is seen in them stays."""
    x, y, x0, y0, x1, y1, *rest = described.places.unbind(dim=1)
    places = torch.stack((1 - x, y, 1 - x1, y0, 1 - x0, y1, *rest), dim=1)
    return replace(described, places=places)

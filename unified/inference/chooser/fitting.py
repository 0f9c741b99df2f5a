"""Training of the chooser on candidates that are described once."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from unified.inference.chooser.batch import Candidates, Choices
from unified.inference.chooser.choosing import Network
from unified.inference.chooser.describing import Described

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
        names: of the objects that are meant.
    """

    words: Tensor
    mirrored: Tensor
    fits: Tensor
    absent: bool = False
    many: bool = False
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Lesson:
    """An image with what is said of it.

    Attributes:
        found: how many of the candidates a segmenter found; the others are true objects that it
            missed.
    """

    described: Described
    sentences: Sequence[Sentence]
    found: int

    @property
    def names(self) -> frozenset[str]:
        """Of all objects that are spoken of."""
        return frozenset().union(*(said.names for said in self.sentences))


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
    borrowed: int = 0  # sentences of others about what an image lacks, for each of them
    candidates: int = 1000  # of each of them, at most
    shown: float = 0.0  # share of images where the missed objects are candidates too
    rate: float = 1e-3
    decay: float = 0.05
    naming: float = 0.3
    accepting: float = 0.3
    several: float = 0.1
    without_scores: float = 0.5  # chance that a batch does not see those of the segmenter
    lost: float = 0.15  # share of candidates that are left out
    average: float = 0.995


RECIPES: Mapping[str, Recipe] = {
    "network": Recipe(),
    "joint": Recipe(sentences=6, borrowed=1, candidates=30, shown=0.5),
}


def fit(
    network: Network,
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
    network: Network,
    batch: Sequence[Lesson],
    naming: Naming | None,
    recipe: Recipe,
    rng: np.random.Generator,
) -> Tensor:
    flipped = rng.random(len(batch)) < 0.5
    images = [
        _mirrored(lesson.described) if flip else lesson.described
        for lesson, flip in zip(batch, flipped, strict=True)
    ]
    rows, drawn = zip(*_drawn(batch, recipe, rng), strict=True)
    words = [
        (said.mirrored if flipped[row] else said.words).float()
        for row, said in zip(rows, drawn, strict=True)
    ]
    candidates = Candidates.stack(images)
    device, longest = candidates.there.device, candidates.there.shape[1]
    image = torch.tensor(rows, device=device)
    found = torch.tensor([lesson.found for lesson in batch], device=device)
    shown = torch.from_numpy(rng.random(len(batch)) < recipe.shown).to(device)
    candidates, chosen = _some(candidates, torch.where(shown, longest, found), recipe)
    there = candidates.there
    scores = candidates.scores * float(rng.random() >= recipe.without_scores)
    candidates = replace(candidates, scores=scores)
    fit = torch.stack([F.pad(s.fits.float(), (0, longest - len(s.fits))) for s in drawn])
    fit = fit.gather(1, chosen[image]) * there[image]
    choices = network(candidates, image, *padded(words))
    terms = choice_losses(
        choices,
        fit,
        there[image],
        torch.tensor([said.absent for said in drawn], device=device),
        torch.tensor([said.many for said in drawn], device=device),
    )
    loss = terms[0] + recipe.accepting * terms[1] + recipe.several * terms[2]
    if naming is not None:
        objects = torch.from_numpy(rng.integers(0, len(naming.labels), 256)).to(device)
        named = network.names(naming.seen[objects].float()) @ naming.names.t() * NAME_SHARPNESS
        loss = loss + recipe.naming * F.cross_entropy(
            named, naming.labels[objects], label_smoothing=0.1
        )
    return loss


def _drawn(
    batch: Sequence[Lesson], recipe: Recipe, rng: np.random.Generator
) -> Iterator[tuple[int, Sentence]]:
    """Sentences with the image that each is asked about.

    Those borrowed from other images are about things whose names this one lacks.
    """
    names = [lesson.names for lesson in batch]
    for row, lesson in enumerate(batch):
        wanted = min(recipe.sentences, len(lesson.sentences))
        for index in rng.choice(len(lesson.sentences), wanted, replace=False):
            yield row, lesson.sentences[index]
        none = torch.zeros_like(lesson.sentences[0].fits)
        for other in rng.integers(0, len(batch), recipe.borrowed):
            said = batch[other].sentences[rng.integers(len(batch[other].sentences))]
            if said.names and not said.names & names[row]:
                yield row, replace(said, fits=none, absent=True, many=False)


def _some(candidates: Candidates, known: Tensor, recipe: Recipe) -> tuple[Candidates, Tensor]:
    """Some of the candidates of each image, drawn from its first ``known`` (I,), and which they
    were (I, K')."""
    there = candidates.there
    number = torch.arange(there.shape[1], device=there.device)
    lost = torch.rand(there.shape, device=there.device) < recipe.lost
    there = there & (number < known[:, None]) & ~lost
    there[:, 0] |= ~there.any(dim=1)
    order = torch.rand(there.shape, device=there.device) + there
    chosen = order.topk(min(recipe.candidates, there.shape[1]), dim=1).indices
    return replace(candidates, there=there).only(chosen), chosen


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

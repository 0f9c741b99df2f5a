"""Questions about the scenes of a bank, and how wrong the answers are."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from projects.sam.fusion import DeepFusion, pooled_map
from projects.sam.losses import mask_iou
from projects.sam.mobile.bank import Scene, SceneBank
from projects.sam.mobile.plans import FRAMES, Channel, about_place
from projects.sam.mobile.scenes import NO_CLASS
from projects.sam.model import SamUniFusion
from unified.structures import Reference, join

BCE, DICE, SCORE, COARSE, NAMES, OTHERS = 2.0, 1.0, 1.0, 0.5, 0.3, 0.1
ABSENT, FOREIGN = 0.16, 0.05  # of sentences: of the picture's own, of another picture's
SUPPORT, EARLY = 0.1, 0.35  # of masks: on another picture; no second frame yet
SHARPNESS = 12.0  # of names


@dataclass(frozen=True)
class Question:
    """A target in a frame of a scene, by a sentence and by masks on other frames.

    Attributes:
        row: of the frame.
        channel: of the target there; -1 if it is not there.
        text: None without a sentence.
        memory: rows and channels of two frames.
    """

    row: int
    channel: int
    text: str | None = None
    memory: tuple[tuple[int, int], ...] = ()


class Asker:
    """Draws questions of three kinds and computes their losses.

    Args:
        model: in train mode.
        bank: of encoded scenes.
    """

    def __init__(self, model: SamUniFusion, bank: SceneBank) -> None:
        self.model, self.bank = model, bank
        self.random = random.Random(bank.maker.random.random())
        self._asked: dict[str, int] = {}

    def losses(self, step: int) -> dict[str, Tensor]:
        """Weighted losses of one step; sentences with masks are asked every second time."""
        sizes = self.bank.sizes
        losses = self._ask("text", [self._by_text() for _ in range(sizes.text)], several=True)
        losses |= self._ask("mask", [self._by_mask() for _ in range(sizes.mask)], several=False)
        if step % 2 == 0:
            both = [self._by_both() for _ in range(sizes.both)]
            losses |= self._ask("both", both, several=False)
        for name in (*losses, "norm"):
            self._asked[name] = self._asked.get(name, 0) + 1
        return losses

    def count(self, names: Mapping[str, Tensor]) -> dict[str, int]:
        """How often each loss was computed since the last call."""
        counts = {name: self._asked.get(name, 0) for name in names}
        self._asked.clear()
        return counts

    def _ask(self, kind: str, questions: Sequence[Question], *, several: bool) -> dict[str, Tensor]:
        bank, model, device = self.bank, self.model, self.bank.device
        rows = torch.tensor([q.row for q in questions]).to(device)
        channels = torch.tensor([q.channel for q in questions]).to(device)
        present = channels >= 0
        masks = bank.masks(rows, channels.clamp(min=0)) & present[:, None, None]
        with torch.autocast(device.type, dtype=torch.bfloat16):
            features = bank.features(rows)
            references = []
            if questions[0].text is not None:
                references.append(bank.sentences([q.text or "" for q in questions]))
            if questions[0].memory:
                references.append(self._memory(questions))
            logits, scores, coarse = model.answer(features, references, several=several)
            names = self._names(model.seen(features), rows) if kind == "text" else None
        assert coarse is not None
        inside = bank.inside(rows)
        losses = {
            f"{kind}_{name}": value
            for name, value in mask_losses(logits, scores, masks, inside).items()
        }
        small = F.avg_pool2d(masks[:, None].float(), 4)[:, 0]
        weight = F.avg_pool2d(inside[:, None].float(), 4)[:, 0]
        wrong, dice = _errors(coarse[:, None].float(), small[:, None], weight[:, None])
        losses[f"{kind}_coarse"] = COARSE * (BCE * wrong + DICE * dice).mean()
        if names is not None:
            losses["names"] = NAMES * names
        return losses

    def _memory(self, questions: Sequence[Question]) -> Reference:
        """First and latest frame joined; the latest mask is as a model would have it."""
        bank, frames = self.bank, []
        assert self.model.mask_encoder is not None
        for slot in range(2):
            rows = torch.tensor([q.memory[slot][0] for q in questions]).to(bank.device)
            channels = torch.tensor([q.memory[slot][1] for q in questions]).to(bank.device)
            masks = bank.masks(rows, channels).float()
            if slot == 1:
                masks = self._worn(masks)
            tokens = self.model.seen(bank.features(rows))
            frames.append(self.model.mask_encoder.refer(masks, masks, tokens))
        return join(frames)

    def _worn(self, masks: Tensor) -> Tensor:
        """A quarter of the masks a little larger, a quarter a little smaller."""
        size = self.random.choice((3, 5, 7))
        grown = F.max_pool2d(masks[:, None], size, stride=1, padding=size // 2)[:, 0]
        shrunk = 1 - F.max_pool2d(1 - masks[:, None], size, stride=1, padding=size // 2)[:, 0]
        drawn = torch.rand(len(masks), 1, 1, device=masks.device)
        masks = torch.where(drawn < 0.25, grown, masks)
        return torch.where(drawn > 0.75, shrunk, masks)

    def _names(self, seen: Tensor, rows: Tensor) -> Tensor:
        """Cross-entropy of class names at all named pixels, before any reference is fused."""
        assert isinstance(self.model.fusion, DeepFusion)
        pooled = rearrange(pooled_map(seen), "b c h w -> b (h w) c")
        pixels = F.normalize(self.model.fusion.enter(pooled).float(), dim=-1)
        names = F.normalize(self.bank.class_names().float(), dim=-1)
        logits = SHARPNESS * pixels @ names.t()  # (B, n, N)
        classes = self.bank.classes(rows).flatten(1).long()
        known = classes != NO_CLASS
        wrong = F.cross_entropy(
            logits.flatten(0, 1), classes.masked_fill(~known, 0).flatten(), reduction="none"
        ).reshape(classes.shape)
        # Each picture counts alike, however much of it is named.
        share = (wrong * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)
        return share.sum() / known.any(dim=1).sum().clamp(min=1)

    def _by_text(self) -> Question:
        while True:
            place, scene = self._scene()
            if scene.plan.pastes:
                continue
            chance = self.random.random()
            if chance < ABSENT and scene.plan.absent:
                text = self.random.choice(scene.plan.absent)
                return Question(FRAMES * place, -1, scene.plan.sentence(text))
            if chance > 1 - FOREIGN and (text := self._foreign(scene)):
                return Question(FRAMES * place, -1, text)
            spoken = [c for c, ch in enumerate(scene.plan.channels) if ch.sentences]
            if not spoken:
                continue
            channel = self.random.choice(spoken)
            text = self.random.choice(scene.plan.channels[channel].sentences)
            frames = [] if about_place(text) else [0, 1, 2]
            if scene.plan.whole or len(set(scene.plan.pictures)) > 1:
                frames = frames or [0]
            frames = [f for f in frames if self.bank.visible(scene, f, channel)]
            if frames:
                row = FRAMES * place + self.random.choice(frames)
                return Question(row, channel, scene.plan.sentence(text))

    def _foreign(self, scene: Scene) -> str | None:
        """A sentence about a thing whose name nothing here has."""
        picture = self.bank.maker.pictures[scene.plan.pictures[0]]
        _, other = self._scene()
        channels = [c for c in other.plan.channels if c.name and c.sentences]
        if not channels or not all(picture.names) or not picture.names or picture.clip[0]:
            return None
        channel = self.random.choice(channels)
        if channel.name in picture.names:
            return None
        plain = [text for text in channel.sentences if channel.name in text]
        return self.random.choice(plain) if plain else None

    def _by_mask(self) -> Question:
        while True:
            place, scene = self._scene()
            if self.random.random() < SUPPORT and (found := self._by_support(place, scene)):
                return found
            if found := self._follow(place, scene, range(len(scene.plan.channels))):
                return found

    def _by_both(self) -> Question:
        while True:
            place, scene = self._scene()
            if scene.plan.pastes:
                continue
            spoken = [c for c, ch in enumerate(scene.plan.channels) if ch.sentences]
            found = self._follow(place, scene, spoken)
            if found and found.channel >= 0:
                channel: Channel = scene.plan.channels[found.channel]
                text = scene.plan.sentence(self.random.choice(channel.sentences))
                return Question(found.row, found.channel, text, found.memory)

    def _follow(self, place: int, scene: Scene, channels: Sequence[int]) -> Question | None:
        """A target in one frame by its masks on the others."""
        first, latest, now = self.random.choice(
            ((0, 1, 2), (0, 1, 2), (0, 1, 2), (2, 1, 0), (1, 0, 2))
        )
        seen = [c for c in channels if self.bank.visible(scene, first, c)]
        if not seen:
            return None
        channel = self.random.choice(seen)
        if self.random.random() < EARLY or not self.bank.visible(scene, latest, channel):
            latest = first
        start = FRAMES * place
        there = channel if scene.areas[now][channel] > 0 else -1
        memory = ((start + first, channel), (start + latest, channel))
        return Question(start + now, there, None, memory)

    def _by_support(self, place: int, scene: Scene) -> Question | None:
        """The one thing of a class here, by a thing of the same class in another picture."""
        names = self.bank.maker.pictures[scene.plan.pictures[0]].names
        alone = {
            ch.name: c
            for c, ch in enumerate(scene.plan.channels)
            if ch.name
            and not ch.pasted
            and names.count(ch.name) == 1
            and self.bank.visible(scene, 0, c)
        }
        for _ in range(20 if alone else 0):
            other, example = self._scene()
            for c, channel in enumerate(example.plan.channels):
                if channel.name in alone and self.bank.visible(example, 0, c) and other != place:
                    shown = (FRAMES * other, c)
                    return Question(FRAMES * place, alone[channel.name], None, (shown, shown))
        return None

    def _scene(self) -> tuple[int, Scene]:
        while True:  # nearly all places have a scene
            place = self.random.randrange(min(self.bank.made, self.bank.sizes.bank))
            if place in self.bank.scenes:
                return place, self.bank.scenes[place]


def mask_losses(logits: Tensor, scores: Tensor, masks: Tensor, inside: Tensor) -> dict[str, Tensor]:
    """Of K answers the best counts, and the scores of all.

    Args:
        logits: (B, K, h, w).
        scores: (B, K) predicted IoU.
        masks, inside: (B, h, w) bool; only what is inside counts.
    """
    logits = logits.float()
    truth = masks[:, None].float().expand_as(logits)
    wrong, dice = _errors(logits, truth, inside[:, None].float().expand_as(logits))
    each = BCE * wrong + DICE * dice  # (B, K)
    best = each.min(dim=1).values.mean()
    losses = {"mask": best if each.shape[1] == 1 else best + OTHERS * each.mean()}
    with torch.no_grad():
        actual = mask_iou((logits > 0) & inside[:, None], masks[:, None].expand_as(logits))
        actual = actual * masks.any(dim=(1, 2))[:, None]  # what is not there has a score of 0
    losses["score"] = SCORE * F.mse_loss(scores.float(), actual)
    return losses


def _errors(logits: Tensor, truth: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and dice loss (B, K); no dice where there is nothing to find."""
    wrong = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * weight
    wrong = wrong.sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp(min=1)
    probability = logits.sigmoid() * weight
    shared = 2 * (probability * truth).sum(dim=(2, 3))
    total = probability.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    dice = 1 - (shared + 1) / (total + 1)
    return wrong, dice * (truth.sum(dim=(2, 3)) > 0)

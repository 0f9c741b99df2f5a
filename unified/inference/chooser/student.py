"""What the chooser learns from and is tried on: images with sentences, described by a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unified.expressions import swap_left_right
from unified.inference.chooser.batch import Candidates, Choices
from unified.inference.chooser.building import parts_of
from unified.inference.chooser.candidates import LEAST_CELLS, Found, joined, overlaps
from unified.inference.chooser.choosing import Network
from unified.inference.chooser.describing import Described
from unified.inference.chooser.fitting import Lesson, Naming, Sentence, padded
from unified.inference.chooser.rules import Trial
from unified.inference.chooser.scene import LIMIT, Scene, own_scores
from unified.inference.frames import FrameEncoder
from unified.inference.sense import nonsense

# Masks for a sentence belong to the candidates of a training image: of so many sentences so many
# masks, after the ones that are found without.
ASKED, BEST, SHARE = 1, 5, 0.3
MISSED = 0.7  # IoU with the best candidate below which an object was missed
MOST = 14  # missed objects of an image
BATCH = 16  # sentences of about the same length that are read together


@dataclass(frozen=True)
class Referred:
    """Objects of an image that sentences refer to together, or none.

    Attributes:
        masks: (M, H, W) bool; M = 0 if nothing is meant.
        names: M names of the objects.
        sentences: what is said of all of them together.
    """

    masks: np.ndarray
    names: Sequence[str]
    sentences: Sequence[str]


Picture = tuple[np.ndarray, Sequence[Referred]]
"""An image (H, W, 3) uint8 RGB and what is said of it."""


class Student:
    """A segmenter in eval mode, and what is seen and read with it."""

    def __init__(self, model: Any) -> None:
        self.model, self.encoder = model, FrameEncoder(model, model.inference.image)
        self.text, self.backbone, self.mean, self.std = parts_of(model)
        self.device = next(iter(model.parameters())).device

    @torch.no_grad()
    def lessons(self, pictures: Iterable[Picture], seed: int) -> tuple[list[Lesson], Naming | None]:
        """What pictures teach, and their objects if they have names."""
        rng = np.random.default_rng(seed)
        lessons: list[Lesson] = []
        seen: list[Tensor] = []
        names: list[str] = []
        for image, referred in pictures:
            objects: dict[bytes, tuple[Tensor, str]] = {}
            scene = self._look(image)
            present = [text for one in referred if len(one.masks) for text in one.sentences]
            parts = [] if scene.detected is None else [scene.detected]
            for text in rng.permutation(present)[:ASKED].tolist():
                asked = scene.asked(self.encoder.text(text))
                parts.append(Found(asked.probabilities[:BEST], asked.scores[:BEST] * SHARE))
            pool = joined(parts, LIMIT) if parts else None
            if pool is None or not len(pool):
                continue
            meant = [self._on_grid(one.masks, scene) for one in referred]
            for one, masks in zip(referred, meant, strict=True):
                for name, mask in zip(one.names, masks, strict=True):
                    if mask.any():
                        objects.setdefault(mask.cpu().numpy().tobytes(), (mask, name))
            shown = [mask for mask, _ in objects.values()]
            described, every = self._with_missed(pool, shown, scene, rng)
            sentences: list[Sentence] = []
            words = self._words_both_ways([text for one in referred for text in one.sentences])
            for one, masks in zip(referred, meant, strict=True):
                fits = _fits(every, masks)
                sentences += [
                    Sentence(
                        *words[text], fits, not len(masks), len(masks) > 1, frozenset(one.names)
                    )
                    for text in one.sentences
                ]
            lessons.append(Lesson(described, sentences, len(pool)))
            if shown:
                seen.append(self._seen(torch.stack(shown), scene))
                names += [name for _, name in objects.values()]
        return lessons, self._naming(seen, names)

    def _with_missed(
        self, pool: Found, objects: Sequence[Tensor], scene: Scene, rng: np.random.Generator
    ) -> tuple[Described, Tensor]:
        """The candidates and then true objects (h, w) that none of them is, and the masks of all.

        Scores and certainties of the objects are those of candidates drawn at random.
        """
        described = scene.describer.describe(pool)
        large = [mask for mask in objects if mask.sum() >= LEAST_CELLS]
        if not large:
            return described, pool.masks
        masks = torch.stack(large)
        masks = masks[overlaps(masks, pool.masks)[0].amax(dim=1) < MISSED]
        masks = masks[torch.from_numpy(rng.permutation(len(masks))[:MOST]).to(self.device)]
        if not len(masks):
            return described, pool.masks
        drawn = torch.from_numpy(rng.integers(0, len(pool), len(masks))).to(self.device)
        missed = scene.describer.describe(Found(masks.float(), pool.scores[drawn]))
        missed.places[:, -1] = described.places[drawn, -1]
        every = torch.cat((pool.masks, masks))
        return described.extended(missed, every), every

    @torch.inference_mode()
    def trials(self, networks: Sequence[Network], pictures: Iterable[Picture]) -> list[Trial]:
        """Every sentence of pictures that makes sense, with what the networks say."""
        vocabulary = {} if self.text.tokenizer is None else self.text.tokenizer.get_vocab()
        found = []
        for image, referred in pictures:
            scene = self._look(image)
            for one in referred:
                masks = self._on_grid(one.masks, scene)
                truth = masks.any(dim=0) if len(masks) else None
                for text in one.sentences:
                    if nonsense(text, vocabulary) is None:
                        found.append(self._trial(networks, scene, text, truth))
        return found

    def _trial(
        self, networks: Sequence[Network], scene: Scene, text: str, truth: Tensor | None
    ) -> Trial:
        references = self.encoder.text(text)
        asked = scene.asked(references)
        candidates, described = scene.candidates(asked)
        only = torch.zeros(1, dtype=torch.int64, device=self.device)
        words = padded(self._words([text]))
        given = (Candidates.stack([described]), only, *words)
        choices = Choices.mean([network(*given) for network in networks])
        names = scene.names(described, references)
        return Trial(choices, own_scores(candidates, asked), names, candidates.masks, truth)

    def _look(self, image: np.ndarray) -> Scene:
        frames = [self.encoder.image(image)]
        if self.model.inference.image.mirror:
            frames.append(self.encoder.image(image[:, ::-1].copy()))
        return Scene(self.model, frames, image, self.backbone, self.mean, self.std)

    def _seen(self, masks: Tensor, scene: Scene) -> Tensor:
        """Features (M, F) within the true masks (M, h, w) of objects."""
        whole = torch.ones(len(masks), device=self.device)
        return scene.describer.describe(Found(masks.float(), whole)).seen

    def _words_both_ways(self, texts: Sequence[str]) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Of each sentence its words and those of the sentence for the mirror image."""
        known = sorted({*texts, *map(swap_left_right, texts)}, key=lambda text: (len(text), text))
        words: dict[str, Tensor] = {}
        for start in range(0, len(known), BATCH):
            part = known[start : start + BATCH]
            words |= zip(part, self._words(part), strict=True)
        return {text: (words[text], words[swap_left_right(text)]) for text in texts}

    def _words(self, texts: Sequence[str]) -> list[Tensor]:
        """Each sentence as (N, D)."""
        read = self.text(texts)
        lengths = (~read.padding_mask).sum(dim=1).tolist()
        hidden = read.last_hidden.float()
        return [rows[:length].clone() for rows, length in zip(hidden, lengths, strict=True)]

    def _on_grid(self, masks: np.ndarray, scene: Scene) -> Tensor:
        """(M, H, W) bool -> (M, h, w) bool: cells of which more than half is covered."""
        if not len(masks):
            return torch.zeros(0, *scene.size, dtype=torch.bool, device=self.device)
        shares = F.interpolate(torch.from_numpy(masks)[:, None].float(), scene.size, mode="area")
        return (shares[:, 0] > 0.5).to(self.device)

    def _naming(self, seen: Sequence[Tensor], names: Sequence[str]) -> Naming | None:
        known = sorted(set(names))
        if not known or not all(known):
            return None
        vectors = [F.normalize(words.mean(dim=0), dim=-1) for words in self._words(known)]
        labels = torch.tensor([known.index(name) for name in names], device=self.device)
        return Naming(torch.cat(list(seen)), labels, torch.stack(vectors))


def _fits(candidates: Tensor, masks: Tensor) -> Tensor:
    """The best IoU (K,) of each candidate (K, h, w) with all masks (M, h, w), or with one."""
    if not len(masks):
        return torch.zeros(len(candidates), device=masks.device)
    together = overlaps(candidates, masks.any(dim=0)[None])[0][:, 0]
    return torch.maximum(together, overlaps(candidates, masks)[0].amax(dim=1))

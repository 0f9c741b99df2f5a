"""UniRef with names: the mask of a sentence is also chosen by what is seen within it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from projects.uniref.lite.name_head import NameHead
from projects.uniref.lite.phrases import TURN, opening_phrase, without_article
from projects.uniref.model import UniRef
from unified.modeling.backbones import Backbone
from unified.modeling.layers import masked_mean
from unified.modeling.text_encoder import TextFeatures
from unified.structures import FeaturePyramid, ImageBatch, Reference, References, Segmentation


@dataclass(frozen=True, kw_only=True)
class NamedPyramid(FeaturePyramid):
    """Features with those of the frozen backbone.

    Attributes:
        frozen_stages: gives res3, res4 and res5, (B, C_l, H/8, W/8) to (B, C_l, H/32, W/32);
            computed on the first call.
    """

    frozen_stages: Callable[[], tuple[Tensor, ...]]

    def expand(self, num: int) -> NamedPyramid:
        """As of every pyramid; the frozen stages become views too, when they are asked for."""
        stages = self.frozen_stages
        expanded = super().expand(num)
        assert isinstance(expanded, NamedPyramid)
        return replace(
            expanded,
            frozen_stages=lambda: tuple(stage.expand(num, -1, -1, -1) for stage in stages()),
        )


@dataclass(frozen=True, kw_only=True)
class NamedReference(Reference):
    """A sentence with its opening phrase.

    Attributes:
        phrase: (B, D) in the space of the language model.
    """

    phrase: Tensor

    def __getitem__(self, images: slice | Sequence[int]) -> Reference:
        return _with_phrase(super().__getitem__(images), self.phrase[images])

    def stack(self, others: Sequence[Reference]) -> Reference:
        phrases = [other.phrase for other in others if isinstance(other, NamedReference)]
        assert len(phrases) == len(others), "sentences are stacked with sentences"
        return _with_phrase(super().stack(others), torch.cat([self.phrase, *phrases]))


def _with_phrase(reference: Reference, phrase: Tensor) -> NamedReference:
    return NamedReference(**{**vars(reference), "phrase": phrase})


class NamedUniRef(UniRef):
    """UniRef whose sentences score candidate masks by their names.

    The segmenter gives its best masks, ``name_head`` scores how well each shows what the sentence
    is about, and the one whose logit is best after that is the answer. Where a mask is given or
    remembered too, that decides which object is meant, and names count only in its score: so
    scores before and after a memory exists are of one scale.

    Args:
        num_candidates: masks of an image that are compared.
        parts: of ``UniRef``.
    """

    def __init__(self, *, name_head: NameHead, num_candidates: int, **parts: Any) -> None:
        super().__init__(**parts)
        self.name_head, self.num_candidates = name_head, num_candidates

    @property
    def frozen_backbone(self) -> Backbone:
        """The backbone that was never fine-tuned, for others who want to see with it."""
        return self.name_head.backbone

    def encode_image(self, images: ImageBatch) -> FeaturePyramid:
        """As UniRef does, with the frozen backbone's features when they are asked for."""
        stages = cache(partial(self.name_head.features, images.tensor))
        return NamedPyramid(**vars(super().encode_image(images)), frozen_stages=stages)

    def encode_text(self, texts: Sequence[str]) -> tuple[Reference, ...]:
        """As UniRef does; outside training the finest level carries the opening phrases."""
        finest, *coarser = super().encode_text(texts)
        if self.training or not self.name_head.trained:
            return finest, *coarser
        return _with_phrase(finest, self.encode_phrases(texts)), *coarser

    @property
    def sentence_ends(self) -> tuple[str, ...]:
        """The sentence, and its opening phrase."""
        return ("", TURN.pattern) if self.name_head.trained else ("",)

    def encode_tokens(self, rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Reference, ...]:
        """As ``encode_text``, of tokens of sentences and of their opening phrases."""
        finest, *coarser = super().encode_tokens(rows)
        if len(rows) == 1:
            return finest, *coarser
        assert self.text_encoder is not None
        phrase = _mean_word(self.text_encoder.encode_ids(*rows[1]))
        return _with_phrase(finest, phrase), *coarser

    @torch.no_grad()
    def encode_phrases(self, texts: Sequence[str]) -> Tensor:
        """What B sentences are about, (B, D) in the space of the language model."""
        assert self.text_encoder is not None
        return _mean_word(self.text_encoder([opening_phrase(text) for text in texts]))

    @torch.no_grad()
    def is_name(self, text: str) -> bool:
        """Whether a sentence is one of the learnt names and nothing else but an article."""
        assert self.text_encoder is not None
        bare = without_article(text)
        return bool(self.name_head.holds(_mean_word(self.text_encoder([bare])))[0])

    @torch.no_grad()
    def name_evidence(self, seen: Tensor, references: References) -> Tensor:
        """How well things fit what a sentence is about, (K,) to be added to logits.

        Args:
            seen: (K, F) means of the frozen backbone's res3, res4 and res5 within them.
            references: of the sentence.
        """
        phrase = _phrase([references])
        return (
            seen.new_zeros(len(seen)) if phrase is None else self.name_head(seen[None], phrase)[0]
        )

    def segment(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        *,
        top_k: int = 1,
        mask_stride: int = 4,
    ) -> Segmentation:
        """As UniRef does; names count where one mask of a sentence is asked for."""
        phrase = _phrase(references) if top_k == 1 else None
        if phrase is not None and len(references) == 1:
            top_k = self.num_candidates
        found = super().segment(features, references, top_k=top_k, mask_stride=mask_stride)
        return found if phrase is None else self.choose(found, features, phrase)

    def choose(
        self, candidates: Segmentation, features: FeaturePyramid, phrase: Tensor
    ) -> Segmentation:
        """The candidate whose logit and name together fit best; its score is that of their sum.

        Args:
            candidates: K for each of B images.
            phrase: (B, D).
        """
        assert isinstance(features, NamedPyramid)
        masks = (candidates.mask_logits > 0).to(candidates.mask_logits.dtype)
        described = self.name_head.describe(
            features.frozen_stages(), masks, features.padding_masks[0]
        )
        joint = candidates.scores.logit() + self.name_head(described, phrase)
        unseen = (candidates.scores == 0) | ~described.any(dim=-1)
        best = joint.masked_fill(unseen, -torch.inf).argmax(dim=1)
        images = torch.arange(best.shape[0], device=best.device)

        def take(values: Tensor) -> Tensor:
            return values[images, best][:, None]  # (B, 1, ...)

        return Segmentation(
            mask_logits=take(candidates.mask_logits),
            scores=take(joint).sigmoid(),
            boxes=take(candidates.boxes),
            classes=take(candidates.classes),
        )


def _mean_word(text: TextFeatures) -> Tensor:
    return masked_mean(text.last_hidden, text.padding_mask)


def _phrase(references: Sequence[References]) -> Tensor | None:
    """(B, D) of the sentences among the references, if there are any."""
    finest = (levels[0] for levels in references)
    return next((level.phrase for level in finest if isinstance(level, NamedReference)), None)

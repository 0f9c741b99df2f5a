"""What the frozen parts say of many scenes and of all sentences, kept on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from projects.sam.mobile.plans import CHANNELS, FRAMES, Plan
from projects.sam.mobile.scenes import VISIBLE, SceneMaker
from projects.sam.model import SamUniFusion
from projects.sam.pyramid import SamPyramid
from unified.expressions import swap_left_right
from unified.structures import MASK_STRIDE, Reference

WORDS = 24  # tokens of a sentence
SENTENCES_AT_ONCE = 512


@dataclass(frozen=True)
class Sizes:
    """How much is kept, made and asked.

    Attributes:
        bank: scenes that are kept.
        fresh: scenes that are made in each step.
        text, mask, both: samples of each kind in a step.
    """

    bank: int
    fresh: int
    text: int
    mask: int
    both: int


@dataclass
class Scene:
    """A plan, and how many cells each of its targets has in each frame, FRAMES x CHANNELS."""

    plan: Plan
    areas: list[list[int]]


@dataclass
class _Fresh:
    """Scenes whose areas are on their way from the device."""

    places: list[int]
    plans: list[Plan]
    areas: Tensor
    arrived: torch.cuda.Event | None


class SceneBank:
    """Encoded scenes that are replaced in turn, the oldest first.

    Args:
        model: on its device.
        maker: draws the scenes.
        sizes: of the bank and of what is asked.
    """

    def __init__(self, model: SamUniFusion, maker: SceneMaker, sizes: Sizes) -> None:
        self.model, self.maker, self.sizes = model, maker, sizes
        self.device = model.pixel_mean.device
        self.scenes: dict[int, Scene] = {}
        self._fresh: _Fresh | None = None
        self.made = 0
        self._kept: dict[str, Tensor] = {}
        self.index, self.hidden, self.lengths = self._read_sentences()
        for _ in range(4):
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Makes some scenes and encodes them; those of the last call can be asked about now.

        So nothing waits for the device.
        """
        self._take_fresh()
        plans = [self.maker.draw(0.15, 0.45) for _ in range(self.sizes.fresh)]
        pixels, masks, classes, inside = self.maker.render(plans)
        model = self.model
        mean, std = (v[:, None, None] for v in (model.pixel_mean, model.pixel_std))
        outside = F.interpolate(inside[:, None].float(), scale_factor=MASK_STRIDE) == 0
        normal = ((pixels - mean) / std).masked_fill(outside, 0.0)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            embedding, *_ = model.sam.encode_image(normal)
            assert model.context is not None
            fine, coarse = model.context.encode(normal * std + mean)
        places = [(self.made + s) % self.sizes.bank for s in range(len(plans))]
        rows = torch.tensor([p * FRAMES + f for p in places for f in range(FRAMES)])
        rows = rows.to(self.device)
        made = {"embedding": embedding, "fine": fine, "coarse": coarse}
        made = {name: value.to(torch.bfloat16) for name, value in made.items()}
        for name, value in (made | {"masks": masks, "classes": classes, "inside": inside}).items():
            if name not in self._kept:
                shape = (self.sizes.bank * FRAMES, *value.shape[1:])
                self._kept[name] = torch.zeros(shape, dtype=value.dtype, device=self.device)
            self._kept[name][rows] = value
        for place in places:
            self.scenes.pop(place, None)
        self._fresh = self._send(places, plans, masks.sum(dim=(2, 3)))
        self.made += len(plans)

    def _send(self, places: list[int], plans: list[Plan], areas: Tensor) -> _Fresh:
        if not areas.is_cuda:
            return _Fresh(places, plans, areas, None)
        kept = torch.empty(areas.shape, dtype=areas.dtype, pin_memory=True)
        kept.copy_(areas, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return _Fresh(places, plans, kept, arrived)

    def _take_fresh(self) -> None:
        fresh = self._fresh
        if fresh is None:
            return
        if fresh.arrived is not None:
            fresh.arrived.synchronize()
        areas = fresh.areas.reshape(len(fresh.plans), FRAMES, CHANNELS).tolist()
        for place, plan, area in zip(fresh.places, fresh.plans, areas, strict=True):
            self.scenes[place] = Scene(plan, area)

    def features(self, rows: Tensor) -> SamPyramid:
        """Of frames by their rows; the projection of the classifier is trained."""
        assert self.model.context is not None
        kept, side = self._kept, self.maker.side
        return SamPyramid(
            levels=(kept["embedding"][rows],),
            padding_masks=(~kept["inside"][rows][:, ::4, ::4],),
            image_sizes=((side, side),) * len(rows),
            padded_size=(side, side),
            context=self.model.context(kept["fine"][rows], kept["coarse"][rows]),
        )

    def masks(self, rows: Tensor, channels: Tensor) -> Tensor:
        """Of targets by rows and channels, (N, grid, grid) bool."""
        return self._kept["masks"][rows, channels]

    def inside(self, rows: Tensor) -> Tensor:
        """Where there is a picture, (N, grid, grid) bool."""
        return self._kept["inside"][rows]

    def classes(self, rows: Tensor) -> Tensor:
        """Labels of ``class_names`` or ``NO_CLASS``, (N, side / 32, side / 32)."""
        return self._kept["classes"][rows]

    def visible(self, scene: Scene, frame: int, channel: int) -> bool:
        """Whether there is enough of a target in a frame."""
        return scene.areas[frame][channel] >= VISIBLE * self.maker.grid**2

    def sentences(self, texts: Sequence[str]) -> Reference:
        """The projected words of known sentences."""
        rows = torch.tensor([self.index[text] for text in texts]).to(self.device)
        return self._reference(self.hidden[rows], self.lengths[rows])

    def class_names(self) -> Tensor:
        """Sentence vectors (N, C) of all class names."""
        return self.sentences([f"the {name}" for name in self.maker.names]).summary

    def _reference(self, hidden: Tensor, lengths: Tensor) -> Reference:
        assert self.model.text_encoder is not None
        words = self.model.text_encoder.project(hidden)
        padding = torch.arange(WORDS, device=self.device)[None] >= lengths[:, None]
        keep = (~padding)[..., None]
        summary = (words * keep).sum(dim=1) / lengths[:, None]
        return Reference(words, words, padding, summary)

    @torch.no_grad()
    def _read_sentences(self) -> tuple[dict[str, int], Tensor, Tensor]:
        """Row of each sentence, and of its mirror image; (N, WORDS, D) and lengths (N,)."""
        texts = {text for picture in self.maker.pictures for text in picture.sentences}
        texts |= {swap_left_right(text) for text in texts}
        texts |= {f"the {name}" for name in self.maker.names}
        order = sorted(texts, key=lambda text: (len(text), text))
        encoder = self.model.text_encoder
        assert encoder is not None
        encoder.eval()
        hidden, lengths = [], []
        for start in range(0, len(order), SENTENCES_AT_ONCE):
            found = encoder(order[start : start + SENTENCES_AT_ONCE])
            tokens = found.last_hidden[:, :WORDS]
            hidden.append(F.pad(tokens, (0, 0, 0, WORDS - tokens.shape[1])).to(torch.bfloat16))
            lengths.append((~found.padding_mask).sum(dim=1).clamp(max=WORDS))
        encoder.train()
        return {text: i for i, text in enumerate(order)}, torch.cat(hidden), torch.cat(lengths)

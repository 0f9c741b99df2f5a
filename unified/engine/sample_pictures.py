"""Pictures of what a model in training makes of its samples."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unified.data.samples import Sample
from unified.engine.trainer import Trainer
from unified.inference.image_io import write_image
from unified.inference.image_predictor import ImagePredictor
from unified.inference.overlay import contour, draw_overlay
from unified.inference.settings import ImageSettings
from unified.structures import Prompt, Support

DRAWN_OBJECTS = 20
DRAWN_SCORE = 0.3
PANEL_WIDTH, PANEL_GAP, PANEL_FONT, OUTLINE = 320, 8, 16, 2  # in pixels


class SamplePictures(HookBase):
    """Draws reference, truth and prediction of one sample of every dataset seen."""

    trainer: Trainer

    def __init__(self, period: int, folder: Path) -> None:
        self.period, self.folder = period, folder
        self.samples: dict[str, Sample] = {}

    def after_step(self) -> None:
        sample = self.trainer.batch[0]
        self.samples[sample["dataset"]] = sample
        if not self.trainer.is_due(self.period):
            return
        self.trainer.segmenter.eval()
        with self.trainer.evaluated_weights(), torch.no_grad():
            for dataset, sample in self.samples.items():
                path = self.folder / f"step_{self.trainer.iter:07d}" / f"{dataset}.png"
                write_image(path, picture(self.trainer.segmenter, sample))
        self.trainer.shell.train()


def picture(model: Any, sample: Sample) -> np.ndarray:
    """Reference if it is a mask, truth and prediction side by side, (H, W, 3) uint8."""
    image = _pixels(sample["image"])
    height, width = image.shape[:2]
    supports = zip(
        sample.get("reference_images", ()), sample.get("reference_masks", ()), strict=True
    )
    prompt = Prompt(
        sample.get("expression"),
        supports=tuple(Support(_pixels(shot), mask.numpy()) for shot, mask in supports),
    )
    # The sample has the size that the model sees.
    predictor = ImagePredictor(model, ImageSettings(min(height, width), max(height, width)))
    predictor.set_image(image)
    prompted = prompt.text is not None or prompt.supports
    found = [predictor.instance(prompt)] if prompted else predictor.detect(DRAWN_OBJECTS)
    drawn = [x for rank, x in enumerate(found) if not rank or x.score > DRAWN_SCORE]
    score = f"score {drawn[0].score:.2f}" if drawn else "nothing"
    truth = sample["instances"]
    masks = truth.gt_masks.tensor if truth.has("gt_masks") else np.zeros((0, height, width))
    title = f"truth: {sample['expression']}" if "expression" in sample else "truth"
    panels = [
        draw_panel(title, image, masks),
        draw_panel(f"predicted, {score}", image, [x.mask for x in drawn]),
    ]
    if "reference_masks" in sample:
        support, mask = sample["reference_images"][0], sample["reference_masks"][0]
        panels.insert(0, draw_panel("reference", _pixels(support), mask[None]))
    tallest = max(panel.shape[0] for panel in panels)
    return np.concatenate(
        [
            np.pad(panel, ((0, tallest - len(panel)), (0, PANEL_GAP), (0, 0)), constant_values=255)
            for panel in panels
        ],
        axis=1,
    )


def draw_panel(title: str, image: np.ndarray, masks: Iterable[Any]) -> np.ndarray:
    """A small picture enlarged by a whole factor, its objects drawn, with the title above it.

    Args:
        title: shortened to two lines.
        image: (H, W, 3) uint8 RGB.
        masks: (H, W) each. Their outlines are white on dark things and black on bright ones, as a
            mask may have the colour of what it lies on.
    """
    labels = _label_map(masks, (image.shape[0], image.shape[1]))
    factor = max(1, PANEL_WIDTH // image.shape[1])
    image, labels = (x.repeat(factor, axis=0).repeat(factor, axis=1) for x in (image, labels))
    font = ImageFont.load_default(PANEL_FONT)
    lines = textwrap.wrap(title, max(1, image.shape[1] * 2 // PANEL_FONT), max_lines=2)
    header = Image.new("RGB", (image.shape[1], 3 * PANEL_FONT), "white")
    ImageDraw.Draw(header).text((2, 2), "\n".join(lines), fill="black", font=font)
    drawn = draw_overlay(image, labels)
    edge = contour(labels, width=OUTLINE)
    for number in np.unique(labels[edge]):
        mine = edge & (labels == number)
        drawn[mine] = 0 if image[mine].mean() > 127 else 255
    return np.concatenate([np.array(header), drawn])


def _pixels(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.numpy().transpose(1, 2, 0))  # (H, W, 3)


def _label_map(masks: Iterable[Any], size: tuple[int, int]) -> np.ndarray:
    labels = np.zeros(size, np.uint8)
    for number, mask in enumerate(masks, 1):
        labels[np.asarray(mask, bool)] = number
    return labels

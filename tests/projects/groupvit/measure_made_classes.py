"""Zero-shot classes inside objects of made pictures: a trained GroupViT and labels at random.

    python tests/projects/groupvit/measure_made_classes.py --weights model_final.pth

The published protocol, every pixel of a class, scored on the pixels of objects alone: mIoU over the
names of their kinds, colours and textures in pictures of ``refcoco-unc-val``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import torch
from torch import Tensor

from unified.data.synthetic.world import COLOURS, KINDS, TEXTURES, Scene, make_scene
from unified.data.synthetic.writing import random_streams
from unified.engine.models import load

CONFIG = "configs/lite/groupvit_tiny.yaml"
NAMES = {"kind": tuple(KINDS), "colour": tuple(COLOURS), "texture": tuple(TEXTURES)}


def main() -> None:
    """Prints a line for each attribute."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--pictures", type=int, default=100)
    options = parser.parse_args()
    model = load(CONFIG, options.weights, "cpu", ["MODEL.GROUPVIT.VOCABULARY", ""])
    scenes = [make_scene(rng) for rng in random_streams(0, "refcoco/val", options.pictures)]
    for attribute, names in NAMES.items():
        found, guessed = score(model, scenes, attribute, names)
        print(f"{attribute}: mIoU {found:.1f}, at random {guessed:.1f}", flush=True)


@torch.inference_mode()
def score(
    model: torch.nn.Module, scenes: Sequence[Scene], attribute: str, names: Sequence[str]
) -> tuple[float, float]:
    """mIoU in percent of the model's classes and of random ones, on pixels of objects."""
    classes = model.embed_classes(names)
    counts = torch.zeros(2, len(names), len(names))
    torch.manual_seed(0)
    for scene in scenes:
        image, labels = scene.draw(0)
        images = model.preprocess([torch.from_numpy(np.array(image)).movedim(-1, 0).float()])
        predicted = model.classify_pixels(images.tensor, classes)[0].argmax(dim=0)
        height, width = labels.shape
        objects = torch.from_numpy(labels > 0)
        numbers = torch.tensor([0, *(names.index(getattr(x, attribute)) for x in scene.things)])
        truth = numbers[torch.from_numpy(labels.astype(np.int64))][objects]
        guessed = torch.randint(len(names), truth.shape)
        for count, answer in zip(
            counts, (predicted[:height, :width][objects], guessed), strict=True
        ):
            pairs = torch.bincount(truth * len(names) + answer, minlength=len(names) ** 2)
            count += pairs.view(len(names), -1)
    return mean_iou(counts[0]), mean_iou(counts[1])


def mean_iou(counts: Tensor) -> float:
    """Of a table (truth, answer) of pixels, in percent."""
    hits = counts.diag()
    union = counts.sum(dim=0) + counts.sum(dim=1) - hits
    return float(100 * (hits / union.clamp(min=1)).mean())


if __name__ == "__main__":
    main()

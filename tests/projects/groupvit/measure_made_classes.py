"""Zero-shot classes in made pictures: a trained GroupViT and labels at random.

    python tests/projects/groupvit/measure_made_classes.py --weights model_final.pth

The published protocol in pictures of ``refcoco-unc-val``, mIoU over the names of kinds, colours and
textures of objects. First every pixel is of a class, and those of objects are scored. Then all
are, with the background as one more class and the limit that is best for training pictures.
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
SEEN = 40  # training pictures that choose the limit
LIMITS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
NAMES = {"kind": tuple(KINDS), "colour": tuple(COLOURS), "texture": tuple(TEXTURES)}


def main() -> None:
    """Prints a line for each attribute."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--pictures", type=int, default=100)
    options = parser.parse_args()
    model = load(CONFIG, options.weights, "cpu", ["MODEL.GROUPVIT.VOCABULARY", ""])
    scenes = [make_scene(rng) for rng in random_streams(0, "refcoco/val", options.pictures)]
    seen = [make_scene(rng) for rng in random_streams(0, "coco_captions/train", SEEN)]
    for attribute, names in NAMES.items():
        found, guessed = score(model, scenes, attribute, names)
        print(f"{attribute}: mIoU {found:.1f}, at random {guessed:.1f}", flush=True)
        known = {t: score(model, seen, attribute, names, limit=t)[0] for t in LIMITS}
        limit = max(LIMITS, key=lambda t: known[t])
        found, guessed = score(model, scenes, attribute, names, limit=limit)
        print(
            f"  with the background, limit {limit}: mIoU {found:.1f}, at random {guessed:.1f}, "
            f"background alone {empty(scenes, len(names)):.1f}",
            flush=True,
        )


@torch.inference_mode()
def score(
    model: torch.nn.Module,
    scenes: Sequence[Scene],
    attribute: str,
    names: Sequence[str],
    limit: float | None = None,
) -> tuple[float, float]:
    """mIoU in percent of the model's classes and of random ones, on pixels of objects; with a
    ``limit`` on all pixels, and the background is class 0."""
    model.background = limit
    first = 0 if limit is None else 1  # number of the first named class
    classes = model.embed_classes(names)
    num = first + len(names)
    counts = torch.zeros(2, num, num)
    torch.manual_seed(0)
    for scene in scenes:
        image, labels = scene.draw(0)
        images = model.preprocess([torch.from_numpy(np.array(image)).movedim(-1, 0).float()])
        predicted = model.classify_pixels(images.tensor, classes)[0].argmax(dim=0)
        height, width = labels.shape
        scored = torch.from_numpy((labels > 0) | (first > 0))
        own = (first + names.index(getattr(thing, attribute)) for thing in scene.things)
        truth = torch.tensor([0, *own])[torch.from_numpy(labels.astype(np.int64))][scored]
        guessed = torch.randint(num, truth.shape)
        for count, answer in zip(
            counts, (predicted[:height, :width][scored], guessed), strict=True
        ):
            pairs = torch.bincount(truth * num + answer, minlength=num**2)
            count += pairs.view(num, -1)
    return mean_iou(counts[0]), mean_iou(counts[1])


def empty(scenes: Sequence[Scene], num_names: int) -> float:
    """mIoU in percent of a map that is background everywhere."""
    shares = [float((scene.draw(0)[1] == 0).mean()) for scene in scenes]
    return 100 * sum(shares) / len(shares) / (1 + num_names)


def mean_iou(counts: Tensor) -> float:
    """Of a table (truth, answer) of pixels, in percent."""
    hits = counts.diag()
    union = counts.sum(dim=0) + counts.sum(dim=1) - hits
    return float(100 * (hits / union.clamp(min=1)).mean())


if __name__ == "__main__":
    main()

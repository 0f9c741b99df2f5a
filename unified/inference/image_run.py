"""One image of ``tools/infer_image.py``: the question, and what the overlay calls the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unified.inference.classes import ClassPredictor
from unified.inference.image_io import read_image
from unified.inference.image_predictor import ImagePredictor
from unified.inference.inputs import Picture
from unified.inference.places import place_name
from unified.structures import Instance, Prompt


def ask_image(
    predictor: ImagePredictor | ClassPredictor, prompts: Sequence[Prompt], picture: Picture
) -> tuple[np.ndarray, list[Instance]]:
    """An image and what the prompts mean in it, or all its objects if there are none."""
    image = read_image(picture.path)
    predictor.set_image(image)
    if isinstance(predictor, ClassPredictor):
        answers = [predictor.predict(prompt) for prompt in prompts]
        return image, [Instance(mask, score, None, 0) for mask, score in answers]
    if not prompts:
        return image, predictor.detect()
    return image, [predictor.instance(prompt) for prompt in prompts]


def captions(
    objects: Sequence[Mapping[str, Any]], found: Sequence[Instance], *, few: bool = False
) -> dict[int, str]:
    """Object id -> what the overlay calls it.

    Args:
        objects: what ``image_prompts`` says about them; none where all objects were asked for.
        found: the answers, in the order of the ids.
        few: leave out what is not there, as of many classes few are.
    """
    if not objects:
        one = len({instance.category for instance in found}) == 1  # or the model has no classes
        return {
            i: "object" if one else f"category {x.category + 1}"
            for i, x in enumerate(found, start=1)
        }
    names = {}
    for entry, instance in zip(objects, found, strict=True):
        if instance.mask.any() or not few:
            shown = "like the examples" if entry["supports"] else ""
            names[entry["id"]] = entry["text"] or shown or place_name(entry)
    return names

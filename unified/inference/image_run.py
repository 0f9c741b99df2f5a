"""The images of ``tools/infer_image.py``: the question, and what the overlay calls the answers."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from unified.errors import InputError
from unified.inference import cli, places
from unified.inference.batch import Batch
from unified.inference.classes import ClassPredictor, class_names
from unified.inference.detections import uncovered
from unified.inference.image_io import read_image
from unified.inference.image_predictor import ImagePredictor
from unified.inference.inputs import Picture
from unified.inference.output import ImageWriter
from unified.structures import Instance, Prompt


@dataclass(frozen=True)
class Question:
    """What a run asks about every image.

    Attributes:
        prompts: of the objects 1, 2, ...; none asks for all objects.
        objects: what results.json says about each.
        names: of classes, where every pixel gets one of them.
    """

    prompts: Sequence[Prompt]
    objects: Sequence[Mapping[str, Any]]
    names: Sequence[str] | None = None


def read_question(options: argparse.Namespace) -> Question:
    """What the arguments ask.

    Raises:
        InputError: nothing, or something that cannot be used.
    """
    if options.detect:
        return Question([], [])
    names = None if options.classes is None else class_names(options.classes)
    if names and options.threshold is not None:
        raise InputError(
            "--threshold is about objects: leave it out with --classes. Below which probability a "
            "pixel is of no class is in the configuration of the model"
        )
    place = places.place_prompt(options.point, options.box)
    return Question(*cli.image_prompts(names or options.text, options.support, place), names)


def segment_pictures(
    pictures: Iterable[Picture],
    predictor: ImagePredictor | ClassPredictor,
    question: Question,
    writer: ImageWriter,
    batch: Batch,
    *,
    separate: bool,
) -> None:
    """Asks about one image after the other; ``batch`` notes which failed, and why.

    Args:
        separate: as for ``write_image_result``.
    """
    texts = {entry["id"]: entry["text"] for entry in question.objects}
    for picture in pictures:
        name = str(picture.path)
        if writer.has(picture):
            batch.earlier += 1
            continue
        answer = batch.attempt(name, partial(ask_image, predictor, question.prompts, picture))
        if answer is None:
            writer.fail(picture, batch.failed[name])
            continue
        image, found = answer
        shown = found if question.prompts or separate else uncovered(found)
        named = captions(question.objects, shown, few=question.names is not None)
        batch.show(name, writer.write(picture, image, shown, named, texts, detected=found))


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
            names[entry["id"]] = entry["text"] or shown or places.place_name(entry)
    return names

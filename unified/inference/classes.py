"""Names the pixels of an image with any model that compares them with texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from unified.errors import InputError
from unified.inference.checks import check_image
from unified.inference.frames import autocast, resize_image, warn_of_half_precision
from unified.inference.prepared import Preparation, is_compiled
from unified.inference.settings import ImageSettings, inference_settings
from unified.label_maps import MAX_OBJECT_ID
from unified.segmenter import PixelClassifier
from unified.structures import Prompt, resized_size


def class_names(argument: str) -> list[str]:
    """Names written as ``"cat, sofa, person"``.

    Raises:
        InputError: there is none, one is empty or given twice, or they are too many for a label
            map.
    """
    names = [" ".join(name.split()) for name in argument.split(",")]
    if not all(names):
        raise InputError(
            f"class names {argument!r}: expected one or more names with commas between them, such "
            'as "cat, sofa, person"'
        )
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise InputError(f"class names {argument!r}: {double!r} stands there twice")
    if len(names) > MAX_OBJECT_ID:
        raise InputError(
            f"{len(names)} class names are too many: a label map holds {MAX_OBJECT_ID}"
        )
    return names


class ClassPredictor:
    """Which of some classes each pixel of an image is; asked like an ``ImagePredictor``.

    Args:
        model: in eval mode.
        names: of the classes; they get the labels 1, 2, ...
        settings: sizes and precision; those that the model carries by default.
        changes: fields of ``ImageSettings`` that replace those.

    Raises:
        InputError: the model does not compare pixels with texts.
    """

    def __init__(
        self,
        model: object,
        names: Sequence[str],
        settings: ImageSettings | None = None,
        **changes: Any,
    ) -> None:
        if not isinstance(model, PixelClassifier):
            raise InputError(
                "this model cannot name pixels, it segments what one sentence says: use --text, or "
                "a model that compares pixels with class names"
            )
        self.settings = replace(settings or inference_settings(model).image, **changes)
        warn_of_half_precision(self.settings.precision)
        self._preparation = Preparation(
            model, self.settings.precision, compile=self.settings.compile
        )
        self.compiled = is_compiled(self._preparation.ready)
        self._names = tuple(names)
        self._embed()
        self._labels, self._best = torch.empty(0), torch.empty(0)

    def _embed(self) -> None:
        self._model: PixelClassifier = self._preparation.ready
        with torch.inference_mode():
            self._classes = self._model.embed_classes(self._names)

    def set_image(self, image: np.ndarray) -> None:
        """Finds the class of every pixel of (H, W, 3) uint8 RGB."""
        check_image(image)
        if self._preparation.follow():
            self._embed()
        size = (image.shape[0], image.shape[1])
        small = resize_image(
            image, resized_size(size, self.settings.short_side, self.settings.max_size)
        )
        pixels = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))
        with torch.inference_mode():
            batch = self._model.preprocess([pixels])
            with autocast(batch.tensor.device, self.settings.precision):
                scores = self._model.classify_pixels(batch.tensor, self._classes).float()
            height, width = batch.image_sizes[0]
            scores = F.interpolate(
                scores[..., :height, :width], size=size, mode="bilinear", align_corners=False
            )[0]
        self._best, labels = scores.max(dim=0)
        self._labels = labels + 1 - (len(scores) - len(self._classes))

    def label_map(self) -> np.ndarray:
        """(H, W) uint8: number of the class of each pixel from 1 on, 0 where it is of none."""
        return self._labels.to(torch.uint8).cpu().numpy()

    def predict(self, prompt: Prompt) -> tuple[np.ndarray, float]:
        """The pixels (H, W) bool of the class that ``prompt.text`` names, and their mean score.

        A class without a pixel has the score 0.

        Raises:
            InputError: no image is set, or the text is none of the classes.
        """
        if not len(self._labels):
            raise InputError("no image to segment: call set_image first")
        if prompt.text not in self._names:
            raise InputError(f"{prompt.text!r} is none of the classes {', '.join(self._names)}")
        mask = self._labels == self._names.index(prompt.text) + 1
        score = float(self._best[mask].mean()) if bool(mask.any()) else 0.0
        return mask.cpu().numpy(), score

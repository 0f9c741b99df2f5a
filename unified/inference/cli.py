"""What the inference tools share: arguments, prompts for images, and the head of results.json."""

from __future__ import annotations

import argparse
import logging
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import unified
from unified.commands import add_max_pixels
from unified.errors import InputError
from unified.inference.checks import check_prompt
from unified.inference.image_io import image_size, read_image
from unified.inference.places import describe_place
from unified.inference.settings import PRECISIONS, ModelInput, asked_as
from unified.mask_files import read_label_map
from unified.masks import MASK_THRESHOLD
from unified.structures import Prompt, Support

logger = logging.getLogger(__name__)

MIN_SIDE = 32
COMPILING = "compiling, the first ones take longer"  # said by progress lines
IMAGES_TO_COMPILE, FRAMES_TO_COMPILE = 1, 2  # the first, and the first one that uses memory


def add_input_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds what is read, where the results go, and whether a run is resumed."""
    parser.add_argument("--input", required=True, nargs="+", action="extend", help=what)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to fill")
    parser.add_argument(
        "--resume", action="store_true", help="skip what results.json in the folder lists as done"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds which model runs, where, and at what size."""
    add_max_pixels(parser)
    group = parser.add_argument_group("model")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--model",
        metavar="NAME",
        help="default: the small one; an unknown name lists all; or a folder of tools/export.py",
    )
    which.add_argument("--config-file", metavar="YAML", help="a configuration instead of a name")
    group.add_argument("--weights", metavar="FILE", help="checkpoint, ours or the official layout")
    group.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="override config keys"
    )
    _add_ways(group)


def _add_ways(group: argparse._ArgumentGroup) -> None:
    """Adds how the model runs."""
    group.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, ...")
    group.add_argument(
        "--max-size",
        type=_model_side,
        metavar="PIXELS",
        help="longest side the model sees, for speed; masks keep the size of the input",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="half precision is faster where the processor has it, and masks are near those of "
        "float32, not the same (docs/runs.md#half-precision in the source tree)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the model first, for many images, and for long clips on a GPU: needs a C++ "
        "compiler, and the first frames of a size take a minute; clips on a processor are slower",
    )
    group.add_argument(
        "--threshold",
        type=_share,
        metavar="SCORE",
        help="an object with a lower score, from 0 to 1, is not there; default: the model's own",
    )
    group.add_argument(
        "--threads",
        type=_positive,
        metavar="NUM",
        help="of the processor; default: as many as this process may use",
    )


def warn_of_compiled_clips(model: Any) -> None:
    """Says where a clip takes longer with ``--compile`` than without, as docs/speed.md measures."""
    if next(model.parameters()).device.type == "cpu" and torch.get_num_threads() > 1:
        logger.warning(
            "--compile makes clips slower on a processor with several threads: what is compiled "
            "does one thing after the other, not objects and frames side by side. Leave it out"
        )


def until_compiled(progress: Any, num: int) -> Iterator[Any]:
    """The items of a progress bar, which says that the model is compiled until ``num`` are done."""
    progress.set_postfix_str(COMPILING)
    for done, item in enumerate(progress, start=1):
        yield item
        if done == num:
            progress.set_postfix_str("")


def _model_side(text: str) -> int:
    if not text.isdecimal() or int(text) < MIN_SIDE:
        raise argparse.ArgumentTypeError(f"expected a number of at least {MIN_SIDE}, got {text}")
    return int(text)


def _share(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return int(text)


def load_model(options: argparse.Namespace, prompts: Iterable[Prompt] = ()) -> Any:
    """The model that the arguments name.

    Args:
        prompts: it is going to be asked.

    Raises:
        InputError: it does not follow them; no weights were read.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    name = options.config_file or options.model
    named = {} if name is None else {"name_or_config": name}
    model: Any = unified.load(
        **named,
        weights=options.weights,
        device=options.device,
        options=options.opts,
        kinds=sorted({kind for prompt in prompts for kind in _kinds(prompt)}),
    )
    if model.info.weights is None and "MODEL.WEIGHTS" not in options.opts:
        raise InputError(
            f"the model {model.info.name} has no trained weights yet: give --weights FILE, or "
            "--opts MODEL.WEIGHTS '' to see what untrained ones answer, which is random"
        )
    return model


def _kinds(prompt: Prompt) -> Iterator[str]:
    """What a model must follow to be asked this."""
    if prompt.text is not None:
        yield "text"
    if prompt.mask is not None or prompt.supports:
        yield "mask"
    if prompt.points:
        yield "point"
    if prompt.box is not None:
        yield "box"


def chosen_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the arguments change in how the model is asked."""
    given = {
        "max_size": options.max_size,
        "precision": options.precision,
        "compile": options.compile or None,
        "score_threshold": options.threshold,
    }
    return {name: value for name, value in given.items() if value is not None}


def describe_run(model: Any, settings: ModelInput) -> dict[str, Any]:
    """Model, weights, how it is asked, and versions, for results.json."""
    info = model.info
    return {
        "inference": asked_as(model, settings),
        "thresholds": {"mask": MASK_THRESHOLD, "score": settings.score_threshold},
        "model": info.name,
        "config": info.config,
        "weights": {"file": info.weights, "sha256": info.sha256},
        **({"exported": model.exported} if hasattr(model, "exported") else {}),
        "device": str(next(model.parameters()).device),
        "versions": {
            "unified": unified.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def check_places(prompts: Iterable[Prompt], paths: Sequence[Path]) -> None:
    """Raises InputError if points or a box do not lie on one of the images, from their headers."""
    placed = [prompt for prompt in prompts if prompt.points or prompt.box]
    for path in paths if placed else ():
        try:
            size = image_size(path)
        except InputError:  # told when its turn comes
            continue
        for prompt in placed:
            try:
                check_prompt(prompt, size)
            except InputError as error:
                raise InputError(f"image {path}: {error}") from None


def check_texts(texts: Sequence[str]) -> None:
    """Raises InputError for a sentence without a word."""
    for text in texts:
        if not re.search(r"\w", text):
            raise InputError(f"text {text!r} has no words: describe the object, such as 'the dog'")


def image_prompts(
    texts: Sequence[str], support_sets: Sequence[Sequence[str]], place: Prompt | None = None
) -> tuple[list[Prompt], list[dict[str, Any]]]:
    """One prompt per sentence or support set, and what results.json says about each.

    Args:
        place: points and box of the one object there is, alone or with its text or supports.

    Raises:
        InputError: there is none, or one cannot be used.
    """
    if place is not None:
        return _placed(texts, support_sets, place)
    if not texts and not support_sets:
        raise InputError("nothing to segment: give --text, --support, --point, --box or --detect")
    check_texts(texts)
    prompts = [Prompt(text=text) for text in texts] + [read_supports(s) for s in support_sets]
    objects: list[dict[str, Any]] = [
        *({"text": text, "supports": []} for text in texts),
        *({"text": None, "supports": list(pairs)} for pairs in support_sets),
    ]
    return prompts, [{"id": place, **entry} for place, entry in enumerate(objects, start=1)]


def _placed(
    texts: Sequence[str], support_sets: Sequence[Sequence[str]], place: Prompt
) -> tuple[list[Prompt], list[dict[str, Any]]]:
    if len(texts) + len(support_sets) > 1:
        raise InputError(
            "--point and --box show one object, and several texts or supports are given: ask for "
            "one at a time"
        )
    prompts: list[Prompt] = [Prompt()]
    objects: list[dict[str, Any]] = [{"id": 1, "text": None, "supports": []}]
    if texts or support_sets:
        prompts, objects = image_prompts(texts, support_sets)
    prompt = replace(prompts[0], points=place.points, box=place.box)
    return [prompt], [{**objects[0], **describe_place(prompt)}]


def read_supports(pairs: Sequence[str]) -> Prompt:
    """The prompt of one support set, each pair given as ``image.jpg:mask.png``.

    Every pixel of the mask above 0 is the object.
    """
    supports = []
    for pair in pairs:
        image_path, colon, mask_path = pair.rpartition(":")
        if not (colon and image_path and mask_path):
            raise InputError(f"support {pair!r} is not of the form image.jpg:mask.png")
        image = read_image(image_path)
        mask = read_label_map(mask_path, size=image.shape[:2]) > 0
        supports.append(Support(image=image, mask=mask))
    return Prompt(supports=tuple(supports))

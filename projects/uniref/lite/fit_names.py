"""Training of the name head, on features that are computed once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from projects.uniref.lite.model import NamedUniRef
from projects.uniref.lite.phrases import opening_phrase
from unified.data.augmentation import Augmentation
from unified.data.catalog import load_records
from unified.data.formats.records import ImageRecord
from unified.data.samples import add_class_names, make_sample, read_view
from unified.errors import ConfigError, InputError
from unified.structures import stack_padded

logger = logging.getLogger(__name__)

EPOCHS, BATCH, RATE, DECAY, SMOOTHING = 15, 256, 1e-3, 0.05, 0.1
MAX_WORDINGS = 40  # per name
PLAIN_CHANCE = 0.6  # of a name as it is instead of one of its other wordings


@dataclass(frozen=True)
class Objects:
    """M objects: mean features (M, F) within their masks, and their names."""

    features: Tensor
    names: tuple[str, ...]


def named_records(sets: Sequence[str]) -> list[list[ImageRecord]]:
    """The records of each set; every object has a name.

    Raises:
        InputError: a set is of clips, or an object has no name.
    """
    found = []
    for name in sets:
        records = load_records(name)
        if any("annotations" not in record for record in records):
            raise InputError(f"{name} holds clips: expected a set of images with named objects")
        if not all(entry.get("category_name") for r in records for entry in r["annotations"]):
            raise InputError(
                f"objects of {name} have no names: expected a detection set, or own data with "
                "categories"
            )
        found.append(cast(list[ImageRecord], records))
    return found


def wordings(
    named: Sequence[Sequence[ImageRecord]], referring: Sequence[str], *, expected: int
) -> dict[str, list[str]]:
    """Each name, sorted, with the opening phrases of sentences about a thing of that name.

    A phrase such as "the animal" may belong to several names. Of each name the first
    ``MAX_WORDINGS`` phrases count.

    Args:
        named: from ``named_records``.
        referring: sets of images with sentences about named objects.
        expected: how many names there are.

    Raises:
        ConfigError: there are more or fewer.
        InputError: a set of ``referring`` has no sentences, or no names.
    """
    names = {e["category_name"] for records in named for r in records for e in r["annotations"]}
    if len(names) != expected:
        raise ConfigError(
            f"MODEL.UNIREF.LITE.NAMES.NUM is {expected}, but the objects have {len(names)} names: "
            f"set it to {len(names)}, also where the weights are used"
        )
    found: dict[str, list[str]] = {name: [name] for name in sorted(names)}
    for name, records in zip(referring, named_records(referring), strict=True):
        if not any("expressions" in record for record in records):
            raise InputError(f"{name} has no sentences: give a set for referring segmentation")
        for record in records:
            own = {entry["category_name"] for entry in record["annotations"]}
            if len(own) != 1 or (called := own.pop()) not in found:
                continue
            phrases = found[called]
            for sentence in record.get("expressions", []):
                phrase = opening_phrase(sentence)
                if phrase not in phrases and len(phrases) <= MAX_WORDINGS:
                    phrases.append(phrase)
    return found


def describe_objects(
    model: NamedUniRef,
    named: Sequence[Sequence[ImageRecord]],
    augmentation: Augmentation,
    count: int,
    seed: int,
) -> Objects:
    """Objects of ``count`` pictures, drawn from each set equally often and augmented.

    Args:
        model: in eval mode.
        named: from ``named_records``.

    Raises:
        InputError: no picture shows an object.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for number in tqdm(range(count), desc="pictures", disable=None):
        records = named[number % len(named)]
        record = records[int(rng.integers(len(records)))]
        drawn.append(_describe(model, record, augmentation, rng))
    return _joined(drawn)


def describe_all(
    model: NamedUniRef, records: Sequence[ImageRecord], augmentation: Augmentation
) -> Objects:
    """Objects of all pictures, with the only size of ``augmentation``.

    Raises:
        InputError: no picture shows an object.
    """
    rng = np.random.default_rng(0)
    return _joined([_describe(model, r, augmentation, rng) for r in tqdm(records, disable=None)])


def _joined(parts: Sequence[Objects]) -> Objects:
    names = tuple(name for part in parts for name in part.names)
    if not names:
        raise InputError("no picture shows an object: expected sets with masks of things")
    return Objects(torch.cat([part.features for part in parts]), names)


@torch.inference_mode()
def _describe(
    model: NamedUniRef, record: ImageRecord, augmentation: Augmentation, rng: np.random.Generator
) -> Objects:
    head = model.name_head
    view, classes = read_view(record)
    view = augmentation.apply(view, augmentation.draw(rng), rng)
    sample = add_class_names(make_sample(view, classes), record)
    images = model.preprocess([sample["image"]])
    masks = sample["instances"].gt_masks.tensor.float().to(images.tensor.device)
    described = head.describe(
        head.features(images.tensor),
        stack_padded([masks], images.padded_size),
        images.padding_mask,
    )
    return Objects(described[0].cpu(), tuple(sample["class_names"]))


def fit(
    model: NamedUniRef, objects: Objects, phrases: Mapping[str, Sequence[str]], seed: int
) -> float:
    """Trains the name head; returns the last epoch's mean loss. Nothing else of the model changes.

    Args:
        model: in eval mode.
        objects: what to learn from.
        phrases: from ``wordings``; as many names as the head has places for.
    """
    head, names = model.name_head, list(phrases)
    assert not model.training and len(names) == len(head.names)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        plain = model.encode_phrases(names)
        head.centre.copy_(F.normalize(plain, dim=-1).mean(dim=0))
        head.names.copy_(head.directions(plain))
        directions = [head.directions(model.encode_phrases(phrases[name])) for name in names]
        features = objects.features.to(head.centre.device)
        assert head.norm.running_mean is not None and head.norm.running_var is not None
        head.norm.running_mean.copy_(features.mean(dim=0))
        head.norm.running_var.copy_(features.var(dim=0, correction=0))
    place = {name: index for index, name in enumerate(names)}
    labels = torch.tensor([place[name] for name in objects.names], device=features.device)
    for layer in (module for module in head.embed if isinstance(module, nn.Linear)):
        layer.reset_parameters()
    head.embed.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(head.embed.parameters(), RATE, weight_decay=DECAY)
    mean = 0.0
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - epoch / EPOCHS)
        total = 0.0
        for batch in torch.randperm(len(labels)).split(BATCH):
            phrase = torch.stack([_one(options, rng) for options in directions])
            logits = head.vectors(features[batch]) @ phrase.t()
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        mean = total / len(labels)
        logger.info("epoch %d of %d: loss %.3f", epoch + 1, EPOCHS, mean)
    head.embed.requires_grad_(False).eval()
    return mean


def _one(options: Tensor, rng: np.random.Generator) -> Tensor:
    """The direction of a name or of one of its other wordings, (D,)."""
    if len(options) == 1 or rng.random() < PLAIN_CHANCE:
        return options[0]
    return options[int(rng.integers(1, len(options)))]


def named_right(model: NamedUniRef, objects: Objects, names: Sequence[str]) -> tuple[float, int]:
    """Share of objects that are called by their name, of those whose name is known, and how many.

    Args:
        names: those that ``fit`` was given, in its order.

    Raises:
        InputError: no object has a known name.
    """
    head = model.name_head
    place = {name: index for index, name in enumerate(names)}
    rows = [row for row, name in enumerate(objects.names) if name in place]
    if not rows:
        raise InputError(f"none of {len(objects.names)} objects has a name that was learnt")
    with torch.inference_mode():
        found = head.vectors(objects.features[rows].to(head.centre.device)) @ head.names.t()
    wanted = torch.tensor([place[objects.names[row]] for row in rows], device=found.device)
    return float((found.argmax(dim=-1) == wanted).float().mean()), len(rows)

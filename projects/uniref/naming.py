"""Trains the head that compares names with masks, on features that are computed once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from projects.uniref.model import UniRef
from unified.data.augmentation import Augmentation
from unified.data.catalog import load_records
from unified.data.formats.records import ImageRecord
from unified.data.samples import add_class_names, make_sample, read_view
from unified.errors import ConfigError, InputError
from unified.expressions import clean_expression, opening_phrase
from unified.structures import padded_size, stack_padded

logger = logging.getLogger(__name__)

EPOCHS, BATCH, RATE, DECAY, SMOOTHING = 15, 256, 1e-3, 0.05, 0.1
MAX_WORDINGS = 40  # per name
PLAIN_CHANCE = 0.6  # of a name as it is instead of one of its other wordings


@dataclass(frozen=True)
class Objects:
    """M objects: mean features (M, F) within their masks, and their names."""

    features: Tensor
    names: tuple[str, ...]


def describe_objects(
    model: UniRef, sets: Sequence[str], augmentation: Augmentation, count: int, seed: int
) -> Objects:
    """Objects of ``count`` pictures, drawn from each set equally often and augmented.

    Raises:
        InputError: no picture shows an object.
    """
    records = [load_records(name) for name in sets]
    rng = np.random.default_rng(seed)
    features, names = [], []
    for number in tqdm(range(count), desc="pictures", disable=None):
        own = records[number % len(records)]
        found = _describe(model, own[int(rng.integers(len(own)))], augmentation, rng)
        features.append(found.features)
        names += found.names
    if not names:
        raise InputError(f"no picture of {', '.join(sets)} shows an object")
    return Objects(torch.cat(features), tuple(names))


def describe_all(model: UniRef, name: str, augmentation: Augmentation) -> Objects:
    """Objects of all pictures of a set, with the only size of ``augmentation``."""
    rng = np.random.default_rng(0)
    found = [
        _describe(model, record, augmentation, rng)
        for record in tqdm(load_records(name), desc=name, disable=None)
    ]
    return Objects(
        torch.cat([objects.features for objects in found]),
        tuple(name for objects in found for name in objects.names),
    )


@torch.inference_mode()
def _describe(
    model: UniRef, record: ImageRecord, augmentation: Augmentation, rng: np.random.Generator
) -> Objects:
    assert model.name_head is not None
    view, classes = read_view(record)
    view = augmentation.apply(view, augmentation.draw(rng), rng)
    sample = add_class_names(make_sample(view, classes), record)
    images = model.preprocess([sample["image"]])
    masks = sample["instances"].gt_masks.tensor
    if not len(masks):
        return Objects(torch.zeros(0, model.name_head.norm.num_features), ())
    size = padded_size(images.image_sizes, model.size_divisor)
    padding = images.padding_mask
    described = model.name_head.describe(
        model.name_head.features(images.tensor),
        stack_padded([masks.float().to(padding.device)], size),
        [padding[:, ::stride, ::stride] for stride in (8, 16, 32)],
    )
    return Objects(described[0].cpu(), tuple(sample["class_names"]))


def wordings(named: Sequence[str], told: Sequence[str], *, expected: int) -> dict[str, list[str]]:
    """Each name, sorted, with the opening words of sentences about things of that name.

    Args:
        named: sets whose objects have the names.
        told: sets with sentences.
        expected: how many names there are.

    Raises:
        ConfigError: there are more or fewer.
        InputError: an object has no name.
    """
    names = {
        entry.get("category_name", "")
        for name in named
        for record in load_records(name)
        for entry in record["annotations"]
        if not entry.get("iscrowd")
    }
    if "" in names:
        raise InputError(
            f"objects of {', '.join(named)} have no names: expected detection sets, or own data "
            "with categories"
        )
    if len(names) != expected:
        raise ConfigError(
            f"MODEL.UNIREF.NUM_NAMES is {expected}, but objects of {', '.join(named)} have "
            f"{len(names)} names: set it to {len(names)}"
        )
    found: dict[str, list[str]] = {name: [name] for name in sorted(names)}
    for record in (record for name in told for record in load_records(name)):
        own = {entry.get("category_name") for entry in record["annotations"]}
        if len(own) != 1 or (name := own.pop()) not in found:
            continue
        for sentence in record.get("expressions", []):
            phrase = opening_phrase(clean_expression(sentence))
            if phrase not in found[name] and len(found[name]) <= MAX_WORDINGS:
                found[name].append(phrase)
    return found


def fit(model: UniRef, objects: Objects, phrases: Mapping[str, Sequence[str]], seed: int) -> float:
    """Trains the name head; returns the last epoch's mean loss.

    Args:
        objects: what to learn from.
        phrases: from ``wordings``.
    """
    head = model.name_head
    assert head is not None
    names = list(phrases)
    device = head.centre.device
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        plain = encode(model, names)
        unit = F.normalize(plain, dim=-1)
        head.centre.copy_(unit.mean(dim=0))
        head.names.copy_(head.directions(plain))
        directions = [head.directions(encode(model, phrases[name])) for name in names]
        features = objects.features.to(device)
        assert head.norm.running_mean is not None and head.norm.running_var is not None
        head.norm.running_mean.copy_(features.mean(dim=0))
        head.norm.running_var.copy_(features.var(dim=0))
    place = {name: index for index, name in enumerate(names)}
    labels = torch.tensor([place[name] for name in objects.names], device=device)
    for layer in (m for m in head.embed if isinstance(m, nn.Linear)):
        layer.reset_parameters()
    head.embed.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(head.embed.parameters(), RATE, weight_decay=DECAY)
    loss = torch.zeros(())
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - epoch / EPOCHS)
        total = 0.0
        for batch in torch.randperm(len(labels)).split(BATCH):
            spoken = torch.stack([_one(options, rng) for options in directions])
            logits = head.vectors(features[batch]) @ spoken.t()
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        logger.info("epoch %d of %d: loss %.3f", epoch + 1, EPOCHS, total / len(labels))
    head.embed.requires_grad_(False).eval()
    return total / len(labels)


def _one(options: Tensor, rng: np.random.Generator) -> Tensor:
    """The direction of a name or of one of its other wordings, (D,)."""
    if len(options) == 1 or rng.random() < PLAIN_CHANCE:
        return options[0]
    return options[int(rng.integers(1, len(options)))]


def encode(model: UniRef, texts: Sequence[str]) -> Tensor:
    """What each text is about, (N, D)."""
    found = model.encode_phrases(texts)
    assert found is not None
    return found


def named_right(model: UniRef, objects: Objects) -> tuple[float, int]:
    """Share of objects that are called by their name, of those whose name the head knows; M."""
    head = model.name_head
    assert head is not None
    known = sorted(set(objects.names))
    with torch.inference_mode():
        nearest = (head.directions(encode(model, known)) @ head.names.t()).max(dim=-1)
        place = {
            name: int(index)
            for name, index, cosine in zip(known, nearest.indices, nearest.values, strict=True)
            if cosine > 0.99
        }
        rows = [i for i, name in enumerate(objects.names) if name in place]
        found = head.vectors(objects.features[rows].to(head.centre.device)) @ head.names.t()
        right = [
            int(f) == place[objects.names[i]] for f, i in zip(found.argmax(-1), rows, strict=True)
        ]
    return float(np.mean(right)), len(right)

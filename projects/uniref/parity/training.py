"""Replays recorded training steps of the reference: losses, matches and gradients."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.uniref.checkpoint import uniref_keys
from projects.uniref.model import UniRef
from projects.uniref.parity.recorded import RECORDED_NOISE, load_recorded_weights
from unified.errors import InputError
from unified.label_maps import mask_box
from unified.modeling.box_ops import xyxy_to_cxcywh
from unified.modeling.boxinst import box_masks, color_similarity, warm_up
from unified.modeling.criterion import Criterion, base_name
from unified.modeling.detr_head import Queries
from unified.modeling.matcher import Match, PaddedTargets, match_hungarian, match_simota
from unified.parity import Arrays, Comparison, NoiseFloor, compare, read_arrays
from unified.structures import ImageBatch, References, Size, Target

# Layers counted before the recorded steps, where the recording does not say.
COUNTER_BEFORE = 4000
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-3
# A gradient below this share of the total norm is rounding, e.g. that of biases before a norm.
GRADIENT_FLOOR = 1e-4


def is_box_supervised(arrays: Arrays) -> bool:
    """True for a step of the detector that is pre-trained on boxes: 365 classes, no references."""
    return "out/loss/loss_prj" in arrays


def check_train_file(
    path: Path, model: UniRef, manifest: Mapping[str, list] | None = None
) -> list[Comparison]:
    """Replays one recorded training step and compares every recorded output.

    Losses may differ by 1e-5 of their value and gradient norms by 1e-3; matches are exact.

    Args:
        model: of the parts that the recording has; its weights are replaced.

    Raises:
        InputError: the file holds an output that the replay does not make.
    """
    arrays = read_arrays(path)
    load_recorded_weights(model, arrays, manifest)
    with as_recorded(model, arrays):
        ours = replay_step(model, arrays)
    noise = NoiseFloor.beside(path, RECORDED_NOISE)
    results = []
    for key, expected in arrays.items():
        if not key.startswith("out/"):
            continue
        name = key.removeprefix("out/")
        if name not in ours:
            raise InputError(f"{path.name}: no replay for the recorded array {name}")
        allowed = noise.allowed(path.stem, name, expected) if expected.dtype.kind == "f" else 0.0
        results.append(compare_output(name, expected, np.asarray(ours[name]), arrays, allowed))
    return results


def compare_output(
    name: str, expected: np.ndarray, actual: np.ndarray, arrays: Arrays, allowed: float
) -> Comparison:
    """Losses and gradients by shares of the recorded values, all else as it is.

    Args:
        arrays: of the recorded file, for the size of gradients that counts as rounding.
        allowed: for what is neither loss nor gradient.
    """
    if name.startswith(("loss/", "rawloss/", "total")):
        return _compare_shares(name, expected, actual, LOSS_TOLERANCE)
    if name.startswith("grad/"):
        floor = float(np.abs(expected).max())
        return _compare_shares(name, expected, actual, GRADIENT_TOLERANCE, floor)
    if name.startswith("gradnorm"):
        floor = GRADIENT_FLOOR * float(arrays["out/gradnorm_total"])
        # -1 stands for no gradient, which is as good as a zero one.
        expected, actual = np.clip(expected, 0, None), np.clip(actual, 0, None)
        return _compare_shares(name, expected, actual, GRADIENT_TOLERANCE, floor)
    return compare(name, expected, actual, allowed)


@contextmanager
def as_recorded(model: UniRef, arrays: Arrays) -> Iterator[None]:
    """Train mode without dropout, with the losses and the frozen parts of the recording."""
    official = _official_parameters(model)
    text = [
        (official[key], bool(norm >= 0))
        for key, norm in zip(_gradient_keys(arrays), arrays["out/gradnorm"], strict=True)
        if key.startswith("text_encoder.") and ".pooler." not in key
    ]
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    rates = [module.p for module in dropouts]
    trained = [parameter.requires_grad for parameter, _ in text]
    criterion, training = model.criterion, model.training
    for module in dropouts:
        module.p = 0.0
    for parameter, is_trained in text:
        parameter.requires_grad_(is_trained)
    model.criterion = Criterion(mask_aux="out/loss/loss_mask_cls" in arrays)
    model.train()
    try:
        yield
    finally:
        for module, rate in zip(dropouts, rates, strict=True):
            module.p = rate
        for (parameter, _), was_trained in zip(text, trained, strict=True):
            parameter.requires_grad_(was_trained)
        model.criterion = criterion
        model.train(training)


def replay_step(model: UniRef, arrays: Arrays) -> dict[str, np.ndarray]:
    """Our value for every recorded output of a training step."""
    batch = model.preprocess(_tensors(arrays, "image"))
    features = model.encode_image(batch)
    references = _references(model, arrays)
    targets = _targets(arrays, batch)
    full = "in/ref_image0" in arrays and "in/input_ids" not in arrays
    with catch_queries(model) as caught:
        losses = model.losses(features, references, targets, mask_stride=1 if full else 4)
    num_counted = sum(name.startswith("loss_pairwise") for name in losses)
    stated = re.search(r"criterion\._iter = (\d+) before", str(arrays.get("meta", "")))
    counter = int(stated[1]) if stated else COUNTER_BEFORE
    losses = warm_up(losses, counter)
    total = torch.stack(list(losses.values())).sum()
    model.zero_grad()
    total.backward()

    ours: dict[str, Tensor | np.ndarray] = {
        "total": total,
    }
    ours["after/criterion._iter"] = np.array([counter + num_counted], np.float32)
    for name, value in losses.items():
        ours[f"loss/{name}"] = value
        ours[f"rawloss/{name}"] = value / model.criterion.weights[base_name(name)]
    for image, target in enumerate(targets):
        assert target.masks is not None
        ours[f"tgt_boxes_b{image}"] = target.boxes
        ours[f"tgt_masks_shape_b{image}"] = np.array(target.masks.shape)
        if target.color_similarity is not None:
            ours[f"color_sim_b{image}"] = target.color_similarity
    ours |= _matches(model, caught[0], targets)
    ours |= _gradients(model, arrays)
    official = uniref_keys(model.backbone.name).to_foreign(model.state_dict())
    ours |= {f"after/{key}": tensor for key, tensor in official.items()}
    return {
        name: value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        for name, value in ours.items()
    }


def _references(model: UniRef, arrays: Arrays) -> list[References]:
    """The sentence and the one reference frame or support of each image."""
    references: list[References] = []
    if "in/input_ids" in arrays:
        assert model.text_encoder is not None
        ids, mask = (torch.from_numpy(arrays[f"in/{n}"]) for n in ("input_ids", "attention_mask"))
        references.append(model.text_reference(model.text_encoder.encode_ids(ids, mask)))
    for images, masks in (("ref_image", "ref_masks"), ("support", "support_masks")):
        if f"in/{images}0" in arrays:
            batch = model.preprocess(_tensors(arrays, images))
            marked = [_padded(mask, batch.padded_size) for mask in _tensors(arrays, masks)]
            features = model.encode_image(batch)
            references.append(model.encode_mask(batch, features, torch.cat(marked)))
    return references


def _tensors(arrays: Arrays, name: str) -> list[Tensor]:
    """in/name0, in/name1: one per image of the batch."""
    return [torch.from_numpy(arrays[f"in/{name}{image}"]) for image in range(2)]


def _padded(masks: Tensor, size: Size) -> Tensor:
    """(M, h, w) -> (M, H, W)."""
    return F.pad(masks, (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))


def _targets(arrays: Arrays, batch: ImageBatch) -> list[Target]:
    make = _boxed_target if is_box_supervised(arrays) else _masked_target
    return [
        make(arrays, image, size, batch.padded_size) for image, size in enumerate(batch.image_sizes)
    ]


def _masked_target(arrays: Arrays, image: int, size: Size, padded_size: Size) -> Target:
    masks = arrays[f"in/masks{image}"]
    boxes = torch.tensor([mask_box(mask) for mask in masks])
    return Target(
        labels=torch.zeros(len(masks), dtype=torch.int64),
        boxes=_normalised(boxes, size),
        masks=_padded(torch.from_numpy(masks), padded_size),
    )


def _boxed_target(arrays: Arrays, image: int, size: Size, padded_size: Size) -> Target:
    boxes = torch.from_numpy(arrays[f"in/boxes{image}"])
    pixels = _padded(torch.from_numpy(arrays[f"in/image{image}"]), padded_size)
    height = int(arrays["in/height"][image])
    return Target(
        labels=torch.from_numpy(arrays["in/labels"][image]),
        boxes=_normalised(boxes, size),
        masks=box_masks(boxes, padded_size),
        color_similarity=color_similarity(pixels[None], [size], [height])[0],
    )


def _normalised(corners: Tensor, size: Size) -> Tensor:
    height, width = size
    return xyxy_to_cxcywh(corners) / torch.tensor([width, height, width, height])


@contextmanager
def catch_queries(model: UniRef) -> Iterator[list[Queries]]:
    """Collects what the head returns."""
    caught: list[Queries] = []
    hook = model.head.register_forward_hook(lambda _, __, queries: caught.append(queries))
    try:
        yield caught
    finally:
        hook.remove()


@torch.no_grad()
def _matches(model: UniRef, queries: Queries, targets: Sequence[Target]) -> dict[str, Tensor]:
    """Matched pairs of every layer and of the proposals, and what the last layer predicts."""
    last = model.head.num_layers - 1
    ours = {
        "pred_logits": model.head.logits(queries, last),
        "pred_boxes": model.head.boxes(queries, last),
    }
    padded = PaddedTargets.from_targets(targets)
    for layer in range(model.head.num_layers):
        logits, boxes = model.head.logits(queries, layer), model.head.boxes(queries, layer)
        ours |= _pairs(f"match_l{layer}", match_simota(logits, boxes, padded), len(targets))
    boxes = model.head.proposal_boxes(queries.proposals)
    match = match_hungarian(queries.proposals.logits, boxes, padded.without_labels())
    return ours | _pairs("match_enc", match, len(targets))


def _pairs(name: str, match: Match, num_images: int) -> dict[str, Tensor]:
    """(2, K) of each image."""
    pairs = torch.stack([match.queries, match.targets])
    return {f"{name}_b{image}": pairs[:, match.images == image] for image in range(num_images)}


def _gradient_keys(arrays: Arrays) -> list[str]:
    return json.loads(str(arrays["gradkeys"]))


def _official_parameters(model: UniRef) -> dict[str, Tensor]:
    return uniref_keys(model.backbone.name).to_foreign(dict(model.named_parameters()))


def _gradients(model: UniRef, arrays: Arrays) -> dict[str, np.ndarray]:
    """Norms in the recorded order, -1 for none, their total, and the recorded slices."""
    parameters = _official_parameters(model)
    # In double: float32 sums over millions of entries lose the fifth digit.
    norms = np.array(
        [
            -1.0 if parameters[key].grad is None else float(parameters[key].grad.double().norm())
            for key in _gradient_keys(arrays)
        ]
    )
    ours = {"gradnorm": norms, "gradnorm_total": np.sqrt((norms.clip(min=0) ** 2).sum())}
    for name in arrays:
        if name.startswith("out/grad/"):
            gradient = parameters[name.removeprefix("out/grad/")].grad
            assert gradient is not None
            ours[name.removeprefix("out/")] = gradient.flatten(1)[::8, ::16].numpy()
    return ours


def _compare_shares(
    name: str, expected: np.ndarray, actual: np.ndarray, allowed: float, floor: float = 1e-30
) -> Comparison:
    """The largest difference, as a share of the recorded value or of ``floor``, the larger."""
    if expected.shape != actual.shape:
        raise InputError(f"{name}: recorded shape {expected.shape}, ours {actual.shape}")
    difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    return Comparison(
        name, float((difference / np.maximum(np.abs(expected), floor)).max()), allowed
    )

"""Replays of single parts and single calls of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from projects.uniref.model import UniRef
from unified.masks import binary_masks
from unified.modeling.box_ops import cxcywh_to_xyxy
from unified.modeling.deform_sum import sample_and_sum
from unified.modeling.detr_head import Queries
from unified.modeling.fusion import UniFusion
from unified.modeling.layers import sine_position
from unified.parity import Arrays
from unified.structures import (
    FeaturePyramid,
    ImageBatch,
    Reference,
    References,
    join_levels,
)


def _image(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


def _numbered(arrays: Arrays, name: str) -> list[np.ndarray]:
    """in/name0, in/name1, ... or in/name alone."""
    if f"in/{name}" in arrays:
        return [arrays[f"in/{name}"]]
    found: list[np.ndarray] = []
    while f"in/{name}{len(found)}" in arrays:
        found.append(arrays[f"in/{name}{len(found)}"])
    return found


def _padded_masks(masks: list[np.ndarray], images: ImageBatch) -> Tensor:
    padded = torch.zeros(len(masks), *images.padded_size, dtype=torch.bool)
    for index, mask in enumerate(masks):
        padded[index, : mask.shape[-2], : mask.shape[-1]] = torch.from_numpy(mask)
    return padded


def _mask_reference(
    model: UniRef, images: list[np.ndarray], masks: list[np.ndarray]
) -> tuple[Reference, ...]:
    batch = model.preprocess([_image(image) for image in images])
    return model.encode_mask(batch, model.encode_image(batch), _padded_masks(masks, batch))


def _references(model: UniRef, arrays: Arrays) -> list[References]:
    """All references that a recorded call holds."""
    references: list[References] = []
    if "in/input_ids" in arrays:
        assert model.text_encoder is not None
        ids, mask = (torch.from_numpy(arrays[f"in/{n}"]) for n in ("input_ids", "attention_mask"))
        references.append(model.text_reference(model.text_encoder.encode_ids(ids, mask)))
    frames = [
        _mask_reference(model, [arrays[f"in/{name}_image"]], [arrays[f"in/{name}_mask"]])
        for name in ("init", "prev")
        if f"in/{name}_image" in arrays
    ]
    supports = _numbered(arrays, "support")
    if supports:  # one batch: GroupNorm sees the padding
        batch = _mask_reference(model, supports, _numbered(arrays, "support_mask"))
        frames += [tuple(level[k : k + 1] for level in batch) for k in range(len(supports))]
    if frames:
        references.append(join_levels(frames))
    return references


def _all_masks(
    model: UniRef, queries: Queries, features: FeaturePyramid, *, mask_stride: int
) -> Tensor:
    """Mask logits (B, Q, h, w) of every query of the last layer, as the reference makes them."""
    assert features.high_res is not None
    shared = model.mask_head.features(queries.memory, features.high_res)
    num = queries.hidden[-1].shape[1]
    chunks = torch.arange(num).expand(len(features), -1).split(25, dim=1)
    return torch.cat(
        [
            model.decode_masks(
                queries,
                shared,
                features.image_sizes,
                model.head.num_layers - 1,
                index,
                mask_stride=mask_stride,
            )
            for index in chunks
        ],
        dim=1,
    )


def replay_call(model: UniRef, arrays: Arrays) -> dict[str, object]:
    """det, ground, fss, vos, rvos: one call of the network, all queries."""
    batch = model.preprocess([_image(image) for image in _numbered(arrays, "image")])
    features = model.encode_image(batch)
    fused = model.fuse(features, _references(model, arrays))
    queries = model.head(fused, features.padding_masks)
    full = "in/init_image" in arrays and "in/input_ids" not in arrays
    masks = _all_masks(model, queries, features, mask_stride=1 if full else 4)
    kept = arrays["out/pred_masks_sub"].shape[1]
    subset = masks[:, :: masks.shape[1] // kept, None]
    memory = torch.cat([level.flatten(2) for level in queries.memory], dim=2).transpose(1, 2)
    last = model.head.num_layers - 1
    return {
        "pred_logits": model.head.logits(queries, last),
        "pred_boxes": model.head.boxes(queries, last),
        "reference_points": queries.references[last][..., :2],
        "pred_masks_sub": subset[..., 1::4, 1::4] if full else subset,
        "pred_masks_mean": masks.mean(dim=(2, 3)),
        "pred_masks_std": masks.std(dim=(2, 3)),
        "hs_last_q10": queries.hidden[-1][:, ::10],
        "init_reference": queries.references[0],
        "inter_references": torch.stack(queries.references[1:]),
        "enc_class": queries.proposals.logits,
        "memory_sub": memory[:, ::8, ::4],
        "memory_mean": memory.mean(dim=(1, 2)),
        "memory_std": memory.std(dim=(1, 2)),
        **{f"fused_src{i}_sub": level[:, ::8, ::2, ::2] for i, level in enumerate(fused)},
        "topk_idx": queries.selected,
    }


def replay_msdeform(model: UniRef, arrays: Arrays) -> dict[str, object]:
    """One deformable attention module and its sampling core."""
    module = model.head.transformer.encoder.layers[0].self_attn
    tensors = {
        name.removeprefix("in/"): torch.from_numpy(a)
        for name, a in arrays.items()
        if name.startswith("in/")
    }
    shapes = [tuple(shape) for shape in arrays["in/shapes"].tolist()]
    query, tokens, padding = tensors["query"], tensors["input_flatten"], tensors["padding"]
    return {
        "ref2": module(query, tensors["ref2"], tokens, shapes, padding),
        "ref4": module(query, tensors["ref4"], tokens, shapes, padding),
        "ref2_nopad": module(query, tensors["ref2"], tokens, shapes),
        "core": sample_and_sum(
            tensors["core_value"], shapes, tensors["core_loc"], tensors["core_attn"]
        ),
    }


def replay_unifusion(model: UniRef, arrays: Arrays) -> dict[str, object]:
    """UniFusion alone on text, masks and both, in float32 and with bfloat16 attention."""
    fusion = model.fusion
    assert isinstance(fusion, UniFusion)
    tensors = {
        name.removeprefix("in/"): torch.from_numpy(a)
        for name, a in arrays.items()
        if name.startswith("in/")
    }
    words = Reference(tensors["text"], tensors["text"], tensors["text_pad"], tensors["text_emb"])
    backend, dtype = fusion.attention.backend, fusion.attention.dtype
    ours: dict[str, object] = {}
    for level in range(sum(name.startswith("src") for name in tensors)):
        source = tensors[f"src{level}"]
        masks = Reference(
            *(tensors[f"mask_{part}{level}"] for part in ("ref", "val", "pad", "emb"))
        )
        for name, references in {"text": [words], "mask": [masks], "both": [words, masks]}.items():
            tokens = source.flatten(2).transpose(1, 2)
            fused = fusion(tokens, references)
            ours[f"{name}_{level}"] = fused.transpose(1, 2).unflatten(2, source.shape[-2:])
            # The recording rounds where flash attention does, which the eager formula repeats.
            fusion.attention.backend, fusion.attention.dtype = "eager", torch.bfloat16
            fused = fusion(tokens, references)
            fusion.attention.backend, fusion.attention.dtype = backend, dtype
            ours[f"bf16_{name}_{level}"] = fused.transpose(1, 2).unflatten(2, source.shape[-2:])
    return ours


def replay_features(model: UniRef, arrays: Arrays) -> dict[str, object]:
    """Normalised input, backbone stages, projected levels and position codes."""
    batch = model.preprocess([_image(image) for image in _numbered(arrays, "image")])
    stages = model.backbone(batch.tensor)
    features = model.encode_image(batch)
    ours: dict[str, object] = {
        "norm_image_sub": batch.tensor[..., ::4, ::4],
        "pad_mask": batch.padding_mask,
    }
    for name, stage in stages.items():
        ours[f"{name}_sub"] = stage[:, ::16, ::2, ::2]
        mask = F.interpolate(batch.padding_mask[:, None].float(), size=stage.shape[-2:])
        ours[f"{name}_mask"] = mask[:, 0].bool()
    for index, (level, mask) in enumerate(
        zip(features.levels, features.padding_masks, strict=True)
    ):
        ours[f"proj{index}_sub"] = level[:, ::8]
        ours[f"proj{index}_std"] = level.std(dim=(1, 2, 3))
        ours[f"mask{index}"] = mask
        ours[f"pos{index}_sub"] = sine_position(mask, level.shape[1])[:, ::16]
    return ours


def replay_text(model: UniRef, arrays: Arrays) -> dict[str, object]:
    """Text encoder, projected words and sentence vector."""
    encoder = model.text_encoder
    assert encoder is not None
    ids, mask = (torch.from_numpy(arrays[f"in/{name}"]) for name in ("input_ids", "attention_mask"))
    features = encoder.encode_ids(ids, mask)
    pooled = encoder.bert.pooler(features.last_hidden)
    first, last = arrays["out/words"].shape[1], arrays["out/words_last"].shape[1]
    tokens = arrays["out/last_hidden_sub"].shape[1]
    padding = arrays["out/last_hidden_pad_sub"].shape[1]
    return {
        "last_hidden_sub": features.last_hidden[:, :tokens, ::4],
        "last_hidden_pad_sub": features.last_hidden[:, -padding:, ::16],
        "pooler_sub": pooled[:, ::4],
        "words": features.words[:, :first],
        "words_last": features.words[:, -last:],
        "pad": features.padding_mask,
        "sentence": features.sentence,
    }


def replay_maskenc(model: UniRef, arrays: Arrays) -> dict[str, object]:
    """Keys, values, padding and pooled vectors of the mask reference."""
    references = _mask_reference(model, _numbered(arrays, "image"), _numbered(arrays, "mask"))
    ours: dict[str, object] = {}
    for level, reference in enumerate(references):
        ours[f"ref{level}_sub"] = reference.keys[:, ::2, ::8]
        ours[f"value{level}_sub"] = reference.values[:, ::2, ::8]
        ours[f"value{level}_std"] = reference.values.std(dim=(1, 2))
        ours[f"pad{level}"] = reference.padding_mask
        ours[f"emb{level}"] = reference.summary
    return ours


def replay_post(model: UniRef, arrays: Arrays) -> dict[str, object]:
    """A whole call: suppression, top-k, masks at the original size."""
    batch = model.preprocess([_image(arrays["in/image"])])
    features = model.encode_image(batch)
    references = _references(model, arrays)
    with catch_predictions(model) as calls:
        found = model.segment(features, references, top_k=len(arrays["out/scores"]))
    height, width = (int(side) for side in arrays["in/orig_size"])
    corners = cxcywh_to_xyxy(found.boxes[0]) * torch.tensor([width, height, width, height])
    limits = torch.tensor([width, height, width, height])
    masks = binary_masks(
        found.mask_logits[0, : len(arrays["out/masks"])],
        stride=4,
        image_size=batch.image_sizes[0],
        original_size=(height, width),
    )
    return {
        "scores": found.scores[0],
        "boxes": torch.minimum(corners.clamp(min=0), limits),
        "classes": found.classes[0],
        "masks": masks.to(torch.uint8),
        **call_arrays(calls),
    }


@dataclass(frozen=True)
class Call:
    """What the head said about one image: logits (Q,) and boxes (Q, 4)."""

    logits: Tensor
    boxes: Tensor


@contextmanager
def catch_predictions(model: UniRef) -> Iterator[list[Call]]:
    """Collects one ``Call`` for every image that the head sees."""
    caught: list[Call] = []
    last = model.head.num_layers - 1

    def keep(_: object, __: object, queries: Queries) -> None:
        logits = model.head.logits(queries, last)
        caught.extend(
            Call(image[:, 0], boxes)
            for image, boxes in zip(logits, queries.references[-1], strict=True)
        )

    hook = model.head.register_forward_hook(keep)
    try:
        yield caught
    finally:
        hook.remove()


def call_arrays(calls: Sequence[Call]) -> dict[str, object]:
    logits = torch.stack([call.logits for call in calls])
    return {
        "call_logits": logits,
        "call_boxes": torch.stack([call.boxes for call in calls]),
        "call_top1": logits.argmax(dim=1),
        "call_score": logits.sigmoid().amax(dim=1),
    }

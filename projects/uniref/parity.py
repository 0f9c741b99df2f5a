"""Replays recorded runs of the reference implementation on weights made from key names.

A recorded file holds ``in/*`` and ``out/*`` arrays and one line ``meta``. Every kind of file has a
function here that returns our value for every ``out`` array; ``check_file`` compares them.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from projects.uniref.checkpoint import uniref_keys
from projects.uniref.model import UniRef
from unified.checkpoint import Weights, load_weights
from unified.errors import InputError
from unified.inference.predictor import VideoPredictor
from unified.masks import binary_masks, soft_aggregate
from unified.modeling.box_ops import cxcywh_to_xyxy
from unified.modeling.deform_attn import sample_and_sum
from unified.modeling.detr_head import Queries
from unified.modeling.fusion import UniFusion
from unified.modeling.layers import sine_position
from unified.parity import Comparison, NoiseFloor, compare
from unified.structures import (
    FeaturePyramid,
    ImageBatch,
    Prompt,
    Reference,
    References,
    join_levels,
)

Arrays = Mapping[str, np.ndarray]


def make_weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array that the recordings used for an official state-dict key."""
    name = key.replace("detr.detr.transformer.decoder.bbox_embed.", "detr.detr.bbox_embed.")
    name = name.replace("detr.detr.transformer.decoder.class_embed.", "detr.detr.class_embed.")
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if key.endswith("running_var"):
        return (0.5 + rng.random(shape)).astype(np.float32)
    x = rng.standard_normal(shape).astype(np.float32)
    if key.endswith("running_mean"):
        return (0.1 * x).astype(np.float32)
    if len(shape) <= 1:
        return ((1 + 0.1 * x) if key.endswith("weight") else 0.02 * x).astype(np.float32)
    if "embeddings" in key:
        return (0.02 * x).astype(np.float32)
    if key.endswith(("query_embed.weight", "level_embed")):
        return (0.5 * x).astype(np.float32)
    scale = np.float32(1.0 / math.sqrt(int(np.prod(shape[1:]))))
    if key.endswith("controller.layers.2.weight"):
        scale = scale * np.float32(0.2)
    return (x * scale).astype(np.float32)


def official_weights(model: UniRef, manifest: Mapping[str, list] | None = None) -> Weights:
    """Weights in the official layout, for the keys of a manifest or those that ``model`` needs.

    Args:
        manifest: {official key: [shape, dtype]}; entries that are not floating point stay as built.
    """
    built = uniref_keys(model.backbone.name).to_foreign(model.state_dict())
    if manifest is None:
        manifest = {
            key: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
            for key, tensor in built.items()
        }
    weights: Weights = {}
    for key, (shape, dtype) in manifest.items():
        if dtype.startswith("float") and not key.startswith("criterion."):
            weights[key] = torch.from_numpy(make_weight(key, tuple(shape)))
        else:
            weights[key] = built.get(key, torch.zeros(shape, dtype=getattr(torch, dtype)))
    return weights


def load_recorded_weights(
    model: UniRef, arrays: Arrays, manifest: Mapping[str, list] | None = None
) -> None:
    """Loads the weights that a recorded file was made with, through the official layout."""
    weights = official_weights(model, manifest)
    if "in/controller_last_bias" in arrays:
        weights["detr.controller.layers.2.bias"][-1] = float(arrays["in/controller_last_bias"])
    load_weights(model, weights, table=uniref_keys(model.backbone.name))


def kind_of(arrays: Arrays) -> str:
    """Which replay a recorded file needs.

    Raises:
        InputError: it is of no kind known here.
    """
    signatures = {
        "msdeform": "in/core_value",
        "unifusion": "in/src0",
        "features": "out/res2_sub",
        "text": "out/words",
        "maskenc": "out/ref0_sub",
        "train": "out/total",
        "video": "in/frames",
        "post": "in/orig_size",
        "call": "out/topk_idx",
    }
    for kind, name in signatures.items():
        if name in arrays:
            return kind
    raise InputError(
        f"expected a recorded file of one of the kinds {', '.join(signatures)}, got the arrays "
        f"{', '.join(sorted(arrays)[:6])}"
    )


def check_file(
    path: Path, model: UniRef, manifest: Mapping[str, list] | None = None
) -> list[Comparison]:
    """Replays one recorded file and compares every recorded output.

    Raises:
        InputError: the file is of another kind, or holds an output that the replay does not make.
    """
    arrays = read_arrays(path)
    load_recorded_weights(model, arrays, manifest)
    noise = NoiseFloor.beside(path)
    model.eval()
    with torch.no_grad():
        ours = REPLAYS[kind_of(arrays)](model, arrays)
    recorded = {
        name.removeprefix("out/"): value
        for name, value in arrays.items()
        if name.startswith("out/")
    }
    missing = sorted(set(recorded) - set(ours))
    if missing:
        raise InputError(f"{path.name}: no replay for the recorded arrays {', '.join(missing)}")
    swapped = near_tied_queries(recorded, ours, noise, path.stem)
    results = []
    for name, expected in recorded.items():
        actual = _array(ours[name])
        allowed = noise.allowed(path.stem, name, expected)
        result = compare(name, expected, actual, allowed)
        if not result.passed and name in QUERY_AXES and swapped.any():
            axis = QUERY_AXES[name]
            keep = _kept_queries(~swapped.any(axis=0), expected.shape[axis])
            expected, actual = (np.compress(keep, x, axis=axis) for x in (expected, actual))
            note = f"{int(swapped.sum())} near-tied queries left out"
            result = compare(name, expected, actual, allowed, note)
        if not result.passed and name in CALL_ARRAYS:
            keep = np.asarray(ours["near_tie"]) > NEAR_TIE
            note = (
                f"{int((~keep).sum())} of {len(keep)} calls have near-tied proposals: informative"
            )
            result = compare(name, expected[keep], actual[keep], allowed, note)
        results.append(result)
    return results


def _array(value: object) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a recorded file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as an .npz file of recorded arrays") from error


# Recorded arrays with one entry per query, and the axis of the queries.
QUERY_AXES = {
    "pred_logits": 1,
    "pred_boxes": 1,
    "reference_points": 1,
    "pred_masks_sub": 1,
    "pred_masks_mean": 1,
    "pred_masks_std": 1,
    "hs_last_q10": 1,
    "init_reference": 1,
    "inter_references": 2,
    "topk_idx": 1,
}


# Recorded arrays of calls inside a larger run. Those files hold no proposal logits, so a call whose
# own proposals lie closer than this is judged by the masks that came of it.
CALL_ARRAYS = ("call_logits", "call_boxes", "call_top1")
NEAR_TIE = 1e-5


def near_tied_queries(
    recorded: Arrays, ours: Mapping[str, object], noise: NoiseFloor, stem: str
) -> np.ndarray:
    """(B, Q) bool: ranks where another token was chosen whose proposal logit is the same up to
    rounding; which of two tied tokens comes first decides which learned query it gets."""
    if "topk_idx" not in recorded or "enc_class" not in recorded:
        return np.zeros((1, 1), bool)
    expected, actual = recorded["topk_idx"], _array(ours["topk_idx"])
    logits = recorded["enc_class"][..., 0]
    theirs, mine = (np.take_along_axis(logits, index, axis=1) for index in (expected, actual))
    tied = np.abs(theirs - mine) <= noise.allowed(stem, "enc_class", logits)
    return (expected != actual) & tied


def _kept_queries(keep: np.ndarray, length: int) -> np.ndarray:
    """``keep`` (Q,) at the queries that a sub-sampled axis of ``length`` holds."""
    return keep[:: len(keep) // length][:length]


def _image(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


def _numbered(arrays: Arrays, name: str) -> list[np.ndarray]:
    """in/name0, in/name1, ... or in/name alone."""
    if f"in/{name}" in arrays:
        return [arrays[f"in/{name}"]]
    found = []
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
    for image, mask in zip(
        _numbered(arrays, "support"), _numbered(arrays, "support_mask"), strict=True
    ):
        frames.append(_mask_reference(model, [image], [mask]))
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
        "enc_class": queries.proposal_logits,
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
        **_calls(calls),
    }


def replay_video(model: UniRef, arrays: Arrays) -> dict[str, object]:
    """A clip through the video loop, frame by frame."""
    frames = arrays["in/frames"].transpose(0, 2, 3, 1)
    if "in/input_ids" not in arrays:
        return _replay_masks(model, arrays, frames)
    if "out/label_maps" in arrays:
        return _replay_sentences(model, arrays, frames)
    return _replay_sentence_with_memory(model, arrays, frames)


def _predictor(model: UniRef, frames: np.ndarray, **options: object) -> VideoPredictor:
    """A predictor that takes the recorded frames as they are."""
    short_side = min(frames.shape[1:3])
    return VideoPredictor(model, short_side=short_side, keep_probabilities=True, **options)


def _replay_masks(model: UniRef, arrays: Arrays, frames: np.ndarray) -> dict[str, object]:
    """video_vos: objects given by masks, merged by soft aggregation."""
    predictor = _predictor(model, frames, score_threshold=0.4, mask_stride=1)
    prompts: dict[int, dict[int, Prompt]] = {}
    for name, mask in arrays.items():
        found = re.fullmatch(r"in/mask_obj(\d+)_frame(\d+)", name)
        if found:
            prompts.setdefault(int(found[2]), {})[int(found[1])] = Prompt(mask=mask)
    size = (arrays["out/label_maps"].shape[1], arrays["out/label_maps"].shape[2])
    ours: dict[str, object] = {}
    calls: list[Call] = []
    maps = []
    for index, frame in enumerate(frames):
        given = prompts.get(index, {})
        with catch_predictions(model) as caught:
            result = predictor.step(frame, given, output_size=size)
        # The reference also runs the network for objects whose mask is given, and drops the result.
        with catch_predictions(model) as dropped:
            for object_id in given:
                _segment_again(model, predictor, frame, object_id)
        calls += [*caught, *dropped]
        maps.append(result.label_map)
        soft = soft_aggregate(torch.from_numpy(np.stack(list(result.probabilities.values()))))
        soft = soft.permute(1, 2, 0)  # (H, W, background + objects)
        ours[f"soft{index}_sub"] = soft[::4, ::4]
        ours[f"soft{index}_mean"] = soft.mean(dim=(0, 1))
        ours[f"soft{index}_std"] = soft.std(dim=(0, 1))
    return {**ours, "label_maps": np.stack(maps), **_calls(calls)}


def _segment_again(
    model: UniRef, predictor: VideoPredictor, frame: np.ndarray, object_id: int
) -> None:
    features = predictor.encoder.image(frame).features
    for _, references in predictor.memory.batches([object_id], 1):
        model.segment(features, references, mask_stride=1)


def _replay_sentences(model: UniRef, arrays: Arrays, frames: np.ndarray) -> dict[str, object]:
    """video_rvos_refdavis: every frame from the sentences alone, merged by soft aggregation."""
    size = (arrays["out/label_maps"].shape[1], arrays["out/label_maps"].shape[2])
    predictor = _predictor(model, frames, score_threshold=0.0, use_memory=False, objects_per_pass=1)
    num = len(arrays["in/input_ids"])
    _remember_sentences(model, predictor, arrays)
    ours: dict[str, object] = {}
    calls: list[Call] = []
    maps = []
    for index, frame in enumerate(frames):
        with catch_predictions(model) as caught:
            result = predictor.step(frame, output_size=size)
        calls += caught
        maps.append(result.label_map)
        soft = soft_aggregate(torch.from_numpy(np.stack(list(result.probabilities.values()))))
        ours[f"soft{index}_sub"] = soft.permute(1, 2, 0)[::4, ::4]
        ours[f"soft{index}_mean"] = soft.mean(dim=(1, 2))
    # Ours run frame by frame, the recording expression by expression.
    calls = [calls[i * num + e] for e in range(num) for i in range(len(frames))]
    return {**ours, "label_maps": np.stack(maps), **_calls(calls)}


def _replay_sentence_with_memory(
    model: UniRef, arrays: Arrays, frames: np.ndarray
) -> dict[str, object]:
    """video_rvos_refytvos: one sentence, then sentence and memory."""
    size = (arrays["out/masks"].shape[-2], arrays["out/masks"].shape[-1])
    predictor = _predictor(model, frames, score_threshold=0.3, merge_rule="separate")
    _remember_sentences(model, predictor, arrays)
    masks = []
    with catch_predictions(model) as calls:
        for frame in frames:
            result = predictor.step(frame, output_size=size)
            masks.append(result.masks[1])
    expected = arrays["out/masks"]
    ours = np.stack(masks).reshape(expected.shape).astype(expected.dtype)
    scale = int(expected.max(initial=1)) if expected.dtype.kind in "iu" else 1
    return {"masks": ours * np.asarray(scale, expected.dtype), **_calls(calls)}


def _remember_sentences(model: UniRef, predictor: VideoPredictor, arrays: Arrays) -> None:
    assert model.text_encoder is not None
    ids, mask = (torch.from_numpy(arrays[f"in/{n}"]) for n in ("input_ids", "attention_mask"))
    text = model.text_reference(model.text_encoder.encode_ids(ids, mask))
    for row in range(len(ids)):
        sentence = tuple(level[row : row + 1] for level in text)
        predictor.memory.add(row + 1, text=sentence)


@dataclass(frozen=True)
class Call:
    """What the head said about one image: logits (Q,), boxes (Q, 4), closest two proposals."""

    logits: Tensor
    boxes: Tensor
    near_tie: float


@contextmanager
def catch_predictions(model: UniRef) -> Iterator[list[Call]]:
    """Collects one ``Call`` for every image that the head sees."""
    caught: list[Call] = []
    last = model.head.num_layers - 1

    def keep(_: object, __: object, queries: Queries) -> None:
        logits, num = model.head.logits(queries, last), queries.selected.shape[1]
        best = queries.proposal_logits[..., 0].sort(dim=1, descending=True).values[:, : num + 1]
        for image, row in enumerate(best):
            gaps = -row.diff()
            near = gaps[gaps > 0].min() if (gaps > 0).any() else torch.tensor(0.0)
            caught.append(Call(logits[image, :, 0], queries.references[-1][image], float(near)))

    hook = model.head.register_forward_hook(keep)
    try:
        yield caught
    finally:
        hook.remove()


def _calls(calls: Sequence[Call]) -> dict[str, object]:
    logits = torch.stack([call.logits for call in calls])
    return {
        "call_logits": logits,
        "call_boxes": torch.stack([call.boxes for call in calls]),
        "call_top1": logits.argmax(dim=1),
        "call_score": logits.sigmoid().amax(dim=1),
        "near_tie": [call.near_tie for call in calls],
    }


REPLAYS: dict[str, Callable[[UniRef, Arrays], dict[str, object]]] = {
    "msdeform": replay_msdeform,
    "unifusion": replay_unifusion,
    "features": replay_features,
    "text": replay_text,
    "maskenc": replay_maskenc,
    "call": replay_call,
    "post": replay_post,
    "video": replay_video,
}

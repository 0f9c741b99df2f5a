"""Replays of clips through the video loop."""

from __future__ import annotations

import re

import numpy as np
import torch

from projects.uniref.model import UniRef
from projects.uniref.parity.parts import Call, call_arrays, catch_predictions
from unified.inference.memory import references
from unified.inference.video_predictor import VideoPredictor
from unified.masks import soft_aggregate
from unified.parity import Arrays
from unified.structures import Prompt


def replay_video(model: UniRef, arrays: Arrays) -> dict[str, object]:
    """A clip through the video loop, frame by frame."""
    frames = arrays["in/frames"].transpose(0, 2, 3, 1)
    if "in/input_ids" not in arrays:
        return _replay_masks(model, arrays, frames)
    if "out/label_maps" in arrays:
        return _replay_sentences(model, arrays, frames)
    return _replay_sentence_with_memory(model, arrays, frames)


def _predictor(model: UniRef, frames: np.ndarray, **options: object) -> VideoPredictor:
    """A predictor that takes the recorded frames as they are, and asks in the recorded order."""
    short_side = min(frames.shape[1:3])
    predictor = VideoPredictor(model, short_side=short_side, keep_probabilities=True, **options)
    predictor.side_by_side = False
    return predictor


def _replay_masks(model: UniRef, arrays: Arrays, frames: np.ndarray) -> dict[str, object]:
    """video_vos: objects given by masks, merged by soft aggregation."""
    predictor = _predictor(model, frames, score_threshold=0.4)
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
        with catch_predictions(predictor.encoder.model) as caught:
            result = predictor.step(frame, given, output_size=size)
        # The reference also runs the network for objects whose mask is given, and drops the result.
        with catch_predictions(predictor.encoder.model) as dropped:
            for object_id in given:
                _segment_again(predictor, frame, object_id)
        calls += [*caught, *dropped]
        maps.append(result.label_map)
        soft = soft_aggregate(torch.from_numpy(np.stack(list(result.probabilities.values()))))
        soft = soft.permute(1, 2, 0)  # (H, W, background + objects)
        ours[f"soft{index}_sub"] = soft[::4, ::4]
        ours[f"soft{index}_mean"] = soft.mean(dim=(0, 1))
        ours[f"soft{index}_std"] = soft.std(dim=(0, 1))
    return {**ours, "label_maps": np.stack(maps), **call_arrays(calls)}


def _segment_again(predictor: VideoPredictor, frame: np.ndarray, object_id: int) -> None:
    features = predictor.encoder.image(frame).features
    for batch in predictor.memory.batches([object_id], 1):
        remembered = references(tuple(predictor.memory.tracks(batch).values()))
        predictor.encoder.model.segment(features, remembered, mask_stride=1)


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
        with catch_predictions(predictor.encoder.model) as caught:
            result = predictor.step(frame, output_size=size)
        calls += caught
        maps.append(result.label_map)
        soft = soft_aggregate(torch.from_numpy(np.stack(list(result.probabilities.values()))))
        ours[f"soft{index}_sub"] = soft.permute(1, 2, 0)[::4, ::4]
        ours[f"soft{index}_mean"] = soft.mean(dim=(1, 2))
    # Ours run frame by frame, the recording expression by expression.
    calls = [calls[i * num + e] for e in range(num) for i in range(len(frames))]
    return {**ours, "label_maps": np.stack(maps), **call_arrays(calls)}


def _replay_sentence_with_memory(
    model: UniRef, arrays: Arrays, frames: np.ndarray
) -> dict[str, object]:
    """video_rvos_refytvos: one sentence, then sentence and memory."""
    size = (arrays["out/masks"].shape[-2], arrays["out/masks"].shape[-1])
    predictor = _predictor(model, frames, score_threshold=0.3, merge_rule="separate")
    _remember_sentences(model, predictor, arrays)
    masks = []
    with catch_predictions(predictor.encoder.model) as calls:
        for frame in frames:
            result = predictor.step(frame, output_size=size)
            masks.append(result.masks[1])
    expected = arrays["out/masks"]
    ours = np.stack(masks).reshape(expected.shape).astype(expected.dtype)
    scale = int(expected.max(initial=1)) if expected.dtype.kind in "iu" else 1
    return {"masks": ours * np.asarray(scale, expected.dtype), **call_arrays(calls)}


def _remember_sentences(model: UniRef, predictor: VideoPredictor, arrays: Arrays) -> None:
    assert model.text_encoder is not None
    ids, mask = (torch.from_numpy(arrays[f"in/{n}"]) for n in ("input_ids", "attention_mask"))
    text = model.text_reference(model.text_encoder.encode_ids(ids, mask))
    for row in range(len(ids)):
        sentence = tuple(level[row : row + 1] for level in text)
        predictor.memory.add(row + 1, text=sentence)

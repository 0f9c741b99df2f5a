"""A sentence followed with memory, as the reference does on Ref-YouTube-VOS, composed of the verbs.

Source: UniRef ``inference_rvos``: the sentence alone until its mask is not empty, then the sentence
with the memory of the first and the latest frame; below a score of 0.3 the mask is empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from projects.uniref.model import UniRef
from projects.uniref.parity import compare_recorded, kind_of, replay
from projects.uniref.parity.parts import call_arrays, catch_predictions
from tests.projects.uniref.tiny import MakeUniRef
from unified import VideoPredictor
from unified.parity import Arrays, NoiseFloor
from unified.structures import Prompt, Reference, References

THRESHOLD = 0.3
SIZE, OUTPUT = (64, 88), (80, 110)  # the width is no multiple of 32
TEXTS = ("the red dog", "a cat on the left chair")
BOTH = ("first", "latest")


@pytest.fixture(scope="module")
def model(build_uniref: MakeUniRef) -> UniRef:
    """Its scores are around the threshold."""
    model = build_uniref(seed=4)
    with torch.no_grad():
        model.head.class_embed[model.head.num_layers - 1].bias -= 1.55
    return model


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """(T, H, W, 3) uint8; noise in which a square of another colour moves."""
    rng = np.random.default_rng(1)
    clip = rng.integers(0, 256, (6, *SIZE, 3), dtype=np.uint8)
    for index, frame in enumerate(clip):
        frame[10:40, 8 * index : 8 * index + 30] = (200, 30 * index, 40)
    return clip


@dataclass(frozen=True)
class Seen:
    """What the loop says about a clip: scores (T,), probabilities (T, H, W), masks (T, H, W)."""

    scores: list[float]
    probabilities: Tensor
    masks: np.ndarray


@torch.no_grad()
def follow(
    model: UniRef, frames: np.ndarray, text: References, memory: tuple[str, ...] = BOTH
) -> Seen:
    """One sentence along a clip; ``memory`` says which frames are remembered."""
    kept: dict[str, References] = {}
    scores, probabilities = [], []
    for frame in frames:
        images = model.preprocess([torch.from_numpy(frame.transpose(2, 0, 1).copy())])
        features = model.encode_image(images)
        references = [text, _concatenate([kept[name] for name in memory])] if kept else [text]
        found = model.segment(features, references, mask_stride=4)
        scores.append(float(found.scores))
        full = F.interpolate(found.mask_logits, scale_factor=4, mode="bilinear")
        probability = full.sigmoid()[..., : SIZE[0], : SIZE[1]]
        probability = F.interpolate(probability, OUTPUT, mode="bilinear")
        probabilities.append(probability[0, 0] * (scores[-1] >= THRESHOLD))
        mask = probabilities[-1] > 0.5
        if mask.any() and memory:
            small = F.interpolate(mask[None, None].float(), SIZE, mode="nearest")[0]
            padded = F.pad(small, (0, images.padded_size[1] - SIZE[1]))
            kept["latest"] = model.encode_mask(images, features, padded)
            kept.setdefault("first", kept["latest"])
    maps = torch.stack(probabilities)
    return Seen(scores, maps, (maps > 0.5).numpy())


def _concatenate(frames: list[References]) -> References:
    """Tokens one after the other, summaries averaged."""
    return tuple(
        Reference(
            torch.cat([frame.keys for frame in level], dim=1),
            torch.cat([frame.values for frame in level], dim=1),
            torch.cat([frame.padding_mask for frame in level], dim=1),
            torch.stack([frame.summary for frame in level]).mean(dim=0),
        )
        for level in zip(*frames, strict=True)
    )


@pytest.fixture(scope="module")
def expected(model: UniRef, frames: np.ndarray) -> list[Seen]:
    """Of each sentence alone."""
    return [follow(model, frames, model.encode_text([text])) for text in TEXTS]


def test_the_clip_has_all_cases(expected: list[Seen]) -> None:
    """No mask at first, none in between, a score below the threshold; and an object always seen."""
    first, second = expected
    assert [bool(mask.any()) for mask in first.masks] == [False, True, True, False, True, False]
    assert all(mask.any() and not mask.all() for mask in second.masks)
    assert [score >= THRESHOLD for score in first.scores] == [True] * 5 + [False]


def test_the_predictor_follows_sentences_as_the_verbs_say(
    model: UniRef, frames: np.ndarray, expected: list[Seen]
) -> None:
    predictor = VideoPredictor(
        model, short_side=min(SIZE), score_threshold=THRESHOLD, merge_rule="separate"
    )
    prompts = {number: Prompt(text=text) for number, text in enumerate(TEXTS, start=1)}
    for index, frame in enumerate(frames):
        result = predictor.step(frame, {} if index else prompts, output_size=OUTPUT)
        maps = torch.stack([seen.probabilities[index] for seen in expected])
        background = (1 - maps).prod(dim=0, keepdim=True)
        label_map = torch.cat([background, maps]).argmax(dim=0).numpy()
        assert (result.label_map != label_map).mean() < 1e-3
        for number, seen in enumerate(expected, start=1):
            assert result.scores[number] == pytest.approx(seen.scores[index], abs=1e-5)
            assert (result.masks[number] != seen.masks[index]).mean() < 1e-3


def recording(
    model: UniRef, frames: np.ndarray, memory: tuple[str, ...], dtype: type = bool
) -> Arrays:
    """The second sentence as a recorded file of kind video_rvos_refytvos holds it."""
    encoder = model.text_encoder
    assert encoder is not None
    ids, mask = encoder.tokenize([TEXTS[1]])
    with torch.no_grad():
        text = model.text_reference(encoder.encode_ids(ids, mask))
    with catch_predictions(model) as calls:
        seen = follow(model, frames, text, memory)
    scale = 255 if dtype is np.uint8 else 1
    outputs = {"masks": seen.masks.astype(dtype) * dtype(scale), **call_arrays(calls)}
    return {
        "in/frames": np.ascontiguousarray(frames.transpose(0, 3, 1, 2)),
        "in/input_ids": ids.numpy(),
        "in/attention_mask": mask.numpy(),
        **{f"out/{name}": np.asarray(value) for name, value in outputs.items()},
    }


def failures(model: UniRef, arrays: Arrays) -> set[str]:
    noise = NoiseFloor({"clip": {"call_logits": [2e-6], "call_boxes": [1e-6]}})
    found = compare_recorded("clip", arrays, replay(model, arrays), noise)
    assert {result.name for result in found} == {name[4:] for name in arrays if "out/" in name}
    return {result.name for result in found if not result.passed}


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_a_recorded_clip_of_that_layout_replays(
    model: UniRef, frames: np.ndarray, dtype: type
) -> None:
    arrays = recording(model, frames, BOTH, dtype)
    assert kind_of(arrays) == "video" and len(arrays["out/call_logits"]) == len(frames)
    assert failures(model, arrays) == set()


@pytest.mark.parametrize("memory", [(), ("first",), ("latest",)])
def test_a_clip_with_less_memory_does_not_replay(
    model: UniRef, frames: np.ndarray, memory: tuple[str, ...]
) -> None:
    assert {"call_logits", "masks"} <= failures(model, recording(model, frames, memory))

"""What a clip remembers of its objects."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.toy.clips import MASKS, MIXED, TEXTS, all_equal, equal, frames, video
from tests.toy.model import Toy
from unified.structures import FeaturePyramid, ImageBatch, Prompt, References


def test_a_sentence_turns_into_memory_with_the_first_mask_that_is_not_empty(
    segmenter: Toy,
) -> None:
    clip = frames(4)
    predictor = video(segmenter, score_threshold=1.1)
    plain = video(segmenter, use_memory=False, score_threshold=1.1)

    def head_inputs(frame: np.ndarray) -> list[int]:
        """Numbers of references that the fusion of the finest level sees."""
        seen: list[int] = []
        assert segmenter.fusion is not None
        hook = segmenter.fusion.register_forward_pre_hook(lambda _, args: seen.append(len(args[1])))
        predictor.step(frame)
        hook.remove()
        return sorted(set(seen))

    predictor.add(1, Prompt(text=TEXTS[0]))
    assert head_inputs(clip[0]) == [1], "absent"
    assert head_inputs(clip[1]) == [1], "so the next frame is tried with the sentence alone"
    predictor.settings = replace(predictor.settings, score_threshold=0.0)
    assert predictor.step(clip[2]).areas[1] > 0
    assert head_inputs(clip[3]) == [2], "seen: sentence and memory"

    result = plain.step(clip[0], {1: Prompt(text=TEXTS[0])})
    assert result.absent == (1,) and result.boxes == {1: None} and not result.label_map.any()
    assert 0 <= result.scores[1] <= 1, "the score is told, though it is too low"


def test_without_memory_every_frame_stands_alone(segmenter: Toy) -> None:
    clip = frames(4)
    prompts = {index + 1: Prompt(text=text) for index, text in enumerate(TEXTS)}
    along = list(video(segmenter, use_memory=False).run(clip, {0: prompts}))
    alone = [video(segmenter, use_memory=False).step(frame, prompts) for frame in clip]
    all_equal(along, alone)
    with_memory = list(video(segmenter).run(clip, {0: prompts}))
    assert with_memory[3].scores != along[3].scores


def test_an_absent_object_keeps_its_memory(segmenter: Toy) -> None:
    """A frame on which the object is not found leaves no trace."""
    clip = frames(5)
    predictor = video(segmenter)
    predictor.step(clip[0], {1: Prompt(mask=MASKS[0])})
    predictor.step(clip[1])
    predictor.settings = replace(predictor.settings, score_threshold=1.1)
    assert predictor.step(clip[4]).absent == (1,)
    predictor.settings = replace(predictor.settings, score_threshold=0.0)
    result = predictor.step(clip[2])
    expected = list(video(segmenter).run(clip[:3], {0: {1: Prompt(mask=MASKS[0])}}))[2]
    equal(result, expected)


def test_what_is_remembered_is_renewed_every_few_frames(
    segmenter: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = segmenter.encode_mask
    encoded: list[int] = []

    def encode_mask(
        images: ImageBatch, features: FeaturePyramid, masks: torch.Tensor
    ) -> References:
        encoded.append(len(masks))
        return plain(images, features, masks)

    monkeypatch.setattr(segmenter, "encode_mask", encode_mask)

    def counts(interval: int, prompts: dict[int, dict[int, Prompt]]) -> list[int]:
        """Masks that were encoded on each of seven frames."""
        predictor, found = video(segmenter, memory_interval=interval), []
        for index, frame in enumerate(frames(7)):
            encoded.clear()
            result = predictor.step(frame, prompts.get(index, {}))
            assert not result.absent
            found.append(sum(encoded))
        return found

    given, said = {0: {1: Prompt(mask=MASKS[0])}}, {0: {1: Prompt(text=TEXTS[0])}}
    corrected = {**given, 3: {1: Prompt(mask=MASKS[1])}}
    assert counts(1, given) == counts(1, said) == [1] * 7
    assert counts(3, given) == counts(3, said) == [1, 0, 0, 1, 0, 0, 1]
    assert counts(2, corrected) == [1, 0, 1, 1, 0, 1, 0], "a correction counts anew"


def test_a_score_at_the_threshold_is_present(segmenter: Toy) -> None:
    frame, prompts = frames(1)[0], {1: Prompt(text="cat")}
    score = video(segmenter).step(frame, prompts).scores[1]
    assert 0 < score < 1
    for threshold, absent in ((score, ()), (np.nextafter(score, 1.0), (1,))):
        assert video(segmenter, score_threshold=threshold).step(frame, prompts).absent == absent


def test_memory_does_not_grow_with_the_video(segmenter: Toy) -> None:
    predictor = video(segmenter, objects_per_pass=2)

    def kept() -> tuple[int, int]:
        """Number and bytes of all tensors that are alive."""
        gc.collect()
        tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor]
        stores = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
        return len(tensors), sum(stores.values())

    clip = frames(4)
    sizes = []
    for index in range(16):
        predictor.step(clip[index % 4], MIXED[0] if index == 0 else {})
        if index % 4 == 3:
            sizes.append(kept())
    assert len({number for number, _ in sizes}) == 1, sizes
    assert max(size for _, size in sizes[2:]) <= max(size for _, size in sizes[:2]), sizes

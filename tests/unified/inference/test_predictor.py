from __future__ import annotations

import gc
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.toy.model import MakeToy, Toy
from unified import ImagePredictor, VideoPredictor
from unified.errors import ConfigError, InputError
from unified.inference.frames import FEW_PIXELS, resize_image
from unified.masks import (
    binary_masks,
    join_mirrored,
    mask_probabilities,
    merge,
    resize_mask,
)
from unified.structures import FrameResult, Prompt, Support, join, join_levels, resized_size

SIZE = (60, 80)
SHORT, LONG = 64, 128
TEXTS = ("the red dog", "a man on the left", "cat", "a tree")


def frames(num: int, size: tuple[int, int] = SIZE, seed: int = 0) -> list[np.ndarray]:
    """Coloured rectangles on noise."""
    rng = np.random.default_rng(seed)
    clip = rng.integers(0, 60, (num, *size, 3), dtype=np.uint8)
    for index, frame in enumerate(clip):
        frame[5 + index : 30 + index, 10:40] = (200, 30, 30)
        frame[30:50, 45 - index : 70 - index] = (20, 40, 220)
    return list(clip)


def box_mask(top: int, left: int, height: int = 20, width: int = 25) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


MASKS = (box_mask(5, 10), box_mask(30, 45), box_mask(20, 5, 30, 12))


def video(model: Toy, **options: object) -> VideoPredictor:
    given = {"short_side": SHORT, "max_size": LONG, "score_threshold": 0.0, **options}
    return VideoPredictor(model, **given)  # type: ignore[arg-type]


def image(model: Toy) -> ImagePredictor:
    predictor = ImagePredictor(model, short_side=SHORT, max_size=LONG)
    predictor.set_image(frames(1)[0])
    return predictor


@contextmanager
def count_calls(module: nn.Module) -> Iterator[list[int]]:
    """Collects the batch size of every call."""
    calls: list[int] = []
    hook = module.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        yield calls
    finally:
        hook.remove()


def equal(ours: FrameResult, expected: FrameResult, *, atol: float = 0.0) -> None:
    assert list(ours.scores) == list(expected.scores)
    assert list(ours.scores.values()) == pytest.approx(list(expected.scores.values()), abs=atol)
    flipped = (ours.label_map != expected.label_map).mean()
    assert flipped <= (0.002 if atol else 0)
    if not flipped:
        assert ours.boxes == expected.boxes and ours.areas == expected.areas


def all_equal(ours: list[FrameResult], expected: list[FrameResult], atol: float = 0.0) -> None:
    assert len(ours) == len(expected)
    for mine, reference in zip(ours, expected, strict=True):
        equal(mine, reference, atol=atol)


MIXED: Mapping[int, Mapping[int, Prompt]] = {
    0: {
        1: Prompt(mask=MASKS[0]),
        2: Prompt(text=TEXTS[0]),
        3: Prompt(text=TEXTS[1], mask=MASKS[1]),
    },
    2: {5: Prompt(mask=MASKS[2]), 4: Prompt(text=TEXTS[2])},
}


# ---------------------------------------------------------------- video: cost


@pytest.mark.parametrize("num_objects", [1, 3, 10])
def test_one_backbone_pass_per_frame_whatever_the_number_of_objects(
    segmenter: Toy, num_objects: int
) -> None:
    prompts = {
        index + 1: Prompt(text=TEXTS[index % 4], mask=MASKS[index % 3] if index % 2 else None)
        for index in range(num_objects)
    }
    with count_calls(segmenter.backbone) as calls:
        assert len(list(video(segmenter).run(frames(4), {0: prompts}))) == 4
    assert calls == [1] * 4


def test_frames_before_the_first_object_cost_nothing(segmenter: Toy) -> None:
    with count_calls(segmenter.backbone) as calls:
        results = list(video(segmenter).run(frames(3), {2: {1: Prompt(mask=MASKS[0])}}))
    assert calls == [1]
    for result in results[:2]:
        assert not result.label_map.any() and result.scores == {} and result.absent == ()


def test_objects_share_passes_of_the_head(segmenter: Toy) -> None:
    prompts = {index: Prompt(text=TEXTS[index % 4]) for index in range(1, 8)}
    predictor = video(segmenter, objects_per_pass=3)

    def batches() -> list[int]:
        with count_calls(segmenter.head) as calls:
            predictor.step(frames(1)[0], prompts if not predictor.object_ids else {})
        return calls

    assert batches() == [3, 3, 1]


def test_only_the_best_query_is_decoded(segmenter: Toy) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = segmenter.mask_head.register_forward_pre_hook(
        lambda _, args: shapes.append(tuple(args[0].shape))
    )
    predictor = video(segmenter, use_memory=False)
    list(predictor.run(frames(2), {0: {1: Prompt(text="cat"), 2: Prompt(text="dog")}}))
    hook.remove()
    assert [shape[:2] for shape in shapes] == [(2, 1), (2, 1)]


# ---------------------------------------------------------------- video: equality


@pytest.mark.parametrize("rule", ["soft", "separate"])
def test_objects_batched_equal_objects_one_by_one(segmenter: Toy, rule: str) -> None:
    together = list(video(segmenter, merge_rule=rule).run(frames(5), MIXED))
    alone = list(video(segmenter, merge_rule=rule, objects_per_pass=1).run(frames(5), MIXED))
    all_equal(together, alone, atol=1e-5)
    assert any(result.label_map.any() for result in together)


def test_separate_objects_do_not_see_each_other(segmenter: Toy) -> None:
    together = list(video(segmenter, merge_rule="separate").run(frames(4), MIXED))
    for object_id, start in ((1, 0), (2, 0), (3, 0), (4, 2), (5, 2)):
        prompts = {start: {object_id: MIXED[start][object_id]}}
        alone = list(video(segmenter, merge_rule="separate").run(frames(4), prompts))
        for index in range(start, 4):
            ours, expected = together[index], alone[index]
            assert ours.scores[object_id] == pytest.approx(expected.scores[object_id], abs=1e-5)
            assert (ours.masks[object_id] != expected.masks[object_id]).mean() < 0.002


def test_results_do_not_depend_on_how_frames_arrive(segmenter: Toy) -> None:
    clip = frames(6)
    whole = list(video(segmenter).run(clip, MIXED))
    streamed = list(video(segmenter).run((frame for frame in clip), MIXED))
    all_equal(streamed, whole)

    predictor = video(segmenter)
    steps = [predictor.step(frame, MIXED.get(index)) for index, frame in enumerate(clip)]
    all_equal(steps, whole)


def test_the_next_clip_starts_anew(segmenter: Toy) -> None:
    predictor = video(segmenter)
    first = list(predictor.run(frames(3), MIXED))
    predictor.add(9, Prompt(text="cat"))
    second = {0: {1: Prompt(text="cat")}}
    results = list(predictor.run(frames(3), second))
    assert [list(result.scores) for result in results] == [[1, 9]] * 3
    all_equal(list(predictor.run(frames(3), MIXED)), first)


def test_a_prompt_for_a_frame_that_never_comes_is_named(segmenter: Toy) -> None:
    prompts = {0: MIXED[0], 3: MIXED[2], -1: MIXED[2]}
    predictor, message = video(segmenter), r"for the frames -1, 3, but the clip has 3 frames"
    with pytest.raises(InputError, match=message):
        predictor.run(frames(3), prompts)
    results = predictor.run(iter(frames(3)), prompts)
    assert [len(next(results).scores) for _ in range(3)] == [3, 3, 3]
    with pytest.raises(InputError, match=message):
        next(results)


def test_frames_are_read_one_at_a_time(segmenter: Toy) -> None:
    read: list[int] = []

    def stream() -> Iterator[np.ndarray]:
        for index, frame in enumerate(frames(5)):
            read.append(index)
            yield frame

    results = video(segmenter).run(stream(), {0: {1: Prompt(text="cat")}})
    assert read == []
    next(results)
    next(results)
    assert read == [0, 1]


def test_reset_starts_anew(segmenter: Toy) -> None:
    predictor = video(segmenter)
    first = list(predictor.run(frames(3), MIXED))
    predictor.add(9, Prompt(text="cat"))
    predictor.reset()
    assert predictor.object_ids == ()
    all_equal(list(predictor.run(frames(3), MIXED)), first)


def test_the_same_twice_and_the_frames_are_left_alone(segmenter: Toy) -> None:
    clip = frames(3)
    before = [frame.copy() for frame in clip]
    all_equal(list(video(segmenter).run(clip, MIXED)), list(video(segmenter).run(clip, MIXED)))
    assert all(np.array_equal(a, b) for a, b in zip(clip, before, strict=True))


def test_a_sentence_alone_is_what_the_verbs_say(segmenter: Toy) -> None:
    """The first frame of a sentence, spelled out with the model's own verbs."""
    frame = frames(1)[0]
    resized = resize_image(frame, resized_size(SIZE, SHORT, LONG))
    with torch.no_grad():
        images = segmenter.preprocess([torch.from_numpy(resized.transpose(2, 0, 1).copy())])
        features = segmenter.encode_image(images)
        found = segmenter.segment(
            features, [segmenter.encode_text(["cat"])], top_k=1, mask_stride=4
        )
        probabilities = mask_probabilities(
            found.mask_logits[0], stride=4, image_size=images.image_sizes[0], original_size=SIZE
        )
    result = video(segmenter, keep_probabilities=True).step(frame, {3: Prompt(text="cat")})
    assert result.scores == {3: pytest.approx(float(found.scores[0, 0]), abs=1e-6)}
    np.testing.assert_allclose(result.probabilities[3], probabilities[0].numpy(), atol=1e-5)
    assert np.array_equal(result.label_map, merge(probabilities, [3]).numpy())


# ---------------------------------------------------------------- video: objects


def test_a_mask_defines_its_object_on_its_frame(segmenter: Toy) -> None:
    result = video(segmenter).step(frames(1)[0], {7: Prompt(mask=MASKS[0])})
    assert np.array_equal(result.label_map, MASKS[0] * np.uint8(7))
    assert result.label_map.dtype == np.uint8
    assert result.scores == {7: 1.0} and result.absent == ()
    assert result.boxes == {7: (10.0, 5.0, 35.0, 25.0)}
    assert result.areas == {7: 20 * 25}


@pytest.mark.parametrize("start", [1, 3])
def test_an_object_added_later_starts_as_on_a_first_frame(segmenter: Toy, start: int) -> None:
    clip = frames(6)
    late = list(video(segmenter).run(clip, {start: {1: Prompt(mask=MASKS[0])}}))
    fresh = list(video(segmenter).run(clip[start:], {0: {1: Prompt(mask=MASKS[0])}}))
    all_equal(late[start:], fresh)


def test_add_is_a_prompt_on_the_next_frame(segmenter: Toy) -> None:
    clip, predictor = frames(4), video(segmenter)
    results = [predictor.step(clip[0], MIXED[0])]
    results.append(predictor.step(clip[1]))
    for object_id, prompt in MIXED[2].items():
        predictor.add(object_id, prompt)
    assert predictor.object_ids == (1, 2, 3, 4, 5)
    results += [predictor.step(frame) for frame in clip[2:]]
    all_equal(results, list(video(segmenter).run(clip, MIXED)))


def test_a_corrected_object_forgets_its_mistakes(segmenter: Toy) -> None:
    """From its new mask on it is as if it had just been added; others do not notice."""
    clip = frames(6)
    prompts = {0: {1: Prompt(mask=MASKS[0]), 2: Prompt(text="cat")}, 3: {1: Prompt(mask=MASKS[2])}}
    corrected = list(video(segmenter, merge_rule="separate").run(clip, prompts))
    assert np.array_equal(corrected[3].masks[1], MASKS[2])
    fresh = list(video(segmenter, merge_rule="separate").run(clip[3:], {0: prompts[3]}))
    plain = list(video(segmenter, merge_rule="separate").run(clip, {0: prompts[0]}))
    for index in range(6):
        assert np.array_equal(corrected[index].masks[2], plain[index].masks[2])
        expected = plain[index] if index < 3 else fresh[index - 3]
        assert (corrected[index].masks[1] != expected.masks[1]).mean() < 0.002


def test_a_correction_by_mask_keeps_the_sentence(segmenter: Toy) -> None:
    clip, predictor = frames(3), video(segmenter)
    predictor.step(clip[0], {1: Prompt(text="cat")})
    predictor.step(clip[1], {1: Prompt(mask=MASKS[0])})
    result = predictor.step(clip[2])
    both = video(segmenter)
    both.step(clip[1], {1: Prompt(text="cat", mask=MASKS[0])})
    equal(result, both.step(clip[2]))


def test_a_forgotten_object_is_gone_and_the_rest_goes_on(segmenter: Toy) -> None:
    clip, predictor = frames(4), video(segmenter, merge_rule="separate")
    plain = list(video(segmenter, merge_rule="separate").run(clip, {0: {1: MIXED[0][1]}}))
    predictor.step(clip[0], MIXED[0])
    predictor.add(8, Prompt(text="cat"))
    for object_id in (2, 3, 8, 200):
        predictor.forget(object_id)
    for index in range(1, 4):
        result = predictor.step(clip[index])
        assert list(result.scores) == [1] and set(np.unique(result.label_map)) <= {0, 1}
        assert (result.masks[1] != plain[index].masks[1]).mean() < 0.002
    predictor.forget(1)
    assert predictor.step(clip[3]).scores == {}


def test_supports_of_other_images_define_an_object(segmenter: Toy) -> None:
    clip = frames(3)
    supports = tuple(
        Support(image=shot, mask=mask) for shot, mask in zip(frames(3, seed=5), MASKS, strict=True)
    )
    predictor = video(segmenter)
    with count_calls(segmenter.backbone) as calls:
        results = list(predictor.run(clip, {0: {1: Prompt(supports=supports)}}))
    assert calls == [1, 3, 1, 1], "the supports are encoded once, as one batch"
    assert [list(result.scores) for result in results] == [[1]] * 3
    fewer = video(segmenter).step(clip[0], {1: Prompt(supports=supports[:1])})
    assert fewer.scores != results[0].scores


# ---------------------------------------------------------------- video: memory


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


# ---------------------------------------------------------------- video: results


def test_soft_objects_compete_and_separate_ones_overlap(segmenter: Toy) -> None:
    first, second = box_mask(10, 10, 30, 40), box_mask(20, 20, 30, 40)
    prompts = {1: Prompt(mask=first), 2: Prompt(mask=second)}
    soft = video(segmenter).step(frames(1)[0], prompts)
    separate = video(segmenter, merge_rule="separate").step(frames(1)[0], prompts)
    assert soft.masks == {}
    assert soft.areas[1] + soft.areas[2] == (first | second).sum()
    assert np.array_equal(separate.masks[1], first) and np.array_equal(separate.masks[2], second)
    assert separate.areas == {1: first.sum(), 2: second.sum()}
    assert np.array_equal(separate.label_map, soft.label_map)


def test_labels_are_where_the_probabilities_say(segmenter: Toy) -> None:
    for result in video(segmenter, keep_probabilities=True).run(frames(3), MIXED):
        ids = list(result.scores)
        stacked = torch.from_numpy(np.stack([result.probabilities[i] for i in ids]))
        assert stacked.dtype == torch.float32
        assert np.array_equal(result.label_map, merge(stacked, ids).numpy())
        for object_id in ids:
            mask = result.label_map == object_id
            assert result.areas[object_id] == mask.sum()
            assert (object_id in result.absent) == (not mask.any())
            assert (result.boxes[object_id] is None) == (not mask.any())
    assert video(segmenter).step(frames(1)[0], MIXED[0]).probabilities == {}


@pytest.mark.parametrize("size", [(30, 40), (120, 161), (7, 300)])
def test_results_of_another_size(segmenter: Toy, size: tuple[int, int]) -> None:
    predictor = video(segmenter, keep_probabilities=True)
    for index, frame in enumerate(frames(3)):
        result = predictor.step(frame, MIXED[0] if index == 0 else {}, output_size=size)
        assert result.label_map.shape == size
        assert all(p.shape == size for p in result.probabilities.values())
    empty = video(segmenter).step(frames(1)[0], output_size=size)
    assert empty.label_map.shape == size


def test_frames_may_change_their_size(segmenter: Toy) -> None:
    predictor = video(segmenter)
    predictor.step(frames(1)[0], MIXED[0])
    result = predictor.step(frames(1, size=(90, 50))[0])
    assert result.label_map.shape == (90, 50)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_close(segmenter: Toy, precision: str) -> None:
    prompts = {0: {1: Prompt(mask=MASKS[0]), 2: Prompt(text="cat")}}
    half = list(video(segmenter, precision=precision).run(frames(3), prompts))
    full = list(video(segmenter).run(frames(3), prompts))
    for ours, expected in zip(half, full, strict=True):
        for object_id, score in expected.scores.items():
            assert ours.scores[object_id] == pytest.approx(score, abs=0.02)
        assert (ours.label_map == expected.label_map).mean() > 0.97
    assert len(np.unique(np.stack([result.label_map for result in full]))) == 3


def test_unknown_precision(segmenter: Toy) -> None:
    with pytest.raises(ConfigError, match="precision 'half' is unknown: choose one of"):
        video(segmenter, precision="half")


# ---------------------------------------------------------------- video: errors

BAD_PROMPTS = {
    "nothing": (Prompt(), "the prompt is empty"),
    "a bare sentence": ("the cat", r"expected a Prompt, got 'the cat': write Prompt\(text="),
    "points as numbers": (Prompt(points=((3, 3),)), "expected points of unified.structures.Point"),
    "mask of another size": (Prompt(mask=np.ones((30, 40), bool)), r"\(60, 80\), got \(30, 40\)"),
    "colour mask": (Prompt(mask=np.ones((*SIZE, 3), bool)), r"got \(60, 80, 3\)"),
    "empty mask": (Prompt(mask=np.zeros(SIZE, bool)), "the mask is empty"),
    "empty text": (Prompt(text="  "), "no word"),
    "empty support": (
        Prompt(supports=(Support(frames(1)[0], np.zeros(SIZE, bool)),)),
        "the mask is empty",
    ),
    "support of another size": (
        Prompt(supports=(Support(frames(1)[0], np.ones((9, 9), bool)),)),
        r"got \(9, 9\)",
    ),
    "grey support": (
        Prompt(supports=(Support(frames(1)[0][..., 0], MASKS[0]),)),
        "expected an RGB image",
    ),
}


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_a_bad_prompt_is_named_and_changes_nothing(segmenter: Toy, case: str) -> None:
    """Neither for the objects before it in the same call nor for the frames after it."""
    prompt, message = BAD_PROMPTS[case]
    clip, predictor = frames(3), video(segmenter)
    predictor.step(clip[0], {1: MIXED[0][1]})
    with pytest.raises(InputError, match=message):
        predictor.step(clip[1], {4: Prompt(text="cat"), 5: prompt, 1: Prompt(mask=MASKS[2])})
    assert predictor.object_ids == (1,)
    results = [predictor.step(frame) for frame in clip[1:]]
    all_equal(results, list(video(segmenter).run(clip, {0: {1: MIXED[0][1]}}))[1:])


@pytest.mark.parametrize("object_id", [0, -1, 256])
def test_ids_go_from_1_to_255(segmenter: Toy, object_id: int) -> None:
    predictor = video(segmenter)
    with pytest.raises(InputError, match=f"from 1 to 255, got {object_id}"):
        predictor.add(object_id, Prompt(text="cat"))
    with pytest.raises(InputError, match=f"from 1 to 255, got {object_id}"):
        predictor.step(frames(1)[0], {object_id: Prompt(text="cat")})
    assert predictor.object_ids == ()
    result = predictor.step(frames(1)[0], {255: Prompt(mask=MASKS[0])})
    assert result.label_map.max() == 255


def test_an_empty_prompt_is_refused_at_once(segmenter: Toy) -> None:
    predictor = video(segmenter)
    with pytest.raises(InputError, match="the prompt is empty"):
        predictor.add(1, Prompt())
    assert predictor.object_ids == ()


BAD_FRAMES = {
    "grey": np.zeros(SIZE, np.uint8),
    "transparent": np.zeros((*SIZE, 4), np.uint8),
    "float": np.zeros((*SIZE, 3), np.float32),
    "no pixel": np.zeros((0, 80, 3), np.uint8),
    "flat": np.zeros(12, np.uint8),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
@pytest.mark.parametrize("known", [False, True])
def test_frames_must_be_rgb(segmenter: Toy, case: str, known: bool) -> None:
    predictor = video(segmenter)
    if known:
        predictor.add(1, Prompt(text="cat"))
    with pytest.raises(InputError, match="expected an RGB image"):
        predictor.step(BAD_FRAMES[case])
    with pytest.raises(InputError, match="expected an RGB image"):
        image(segmenter).set_image(BAD_FRAMES[case])


@pytest.mark.parametrize(("kinds", "prompt"), [(("text",), "mask"), (("mask",), "text")])
def test_a_model_that_lacks_a_kind_of_reference(
    build_segmenter: MakeToy, kinds: tuple[str, ...], prompt: str
) -> None:
    model = build_segmenter(kinds=kinds)
    given = Prompt(text="cat") if prompt == "text" else Prompt(mask=MASKS[0])
    message = f"follows {kinds[0]} references, not {prompt}"
    with pytest.raises(InputError, match=message):
        video(model).step(frames(1)[0], {1: given})
    with pytest.raises(InputError, match=message):
        image(model).predict(given)


def test_a_model_of_sentences_alone_runs_without_memory(build_segmenter: MakeToy) -> None:
    model = build_segmenter(kinds=("text",))
    prompts = {1: Prompt(text="cat")}
    along = list(video(model).run(frames(3), {0: prompts}))
    all_equal(along, [video(model).step(frame, prompts) for frame in frames(3)])


# ---------------------------------------------------------------- image

SUPPORTS = tuple(
    Support(shot, mask) for shot, mask in zip(frames(2, seed=8), MASKS[:2], strict=True)
)
IMAGE_PROMPTS = {
    "text": Prompt(text="the red dog"),
    "mask": Prompt(mask=MASKS[0]),
    "text and mask": Prompt(text="the red dog", mask=MASKS[0]),
    "one support": Prompt(supports=SUPPORTS[:1]),
    "two supports": Prompt(supports=SUPPORTS),
    "everything": Prompt(text="the red dog", mask=MASKS[0], supports=SUPPORTS),
}


@pytest.mark.parametrize("case", IMAGE_PROMPTS)
def test_image_prompts_are_what_the_verbs_say(segmenter: Toy, case: str) -> None:
    prompt = IMAGE_PROMPTS[case]

    def encode(pixels: np.ndarray) -> tuple:
        resized = resize_image(pixels, resized_size(SIZE, SHORT, LONG))
        images = segmenter.preprocess([torch.from_numpy(resized.transpose(2, 0, 1).copy())])
        return images, segmenter.encode_image(images)

    def mark(pixels: np.ndarray, mask: np.ndarray) -> tuple:
        images, features = encode(pixels)
        height, width = images.image_sizes[0]
        rows = (np.arange(height) * SIZE[0] / height).astype(int)
        columns = (np.arange(width) * SIZE[1] / width).astype(int)
        padded = torch.zeros(1, *images.padded_size, dtype=torch.bool)
        padded[0, :height, :width] = torch.from_numpy(mask[rows][:, columns])
        return segmenter.encode_mask(images, features, padded)

    with torch.no_grad():
        images, features = encode(frames(1)[0])
        references = [] if prompt.text is None else [segmenter.encode_text([prompt.text])]
        visual = [mark(support.image, support.mask) for support in prompt.supports]
        if prompt.mask is not None:
            visual.append(mark(frames(1)[0], prompt.mask))
        if visual:
            references.append(join_levels(visual))
        found = segmenter.segment(features, references)
        expected = binary_masks(
            found.mask_logits[0], stride=4, image_size=images.image_sizes[0], original_size=SIZE
        )[0]
    mask, score = image(segmenter).predict(prompt)
    assert mask.shape == SIZE and mask.dtype == bool
    assert score == pytest.approx(float(found.scores[0, 0]), abs=1e-6) and 0 <= score <= 1
    assert (mask != expected.numpy()).mean() < 0.001


def test_prompts_differ(segmenter: Toy) -> None:
    predictor = image(segmenter)
    scores = {case: predictor.predict(prompt)[1] for case, prompt in IMAGE_PROMPTS.items()}
    assert len(set(scores.values())) == len(scores)


def test_an_image_is_encoded_once_for_all_prompts(segmenter: Toy) -> None:
    with count_calls(segmenter.backbone) as calls:
        predictor = image(segmenter)
        first = predictor.predict(Prompt(text="cat"))
        predictor.predict(Prompt(mask=MASKS[0]))
        again = predictor.predict(Prompt(text="cat"))
    assert calls == [1]
    assert np.array_equal(first[0], again[0]) and first[1] == again[1]


def test_probabilities_stand_behind_the_mask(segmenter: Toy) -> None:
    predictor = image(segmenter)
    mask, score = predictor.predict(Prompt(text="cat"))
    probability, same_score = predictor.predict_prob(Prompt(text="cat"))
    assert probability.shape == SIZE and probability.dtype == np.float32
    assert score == same_score and 0 <= probability.min() <= probability.max() <= 1
    assert ((probability > 0.5) != mask).mean() < 0.05, "they differ by the order of resizing only"


def test_no_image_yet(segmenter: Toy) -> None:
    with pytest.raises(InputError, match="call set_image first"):
        ImagePredictor(segmenter).predict(Prompt(text="cat"))


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_bad_image_prompts(segmenter: Toy, case: str) -> None:
    prompt, message = BAD_PROMPTS[case]
    with pytest.raises(InputError, match=message):
        image(segmenter).predict(prompt)


def test_a_bad_image_leaves_the_one_before(segmenter: Toy) -> None:
    predictor = image(segmenter)
    before = predictor.predict(Prompt(text="cat"))
    with pytest.raises(InputError):
        predictor.set_image(np.zeros(SIZE, np.uint8))
    after = predictor.predict(Prompt(text="cat"))
    assert np.array_equal(before[0], after[0]) and before[1] == after[1]


def test_examples_of_several_sizes_are_padded_to_one_batch(segmenter: Toy) -> None:
    """As the reference does it: norms over whole maps see the padding."""
    large, small = frames(1)[0], frames(1, size=(40, 96))[0]
    masks = MASKS[0], np.zeros((40, 96), bool)
    masks[1][10:30, 20:50] = True
    predictor = ImagePredictor(segmenter, short_side=SHORT, max_size=LONG)
    predictor.set_image(large)
    supports = tuple(Support(*pair) for pair in zip((large, small), masks, strict=True))
    together, score = predictor.predict_prob(Prompt(supports=supports))

    sizes = [resized_size(view.shape[:2], SHORT, LONG) for view in (large, small)]
    views = [resize_image(view, size) for view, size in zip((large, small), sizes, strict=True)]
    with torch.inference_mode():
        batch = segmenter.preprocess([torch.from_numpy(v.copy()).permute(2, 0, 1) for v in views])
        marked = torch.zeros(2, *batch.padded_size)
        for row, (mask, (height, width)) in enumerate(zip(masks, sizes, strict=True)):
            marked[row, :height, :width] = resize_mask(torch.from_numpy(mask), (height, width))
        levels = segmenter.encode_mask(batch, segmenter.encode_image(batch), marked)
        joined = [join([level[:1], level[1:]]) for level in levels]
        query = segmenter.preprocess([torch.from_numpy(views[0].copy()).permute(2, 0, 1)])
        found = segmenter.segment(segmenter.encode_image(query), [joined])
    assert batch.padding_mask.any()
    assert score == pytest.approx(float(found.scores), abs=1e-6)
    logits = F.interpolate(found.mask_logits[:, 0][None], scale_factor=4, mode="bilinear")
    height, width = sizes[0]
    within = logits.sigmoid()[..., :height, :width]
    expected = F.interpolate(within, size=SIZE, mode="bilinear")[0, 0]
    np.testing.assert_allclose(together, expected, atol=1e-5)
    apart = [predictor.encoder.supports((support,))[0] for support in supports]
    with torch.inference_mode():
        other = segmenter.segment(segmenter.encode_image(query), [join_levels(apart)])
    assert (other.mask_logits - found.mask_logits).abs().max() > 1e-3, "padding has no say"


@pytest.mark.parametrize(
    ("size", "part"),
    [
        ((2160, 3840), np.s_[1000:1003, 501:504]),
        ((720, 1280), np.s_[701:702, 303:304]),
        ((720, 1280), np.s_[99:101, 1278:1280]),
    ],
)
def test_an_object_of_a_few_pixels_is_not_lost(
    segmenter: Toy,
    size: tuple[int, int],
    part: tuple[slice, slice],
    caplog: pytest.LogCaptureFixture,
) -> None:
    mask = np.zeros(size, bool)
    mask[part] = True
    resized = resize_mask(torch.from_numpy(mask), resized_size(size, SHORT, LONG))
    assert resized.sum() == 1
    (row, column) = resized.nonzero()[0].tolist()
    assert abs(row / len(resized) - part[0].start / size[0]) < 2 / len(resized)
    assert abs(column / resized.shape[1] - part[1].start / size[1]) < 2 / resized.shape[1]
    predictor = video(segmenter)
    with caplog.at_level(logging.WARNING):
        predictor.step(np.zeros((*size, 3), np.uint8), {1: Prompt(mask=mask)})
    (record,) = caplog.records
    assert "so little may be followed: short_side" in record.message
    wanted = re.search(r"short_side (\d+) and max_size (\d+)", record.message)
    assert wanted is not None
    height, width = resized_size(size, int(wanted[1]), int(wanted[2]))
    assert mask.sum() * height * width / mask.size >= 0.99 * FEW_PIXELS


def test_a_large_mask_gives_no_warning(segmenter: Toy, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        video(segmenter).step(frames(1)[0], {1: Prompt(mask=MASKS[0])})
    assert not caplog.records


def test_an_example_may_be_cropped_around_its_object(segmenter: Toy) -> None:
    image, example = frames(2)
    mask = np.zeros(example.shape[:2], bool)
    mask[20:40, 30:60] = True
    window = np.s_[14:46, 24:66]  # a fifth of 30 pixels more on every side
    results = []
    for support, margin in (
        (Support(example, mask), 0.2),
        (Support(example[window], mask[window]), math.inf),
        (Support(example, mask), math.inf),
    ):
        predictor = ImagePredictor(
            segmenter, short_side=SHORT, max_size=LONG, support_margin=margin
        )
        predictor.set_image(image)
        results.append(predictor.predict_prob(Prompt(supports=(support,)))[0])
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_the_mirror_image_is_asked_too(segmenter: Toy) -> None:
    pixels, example = frames(2)
    mirror = np.ascontiguousarray(pixels[:, ::-1])
    support = Support(example, MASKS[0])
    pairs = (
        (Prompt(text="the left dog"), Prompt(text="the right dog")),
        (Prompt(text="a cat", mask=MASKS[1]), Prompt(text="a cat", mask=MASKS[1][:, ::-1])),
        (Prompt(supports=(support,)), Prompt(supports=(support,))),
    )
    for prompt, mirrored in pairs:
        answers = []
        for view, asked in ((pixels, prompt), (mirror, mirrored)):
            alone = ImagePredictor(segmenter, short_side=SHORT, max_size=LONG)
            alone.set_image(view)
            answers.append(alone.predict_prob(asked))
        (first, score), (second, other) = answers
        found = join_mirrored(
            torch.from_numpy(np.stack((first, second))), torch.tensor([score, other])
        )
        both = ImagePredictor(segmenter, short_side=SHORT, max_size=LONG, mirror=True)
        both.set_image(pixels)
        probability, joint = both.predict_prob(prompt)
        np.testing.assert_allclose(probability, found.probability, atol=1e-6)
        assert joint == pytest.approx(float(found.score))
        assert np.array_equal(probability, first) == bool(found.weights[0] == 1)
        mask, same = both.predict(prompt)
        assert np.array_equal(mask, probability > 0.5) and same == joint
        both.set_image(mirror)
        np.testing.assert_allclose(both.predict_prob(mirrored)[0][:, ::-1], probability, atol=1e-6)


def test_prompts_are_encoded_once_for_a_folder_of_images(segmenter: Toy) -> None:
    first, second, example = frames(3)
    prompts = (Prompt(text=TEXTS[0]), Prompt(supports=(Support(example, MASKS[0]),)))
    predictor = ImagePredictor(segmenter, short_side=SHORT, max_size=LONG)
    with (
        count_calls(segmenter.backbone) as passes,
        count_calls(segmenter.text_encoder) as sentences,
    ):
        for pixels in (first, second):
            predictor.set_image(pixels)
            for prompt in prompts:
                predictor.predict(prompt)
    assert len(passes) == 2 + 1 and len(sentences) == 1
    fresh = ImagePredictor(segmenter, short_side=SHORT, max_size=LONG)
    fresh.set_image(second)
    for prompt in prompts:
        assert predictor.predict(prompt)[1] == fresh.predict(prompt)[1]

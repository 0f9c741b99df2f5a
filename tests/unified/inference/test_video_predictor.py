"""Clips: what a frame costs, that batches and streams change nothing, objects, results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.toy.clips import (
    LONG,
    MASKS,
    MIXED,
    SHORT,
    SIZE,
    TEXTS,
    all_equal,
    box_mask,
    count_calls,
    frames,
    video,
)
from tests.toy.model import Toy
from unified.errors import ConfigError, InputError
from unified.inference.frames import resize_image
from unified.masks import (
    mask_probabilities,
    merge,
)
from unified.structures import Prompt, Support, resized_size


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


def test_waits_for_the_device_do_not_grow_with_the_objects(segmenter: Toy) -> None:
    """Reading a number from a tensor waits for all the work that is queued."""
    waits = []
    for num in (1, 3):
        predictor = video(segmenter, use_memory=False)
        start, *rest = frames(3)
        predictor.step(start, {i + 1: Prompt(mask=box_mask(10 * i, 10 * i)) for i in range(num)})
        predictor.step(rest[0])
        with torch.profiler.profile() as profile:
            predictor.step(rest[1])
        waits.append(sum(event.name == "aten::item" for event in profile.events()))
    assert waits[1] <= waits[0]


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
    """What was found before the correction is gone, its first mask is not; others do not notice."""
    clip = frames(6)
    prompts = {0: {1: Prompt(mask=MASKS[0]), 2: Prompt(text="cat")}, 3: {1: Prompt(mask=MASKS[2])}}
    corrected = list(video(segmenter, merge_rule="separate").run(clip, prompts))
    assert np.array_equal(corrected[3].masks[1], MASKS[2])
    plain = list(video(segmenter, merge_rule="separate").run(clip, {0: prompts[0]}))
    at_once = {0: {1: Prompt(mask=MASKS[0])}, 1: prompts[3]}
    alone = list(video(segmenter, merge_rule="separate").run([clip[0], *clip[3:]], at_once))
    fresh = list(video(segmenter, merge_rule="separate").run(clip[3:], {0: prompts[3]}))
    for index in range(6):
        assert np.array_equal(corrected[index].masks[2], plain[index].masks[2])
        expected = plain[index] if index < 3 else alone[index - 2]
        assert (corrected[index].masks[1] != expected.masks[1]).mean() < 0.002
    assert corrected[4].scores[1] != pytest.approx(fresh[1].scores[1], rel=1e-6)


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

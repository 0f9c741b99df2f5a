"""Prompts, frames and ids that cannot be used, of images and clips."""

from __future__ import annotations

import numpy as np
import pytest

from tests.toy.clips import BAD_PROMPTS, MASKS, MIXED, SIZE, all_equal, frames, image, video
from tests.toy.model import MakeToy, Toy
from unified.errors import InputError
from unified.structures import Prompt


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

"""Prompts from the command line, and the message for each way to get them wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unified.errors import InputError
from unified.inference.cli import image_prompts, warn_of_compiled_clips
from unified.inference.clip_prompts import (
    check_reached,
    describe_prompts,
    parse_at,
    video_prompts,
)
from unified.inference.image_io import write_image
from unified.inference.video_io import FrameReader
from unified.label_maps import write_label_map, write_mask

SIZE = (16, 24)


@pytest.fixture
def frames(tmp_path: Path) -> FrameReader:
    for number in range(6):
        write_image(tmp_path / f"frames/{number}.png", np.zeros((*SIZE, 3), np.uint8))
    return FrameReader(tmp_path / "frames", start=1, end=5)


def mask_file(path: Path, *ids: int, size: tuple[int, int] = SIZE) -> str:
    label_map = np.zeros(size, np.uint8)
    for row, object_id in enumerate(ids):
        label_map[2 * row, :5] = object_id
    write_label_map(path, label_map)
    return str(path)


def test_sentences_get_the_ids_from_1_on(frames: FrameReader) -> None:
    prompts = video_prompts(["the dog", "the cat"], [], frames, first=1)
    assert {i: p.text for i, p in prompts[1].items()} == {1: "the dog", 2: "the cat"}


def test_sentences_come_after_the_ids_of_all_masks(frames: FrameReader, tmp_path: Path) -> None:
    masks = [
        (1, mask_file(tmp_path / "a.png", 2, 5)),
        (3, mask_file(tmp_path / "b.png", 5, 9)),
    ]
    prompts = video_prompts(["the dog"], masks, frames, first=1)
    assert sorted(prompts[1]) == [2, 5, 10] and sorted(prompts[3]) == [5, 9]
    assert prompts[1][10].text == "the dog" and prompts[1][10].mask is None
    assert prompts[1][5].mask is not None and prompts[1][5].mask.sum() == 5
    assert describe_prompts(prompts) == [
        {"id": 2, "text": None, "masks_at": [1]},
        {"id": 5, "text": None, "masks_at": [1, 3]},
        {"id": 9, "text": None, "masks_at": [3]},
        {"id": 10, "text": "the dog", "masks_at": []},
    ]


def test_a_numbered_sentence_describes_the_object_of_a_mask(
    frames: FrameReader, tmp_path: Path
) -> None:
    masks = [(1, mask_file(tmp_path / "a.png", 1)), (3, mask_file(tmp_path / "b.png", 2))]
    prompts = video_prompts(["1=the dog", "2=the cat", "a bird"], masks, frames, first=1)
    assert prompts[1][1].text == "the dog" and prompts[1][1].mask is not None
    # Its mask comes later; the sentence already holds on the first frame.
    assert prompts[1][2].text == "the cat" and prompts[1][2].mask is None
    assert prompts[3][2].mask is not None
    assert prompts[1][3].text == "a bird"


def test_wrong_prompts_are_refused(frames: FrameReader, tmp_path: Path) -> None:
    one = mask_file(tmp_path / "one.png", 1)
    last = mask_file(tmp_path / "last.png", 255)
    other = mask_file(tmp_path / "other.png", 1, size=(16, 16))
    cases = [
        ([], [], "nothing to segment"),
        ([" "], [], "has no words"),
        (["1="], [(1, one)], "has no words"),
        (["7=the dog"], [(1, one)], r"describes object 7, but the masks hold \[1\]"),
        (["1=the dog", "1=the cat"], [(1, one)], "object 1 has two texts"),
        (["the dog"], [(1, last)], "no object id is left"),
        ([], [(1, other)], "other.png is 16x16 pixels, its image is 24x16"),
        ([], [(5, one)], "frame 5, which is not among the frames"),
        ([], [(0, one)], "frame 0, which is not among the frames"),
        ([], [(2, one), (2, one)], "frame 2 has two masks"),
    ]
    for texts, masks, reason in cases:
        with pytest.raises(InputError, match=reason):
            video_prompts(texts, masks, frames, first=1)


def test_mask_at_is_a_frame_and_a_file() -> None:
    assert parse_at("--mask-at", "57=a=b.png") == (57, "a=b.png")
    for wrong in ("a.png", "=a.png", "3=", "x=a.png", "-1=a.png"):
        with pytest.raises(InputError, match="not of the form FRAME=file"):
            parse_at("--mask-at", wrong)


def test_a_prompt_that_was_never_reached_is_reported() -> None:
    check_reached({0: {}, 4: {}}, last=4)
    with pytest.raises(InputError, match="ended with frame 3, before the prompt for frame 4"):
        check_reached({0: {}, 4: {}}, last=3)


def test_support_sets_are_objects_of_several_examples(tmp_path: Path) -> None:
    write_image(tmp_path / "a:b.png", np.zeros((*SIZE, 3), np.uint8))
    mask = np.zeros(SIZE, bool)
    mask[3:5] = True
    write_mask(tmp_path / "m.png", mask)
    pair = f"{tmp_path}/a:b.png:{tmp_path}/m.png"
    prompts, objects = image_prompts([], [[pair, pair], [pair]])
    assert [len(prompt.supports) for prompt in prompts] == [2, 1]
    assert np.array_equal(prompts[0].supports[1].mask, mask)
    assert objects[0] == {"id": 1, "text": None, "supports": [pair, pair]}
    assert objects[1]["id"] == 2


def test_wrong_supports_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((*SIZE, 3), np.uint8))
    mask_file(tmp_path / "small.png", 1, size=(8, 8))
    cases = {
        "a.png": "not of the form image.jpg:mask.png",
        f"{tmp_path}/x.png:{tmp_path}/small.png": "x.png does not exist",
        f"{tmp_path}/a.png:{tmp_path}/x.png": "x.png does not exist",
        f"{tmp_path}/a.png:{tmp_path}/small.png": "small.png is 8x8 pixels, its image is 24x16",
    }
    for pair, reason in cases.items():
        with pytest.raises(InputError, match=reason):
            image_prompts([], [[pair]])
    with pytest.raises(InputError, match="nothing to segment"):
        image_prompts([], [])
    with pytest.raises(InputError, match="has no words"):
        image_prompts(["a dog", ""], [])


@pytest.mark.parametrize(("threads", "said"), [(1, False), (2, True)])
def test_compiled_clips_are_told_to_be_slower_where_threads_could_share_the_work(
    threads: int, said: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    warn_of_compiled_clips(torch.nn.Linear(1, 1))
    assert ("Leave it out" in caplog.text) == said

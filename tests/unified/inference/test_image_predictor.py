"""Images: prompts, examples, small objects and the mirror image."""

from __future__ import annotations

import logging
import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.toy.clips import (
    BAD_PROMPTS,
    LONG,
    MASKS,
    SHORT,
    SIZE,
    TEXTS,
    count_calls,
    frames,
    image,
    video,
)
from tests.toy.model import Toy
from unified import ImagePredictor
from unified.errors import InputError
from unified.inference.frames import FEW_PIXELS, resize_image
from unified.masks import (
    binary_masks,
    join_mirrored,
    resize_mask,
)
from unified.structures import Prompt, Support, join, join_levels, resized_size

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
    assert 1 <= resized.sum() <= 4
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


@pytest.mark.parametrize("row", range(300, 308))
def test_a_thin_line_stays_a_line_and_a_warning_says_which_size_shows_it(
    segmenter: Toy, row: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nearest neighbour alone would lose most rows of one pixel."""
    for mask in (np.zeros((720, 1280), bool), np.zeros((1280, 720), bool).T):
        mask[row, 200:700] = True
        height, width = resized_size(mask.shape, SHORT, LONG)
        resized = resize_mask(torch.from_numpy(mask.copy()), (height, width))
        columns = resized.any(dim=0).nonzero()[:, 0]
        assert resized.any(dim=1).sum() == 1 and len(columns) >= 500 * width // 1280
        assert len(columns) == columns.max() - columns.min() + 1, "the line has gaps"
    if row == 300:
        with caplog.at_level(logging.WARNING):
            video(segmenter).step(np.zeros((720, 1280, 3), np.uint8), {1: Prompt(mask=mask)})
        (record,) = caplog.records
        assert re.search(
            r"short_side 720 and max_size 128\d show it on 50\d, 1.0 wide", record.message
        )


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

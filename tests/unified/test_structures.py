from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from unified.structures import (
    MASK_STRIDE,
    FeaturePyramid,
    FrameResult,
    ImageBatch,
    Reference,
    Segmentation,
    join,
    join_levels,
    once,
    padded_size,
    stack_levels,
)
from unified.tasks import TASKS, Task

MEAN, STD = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([2.0, 4.0, 5.0])


def reference(num: int, seed: int = 0, batch: int = 1) -> Reference:
    generator = torch.Generator().manual_seed(seed)
    return Reference(
        keys=torch.randn(batch, num, 3, generator=generator),
        values=torch.randn(batch, num, 3, generator=generator),
        padding_mask=torch.rand(batch, num, generator=generator) < 0.4,
        summary=torch.randn(batch, 3, generator=generator),
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64], ids=str)
def test_images_are_normalised_before_padding(dtype: torch.dtype) -> None:
    images = [torch.randint(256, (3, 33, 20)).to(dtype), torch.randint(256, (3, 10, 64)).to(dtype)]
    batch = ImageBatch.from_images(images, mean=MEAN, std=STD, divisor=32)
    assert batch.tensor.shape == (2, 3, 64, 64) and batch.tensor.dtype == torch.float32
    assert batch.image_sizes == ((33, 20), (10, 64)) and batch.padded_size == (64, 64)
    assert len(batch) == 2
    for index, (image, (height, width)) in enumerate(zip(images, batch.image_sizes, strict=True)):
        for channel in range(3):
            expected = (image[channel].float() - MEAN[channel]) / STD[channel]
            torch.testing.assert_close(batch.tensor[index, channel, :height, :width], expected)
        assert not batch.padding_mask[index, :height, :width].any()
        assert (~batch.padding_mask[index]).sum() == height * width
    assert not batch.tensor.permute(0, 2, 3, 1)[batch.padding_mask].any()


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([(32, 32)], (32, 32)), ([(33, 31)], (64, 32)), ([(1, 65), (40, 2)], (64, 96))],
)
def test_padded_size(sizes: list[tuple[int, int]], expected: tuple[int, int]) -> None:
    assert padded_size(sizes, 32) == expected


def test_expanded_features_are_views() -> None:
    features = FeaturePyramid(
        levels=(torch.randn(1, 4, 3, 5), torch.randn(1, 4, 2, 3)),
        padding_masks=(torch.zeros(1, 3, 5, dtype=torch.bool), torch.ones(1, 2, 3).bool()),
        image_sizes=((24, 40),),
        padded_size=(24, 40),
        high_res=torch.randn(1, 2, 6, 10),
    )
    expanded = features.expand(3)
    assert len(features) == 1 and len(expanded) == 3
    assert expanded.image_sizes == ((24, 40),) * 3 and expanded.padded_size == (24, 40)
    originals = (*features.levels, *features.padding_masks, features.high_res)
    copies = (*expanded.levels, *expanded.padding_masks, expanded.high_res)
    for original, copy in zip(originals, copies, strict=True):
        assert original is not None and copy is not None
        assert copy.shape == (3, *original.shape[1:])
        assert copy.data_ptr() == original.data_ptr()
        assert all(torch.equal(row, original[0]) for row in copy)


def test_join_concatenates_tokens_and_averages_summaries() -> None:
    parts = [reference(2, seed=1), reference(5, seed=2), reference(3, seed=3)]
    joined = join(parts)
    assert torch.equal(joined.keys, torch.cat([part.keys for part in parts], dim=1))
    assert torch.equal(joined.values, torch.cat([part.values for part in parts], dim=1))
    assert torch.equal(joined.padding_mask, torch.cat([part.padding_mask for part in parts], dim=1))
    expected = (parts[0].summary + parts[1].summary + parts[2].summary) / 3
    torch.testing.assert_close(joined.summary, expected)
    assert join(parts[:1]) is parts[0]


def test_join_levels_joins_each_level() -> None:
    supports = [[reference(2, seed=k), reference(4, seed=10 + k)] for k in range(3)]
    joined = join_levels(supports)
    assert [level.keys.shape[1] for level in joined] == [6, 12]
    assert torch.equal(joined[1].keys[:, 4:8], supports[1][1].keys)


def test_stack_levels_pads_what_is_shorter() -> None:
    objects = [[reference(num, seed=num), reference(3, seed=num)] for num in (2, 5, 1)]
    stacked = stack_levels(objects)
    assert stacked[0].keys.shape == (3, 5, 3) and stacked[1].keys.shape == (3, 3, 3)
    for row, levels in enumerate(objects):
        num = levels[0].keys.shape[1]
        assert torch.equal(stacked[0].keys[row, :num], levels[0].keys[0])
        assert torch.equal(stacked[0].padding_mask[row, :num], levels[0].padding_mask[0])
        assert stacked[0].padding_mask[row, num:].all()
        assert torch.equal(stacked[0].summary[row], levels[0].summary[0])


def test_levels_must_be_equally_many() -> None:
    with pytest.raises(ValueError, match="zip\\(\\) argument"):
        join_levels([[reference(2)], [reference(2), reference(2)]])


def test_slices_of_a_batch() -> None:
    batch = reference(4, batch=3)
    row = batch[1:2]
    assert row.keys.shape == (1, 4, 3) and row.summary.shape == (1, 3)
    assert torch.equal(row.values[0], batch.values[1])
    assert torch.equal(row.padding_mask[0], batch.padding_mask[1])


def test_absent_objects_are_those_without_a_pixel() -> None:
    result = FrameResult(
        label_map=np.zeros((2, 2), np.uint8),
        scores={1: 0.9, 4: 0.1, 2: 0.5},
        boxes={1: None, 4: None, 2: (0.0, 0.0, 1.0, 1.0)},
        areas={1: 0, 4: 0, 2: 1},
    )
    assert result.absent == (1, 4)


def test_masks_alone_give_scores_and_boxes() -> None:
    features = FeaturePyramid(
        levels=(torch.zeros(2, 1, 2, 2),),
        padding_masks=(torch.zeros(2, 2, 2, dtype=torch.bool),),
        image_sizes=((64, 48), (40, 64)),  # of which (16, 12) and (10, 16) cells
        padded_size=(64, 64),
    )
    logits = torch.full((2, 1, 16, 16), -3.0)
    logits[0, 0, 4:8, 3:9] = torch.logit(torch.tensor(0.75))
    found = Segmentation.of_masks(logits, features)
    assert found.mask_logits is logits and found.classes.tolist() == [[0], [0]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.75], [0.0]]))
    expected = torch.tensor([6 / 12, 6 / 16, 6 / 12, 4 / 16])  # cxcywh of the image itself
    torch.testing.assert_close(found.boxes[0, 0], expected)
    assert found.boxes[1, 0, 2:].tolist() == [0, 0]
    given = Segmentation.of_masks(logits, features, torch.tensor([[0.4], [0.9]]))
    torch.testing.assert_close(given.scores, torch.tensor([[0.4], [0.0]]))


def test_tasks_have_the_stride_of_masks() -> None:
    assert {task for task, row in TASKS.items() if row.mask_stride != MASK_STRIDE} == {Task.VOS}


def test_what_objects_have_from_one_frame_is_not_copied() -> None:
    first, latest = reference(4, seed=1, batch=2), reference(3, seed=2, batch=2)
    frames = [
        [replace(r[i : i + 1], keys=r.keys[:1], padding_mask=r.padding_mask[:1]) for i in (0, 1)]
        for r in (first, latest)
    ]
    slots = [rows[0].stack(rows[1:]) for rows in frames]
    joined = join(slots)
    assert len(joined.keys) == 2 and len(once(joined.keys)) == len(once(joined.padding_mask)) == 1
    assert torch.equal(joined.keys[1], torch.cat((first.keys[0], latest.keys[0])))
    assert torch.equal(joined.values, torch.cat((first.values, latest.values), dim=1))
    others = first[:1].stack([first[1:]])
    assert len(once(others.keys)) == 2 and torch.equal(others.keys, first.keys)

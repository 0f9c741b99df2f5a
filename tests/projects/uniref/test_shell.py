"""Samples as the trainer and the evaluators give them: several examples, and no object at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from tests.projects.uniref.tiny import MakeUniRef
from unified import ImagePredictor
from unified.engine.meta_arch import SegmenterShell
from unified.engine.system import Supervision
from unified.structures import Prompt

SIZES = ((96, 128), (70, 90))


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (3, *size), generator=generator).byte() for size in sizes]


def test_examples_of_a_batch_are_padded_alike(build_uniref: MakeUniRef) -> None:
    """As in inference: norms see how far each is padded. Here two samples with two each."""
    model = build_uniref()
    pictures = images(*SIZES, SIZES[1], (64, 64))
    batch = model.preprocess(pictures)
    marked = torch.zeros(4, *batch.padded_size)
    marked[:, 10:40, 20:50] = 1
    masks = [
        mask[: size[0], : size[1]].bool()
        for mask, size in zip(marked, batch.image_sizes, strict=True)
    ]
    samples = [
        {"reference_images": pictures[part], "reference_masks": masks[part]}
        for part in (slice(0, 2), slice(2, 4))
    ]
    with torch.no_grad():
        whole = model.encode_mask(batch, model.encode_image(batch), marked)
        found = SegmenterShell(model, Supervision())._mask_references(samples)
    for level, encoded in zip(found, whole, strict=True):
        for ours, all_four in ((level.keys, encoded.keys), (level.values, encoded.values)):
            torch.testing.assert_close(ours, all_four.reshape(ours.shape), atol=1e-5, rtol=1e-5)


def test_an_answer_of_which_every_box_is_empty(build_uniref: MakeUniRef) -> None:
    """Nothing is detected; a sentence has a mask all the same."""
    model = build_uniref(num_classes=5)
    with torch.no_grad():
        for regressor in model.head.bbox_embed:
            regressor.layers[-1].bias[2:] = -1e4  # width and height
    predictor = ImagePredictor(model, score_threshold=0.0)
    predictor.set_image(np.ascontiguousarray(images(SIZES[0])[0].permute(1, 2, 0).numpy()))
    assert predictor.detect() == []
    found = predictor.instance(Prompt(text="the red dog"))
    assert found.mask.shape == SIZES[0] and found.box is None


@pytest.mark.parametrize("from_boxes", [False, True])
def test_a_batch_without_any_object_trains(build_uniref: MakeUniRef, from_boxes: bool) -> None:
    """As after a crop that shows none: only the class logits have something to learn."""
    model = build_uniref(num_classes=5).train()
    shell = SegmenterShell(model, Supervision(from_boxes=from_boxes))
    samples = []
    for image, (height, width) in zip(images(*SIZES), SIZES, strict=True):
        truth = Instances((height, width))
        truth.gt_boxes, truth.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0).long()
        truth.gt_masks = BitMasks(torch.zeros(0, height, width, dtype=torch.bool))
        sample = {"task": "detection", "image": image, "instances": truth}
        samples.append({**sample, "height": height, "width": width})
    losses = shell(samples)
    sum(losses.values()).backward()
    assert losses
    for name, loss in losses.items():
        assert (loss > 0) if "loss_ce" in name else (loss == 0), name
    assert model.head.class_embed[0].weight.grad.any()

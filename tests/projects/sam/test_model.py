"""UniFusion in a tiny SAM: its verbs, what it leaves as it was, how it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from projects.sam.baseline import BoxTracking
from projects.sam.losses import MaskLosses, dice_loss
from projects.sam.model import SamUniFusion
from tests.projects.sam.tiny import SIDE, ToySam, make_model, opened
from unified.errors import ConfigError, InputError
from unified.segmenter import Segmenter
from unified.structures import FeaturePyramid, ImageBatch, Target, join_levels

SIZES = ((64, 40), (30, 64))
BOX = torch.tensor([[8.0, 10.0, 40.0, 52.0]])


def batch(model: SamUniFusion, num: int = 1) -> ImageBatch:
    generator = torch.Generator().manual_seed(3)
    return model.preprocess(
        [torch.randint(0, 256, (3, *SIZES[i]), generator=generator) for i in range(num)]
    )


def encoded(model: SamUniFusion, num: int = 1) -> tuple[ImageBatch, FeaturePyramid]:
    images = batch(model, num)
    return images, model.encode_image(images)


def masks_on(images: ImageBatch) -> Tensor:
    masks = torch.zeros(len(images), SIDE, SIDE)
    masks[:, 5:20, 8:30] = 1
    return masks


def test_it_speaks_the_verbs_of_a_segmenter() -> None:
    model = make_model()
    assert isinstance(model, Segmenter)
    assert model.reference_kinds == {"text", "mask", "point", "box"}
    assert SamUniFusion(ToySam()).reference_kinds == {"point", "box"}


@pytest.mark.parametrize("stride", [4, 1])
@torch.no_grad()
def test_one_mask_for_every_image(stride: int) -> None:
    model = opened(make_model())
    images, features = encoded(model, 2)
    references = [model.encode_text(["the red man", "a dog"])]
    references.append(model.encode_mask(images, features, masks_on(images)))
    found = model.segment(features, references, mask_stride=stride)
    assert found.mask_logits.shape == (2, 1, SIDE // stride, SIDE // stride)
    assert found.scores.shape == (2, 1) and (found.scores <= 1).all()
    assert found.boxes.shape == (2, 1, 4) and found.mask_logits[0].std() > 0


@torch.no_grad()
def test_a_closed_gate_gives_the_masks_of_the_sam_inside() -> None:
    """References with a box change nothing; without one they are SAM's prompt token alone."""
    model = make_model()
    images, features = encoded(model)
    box = model.encode_points(None, None, BOX)
    text = model.encode_text(["the red man"])
    mask = model.encode_mask(images, features, masks_on(images))
    sam = model.sam
    sparse, dense = sam.encode_prompts(1, boxes=BOX)
    bare = sam.decode_masks(sam.encode_image(images.tensor), sparse, dense, several=False)[0]
    for references in ([box], [text, box], [mask, box], [text, mask, box]):
        assert torch.equal(model.segment(features, references).mask_logits, bare)
    token = text[0].summary[:, None]
    said = sam.decode_masks((features.levels[0],), token, dense, several=False)[0]
    assert torch.equal(model.segment(features, [text, mask]).mask_logits, said)
    changed = opened(model).segment(features, [text, box]).mask_logits
    assert (changed - bare).abs().max() > 1e-2


@torch.no_grad()
def test_one_point_gets_the_best_of_several_masks() -> None:
    model = make_model()
    _, features = encoded(model)
    points, labels = torch.tensor([[[20.0, 30.0], [50.0, 10.0]]]), torch.tensor([[1, 0]])
    one = [model.encode_points(points[:, :1], labels[:, :1], None)]
    masks, scores = model.decode(features, one, several=True)
    assert scores.shape == (1, 3)
    best = model.segment(features, one)
    assert torch.equal(best.mask_logits[0, 0], masks[0, scores[0].argmax()])
    ranked = model.segment(features, one, top_k=2)
    assert ranked.scores.shape == (1, 2) and (ranked.scores.diff(dim=1) <= 0).all()
    clear = [model.encode_points(points, labels, None)]
    single, _ = model.decode(features, clear, several=False)
    assert torch.equal(model.segment(features, clear).mask_logits, single)


@torch.no_grad()
def test_objects_of_one_image_share_its_features() -> None:
    model = opened(make_model())
    _, features = encoded(model)
    sentences = ["the red man", "a dog"]
    together = model.segment(features.expand(2), [model.encode_text(sentences)]).mask_logits
    apart = [model.segment(features, [model.encode_text([s])]).mask_logits for s in sentences]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_of_a_sentence_changes_nothing() -> None:
    model = opened(make_model())
    _, features = encoded(model)
    short, _ = (model.encode_text([t])[0] for t in ("a dog", "the red man on the left chair"))
    padded = model.encode_text(["a dog", "the red man on the left chair"])[0][:1]
    assert padded.keys.shape[1] > short.keys.shape[1]
    masks = [model.segment(features, [(r,)]).mask_logits for r in (short, padded)]
    torch.testing.assert_close(*masks, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_sam_of_the_users_own_plugs_in() -> None:
    model = opened(make_model(ToySam()))
    _, features = encoded(model)
    box = model.encode_points(None, None, BOX)
    text = model.encode_text(["the red man"])
    with_text, alone = (
        model.segment(features, references).mask_logits for references in ([text, box], [box])
    )
    assert with_text.shape == (1, 1, 16, 16) and (with_text - alone).abs().max() > 1e-3


def test_every_trained_part_learns() -> None:
    model = opened(make_model()).train()
    model.criterion = MaskLosses(score=1.0)
    model.sam.freeze()
    images, features = encoded(model, 2)
    references = [model.encode_text(["the red man", "a dog"])]
    references.append(model.encode_mask(images, features, masks_on(images)))
    masks = masks_on(images).bool()
    targets = [Target(torch.zeros(1), torch.zeros(1, 4), mask[None]) for mask in masks]
    losses = model.losses(features, references, targets)
    assert set(losses) == {"loss_mask", "loss_dice", "loss_score"}
    sum(losses.values()).backward()
    still = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert {name for name in still if "pooler" not in name} == set()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {"sam", "fusion", "text_encoder", "mask_encoder"}
    frozen = [name for name, p in model.sam.named_parameters() if p.grad is not None]
    assert frozen and all(name.startswith("mask_decoder.") for name in frozen)


def test_losses_are_those_of_the_reference() -> None:
    """Written out once more: mean cross-entropy, and dice with sums divided by 1000."""
    logits = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]]])
    masks = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    p = 1 / (1 + np.exp(-logits.numpy().ravel().astype(np.float64)))
    t = masks.numpy().ravel()
    bce = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    dice = 1 - (2 * (p * t).sum() / 1e3 + 1e-6) / (p.sum() / 1e3 + t.sum() / 1e3 + 1e-6)
    losses = MaskLosses()(logits, torch.zeros(1, 1), masks)
    assert losses["loss_mask"].item() == pytest.approx(2.0 * bce, rel=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(0.5 * dice, rel=1e-5)
    assert set(losses) == {"loss_mask", "loss_dice"}
    assert dice_loss(torch.full((1, 1, 2, 2), -30.0), torch.zeros(1, 1, 2, 2)).item() < 1e-3


def test_what_it_cannot_do_gets_one_clear_error() -> None:
    model = make_model()
    _, features = encoded(model)
    with pytest.raises(InputError, match="give a text, a mask, a point or a box"):
        model.segment(features, [], top_k=100)
    with pytest.raises(InputError, match=r"a side of 65 pixels, this SAM sees 64"):
        model.preprocess([torch.zeros(3, 65, 10)])
    bare = SamUniFusion(model.sam)
    with pytest.raises(ConfigError, match="no text encoder"):
        bare.encode_text(["a dog"])
    with pytest.raises(ConfigError, match="follows points and boxes only"):
        bare.segment(features, [model.encode_text(["a dog"])])


@torch.no_grad()
def test_plain_tracking_prompts_with_the_box_of_the_latest_mask() -> None:
    model = BoxTracking(make_model().sam).eval()
    images, features = encoded(model)
    first, latest = masks_on(images), torch.zeros(1, SIDE, SIDE)
    latest[:, 10:52, 8:40] = 1
    memory = join_levels([model.encode_mask(images, features, mask) for mask in (first, latest)])
    shown = model.encode_points(None, None, BOX)
    torch.testing.assert_close(memory[0].keys, shown[0].keys)
    found = model.segment(features, [memory])
    assert torch.equal(found.mask_logits, model.segment(features, [shown]).mask_logits)

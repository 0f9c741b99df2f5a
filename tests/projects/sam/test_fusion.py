"""The parts of the small model: a fusion in layers, features of a classifier, masks in patches."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from projects.sam.adapters import Sam
from projects.sam.config import own_decoder
from projects.sam.context import Context
from projects.sam.fusion import DeepFusion
from projects.sam.maps import coarse_prompt
from projects.sam.mask_encoder import PatchMaskEncoder
from projects.sam.model import SamUniFusion
from tests.projects.sam.test_model import BOX, encoded, masks_on
from tests.projects.sam.tiny import DIM, SIDE, transformers_sam
from tests.toy.parts import make_text_encoder
from unified.modeling.backbones import build_backbone
from unified.segmenter import encode_masks
from unified.structures import Reference, join_levels

GRID = SIDE // 16  # of the embedding


def deep(depth: int = 2) -> DeepFusion:
    """Not the identity any more."""
    torch.manual_seed(1)
    fusion = DeepFusion(dim=DIM, depth=depth, num_heads=2, head_dim=16).eval()
    with torch.no_grad():
        for parameter in fusion.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return fusion


def reference(num: int, length: int, seed: int) -> Reference:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(num, length, DIM, generator=generator)
    return Reference(tokens, tokens + 1, torch.zeros(num, length).bool(), tokens.mean(dim=1))


def tokens(num: int = 2) -> Tensor:
    return torch.randn(num, GRID * GRID, DIM, generator=torch.Generator().manual_seed(9))


def make_small(**parts: Any) -> SamUniFusion:
    """As ``configs/lite/sam_mobile.yaml``, tiny."""
    sam = Sam.of(transformers_sam())
    torch.manual_seed(0)
    given = {
        "fusion": deep(),
        "text_encoder": make_text_encoder(DIM),
        "mask_encoder": PatchMaskEncoder(dim=DIM, patch=4),
        "decoder": own_decoder(sam.mask_decoder),
        **parts,
    }
    return SamUniFusion(sam, **given).eval()


def test_it_begins_as_the_identity() -> None:
    fusion = DeepFusion(dim=DIM, num_heads=2, head_dim=16)
    assert torch.equal(fusion(tokens(), []), tokens())
    assert torch.equal(fusion(tokens(), [reference(2, 5, 0)]), tokens())


@torch.no_grad()
def test_the_order_of_references_and_their_padding_change_nothing() -> None:
    fusion = deep()
    first, second = reference(2, 5, 0), reference(2, 7, 1)
    both = fusion(tokens(), [first, second])
    assert not torch.allclose(both, fusion(tokens(), [first]), atol=1e-3)
    torch.testing.assert_close(fusion(tokens(), [second, first]), both, atol=1e-5, rtol=0)
    padded = replace(
        first,
        keys=torch.cat([first.keys, torch.full((2, 3, DIM), 9.0)], dim=1),
        values=torch.cat([first.values, torch.full((2, 3, DIM), 9.0)], dim=1),
        padding_mask=torch.cat([first.padding_mask, torch.ones(2, 3).bool()], dim=1),
    )
    torch.testing.assert_close(fusion(tokens(), [padded, second]), both, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_batch_of_the_fusion_is_its_rows() -> None:
    fusion, given = deep(), reference(2, 5, 0)
    added, coarse = fusion.found(tokens(), [given])
    assert added.shape == (2, GRID * GRID, DIM) and coarse.shape == (2, GRID, GRID)
    for row in range(2):
        alone = fusion.found(tokens()[row : row + 1], [given[row : row + 1]])
        torch.testing.assert_close(alone[0][0], added[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone[1][0], coarse[row], atol=1e-5, rtol=0)


@torch.no_grad()
def test_objects_of_one_image_get_what_copies_of_it_would_give() -> None:
    """What they share is computed once."""
    fusion, encoder = deep(), PatchMaskEncoder(dim=DIM, patch=4)
    images, masks = torch.zeros(3, 3, SIDE, SIDE), torch.zeros(3, SIDE, SIDE)
    masks[0, :32, :32] = masks[1, 20:, 40:] = masks[2, 5:50, 10:20] = 1
    shared = tokens(1).expand(3, -1, -1)
    remembered = encoder.refer(images, masks, shared)
    apart = encoder.refer(images, masks, shared.clone())
    assert remembered.keys.stride(0) == remembered.padding_mask.stride(0) == 0
    copied = replace(apart, keys=apart.keys.clone(), padding_mask=apart.padding_mask.clone())
    found = fusion.found(shared, [remembered])
    expected = fusion.found(shared.clone(), [copied])
    assert (found[1][0] - found[1][1]).abs().max() > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_value_of_a_patch_says_what_the_mask_is_there() -> None:
    encoder = PatchMaskEncoder(dim=DIM, patch=4)
    masks = torch.zeros(1, SIDE, SIDE)
    masks[:, :32, :32] = 1
    seen = tokens(1)
    shown = encoder.refer(torch.zeros(1, 3, SIDE, SIDE), masks, seen)
    empty = encoder.refer(torch.zeros(1, 3, SIDE, SIDE), masks * 0, seen)
    changed = (shown.values - empty.values).abs().amax(dim=-1)[0] > 1e-6
    assert changed.tolist() == [True, False, False, False]  # of 2 x 2 patches
    assert torch.equal(shown.keys, empty.keys)
    corner = seen.reshape(GRID, GRID, DIM)[:2, :2].mean(dim=(0, 1))
    torch.testing.assert_close(shown.summary[0], corner, atol=1e-5, rtol=0)
    assert not empty.summary.any()


@pytest.mark.parametrize("where", [(1, 3, 2, 4), (0, 1, 0, 1)])
def test_a_coarse_mask_prompts_with_itself_and_its_box(where: tuple[int, int, int, int]) -> None:
    x0, x1, y0, y1 = where
    coarse = torch.full((1, GRID, GRID), -3.0)
    coarse[:, y0:y1, x0:x1] = 2.0
    prompt = coarse_prompt(coarse, SIDE)
    assert prompt["masks"].shape == (1, 1, 4 * GRID, 4 * GRID)
    assert prompt["boxes"].tolist() == [[x0 * 16.0, y0 * 16.0, x1 * 16.0, y1 * 16.0]]


def test_where_nothing_is_found_the_likeliest_cell_is_the_box() -> None:
    coarse = torch.full((1, GRID, GRID), -3.0)
    coarse[0, 2, 1] = -1.0
    assert coarse_prompt(coarse, SIDE)["boxes"].tolist() == [[16.0, 32.0, 32.0, 48.0]]


@torch.no_grad()
def test_what_the_fusion_sees_of_padding_does_not_count() -> None:
    """Of a wide and a high picture; the other half of the square is padding."""
    model = make_small()
    half = GRID // 2
    for height, width in ((SIDE // 2, SIDE), (SIDE, SIDE // 2)):
        images = model.preprocess([torch.rand(3, height, width) * 255])
        features = model.encode_image(images)
        other = features.levels[0].clone()
        other[..., half if height < SIDE else GRID :, :] += 3.0
        other[..., half if width < SIDE else GRID :] += 3.0
        changed = replace(features, levels=(other,))
        masks = torch.zeros(1, SIDE, SIDE)
        masks[:, : SIDE // 4, : SIDE // 4] = 1
        found = []
        for seen in (features, changed):
            (remembered,) = model.encode_mask(images, seen, masks)
            fused, coarse = model.fuse(seen, [remembered])
            found.append((remembered.values, fused - seen.levels[0], coarse))
        for before, after in zip(*found, strict=True):
            torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
        assert found[0][0].shape[1] == (GRID // 2) ** 2 // 2
        assert found[0][1].abs().max() > 1e-2


@torch.no_grad()
def test_a_picture_in_a_batch_of_others_shapes_is_answered_as_alone() -> None:
    """Of a wide and a high picture none covers what both do; nor as examples of one thing."""
    model, generator = make_small(second_pass=True), torch.Generator().manual_seed(2)
    sizes = (SIDE // 2, SIDE), (SIDE, SIDE // 2)
    pictures = [255 * torch.rand(3, *size, generator=generator) for size in sizes]
    shown = [torch.zeros(size, dtype=torch.bool) for size in sizes]
    shown[0][5:20, 8:30] = shown[1][40:60, 4:28] = True

    def asked(rows: list[int]) -> tuple[Reference, Tensor]:
        images = model.preprocess([pictures[row] for row in rows])
        features = model.encode_image(images)
        (seen,) = encode_masks(model, images, features, [shown[row] for row in rows])
        return seen, model.segment(features, [(seen,)]).mask_logits

    seen, logits = asked([0, 1])
    query = model.encode_image(model.preprocess(pictures[:1]))
    alone = [asked([row]) for row in range(2)]
    for row, (own, expected) in enumerate(alone):
        real = ~seen.padding_mask[row]
        torch.testing.assert_close(seen.values[row, real], own.values[0], atol=1e-5, rtol=0)
        height, width = (side // 4 for side in sizes[row])
        inside = [maps[0, :height, :width] for maps in (logits[row], expected[0])]
        torch.testing.assert_close(*inside, atol=1e-4, rtol=0)
    together = join_levels([(seen[row : row + 1],) for row in range(2)])
    apart = join_levels([(own,) for own, _ in alone])
    answers = [model.segment(query, [given]).mask_logits for given in (together, apart)]
    torch.testing.assert_close(*answers, atol=1e-4, rtol=0)


@torch.no_grad()
def test_points_keep_the_masks_of_the_sam_when_the_decoder_is_another() -> None:
    model = make_small()
    _, features = encoded(model)
    shown = model.encode_points(None, None, BOX)
    before, _ = model.decode(features, [shown], several=False)
    text = model.encode_text(["the red man"])
    told, _ = model.decode(features, [text], several=False)
    assert model.decoder is not None
    for parameter in model.decoder.parameters():
        parameter.mul_(1.1)
    torch.testing.assert_close(model.decode(features, [shown], several=False)[0], before)
    assert not torch.allclose(model.decode(features, [text], several=False)[0], told, atol=1e-2)


@torch.no_grad()
def test_sentence_mask_and_points_all_have_a_say() -> None:
    model = make_small()
    images, features = encoded(model)
    text = model.encode_text(["the red man"])
    mask = model.encode_mask(images, features, masks_on(images))
    shown = model.encode_points(None, None, BOX)
    answers = [
        model.decode(features, given, several=False)[0]
        for given in ([text], [mask], [text, mask], [text, shown], [text, mask, shown])
    ]
    for i, first in enumerate(answers):
        assert all((first - second).abs().max() > 1e-3 for second in answers[:i])


def test_what_a_decoder_of_its_own_shares_is_not_trained() -> None:
    decoder = own_decoder(transformers_sam().mask_decoder)
    trained = {name for name, p in decoder.named_parameters() if p.requires_grad}
    assert (
        "iou_token.weight" in trained and "transformer.layers.0.self_attn.q_proj.weight" in trained
    )
    assert not any("upscale" in name or ".mlp." in name for name in trained)


def test_features_of_the_classifier_join_what_the_fusion_sees() -> None:
    torch.manual_seed(3)
    context = Context(build_backbone("efficientnet_lite0", freeze_at=5), dim=DIM).eval()
    model = make_small(context=context)
    _, features = encoded(model)
    assert features.context.shape == features.levels[0].shape
    bare = replace(features, context=None)
    text = model.encode_text(["the red man"])
    with torch.no_grad():
        difference = model.fuse(features, [text[0]])[0] - model.fuse(bare, [text[0]])[0]
        assert difference.abs().max() > 1e-4
        shown = model.encode_points(None, None, BOX)
        pointed = [model.decode(f, [shown], several=False)[0] for f in (features, bare)]
    assert torch.equal(*pointed)
    assert features.expand(3).context.shape[0] == 3


def test_everything_that_is_trained_learns() -> None:
    context = Context(build_backbone("efficientnet_lite0", freeze_at=5), dim=DIM)
    model = make_small(context=context).train()
    model.sam.freeze()
    model.sam.mask_decoder.requires_grad_(False)
    images, features = encoded(model)
    text = model.encode_text(["the red man"])
    mask = model.encode_mask(images, features, masks_on(images))
    logits, scores, coarse = model.answer(features, [text[0], mask[0]], several=False)
    (logits.square().mean() + scores.sum() + coarse.square().mean()).backward()
    spare = ("hypernetworks_mlps.1", "hypernetworks_mlps.2", "hypernetworks_mlps.3", "bert.")
    silent = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.grad is None and not any(part in name for part in spare)
    }
    assert not silent
    assert all(p.grad is None for p in model.sam.parameters())


def test_a_copy_keeps_its_weights_apart() -> None:
    decoder = transformers_sam().mask_decoder
    before = copy.deepcopy(decoder.state_dict())
    with torch.no_grad():
        for parameter in own_decoder(decoder).parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())


@torch.no_grad()
def test_the_second_pass_asks_the_sam_about_the_box_of_what_was_found() -> None:
    model = make_small()
    _, features = encoded(model)
    text = model.encode_text(["the red man"])
    logits = torch.full((1, 1, SIDE // 4, SIDE // 4), -9.0)
    assert torch.equal(model.look_again(features, logits), logits)
    logits[..., 3:10, 2:8] = 9.0
    box = torch.tensor([[8.0, 12.0, 32.0, 40.0]])
    sparse, dense = model.sam.encode_prompts(1, boxes=box)
    again, _ = model.sam.decode_masks(features.levels, sparse, dense, several=False)
    expected = (logits.clamp(-6, 6) + again.clamp(-6, 6)) / 2
    torch.testing.assert_close(model.look_again(features, logits), expected, atol=1e-4, rtol=0)
    before = model.segment(features, [text])
    model.second_pass = True
    after = model.segment(features, [text])
    shown = model.segment(features, [model.encode_points(None, None, BOX)])
    assert torch.equal(before.scores > 0, after.scores > 0)
    model.second_pass = False
    assert torch.equal(
        shown.mask_logits,
        model.segment(features, [model.encode_points(None, None, BOX)]).mask_logits,
    )

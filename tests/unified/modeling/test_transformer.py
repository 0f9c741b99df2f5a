from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unified.modeling.layers import box_position
from unified.modeling.transformer import DeformableTransformer, TokenLayout

DIM = 32
SIZES = ((8, 12), (4, 6), (2, 3), (1, 2))


def transformer(**options: object) -> DeformableTransformer:
    torch.manual_seed(0)
    module = DeformableTransformer(
        dim=DIM,
        num_heads=4,
        encoder_layers=2,
        decoder_layers=2,
        feedforward_dim=64,
        num_points=2,
        **options,
    ).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return module


def padding_masks(*shares: tuple[float, float]) -> list[Tensor]:
    """One image per (height share, width share) that is not padding."""
    masks = []
    for height, width in SIZES:
        mask = torch.ones(len(shares), height, width, dtype=torch.bool)
        for row, (down, across) in zip(mask, shares, strict=True):
            row[: math.ceil(height * down), : math.ceil(width * across)] = False
        masks.append(mask)
    return masks


def levels(batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, DIM, h, w, generator=generator) for h, w in SIZES]


def test_layout_knows_where_tokens_lie() -> None:
    masks = padding_masks((1, 1), (0.5, 0.75))
    layout = TokenLayout.from_masks(masks)
    assert layout.shapes == SIZES
    assert layout.padding_mask.shape == (2, sum(h * w for h, w in SIZES))
    for level, mask in enumerate(masks):
        height, width = SIZES[level]
        for image in range(2):
            rows, columns = (~mask[image]).nonzero().amax(dim=0).add(1).tolist()
            ratio = layout.valid_ratios[image, level].tolist()
            assert ratio == pytest.approx([columns / width, rows / height])
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels()], dim=1)
    for ours, expected in zip(layout.split(tokens), levels(), strict=True):
        assert torch.equal(ours, expected)


def test_pixel_centres_lie_in_the_unpadded_part() -> None:
    layout = TokenLayout.from_masks(padding_masks((1, 1), (0.5, 0.5)))
    centres = layout.pixel_centres()[0].view(2, 8, 12, 2)
    for row, column in ((0, 0), (3, 5), (7, 11)):
        full = [(column + 0.5) / 12, (row + 0.5) / 8]
        assert centres[0, row, column].tolist() == pytest.approx(full)
        assert centres[1, row, column].tolist() == pytest.approx([2 * x for x in full])


def test_proposals_are_boxes_on_pixels_away_from_the_border() -> None:
    module = transformer()
    memory, layout = module.encode(levels(), padding_masks((1, 1), (0.5, 0.75)))
    features, logits = module.propose(memory, layout)
    start = 0
    for level, (height, width) in enumerate(SIZES):
        for image, (rows, columns) in enumerate(((8, 12), (4, 9))):
            rows, columns = (math.ceil(x / 2**level) for x in (rows, columns))
            for row in range(height):
                for column in range(width):
                    token = start + row * width + column
                    x, y = (column + 0.5) / columns, (row + 0.5) / rows
                    side = 0.05 * 2**level
                    inside = row < rows and column < columns
                    inside = inside and all(0.01 < v < 0.99 for v in (x, y, side))
                    got = logits[image, token]
                    if inside:
                        assert got.sigmoid().tolist() == pytest.approx([x, y, side, side], abs=1e-5)
                    else:
                        assert got.eq(math.inf).all()
                        expected = module.enc_output_norm(module.enc_output.bias)
                        torch.testing.assert_close(features[image, token], expected)
        start += height * width


def test_border_tokens_of_wide_levels_are_no_proposals() -> None:
    """With more than 50 columns the first centre is nearer to the border than 0.01."""
    module = transformer()
    mask = torch.zeros(1, 4, 60, dtype=torch.bool)
    layout = TokenLayout.from_masks([mask])
    _, logits = module.propose(torch.zeros(1, 240, DIM), layout)
    outside = logits.view(4, 60, 4)[1, :, 0].isinf()
    assert outside.nonzero().flatten().tolist() == [0, 59]


def test_padding_has_no_influence_on_other_tokens() -> None:
    module, masks = transformer(), padding_masks((1, 1), (0.5, 0.5))
    changed = [
        level.masked_fill(mask[:, None], 7.0) for level, mask in zip(levels(), masks, strict=True)
    ]
    before, layout = module.encode(levels(), masks)
    after, _ = module.encode(changed, masks)
    keep = ~layout.padding_mask
    torch.testing.assert_close(after[keep], before[keep])


def test_an_image_alone_is_the_same_in_a_padded_batch() -> None:
    """Memory of the unpadded tokens, whatever stands on the padding."""
    module = transformer(num_levels=3)
    alone = levels(batch=1)[:3]
    canvases, masks = [], []
    for level in alone:
        height, width = level.shape[2:]
        canvas = torch.full((1, DIM, 2 * height, 3 * width), 5.0)
        canvas[..., :height, :width] = level
        mask = torch.ones(1, 2 * height, 3 * width, dtype=torch.bool)
        mask[:, :height, :width] = False
        canvases.append(canvas)
        masks.append(mask)
    unpadded = [torch.zeros(1, *level.shape[2:], dtype=torch.bool) for level in alone]
    expected, _ = module.encode(alone, unpadded)
    padded, layout = module.encode(canvases, masks)
    torch.testing.assert_close(padded[~layout.padding_mask], expected[0], atol=1e-5, rtol=1e-5)


def test_batch_equals_loop() -> None:
    module, masks = transformer(), padding_masks((1, 1), (0.5, 0.75))
    together, _ = module.encode(levels(), masks)
    for image in range(2):
        row = slice(image, image + 1)
        alone, _ = module.encode([x[row] for x in levels()], [x[row] for x in masks])
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


def test_level_embedding_joins_the_position_not_the_content() -> None:
    """Without layers the memory is the input, whatever the position."""
    torch.manual_seed(0)
    module = DeformableTransformer(dim=DIM, num_heads=4, encoder_layers=0, decoder_layers=1)
    memory, _ = module.encode(levels(), padding_masks((1, 1), (1, 1)))
    expected = torch.cat([level.flatten(2).transpose(1, 2) for level in levels()], dim=1)
    assert torch.equal(memory, expected)
    module, masks = transformer(), padding_masks((1, 1), (1, 1))
    before, _ = module.encode(levels(), masks)
    with torch.no_grad():
        module.level_embed[2] += 1.0
    after, _ = module.encode(levels(), masks)
    assert (before - after).abs().max() > 1e-3


def test_query_position_is_half_of_the_projected_code() -> None:
    module = transformer()
    boxes = torch.randn(2, 5, 4)
    boxes[0, 0] = math.inf
    code = box_position(boxes.sigmoid(), DIM // 2)
    assert code.shape == (2, 5, 2 * DIM)
    expected = module.pos_trans_norm(module.pos_trans(code))[..., :DIM]
    position = module.query_position(boxes)
    torch.testing.assert_close(position, expected)
    assert position.isfinite().all(), "a box of no valid token is infinite before the sigmoid"


def test_dropout_only_in_training() -> None:
    module, masks = transformer(dropout=0.5), padding_masks((1, 1), (1, 1))
    assert torch.equal(module.encode(levels(), masks)[0], module.encode(levels(), masks)[0])
    module.train()
    assert not torch.equal(module.encode(levels(), masks)[0], module.encode(levels(), masks)[0])

from __future__ import annotations

import torch
from torch import Tensor

from unified.modeling.neck import Neck, TopDownNeck

DIMS = {"res2": 8, "res3": 12, "res4": 16, "res5": 20}


def stages(batch: int = 2) -> dict[str, Tensor]:
    """Of a 128 x 192 input."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(batch, dim, 128 // stride, 192 // stride, generator=generator)
        for stride, (name, dim) in zip((4, 8, 16, 32), DIMS.items(), strict=True)
    }


def padding_mask() -> Tensor:
    mask = torch.ones(2, 128, 192, dtype=torch.bool)
    mask[0], mask[1, :75, :130] = False, False
    return mask


def test_three_stages_and_a_strided_convolution_of_the_last() -> None:
    torch.manual_seed(0)
    neck = Neck(in_dims=DIMS, dim=32)
    levels, _ = neck(stages(), padding_mask())
    assert [tuple(x.shape[2:]) for x in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    sources = [stages()[name] for name in ("res3", "res4", "res5", "res5")]
    for source, (convolve, normalise), level in zip(sources, neck.input_proj, levels, strict=True):
        torch.testing.assert_close(level, normalise(convolve(source)))
    assert [convolve.stride for convolve, _ in neck.input_proj] == [(1, 1)] * 3 + [(2, 2)]


def test_masks_take_the_pixel_at_the_corner_of_each_cell() -> None:
    """The last from the first mask, which is one nearest resize more than from the pixels."""
    _, masks = Neck(in_dims=DIMS, dim=32)(stages(), padding_mask())
    for mask, stride in zip(masks, (8, 16, 32), strict=False):
        assert torch.equal(mask, padding_mask()[:, ::stride, ::stride])
    assert torch.equal(masks[3], masks[0][:, ::8, ::8])


def test_the_coarsest_mask_looks_through_the_finest() -> None:
    """Where cells are no whole pixels: of 160 columns cell 1 begins at 53, by way of it at 48."""
    mask = torch.ones(1, 128, 160, dtype=torch.bool)
    mask[:, :, :50] = False
    inputs = {name: x[:1, :, :, : x.shape[3] * 5 // 6] for name, x in stages().items()}
    _, masks = Neck(in_dims=DIMS, dim=32)(inputs, mask)
    assert masks[3][0, 0].tolist() == [False, False, True]


def test_every_image_keeps_an_unpadded_token_at_every_level() -> None:
    """Attention to a reference without any token would be undefined."""
    mask = torch.ones(2, 128, 192, dtype=torch.bool)
    mask[0], mask[1, :1, :1] = False, False
    _, masks = Neck(in_dims=DIMS, dim=32)(stages(), mask)
    assert all((~level).flatten(1).any(dim=1).all() for level in masks)


def test_odd_sizes_of_the_last_stage_round_up() -> None:
    odd = {name: x[..., : x.shape[-2] * 3 // 4, :] for name, x in stages().items()}
    levels, masks = Neck(in_dims=DIMS, dim=32)(odd, padding_mask()[:, :96])
    assert [tuple(x.shape[2:]) for x in levels] == [(12, 24), (6, 12), (3, 6), (2, 3)]
    assert [tuple(x.shape[1:]) for x in masks] == [(12, 24), (6, 12), (3, 6), (2, 3)]


def test_gradient_reaches_every_parameter() -> None:
    neck = Neck(in_dims=DIMS, dim=32)
    levels, _ = neck(stages(), padding_mask())
    sum((x * torch.randn(x.shape)).sum() for x in levels).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_a_top_down_neck_starts_as_a_plain_one() -> None:
    torch.manual_seed(0)
    neck = TopDownNeck(in_dims=DIMS, dim=32)
    plain = Neck(in_dims=DIMS, dim=32)
    plain.load_state_dict({k: v for k, v in neck.state_dict().items() if "top_down" not in k})
    levels, masks = neck(stages(), padding_mask())
    plain_levels, plain_masks = plain(stages(), padding_mask())
    for level, other in zip((*levels, *masks), (*plain_levels, *plain_masks), strict=True):
        assert torch.equal(level, other)


def test_coarse_levels_reach_all_finer_ones_and_only_them() -> None:
    torch.manual_seed(0)
    neck = TopDownNeck(in_dims=DIMS, dim=32)
    for conv in neck.top_down:
        torch.nn.init.eye_(conv.weight[..., 0, 0])
    before, _ = neck(stages(), padding_mask())
    changed = stages()
    changed["res4"] = changed["res4"] + torch.randn(changed["res4"].shape)
    after, _ = neck(changed, padding_mask())
    differs = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert differs == [True, True, False, False]
    plain = [layer(x) for layer, x in zip(neck.input_proj, _sources(), strict=True)]
    grown = torch.nn.functional.interpolate(before[2], size=(8, 12), mode="bilinear")
    torch.testing.assert_close(before[1], plain[1] + grown)


def _sources() -> list[Tensor]:
    return [stages()[name] for name in ("res3", "res4", "res5", "res5")]

"""The mask decoder as it runs on a CPU, against transformers' own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from projects.sam.adapters import Sam
from projects.sam.decoding import decode, runs_here
from tests.projects.sam.tiny import DIM, transformers_sam
from unified.inference.frames import autocast
from unified.masks import MAX_LOGIT

TOLERANCE = 5e-5  # of masks that reach 9: sums in another order


def inputs(num: int, height: int, width: int) -> SimpleNamespace:
    """Of objects that differ in everything: more pixels than a strip has, and no square."""
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return SimpleNamespace(
        image=drawn(num, DIM, height, width),
        position=drawn(DIM, height, width),
        sparse=drawn(num, 3, DIM),
        dense=drawn(num, DIM, height, width),
    )


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("size", [(3, 40, 28), (1, 5, 9)])
@torch.no_grad()
def test_masks_and_scores_are_those_of_transformers(
    size: tuple[int, int, int], several: bool
) -> None:
    decoder, given = transformers_sam().mask_decoder, inputs(*size)
    masks, scores = decoder(
        image_embeddings=given.image,
        image_positional_embeddings=given.position.expand(len(given.image), -1, -1, -1),
        sparse_prompt_embeddings=given.sparse[:, None],
        dense_prompt_embeddings=given.dense,
        multimask_output=several,
    )
    found, rated = decode(decoder, **vars(given), several=several)
    assert masks.std() > 0.3 and found.shape == (size[0], 3 if several else 1, *masks.shape[-2:])
    torch.testing.assert_close(found, masks[:, 0], atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(rated, scores[:, 0], atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_masks_of_a_part_are_those_of_all_within_it() -> None:
    decoder, given = transformers_sam().mask_decoder, inputs(2, 6, 9)
    before = {name: value.clone() for name, value in vars(given).items()}
    whole, scores = decode(decoder, **vars(given), several=True)
    part, rated = decode(decoder, **vars(given), several=True, shown=(4, 7))
    assert all(torch.equal(value, before[name]) for name, value in vars(given).items())
    assert torch.equal(rated, scores) and part.shape == whole.shape
    torch.testing.assert_close(part[..., :16, :28], whole[..., :16, :28])
    assert (part[..., 16:, :] == -MAX_LOGIT).all() and (part[..., 28:] == -MAX_LOGIT).all()


def test_what_learns_or_runs_elsewhere_is_left_to_transformers() -> None:
    image = torch.zeros(1, DIM, 4, 4)
    assert not runs_here(image)
    with torch.no_grad():
        assert runs_here(image) and not runs_here(image.to("meta"))
        with autocast(image.device, "bfloat16"):
            assert not runs_here(image)
    sam = Sam.of(transformers_sam())
    sparse, dense = sam.encode_prompts(1, boxes=torch.tensor([[8.0, 10.0, 40.0, 52.0]]))
    masks, _ = sam.decode_masks((image,), sparse, dense, several=False)
    masks.sum().backward()
    assert sam.mask_decoder.iou_token.weight.grad is not None

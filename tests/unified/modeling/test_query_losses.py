"""The whole way from feature levels to losses, on a tiny head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unified.modeling.criterion import Criterion
from unified.modeling.detr_head import DetrHead, Queries
from unified.modeling.mask_head import MaskHead
from unified.modeling.query_losses import query_losses
from unified.modeling.transformer import DeformableTransformer
from unified.structures import FeaturePyramid, Target

SIZE, DIM, HIGH_RES = 64, 32, 8


class TinyHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        transformer = DeformableTransformer(
            dim=DIM, num_heads=4, encoder_layers=2, decoder_layers=2, feedforward_dim=64
        )
        self.head = DetrHead(transformer, num_queries=20, num_classes=2)
        self.mask_head = MaskHead(dim=DIM, high_res_dim=HIGH_RES)

    def decode(self, features: FeaturePyramid) -> Queries:
        return self.head(features.levels, features.padding_masks)

    def losses(
        self, features: FeaturePyramid, targets: list[Target], mask_stride: int = 4
    ) -> dict[str, Tensor]:
        return query_losses(
            head=self.head,
            mask_head=self.mask_head,
            criterion=Criterion(mask_aux=True),
            queries=self.decode(features),
            features=features,
            targets=targets,
            mask_stride=mask_stride,
        )


@pytest.fixture
def heads() -> TinyHeads:
    torch.manual_seed(0)
    heads = TinyHeads()
    for parameter in heads.parameters():  # off the zero initialisation, so that gradients pass
        nn.init.normal_(parameter, std=0.1)
    return heads


def make_features(sizes: tuple[tuple[int, int], ...]) -> FeaturePyramid:
    generator = torch.Generator().manual_seed(1)
    batch, levels, padding_masks = len(sizes), [], []
    for stride in (8, 16, 32, 64):
        side = SIZE // stride
        levels.append(torch.randn(batch, DIM, side, side, generator=generator))
        padding = torch.ones(batch, side, side, dtype=torch.bool)
        for image, (height, width) in enumerate(sizes):
            padding[image, : -(-height // stride), : -(-width // stride)] = False
        padding_masks.append(padding)
    return FeaturePyramid(
        levels=tuple(levels),
        padding_masks=tuple(padding_masks),
        image_sizes=sizes,
        padded_size=(SIZE, SIZE),
        high_res=torch.randn(batch, HIGH_RES, SIZE // 4, SIZE // 4, generator=generator),
    )


def make_target(num: int, seed: int) -> Target:
    generator = torch.Generator().manual_seed(seed)
    return Target(
        labels=torch.randint(2, (num,), generator=generator),
        boxes=0.3 + 0.3 * torch.rand(num, 4, generator=generator),
        masks=torch.rand(num, SIZE, SIZE, generator=generator) > 0.5,
    )


@pytest.mark.parametrize("counts", [(2, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize("mask_stride", [1, 4])
def test_a_gradient_reaches_every_parameter(
    heads: TinyHeads, counts: tuple[int, int], mask_stride: int
) -> None:
    features = make_features(((SIZE, SIZE), (48, 56)))
    targets = [make_target(num, seed) for seed, num in enumerate(counts)]
    losses = heads.losses(features, targets, mask_stride)
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, p in heads.named_parameters() if p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in heads.parameters())
    if all(counts):
        zero = {name for name, p in heads.named_parameters() if not p.grad.any()}
        # The upper half of the position code is cut off before use.
        assert zero <= {"head.transformer.pos_trans_norm.bias"}


def test_losses_do_not_depend_on_the_neighbour_in_the_batch_but_for_the_normaliser(
    heads: TinyHeads,
) -> None:
    both = make_features(((SIZE, SIZE), (SIZE, SIZE)))
    targets = [make_target(2, 0), make_target(1, 1)]
    with torch.no_grad():
        together = heads.losses(both, targets)
        alone = [heads.losses(one_image(both, image), [targets[image]]) for image in range(2)]
    # loss_ce and loss_bbox share the normaliser, so that their ratio is free of it.
    for suffix in ("", "_0", "_enc"):
        total = [losses[f"loss_bbox{suffix}"] for losses in (together, *alone)]
        low, high = sorted(total[1:])
        assert low - 1e-5 <= total[0] <= high + 1e-5  # a weighted mean of the two
    for name in ("loss_mask", "loss_dice_0", "loss_mask_iou"):
        low, high = sorted(losses[name] for losses in alone)
        assert low - 1e-5 <= together[name] <= high + 1e-5


def one_image(features: FeaturePyramid, image: int) -> FeaturePyramid:
    one = slice(image, image + 1)
    assert features.high_res is not None
    return FeaturePyramid(
        levels=tuple(level[one] for level in features.levels),
        padding_masks=tuple(mask[one] for mask in features.padding_masks),
        image_sizes=features.image_sizes[one],
        padded_size=features.padded_size,
        high_res=features.high_res[one],
    )


def test_a_few_steps_find_the_object() -> None:
    """Losses point the right way: one image is learnt by heart."""
    torch.manual_seed(0)
    heads = TinyHeads()
    features = make_features(((SIZE, SIZE),))
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask[:, 16:48, 8:40] = True
    box = torch.tensor([[24.0, 32.0, 32.0, 32.0]]) / SIZE
    target = Target(labels=torch.tensor([1]), boxes=box, masks=mask)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=2e-3)
    history = []
    for _ in range(50):
        losses = heads.losses(features, [target])
        history.append({name: float(value.detach()) for name, value in losses.items()})
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    first, last = history[0], history[-1]
    assert last["loss_bbox"] < 0.2 * first["loss_bbox"]
    assert last["loss_dice"] < 0.5 * first["loss_dice"]
    assert sum(last.values()) < 0.3 * sum(first.values())

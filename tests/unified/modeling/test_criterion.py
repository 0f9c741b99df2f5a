"""Losses against loops, and against numbers recorded from the reference."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unified.modeling.boxinst import box_masks, pairwise_loss, projection_loss
from unified.modeling.criterion import (
    WEIGHTS,
    Criterion,
    LayerPrediction,
    box_losses,
    focal_loss,
    mask_aux_losses,
    mask_dice_loss,
    mask_focal_loss,
    sample_pairs,
)
from unified.modeling.matcher import Match, PaddedTargets, match_simota
from unified.structures import Target

RECORDED = Path(__file__).parents[2] / "data" / "uniref" / "train_losses.npz"
SIZE, QUERIES, CLASSES, LAYERS = 32, 12, 3, 2


def slow_focal(logit: float, wanted: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    if wanted:
        return -0.25 * (1 - p) ** 2 * math.log(p)
    return -0.75 * p**2 * math.log(1 - p)


@pytest.fixture
def masks_and_logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 6, 5, generator=generator).double()
    masks = (torch.rand(4, 6, 5, generator=generator) > 0.6).double()
    return logits, masks


def test_focal_losses_equal_the_loop(masks_and_logits: tuple[Tensor, Tensor]) -> None:
    logits, masks = masks_and_logits
    for k in range(4):
        values = [
            slow_focal(logit, wanted)
            for logit, wanted in zip(logits[k].flatten().tolist(), masks[k].flatten(), strict=True)
        ]
        assert focal_loss(logits[k], masks[k]).sum().item() == pytest.approx(sum(values))
        assert mask_focal_loss(logits, masks)[k].item() == pytest.approx(sum(values) / 30)


def test_dice_loss_equals_the_loop(masks_and_logits: tuple[Tensor, Tensor]) -> None:
    logits, masks = masks_and_logits
    for k in range(4):
        p = [1 / (1 + math.exp(-x)) for x in logits[k].flatten().tolist()]
        t = masks[k].flatten().tolist()
        inner = sum(a * b for a, b in zip(p, t, strict=True))
        wanted = 1 - (2 * inner + 1) / (sum(p) + sum(t) + 1)
        assert mask_dice_loss(logits, masks)[k].item() == pytest.approx(wanted)


def test_auxiliary_mask_losses_equal_the_loop(masks_and_logits: tuple[Tensor, Tensor]) -> None:
    logits, masks = masks_and_logits
    hard, miss = mask_aux_losses(logits, masks)
    for k in range(4):
        entropies, low, high = [], 0.0, 0.0
        pixels = zip(logits[k].flatten().tolist(), masks[k].flatten().tolist(), strict=True)
        for logit, wanted in pixels:
            p = 1 / (1 + math.exp(-logit))
            odds = [math.log(q / (1 - q)) for q in (1 - p, p)]
            share = [math.exp(x) / sum(map(math.exp, odds)) for x in odds]
            entropies.append(-math.log(share[int(wanted)]))
            low, high = low + min(share[1], wanted), high + max(share[1], wanted)
        hardest = sorted(entropies, reverse=True)[:12]  # 40% of 30 pixels
        assert hard[k].item() == pytest.approx(sum(hardest) / 12)
        assert miss[k].item() == pytest.approx(1 - low / high)


def test_auxiliary_mask_losses_are_finite_on_extreme_logits() -> None:
    logits = torch.tensor([[[90.0, -90.0], [-90.0, 90.0]]], requires_grad=True)
    hard, miss = mask_aux_losses(logits, torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))
    (hard + miss).sum().backward()
    assert hard.isfinite().all() and miss.isfinite().all()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("run", ["det", "fss", "ground", "rvos"])
def test_last_layer_equals_the_recorded_reference(run: str) -> None:
    recorded = np.load(RECORDED)

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(recorded[f"{run}/{name}"])

    prediction = LayerPrediction(logits=tensor("pred_logits"), boxes=tensor("pred_boxes"))
    targets = []
    for image in range(2):
        boxes = tensor(f"tgt_boxes_b{image}")
        targets.append(Target(labels=torch.zeros(len(boxes), dtype=torch.int64), boxes=boxes))
    padded = PaddedTargets.from_targets(targets)
    match = match_simota(prediction.logits, prediction.boxes, padded)
    for image in range(2):
        pairs = torch.stack([match.queries, match.targets])[:, match.images == image]
        assert pairs.tolist() == tensor(f"match_l5_b{image}").tolist()
    losses = box_losses(prediction, padded, match)
    for name, value in losses.items():
        torch.testing.assert_close(value, tensor(name), rtol=1e-6, atol=0)


class ToyModel(nn.Module):
    """Free parameters in place of a network: every one must get a gradient."""

    def __init__(self, batch: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def free(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator))

        self.logits = nn.ParameterList(free(batch, QUERIES, CLASSES) for _ in range(LAYERS))
        self.boxes = nn.ParameterList(free(batch, QUERIES, 4) for _ in range(LAYERS))
        self.masks = nn.ParameterList(free(batch, QUERIES, SIZE, SIZE) for _ in range(LAYERS))
        self.proposal_logits, self.proposal_boxes = free(batch, 20, CLASSES), free(batch, 20, 4)
        self.decoded: list[tuple[int, set[int], int]] = []

    def losses(
        self, criterion: Criterion, targets: list[Target], mask_stride: int = 4, raw: bool = False
    ) -> dict[str, Tensor]:
        def decode(layer: int, images: Tensor, queries: Tensor) -> Tensor:
            self.decoded.append((layer, set(images.tolist()), len(queries)))
            offset = mask_stride // 2
            return self.masks[layer][images, queries, offset::mask_stride, offset::mask_stride]

        predictions = [
            LayerPrediction(logits, boxes.sigmoid())
            for logits, boxes in zip(self.logits, self.boxes, strict=True)
        ]
        proposals = LayerPrediction(self.proposal_logits, self.proposal_boxes.sigmoid())
        call = criterion.raw_losses if raw else criterion
        return call(predictions, proposals, targets, decode, mask_stride=mask_stride)


def matched(model: ToyModel, layer: int, image: int, target: Target) -> Match:
    logits, boxes = model.logits[layer][image], model.boxes[layer][image].sigmoid()
    return match_simota(logits[None], boxes[None], PaddedTargets.from_targets([target]))


def make_target(num: int, seed: int = 0) -> Target:
    generator = torch.Generator().manual_seed(seed)
    boxes = 0.3 + 0.3 * torch.rand(num, 4, generator=generator)
    masks = torch.rand(num, SIZE, SIZE, generator=generator) > 0.5
    return Target(torch.randint(CLASSES, (num,), generator=generator), boxes, masks)


def boxed(target: Target) -> Target:
    generator = torch.Generator().manual_seed(1)
    corners = torch.tensor([4.0, 4.0, 20.0, 25.0]).expand(len(target.boxes), 4)
    return Target(
        labels=target.labels,
        boxes=target.boxes,
        masks=box_masks(corners, (SIZE, SIZE)),
        color_similarity=torch.rand(8, SIZE // 4, SIZE // 4, generator=generator),
    )


BASE = {"loss_ce", "loss_bbox", "loss_giou"}


@pytest.mark.parametrize(
    "mask_aux, from_boxes, terms",
    [
        (False, False, {"loss_mask", "loss_dice"}),
        (True, False, {"loss_mask", "loss_dice", "loss_mask_cls", "loss_mask_iou"}),
        (False, True, {"loss_prj", "loss_pairwise"}),
    ],
)
@pytest.mark.parametrize("counts", [(2, 1), (2, 0), (0, 0)])
def test_names_weights_and_gradients(
    mask_aux: bool, from_boxes: bool, terms: set[str], counts: tuple[int, int]
) -> None:
    model, criterion = ToyModel(), Criterion(mask_aux=mask_aux)
    targets = [make_target(num, seed) for seed, num in enumerate(counts)]
    targets = [boxed(target) for target in targets] if from_boxes else targets
    raw = model.losses(criterion, targets, raw=True)
    losses = model.losses(criterion, targets)
    names = BASE | terms | {f"{name}_0" for name in BASE | terms} | {f"{n}_enc" for n in BASE}
    assert set(losses) == set(raw) == names
    for name, value in losses.items():
        base = name.removesuffix("_0").removesuffix("_enc")
        assert value.shape == () and value.isfinite()
        torch.testing.assert_close(value, raw[name] * WEIGHTS[base])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if sum(counts) == 0:
        assert all(value == 0 for name, value in losses.items() if "loss_ce" not in name)
        assert all(value > 0 for name, value in losses.items() if "loss_ce" in name)
    else:
        assert all(value > 0 for value in losses.values())


def test_only_matched_queries_are_decoded() -> None:
    model = ToyModel()
    model.losses(Criterion(), [make_target(2), make_target(0)])
    assert [(layer, images) for layer, images, _ in model.decoded] == [(0, {0}), (1, {0})]
    assert all(2 <= num < QUERIES for _, _, num in model.decoded)


@pytest.mark.parametrize("stride", [1, 4])
def test_mask_losses_are_means_over_pairs_of_sampled_masks(stride: int) -> None:
    model, targets = ToyModel(), [make_target(2, 0), make_target(1, 1)]
    losses = model.losses(Criterion(mask_aux=True), targets, mask_stride=stride, raw=True)
    logits, masks = [], []
    for image, target in enumerate(targets):
        match = matched(model, -1, image, target)
        for query, instance in zip(match.queries, match.targets, strict=True):
            offset = {1: 0, 4: 2}[stride]
            logits.append(model.masks[-1][image, query][offset::stride, offset::stride])
            masks.append(target.masks[instance][offset::stride, offset::stride].float())
    logits, masks = torch.stack(logits), torch.stack(masks)
    hard, miss = mask_aux_losses(logits, masks)
    wanted = {
        "loss_mask": mask_focal_loss(logits, masks),
        "loss_dice": mask_dice_loss(logits, masks),
        "loss_mask_cls": hard,
        "loss_mask_iou": miss,
    }
    for name, values in wanted.items():
        torch.testing.assert_close(losses[name], values.sum() / len(masks))


@torch.no_grad()
def test_class_and_box_losses_equal_the_loop() -> None:
    model, targets = ToyModel(), [make_target(2, 0), make_target(1, 1)]
    losses = model.losses(Criterion(), targets, raw=True)
    pairs, ce, l1 = 0, 0.0, 0.0
    for image, target in enumerate(targets):
        boxes = model.boxes[0][image].sigmoid()
        match = matched(model, 0, image, target)
        label = {
            int(q): int(target.labels[m]) for q, m in zip(match.queries, match.targets, strict=True)
        }
        pairs += len(match)
        l1 += sum(
            float((boxes[q] - target.boxes[m]).abs().sum())
            for q, m in zip(match.queries, match.targets, strict=True)
        )
        for q in range(QUERIES):
            for c in range(CLASSES):
                ce += slow_focal(float(model.logits[0][image, q, c]), label.get(q) == c)
    assert losses["loss_ce_0"].item() == pytest.approx(ce / pairs, rel=1e-5)
    assert losses["loss_bbox_0"].item() == pytest.approx(l1 / pairs, rel=1e-5)


def test_proposals_know_no_classes() -> None:
    """Changing the labels changes what the decoder is told, never what the encoder is told."""
    model, target = ToyModel(1), make_target(2)
    other = Target((target.labels + 1) % CLASSES, target.boxes, target.masks)
    first, second = (model.losses(Criterion(), [t], raw=True) for t in (target, other))
    assert all(first[f"{name}_enc"] == second[f"{name}_enc"] for name in BASE)
    assert first["loss_ce"] != second["loss_ce"]


def test_box_supervision_uses_box_masks_and_colours() -> None:
    model, target = ToyModel(1), boxed(make_target(2))
    losses = model.losses(Criterion(), [target], raw=True)
    match = matched(model, -1, 0, target)
    logits = model.masks[-1][0, match.queries, 2::4, 2::4]
    masks = target.masks[match.targets, 2::4, 2::4].float()
    similarity = target.color_similarity.expand(len(masks), -1, -1, -1)
    torch.testing.assert_close(losses["loss_prj"], projection_loss(logits, masks).mean())
    torch.testing.assert_close(losses["loss_pairwise"], pairwise_loss(logits, masks, similarity))


def test_sampling_keeps_pairs_together_and_follows_the_seed() -> None:
    images = torch.tensor([0] * 50 + [2] * 40)
    match = Match(images, torch.arange(90) + 200 * images, torch.arange(90))
    torch.manual_seed(0)
    first = sample_pairs(match, 64)
    torch.manual_seed(0)
    second = sample_pairs(match, 64)
    assert len(first) == 64 and torch.equal(first.queries, second.queries)
    assert torch.equal(first.queries, first.targets + 200 * first.images)
    assert torch.equal(first.targets, first.targets.unique())
    assert sample_pairs(match, 90) is match


def test_empty_target_boxes_stay_finite() -> None:
    model, target = ToyModel(1), make_target(2)
    boxes = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.3]])
    losses = model.losses(Criterion(), [Target(target.labels, boxes, target.masks)])
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_give_float32_losses(dtype: torch.dtype) -> None:
    model, target = ToyModel(1), make_target(2)
    wanted = model.losses(Criterion(mask_aux=True), [target])
    losses = model.to(dtype).losses(Criterion(mask_aux=True), [target])
    assert all(value.dtype == torch.float32 for value in losses.values())
    # bfloat16 keeps three digits of the inputs; a match may change by it, the size may not.
    for name, value in losses.items():
        torch.testing.assert_close(value, wanted[name], rtol=0.3, atol=0.05)


def test_own_weights_replace_some() -> None:
    model, target = ToyModel(1), make_target(1)
    plain = model.losses(Criterion(), [target])
    heavy = model.losses(Criterion(weights={"loss_ce": 20.0}), [target])
    torch.testing.assert_close(heavy["loss_ce_0"], 10 * plain["loss_ce_0"])
    assert heavy["loss_giou_enc"] == plain["loss_giou_enc"]

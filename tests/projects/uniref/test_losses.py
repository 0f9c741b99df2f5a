"""From images to losses and back, on a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from projects.uniref.model import UniRef
from unified.modeling.criterion import Criterion
from unified.structures import References, Target

MakeUniRef = Callable[..., UniRef]
SIZES = ((96, 128), (80, 100))


def make_images(num: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [255 * torch.rand(3, *size, generator=generator) for size in SIZES[:num]]


def make_target(num: int, seed: int) -> Target:
    """``num`` rectangles in a batch padded to 96 x 128."""
    generator = torch.Generator().manual_seed(seed)
    boxes = 0.25 + 0.3 * torch.rand(num, 4, generator=generator)
    masks = torch.rand(num, *SIZES[0], generator=generator) > 0.6
    return Target(labels=torch.zeros(num, dtype=torch.int64), boxes=boxes, masks=masks)


def step(
    model: UniRef, kinds: tuple[str, ...], targets: Sequence[Target], *, mask_stride: int = 4
) -> dict[str, Tensor]:
    batch = model.preprocess(make_images(len(targets)))
    features = model.encode_image(batch)
    references: list[References] = []
    if "text" in kinds:
        references.append(model.encode_text(["the red man", "a dog"][: len(targets)]))
    if "mask" in kinds:
        masks = torch.zeros(len(targets), *batch.padded_size, dtype=torch.bool)
        masks[:, 10:50, 20:60] = True
        references.append(model.encode_mask(batch, features, masks))
    return model.losses(features, references, targets, mask_stride=mask_stride)


@pytest.mark.parametrize("counts", [(2, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize(
    "kinds, mask_stride", [((), 4), (("text",), 4), (("mask",), 1), (("text", "mask"), 4)]
)
def test_a_gradient_reaches_every_parameter_in_use(
    build_uniref: MakeUniRef, kinds: tuple[str, ...], mask_stride: int, counts: tuple[int, int]
) -> None:
    model = build_uniref(kinds=kinds).train()
    targets = [make_target(num, seed) for seed, num in enumerate(counts)]
    losses = step(model, kinds, targets, mask_stride=mask_stride)
    torch.stack(list(losses.values())).sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in trained.values() if p.grad is not None)


@pytest.mark.parametrize("mask_stride", [1, 4])
def test_losses_are_repeatable_and_leave_the_model_as_it_was(
    build_uniref: MakeUniRef, mask_stride: int
) -> None:
    model = build_uniref(kinds=("text",))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    targets = [make_target(2, 0), make_target(1, 1)]
    first, second = (step(model, ("text",), targets, mask_stride=mask_stride) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@torch.no_grad()
def test_mask_losses_of_a_batch_lie_between_those_of_its_images(build_uniref: MakeUniRef) -> None:
    """They are means over matched pairs, so nothing of one image may leak into the other."""
    model = build_uniref(kinds=())
    model.criterion = Criterion(mask_aux=True)
    images = [make_images(1)[0]] * 2
    targets = [make_target(2, 0), make_target(1, 1)]
    together, *alone = (
        model.losses(model.encode_image(model.preprocess(chosen)), [], wanted)
        for chosen, wanted in (
            (images, targets),
            (images[:1], targets[:1]),
            (images[1:], targets[1:]),
        )
    )
    for name in ("loss_bbox", "loss_giou_0", "loss_mask", "loss_dice_0", "loss_mask_iou"):
        low, high = sorted(losses[name] for losses in alone)
        assert low < high
        assert low - 1e-5 <= together[name] <= high + 1e-5


def test_a_few_steps_learn_one_image_by_heart(build_uniref: MakeUniRef) -> None:
    model = build_uniref(kinds=("text",)).train()
    mask = torch.zeros(1, *SIZES[0], dtype=torch.bool)
    mask[:, 24:72, 16:80] = True
    box = torch.tensor([[48 / 128, 48 / 96, 64 / 128, 48 / 96]])
    target = Target(labels=torch.tensor([0]), boxes=box, masks=mask)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(50):
        losses = step(model, ("text",), [target])
        history.append({name: float(value.detach()) for name, value in losses.items()})
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    first, last = history[0], history[-1]
    assert last["loss_bbox"] < 0.3 * first["loss_bbox"]
    assert last["loss_dice"] < 0.5 * first["loss_dice"]
    assert sum(last.values()) < 0.3 * sum(first.values())
